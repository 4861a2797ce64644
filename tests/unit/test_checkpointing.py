"""``backbone.gradient_checkpointing``: layers are computed again in the backward pass, and nothing else changes."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny_runs import built
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from adalora_repro.models import inject
from adalora_repro.tasks.base import Evaluation
from adalora_repro.training import loop as training_loop
from adalora_repro.training.evaluate import evaluate

#: every backbone with AdaLoRA, and every other kind of change to the modules once
CASES = [(f"tiny-{name}", "adalora") for name in ("bert", "deberta", "roberta", "bart")]
CASES += [("tiny-bert", "full"), ("tiny-bart", "houlsby"), ("tiny-deberta", "pfeiffer")]
STEPS = 4
#: a mask after every step, ranks 4 -> 2
PHASES = ["method.schedule=absolute", "method.t_i=0", "method.t_f=1", "method.delta_t=1"]
QUIET: Any = SimpleNamespace(evaluating=lambda *_: None)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def run_of(backbone: str, method: str, cache: Path, checkpointing: bool) -> training_loop.RunState:
    words = [f"backbone={backbone}", f"method={method}", f"backbone.gradient_checkpointing={checkpointing}"]
    words += ["data.sample_validation_rows=6", "task.max_length=48"]
    words += [f"train.max_steps={STEPS}", "train.grad_accumulation=2", "optim.lr=1e-2", "optim.warmup_steps=0"]
    if backbone == "tiny-bart":
        words += ["task=xsum", "budget=0.26%", "task.max_target_length=12", "task.num_beams=2"]
        words += ["+backbone.architecture.init_std=0.2"]  # far enough from zero to write something
    else:
        words += ["task=rte", "budget=0.3M"]
    if method == "adalora":
        words += PHASES
    return built(cache, *words)


def layers(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]


class Watched:
    """A run's steps, with what they make: the gradients of all that trains, the forward calls inside layers."""

    def __init__(self, loop: training_loop.RunState) -> None:
        self.loop = loop
        self.gradients: list[dict[str, Tensor | None]] = []
        self.pruned: list[int] = []
        self.calls = [0] * len(layers(loop.model))
        for number, layer in enumerate(layers(loop.model)):
            inside = next(module for module in layer.modules() if isinstance(module, nn.Linear))
            inside.register_forward_hook(lambda *_, number=number: self._called(number))
        self._before_update = loop.method.before_update
        loop.method.before_update = self._look  # type: ignore[method-assign]

    def _called(self, number: int) -> None:
        self.calls[number] += 1

    def _look(self, t: int) -> None:
        trained = inject.trained(self.loop.model)
        self.gradients.append({name: None if p.grad is None else p.grad.clone() for name, p in trained.items()})
        self._before_update(t)

    def trains(self) -> dict[str, Tensor]:
        """All steps; what is trained afterwards."""
        for batches in training_loop.training_batches(self.loop):
            training_loop.step(self.loop, batches)
            if hasattr(self.loop.method, "allocator"):
                self.pruned.append(self.loop.method.allocator.budget)
        return {name: p.detach().clone() for name, p in inject.trained(self.loop.model).items()}

    def evaluates(self) -> Evaluation:
        return evaluate(self.loop, QUIET)


@pytest.mark.parametrize(("backbone", "method"), CASES)
def test_losses_gradients_and_figures_are_the_same_to_the_bit(backbone: str, method: str, cache: Path) -> None:
    """With dropout, micro-batches, AdaLoRA's masks and its shared left factors; dropout's draws are made again."""
    usual, again = (Watched(run_of(backbone, method, cache, checkpointing)) for checkpointing in (False, True))
    torch.manual_seed(7)
    trained = usual.trains()
    state = torch.get_rng_state()
    torch.manual_seed(7)
    retrained = again.trains()
    assert torch.equal(torch.get_rng_state(), state)

    # one forward a micro-batch, and with checkpoints a second one in its backward pass
    micro_batches = 2 * STEPS * (2 if backbone == "tiny-deberta" else 1)  # DeBERTa's projections serve positions too
    assert usual.calls == [micro_batches] * (4 if backbone == "tiny-bart" else 2)
    assert again.calls == [2 * calls for calls in usual.calls]

    assert len(again.gradients) == STEPS
    for expected, found in zip(usual.gradients, again.gradients, strict=True):
        assert any(gradient is not None and gradient.any() for gradient in expected.values())
        assert expected.keys() == found.keys()
        for name, gradient in expected.items():
            if gradient is None:
                assert found[name] is None, name
            else:
                assert torch.equal(found[name], gradient), name
    assert [loss.item() for loss in again.loop.losses] == [loss.item() for loss in usual.loop.losses]
    assert trained.keys() == retrained.keys()
    assert all(torch.equal(retrained[name], value) for name, value in trained.items())
    if method == "adalora":
        matrices = 32 if backbone == "tiny-bart" else 12
        assert again.pruned == usual.pruned
        assert again.pruned[-1] == 2 * matrices < 4 * matrices  # it pruned

    usual.calls, again.calls = [0] * len(usual.calls), [0] * len(again.calls)
    assert again.evaluates() == usual.evaluates()
    assert again.calls == usual.calls  # nothing is computed twice where there is no backward pass
    assert min(usual.calls) > 0


def saved_bytes(loop: training_loop.RunState) -> int:
    """Bytes that the forward pass keeps for the backward pass, parameters apart; each storage once."""
    known = {p.untyped_storage().data_ptr() for p in loop.model.parameters()}
    storages: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in known:
            storages[tensor.untyped_storage().data_ptr()] = tensor  # held, so that no address is given twice
        return tensor

    batch = next(iter(training_loop.training_batches(loop)))[0]
    loop.model.train()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss, _ = loop.task.loss(loop.model, batch)
    assert loss.requires_grad
    return sum(tensor.untyped_storage().nbytes() for tensor in storages.values())


@pytest.mark.parametrize(("backbone", "method"), [("tiny-deberta", "adalora"), ("tiny-bart", "lora")])
def test_the_forward_pass_keeps_less(backbone: str, method: str, cache: Path) -> None:
    usual, again = (saved_bytes(run_of(backbone, method, cache, checkpointing)) for checkpointing in (False, True))
    assert again < usual / 2
