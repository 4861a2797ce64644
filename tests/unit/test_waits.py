"""No training step makes the host wait for the device: nothing in it reads a value or a size that depends on one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_runs import built

from adalora_repro.models import speedups
from adalora_repro.training import loop as training_loop
from benchmarks.operations import CountOperations


@pytest.mark.parametrize(
    ("task", "backbone", "method"),
    [
        ("sst2", "tiny-bert", "lora"),
        ("sst2", "tiny-bert", "adalora"),
        ("sst2", "tiny-deberta", "adalora"),
        ("squad", "tiny-bert", "adalora"),
        ("xsum", "tiny-bart", "adalora"),
    ],
)
def test_no_step_waits(tmp_path: Path, task: str, backbone: str, method: str) -> None:
    budget = {"sst2": "0.3M", "squad": "0.65%", "xsum": "2.20%"}[task]
    words = (f"task={task}", f"backbone={backbone}", f"method={method}", f"budget={budget}", "train.precision=bf16")
    loop = built(tmp_path, *words)
    speedups.use_4d_masks(loop.model)  # as runner.build does for an accelerator
    speedups.cache_positions(loop.model)
    batches = training_loop.training_batches(loop)
    training_loop.step(loop, next(batches))  # this creates the optimizer's state
    for _ in range(9):  # of all phases, with and without masks
        batch = next(batches)
        with CountOperations() as counted:
            training_loop.step(loop, batch)
        assert counted.waits == 0, counted.counts


@pytest.mark.parametrize(("task", "backbone"), [("sst2", "tiny-bert"), ("xsum", "tiny-bart")])
def test_a_mask_that_is_not_looked_at_gives_the_same_gradients(tmp_path: Path, task: str, backbone: str) -> None:
    loop = built(tmp_path, f"task={task}", f"backbone={backbone}", "method=full")
    batches = [
        batch for parts, _ in zip(training_loop.training_batches(loop), range(3), strict=False) for batch in parts
    ]
    assert any(not batch["attention_mask"].all() for batch in batches)
    loop.model.train()
    for module in loop.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    loop.model.config.dropout = 0.0

    def found() -> list[torch.Tensor]:
        tensors = []
        for batch in batches:
            torch.manual_seed(0)
            loss, _ = loop.task.loss(loop.model, batch)
            tensors += [loss.detach(), *torch.autograd.grad(loss, [*loop.model.parameters()], allow_unused=True)]
        return [tensor for tensor in tensors if tensor is not None]

    before = found()
    with CountOperations() as counted:
        loop.task.loss(loop.model, batches[0])
    assert counted.waits > 0  # or this speedup has become needless
    speedups.use_4d_masks(loop.model)
    torch.testing.assert_close(found(), before)
