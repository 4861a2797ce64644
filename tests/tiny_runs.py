"""A run of a tiny model that is built and not started, so that a test can make its steps."""

from __future__ import annotations

from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from adalora_repro.cli.run import register
from adalora_repro.config.catalog import resource
from adalora_repro.config.resolve import count, resolve
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
