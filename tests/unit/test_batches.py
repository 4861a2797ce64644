"""Which rows make a step, and in which parts they go through the model."""

from itertools import chain, pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_runs import built, gradients_of, without_dropout

from adalora_repro.tasks.base import MULTIPLE
from adalora_repro.training import batches
from adalora_repro.training import loop as training_loop
from adalora_repro.training.state import RunState

LENGTHS = st.lists(st.integers(1, 300), min_size=1, max_size=9)


def padded(cut: list[list[int]], lengths: list[int]) -> int:
    """Tokens, padding included, as the tasks pad."""
    return sum(len(rows) * -(-max(lengths[row] for row in rows) // MULTIPLE) * MULTIPLE for rows in cut)


def ways_to_cut(order: list[int]) -> list[list[list[int]]]:
    """All: after each row or not."""
    n = len(order)
    ways = []
    for chosen in range(2 ** (n - 1)):
        ends = [0, *(i + 1 for i in range(n - 1) if chosen >> i & 1), n]
        ways.append([order[a:b] for a, b in pairwise(ends)])
    return ways


@given(lengths=LENGTHS, pass_tokens=st.integers(0, 400))
def test_no_other_cut_costs_less(lengths: list[int], pass_tokens: int) -> None:
    order = sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True)
    cut = batches.by_length(batches.longest_first(lengths, range(len(lengths))), lengths, pass_tokens)
    assert list(chain.from_iterable(cut)) == order
    least = min(padded(way, lengths) + len(way) * pass_tokens for way in ways_to_cut(order))
    assert padded(cut, lengths) + len(cut) * pass_tokens == least


# -- in a run ------------------------------------------------------------------------------------------------------


SMALL = ("task=rte", "data.sample_rows=300", "train.batch_size=32", "train.max_steps=7")


def steps(loop: RunState) -> list[list[int]]:
    """Which rows each step of two epochs has, in order."""
    lengths = loop.data.train["length"][:]
    return [sorted(rows) for epoch in (0, 1) for rows in batches.steps_of(loop, epoch, lengths)]


def test_only_grouping_changes_which_rows_make_a_step(tmp_path: Path) -> None:
    padded = steps(built(tmp_path, *SMALL, "method=full", "train.padding=max_length"))
    assert steps(built(tmp_path, *SMALL, "method=full")) == padded
    assert steps(built(tmp_path, *SMALL, "method=full", "train.group_by_length=true")) != padded


def test_a_seed_draws_batches_initial_values_and_random_scores(tmp_path: Path) -> None:
    words = (*SMALL, "method=adalora_random", "budget=0.3M")
    one, other = (built(tmp_path, *words, f"seed={seed}") for seed in (0, 1))
    assert steps(one) != steps(other)
    assert not torch.equal(one.model.classifier.weight, other.model.classifier.weight)
    assert not torch.equal(one.method.allocator._random, other.method.allocator._random)


@pytest.mark.parametrize("method", ["full", "adalora"])
def test_cut_steps_have_the_gradients_of_padded_ones(tmp_path: Path, method: str) -> None:
    def found(*words: str) -> tuple[list[dict[str, torch.Tensor]], list[int], int]:
        loop = without_dropout(built(tmp_path, *SMALL, f"method={method}", "budget=0.3M", *words))
        gradients, passes, tokens = gradients_of(loop), [], 0
        for parts in training_loop.training_batches(loop):
            training_loop.step(loop, parts)
            passes.append(len(parts))
            tokens += sum(part["input_ids"].numel() for part in parts)
        return gradients, passes, tokens

    expected, whole, all_tokens = found("train.padding=max_length")
    cut, passes, tokens = found()
    assert set(whole) == {1}
    assert max(passes) > 1
    assert tokens < all_tokens / 2
    torch.testing.assert_close(cut, expected, rtol=2e-3, atol=2e-5)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize(("size", "parts"), [(1, 1), (2, 1), (3, 2), (4, 3), (40, 1)])
def test_processes_share_a_step_evenly(size: int, parts: int, device: str) -> None:
    lengths = [7 + 11 * i % 113 for i in range(100)]
    rows = list(range(40, 72))
    settings = SimpleNamespace(group_by_length=False, padding="longest", grad_accumulation=parts, pass_tokens=128)
    shares = []
    for rank in range(size):
        processes = SimpleNamespace(
            size=size,
            own=lambda items, rank=rank: items[rank::size],
        )
        plan = SimpleNamespace(cfg=SimpleNamespace(train=settings))
        loop: Any = SimpleNamespace(plan=plan, processes=processes, device=torch.device(device))
        shares.append(batches.parts_of(loop, rows, lengths))
    assert sorted(row for share in shares for part in share for row in part) == rows
    assert all(part for share in shares for part in share)
    if device == "cuda":
        assert {len(share) for share in shares} == ({parts} if size < 40 else {0, 1})
    elif size < 4:
        costs = [padded(share, lengths) + 128 * len(share) for share in shares]
        assert max(costs) < 1.2 * min(costs)
        assert max(len(share) for share in shares) > 1


def test_no_part_is_larger_than_accumulation_allows(tmp_path: Path) -> None:
    loop = built(tmp_path, *SMALL, "method=full", "train.grad_accumulation=8")
    tokens = 0
    for parts in training_loop.training_batches(loop):
        tokens += sum(int(part["attention_mask"].sum()) for part in parts)
        sizes: list[Any] = [part["input_ids"].shape for part in parts]
        assert all(rows <= 4 for rows, _ in sizes)
        widths = [width for _, width in sizes]
        assert widths == sorted(widths, reverse=True)
    assert loop.tokens == tokens  # without padding
