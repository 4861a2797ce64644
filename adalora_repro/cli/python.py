"""``adalora_repro.run``: one run from Python, with the words of ``adalora-run``."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf

from adalora_repro.cli.arguments import require_one_config_dir, use_config_dir
from adalora_repro.cli.hydra_errors import checked, explain, plan_errors
from adalora_repro.cli.run import announced, refuse_launcher, register
from adalora_repro.config.catalog import resource
from adalora_repro.config.plan import Plan
from adalora_repro.config.resolve import ended_since, finished, record_in, resolve
from adalora_repro.config.words import override_value
from adalora_repro.errors import EXIT_OK, InputError
from adalora_repro.records import run_record
from adalora_repro.records.run_record import RunRecord


def run(*words: str) -> RunRecord:
    """Trains one run and returns its record, as ``adalora-run WORD …`` does.

    A finished run is not trained again, an interrupted one goes on.

    Args:
        words: ``task=cola``, ``method=lora``, ``optim.lr=1e-3``, …; ``--config-dir=DIR`` before them.

    Raises:
        InputError: wrong input; nothing was trained.
        RuntimeError: the run failed or was interrupted; the message is its record's error, or says that it has none.
        KeyboardInterrupt: a signal came after the last step; the run is finished.
    """
    began = time.time()
    plan = plan_of(*words)
    if plan.cfg.dry_run or plan.cfg.measure == "cost":
        raise InputError("run trains; dry_run=true and measure=cost are for adalora-run")
    if plan.cfg.force or finished(plan) is None:
        plan = announced(plan)
        from adalora_repro.training.runner import execute

        if (code := execute(plan)) != EXIT_OK:
            if ended_since(plan, began) == "ok":
                raise KeyboardInterrupt(f"{plan.folder} is finished")
            record = record_in(plan.folder)
            error = record.error if record else None  # none if the run's folder was removed or taken over meanwhile
            raise RuntimeError(f"{plan.folder}: {error or f'exit code {code}; standard error says why'}")
    return run_record.read(plan.folder / run_record.RECORD_NAME)


def plan_of(*words: str) -> Plan:
    """The plan of ``adalora-run WORD …``, without counts.

    Raises:
        InputError: wrong input.
    """
    if wrong := [word for word in words if not isinstance(word, str)]:
        raise InputError(f"run: each word is a text of its own, run('task=cola', 'method=lora'), not {wrong[0]!r}")
    require_one_config_dir(words)
    folder = next((word.partition("=")[2] for word in words if word.startswith("--config-dir=")), None)
    use_config_dir(folder)
    words = tuple(word for word in words if not word.startswith("--config-dir="))
    path = [] if folder is None else [f"hydra.searchpath=[{override_value(f'file://{os.path.abspath(folder)}')}]"]
    with _own_hydra():
        try:
            checked(words, multirun=False)
            cfg = compose("config", [*words, *path], return_hydra_config=True)
        except InputError:
            raise
        except Exception as error:
            raise InputError(explain(error, words)) from None
    choices = dict(cfg.hydra.runtime.choices)
    refuse_launcher(cfg, choices)
    own = DictConfig({key: value for key, value in OmegaConf.to_container(cfg).items() if key != "hydra"})  # type: ignore[union-attr]
    with plan_errors(words):
        return resolve(own, choices, words)


@contextmanager
def _own_hydra() -> Iterator[None]:
    """Hydra over our configuration; the caller's own is there again afterwards."""
    instance = GlobalHydra.instance()
    before, instance.hydra = instance.hydra, None
    try:
        register()
        with initialize_config_dir(str(resource("conf").absolute()), version_base="1.3"):
            yield
    finally:
        instance.hydra = before
