"""``backbone.gradient_checkpointing``: layers are computed again in the backward pass, and nothing else changes."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny_runs import built, gradients_of
from torch import nn
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


def trained(loop: training_loop.RunState) -> tuple[dict[str, Any], list[int], Evaluation, list[int]]:
    """What all steps make; calls of each layer in them; what an evaluation says; calls of each layer in that."""
    calls = [0] * len(layers(loop.model))
    for number, layer in enumerate(layers(loop.model)):

        def called(*_: Any, number: int = number) -> None:
            calls[number] += 1

        next(module for module in layer.modules() if isinstance(module, nn.Linear)).register_forward_hook(called)
    made: dict[str, Any] = {"gradients": gradients_of(loop), "budgets": []}
    torch.manual_seed(7)
    for batches in training_loop.training_batches(loop):
        training_loop.step(loop, batches)
        if hasattr(loop.method, "allocator"):
            made["budgets"].append(loop.method.allocator.budget)
    made |= {"weights": {name: p.detach().clone() for name, p in inject.trained(loop.model).items()}}
    made |= {"losses": loop.losses, "random numbers": torch.get_rng_state()}
    in_steps, calls[:] = [*calls], [0] * len(calls)
    return made, in_steps, evaluate(loop, QUIET), calls


@pytest.mark.parametrize(("backbone", "method"), CASES)
def test_losses_gradients_and_figures_are_the_same_to_the_bit(backbone: str, method: str, cache: Path) -> None:
    """With dropout, micro-batches, AdaLoRA's masks and its shared left factors; dropout's draws are made again."""
    usual, again = (trained(run_of(backbone, method, cache, checkpointing)) for checkpointing in (False, True))
    torch.testing.assert_close(again[0], usual[0], rtol=0, atol=0)
    assert len(usual[0]["gradients"]) == STEPS
    assert all(any(gradient.any() for gradient in step.values()) for step in usual[0]["gradients"])
    if method == "adalora":
        matrices = 32 if backbone == "tiny-bart" else 12
        assert usual[0]["budgets"][-1] == 2 * matrices < 4 * matrices  # it pruned

    # one forward a micro-batch, and with checkpoints a second one in its backward pass
    micro_batches = 2 * STEPS * (2 if backbone == "tiny-deberta" else 1)  # DeBERTa's projections serve positions too
    assert usual[1] == [micro_batches] * (4 if backbone == "tiny-bart" else 2)
    assert again[1] == [2 * calls for calls in usual[1]]
    assert again[2] == usual[2]
    assert again[3] == usual[3]  # nothing is computed twice where there is no backward pass
    assert min(usual[3]) > 0
