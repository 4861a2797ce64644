"""Operations of a training step, counted by the benchmark: AdaLoRA at the cost of LoRA, and none that waits."""

import pytest
import torch
from tiny_runs import built, without_dropout
from transformers import AutoConfig

from adalora_repro.models import speedups
from adalora_repro.training import loop as training_loop
from adalora_repro.training.loop import add_gradient
from benchmarks.operations import CountOperations, count

#: in the place of DeBERTaV3-base's 768 and 3072; not equal, because matrices of one shape are worked on together
NARROW = {"hidden_size": 48, "intermediate_size": 192}


@pytest.fixture
def narrow(monkeypatch):
    """The benchmark's model with small matrices: as many operations, a fraction of the arithmetic."""
    plain = AutoConfig.for_model
    monkeypatch.setattr(AutoConfig, "for_model", lambda *kind, **sizes: plain(*kind, **sizes | NARROW))


def test_adalora_dispatches_at_most_5_percent_more_operations_than_lora(narrow):
    lora, adalora = count("ours", "lora"), count("ours", "adalora")
    assert adalora.counts.total() <= 1.05 * lora.counts.total(), adalora.counts - lora.counts
    assert adalora.waits == lora.waits == 0


WAITS = {
    "mask": (lambda x: x[x > 0], 1),
    "positions": (lambda x: x.masked_fill(x > 0, 1.0)[torch.tensor([0, 2])], 0),
    "item": (lambda x: x.sum().item(), 1),
    "assignment by mask": (lambda x: x.clone().__setitem__(x > 0, torch.ones(2)), 1),
    "truth": (lambda x: bool((x > 0).any()), 1),
    "cast": (lambda x: x.to(torch.bfloat16), 0),
    "another device": (lambda x: x.to("meta"), 1),
    "copy to another device": (lambda x: torch.empty(3, device="meta").copy_(x), 1),
}


@pytest.mark.parametrize(("operation", "waits"), WAITS.values(), ids=WAITS)
def test_operations_of_which_the_host_needs_a_value_are_waits(operation, waits):
    with CountOperations() as counted:
        operation(torch.tensor([1.0, -1.0, 2.0]))
    assert counted.waits == waits


def loop_of(folder, method):
    words = ("task=cola", "data.sample_rows=32", "train.batch_size=8", "train.max_steps=6")
    return without_dropout(built(folder, *words, f"method={method}"))


@pytest.mark.parametrize("method", ["lora", "adalora"])
def test_the_norm_of_the_task_s_gradient_leaves_the_regularizer_out(tmp_path, method):
    loop = loop_of(tmp_path, method)
    batches = next(training_loop.training_batches(loop))
    model, terms, total = loop.model.train(), 0, 0.0
    for batch in batches:
        loss, n = loop.task.loss(model, batch)
        total, terms = total + loss * n, terms + n
    parameters = [p for p in model.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(total / terms, parameters, allow_unused=True)
    expected = sum(float(g.double().square().sum()) for g in gradients if g is not None) ** 0.5
    loop.log_due = True
    norm = training_loop.step(loop, batches)
    assert float(loop.task_norm) == pytest.approx(expected, rel=1e-5)
    assert (float(norm) == float(loop.task_norm)) == (method == "lora")  # LoRA has no regularizer


def test_only_a_step_that_is_logged_measures_it(tmp_path):
    loop = loop_of(tmp_path, "adalora")
    batches = next(training_loop.training_batches(loop))
    training_loop.step(loop, batches)  # this creates the optimizer's state
    counts = []
    for due in (False, True, False):
        loop.log_due, loop.task_norm = due, None
        with CountOperations() as counted:
            training_loop.step(loop, batches)
        assert (loop.task_norm is not None) == due
        counts.append(counted)
    assert counts[0].counts == counts[2].counts
    assert counts[1].waits == counts[0].waits


def test_added_gradient_is_what_backward_would_add_to_the_last_bit():
    torch.manual_seed(0)
    first, second, unused = (torch.nn.Parameter(torch.randn(3)) for _ in range(3))

    def loss() -> torch.Tensor:
        return (first * second).square().sum()

    for parameter in (first, unused):
        parameter.grad = torch.ones(3)
    add_gradient(loss(), [first, second, unused])
    added = [first.grad, second.grad, unused.grad]
    first.grad, second.grad = torch.ones(3), None
    loss().backward()
    assert torch.equal(added[0], first.grad)
    assert torch.equal(added[1], second.grad)
    assert torch.equal(added[2], torch.ones(3))


# -- no training step makes the host wait for the device: nothing in it reads a value or a size that depends on one ----


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
def test_no_step_waits(tmp_path, task, backbone, method):
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
