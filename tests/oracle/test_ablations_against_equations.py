"""Pruned LoRA, R on LoRA and the uniform allocation against slow loops."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from adalora_repro.lowrank import BudgetSchedule, LoRALinear, RankAllocator, orthogonality_penalty
from adalora_repro.lowrank import importance as imp
from tests.oracle import slow_adalora

SHAPES = [(5, 4, 3), (6, 4, 3), (5, 4, 3), (3, 7, 2)]  # (d_out, d_in, r); two of equal shape, not adjacent
TOTAL = sum(r for *_, r in SHAPES)


def make_layers(seed: int) -> dict[str, LoRALinear]:
    torch.manual_seed(seed)
    return {
        f"m{k}": LoRALinear(nn.Linear(d_in, d_out), r, alpha=8.0).double() for k, (d_out, d_in, r) in enumerate(SHAPES)
    }


def as_lists(layers: dict[str, LoRALinear], grad: bool = False) -> list:
    return [
        tuple((p.grad if grad else p).detach().tolist() for p in (layer.lora_B, layer.lora_A))
        for layer in layers.values()
    ]


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 1000),
    t_i=st.integers(0, 4),
    t_f=st.integers(1, 4),
    delta_t=st.integers(1, 5),
    b_T=st.integers(0, TOTAL),
    betas=st.tuples(*[st.sampled_from([0.0, 0.3, 0.85])] * 2),
)
def test_pruned_lora_is_algorithm_1_with_doublets(seed, t_i, t_f, delta_t, b_T, betas):
    layers = make_layers(seed)
    parameters = [p for layer in layers.values() for p in (layer.lora_A, layer.lora_B)]
    optimizer = torch.optim.AdamW(parameters, lr=0.05)
    steps = 12
    allocator = RankAllocator(layers, BudgetSchedule(TOTAL, b_T, t_i, t_f, steps), delta_t, *betas)
    slow = slow_adalora.SlowDoublets(SHAPES, *betas)
    fixed = None
    for t in range(steps):
        for p in parameters:
            p.grad = torch.randn_like(p)
        if fixed is None:
            slow.update(as_lists(layers), as_lists(layers, grad=True))
        allocator.observe(t)
        optimizer.step()
        trained = [(layer.lora_A.detach().clone(), layer.lora_B.detach().clone()) for layer in layers.values()]
        allocator.allocate(t)

        kept = [[True] * r for *_, r in SHAPES]
        if fixed is not None:
            kept = fixed
        elif t == steps - t_f or (t_i <= t < steps - t_f and t % delta_t == 0):
            kept = slow_adalora.keep_exactly(slow.scores(), slow_adalora.schedule(t, TOTAL, b_T, t_i, t_f, steps))
            fixed = kept if t == steps - t_f else None
        for layer, (A, B), keep in zip(layers.values(), trained, kept, strict=True):
            mask = torch.tensor(keep, dtype=A.dtype)
            assert torch.equal(layer.lora_A, A * mask.unsqueeze(1)), f"t={t}"
            assert torch.equal(layer.lora_B, B * mask), f"t={t}"
    assert allocator.budget == b_T
    assert list(allocator.rank_pattern().values()) == [sum(row) for row in fixed]


@settings(max_examples=50, deadline=None)
@given(
    rows=st.lists(st.lists(st.sampled_from([0.0, 0.5, 1.0, 2.0]), min_size=1, max_size=5), min_size=1, max_size=5),
    data=st.data(),
)
def test_an_even_budget_is_dealt_round_after_round(rows, data):
    budget = data.draw(st.integers(0, sum(map(len, rows))))
    scores = torch.tensor([score for row in rows for score in row])
    levelled = imp.level(scores, [len(row) for row in rows])
    assert sorted(levelled.tolist()) == list(range(1, len(scores) + 1))
    expected = [kept for row in slow_adalora.keep_evenly(rows, budget) for kept in row]
    assert imp.keep_top(levelled, budget).tolist() == expected
    assert imp.keep_above_threshold(levelled, budget).tolist() == expected  # no ties


@pytest.mark.parametrize("seed", range(3))
def test_penalties_on_b_and_a(seed):
    layers = make_layers(seed)
    with torch.no_grad():
        for layer in layers.values():
            layer.lora_B.normal_()
    pairs = as_lists(layers)
    squared = sum(slow_adalora.penalty(B, A) for B, A in pairs)
    assert orthogonality_penalty(layers).item() == pytest.approx(squared, rel=1e-12)
    columns = [[list(column) for column in zip(*B, strict=True)] for B, _ in pairs]
    cosines = [slow_adalora.mean_cosine(rows) for rows in (*columns, *(A for _, A in pairs))]
    assert orthogonality_penalty(layers, "mean_cosine").item() == pytest.approx(sum(cosines) / len(cosines), rel=1e-12)
