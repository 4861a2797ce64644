"""A run of a tiny model that is built and not started, so that a test can make its steps."""

from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from torch import Tensor

from adalora_repro.cli.run import register
from adalora_repro.config.catalog import resource
from adalora_repro.config.resolve import count, resolve
from adalora_repro.models import inject
from adalora_repro.training import runner
from adalora_repro.training.state import RunState

#: a word given again wins
DEFAULTS = (
    *("task=sst2", "backbone=tiny-bert", "data=sample", "data.sample_rows=16", "data.sample_validation_rows=8"),
    *("train.device=cpu", "train.batch_size=4", "train.max_steps=10", "method.schedule=scaled"),
)


def built(folder: Path, *words: str) -> RunState:
    """The run of ``adalora-run`` with these words; tokens are cached in ``folder``."""
    given = {word.lstrip("+").partition("=")[0] for word in words}
    defaults = [word for word in DEFAULTS if word.partition("=")[0] not in given]
    every = [*defaults, *words, f"data.cache_dir={folder / 'cache'}", f"results.dir={folder / 'results'}"]
    if GlobalHydra.instance().is_initialized():  # by the fixture ``hydra``
        return runner.build(count(resolve(compose("config", every), overrides=every)))
    register()
    with initialize_config_dir(str(resource("conf").absolute()), version_base="1.3"):
        return runner.build(count(resolve(compose("config", every), overrides=every)))


def without_dropout(run: RunState) -> RunState:
    """The same run, every dropout at 0: of modules, and what functions read from a module or the configuration."""
    for owner in (run.model.config, *run.model.modules()):
        for name in ("p", "dropout", "activation_dropout", "attention_dropout"):
            if isinstance(getattr(owner, name, None), float):
                setattr(owner, name, 0.0)
    return run


def gradients_of(run: RunState) -> list[dict[str, Tensor]]:
    """The gradients of every step to come, as they are before its update."""
    gradients: list[dict[str, Tensor]] = []
    before_update = run.method.before_update

    def look(t: int) -> None:
        trained = inject.trained(run.model).items()
        gradients.append({name: p.grad.clone() for name, p in trained if p.grad is not None})
        before_update(t)

    run.method.before_update = look
    return gradients


def inputs_of(run: RunState) -> dict[str, Tensor]:
    """What the run's model can be asked."""
    ids = torch.randint(5, run.model.config.vocab_size, (3, 12), generator=torch.Generator().manual_seed(2))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    return inputs | ({"decoder_input_ids": ids[:, :4]} if run.model.config.is_encoder_decoder else {})


def logits(model: Any, inputs: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        answer: Tensor = model.eval()(**inputs).logits
    return answer
