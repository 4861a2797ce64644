"""On a real accelerator: no operation of a step makes the host wait, and the results are those of a CPU."""

import json
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import built, without_dropout
from torch import nn

from adalora_repro.lowrank.allocator import RankAllocator
from adalora_repro.lowrank.layers import LoRALinear, LowRankLinear, SVDLinear
from adalora_repro.lowrank.schedule import BudgetSchedule
from adalora_repro.training import cost
from adalora_repro.training import loop as training_loop

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")]

CELLS = [
    ("sst2", "tiny-bert", "0.3M"),
    ("sst2", "tiny-deberta", "0.3M"),
    ("squad", "tiny-bert", "0.65%"),
    ("xsum", "tiny-bart", "2.20%"),
]


@pytest.fixture
def waits_are_errors() -> Iterator[Callable[[], None]]:
    """Yields a function that makes torch raise an error where the host would wait for the device."""
    yield lambda: torch.cuda.set_sync_debug_mode("error")
    torch.cuda.set_sync_debug_mode("default")


def words_of(task: str, backbone: str, budget: str, method: str, precision: str) -> list[str]:
    return f"task={task} backbone={backbone} budget={budget} method={method} train.precision={precision}".split()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("method", ["lora", "adalora"])
@pytest.mark.parametrize(("task", "backbone", "budget"), CELLS)
def test_no_step_waits(
    tmp_path: Path,
    waits_are_errors: Callable[[], None],
    task: str,
    backbone: str,
    budget: str,
    method: str,
    precision: str,
) -> None:
    loop = built(tmp_path, *words_of(task, backbone, budget, method, precision), "train.device=cuda")
    batches = list(training_loop.training_batches(loop))
    training_loop.step(loop, batches[0])  # this creates the optimizer's state
    waits_are_errors()
    for batch in batches[1:]:  # of all phases, with and without masks
        training_loop.step(loop, batch)


def test_the_check_for_waits_sees_one(waits_are_errors: Callable[[], None]) -> None:
    value = torch.ones(1, device="cuda")
    waits_are_errors()
    with pytest.raises(RuntimeError, match="synchronizing"):
        value.item()


# -- the same as on a CPU ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", ["paper", "released"])
@pytest.mark.parametrize("kind", [SVDLinear, LoRALinear])
@pytest.mark.parametrize("score", ["importance", "sensitivity", "magnitude"])
def test_the_same_gradients_give_the_same_masks(score: Any, kind: type[LowRankLinear], protocol: Any) -> None:
    if score == "magnitude" and kind is LoRALinear:
        pytest.skip("doublets have no magnitude")
    steps, rank = 30, 6
    torch.manual_seed(0)
    shapes = [(24, 16), (16, 24), (16, 16), (24, 16)]

    def layers() -> dict[str, LowRankLinear]:
        return {str(i): kind(nn.Linear(d_in, d_out), rank, 8.0) for i, (d_out, d_in) in enumerate(shapes)}

    allocators = []
    for device in ("cpu", "cuda"):
        made = {name: layer.to(device) for name, layer in layers().items()}
        schedule = BudgetSchedule(rank * len(shapes), 9, 4, 6, steps)
        allocators.append(RankAllocator(made, schedule, delta_t=2, score=score, protocol=protocol))
    masks = set()
    for t in range(steps):
        here, there = (list(allocator.layers.values()) for allocator in allocators)
        for mine, other in zip(here, there, strict=True):
            for name, parameter in mine.named_parameters():
                if "lora" in name:
                    value, gradient = torch.randn_like(parameter), torch.randn_like(parameter)
                    twin = other.get_parameter(name)
                    parameter.data.copy_(value)
                    twin.data.copy_(value)
                    parameter.grad, twin.grad = gradient, gradient.to("cuda")
        for allocator in allocators:
            allocator.observe(t)
            allocator.allocate(t)
        patterns = [tuple(allocator.rank_pattern().values()) for allocator in allocators]
        assert patterns[0] == patterns[1]
        assert torch.equal(allocators[0]._mask, allocators[1]._mask.cpu())
        masks.add(patterns[0])
    assert len(masks) > 3  # they did change


@pytest.mark.parametrize("method", ["lora", "adalora"])
@pytest.mark.parametrize(("task", "backbone", "budget"), CELLS)
def test_losses_are_those_of_a_cpu(tmp_path: Path, task: str, backbone: str, budget: str, method: str) -> None:
    """In fp32 without dropout, over ten steps with masks: up to the order of sums."""
    losses = []
    for device in ("cpu", "cuda"):
        words = words_of(task, backbone, budget, method, "fp32")
        loop = without_dropout(built(tmp_path, *words, f"train.device={device}"))
        for batches in training_loop.training_batches(loop):
            training_loop.step(loop, batches)
        loop.look()
        losses.append(loop.looked)
    assert len(losses[0]) == 10
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)


def test_peak_memory_after_other_runs_is_that_of_a_new_process(tmp_path: Path) -> None:
    """``measure=cost`` measures it in the process in which other models lived before."""
    plan = built(tmp_path, *words_of("sst2", "tiny-deberta", "0.3M", "adalora", "bf16"), "train.device=cuda").plan
    batches = [[[0, 1, 2, 3]], [[4, 5, 6, 7]]]
    here = cost.peak_here(plan, batches)
    script = "from adalora_repro.training import cost; cost.answer()"
    alone = subprocess.run(
        [sys.executable, "-c", script], input=pickle.dumps(((), plan, batches)), capture_output=True, check=True
    )
    assert here["peak"] == pytest.approx(json.loads(alone.stdout.splitlines()[-1])["peak"], rel=0.05)
