"""Evaluation: predictions of all processes, the task's metrics, and where both are written."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from adalora_repro.records import run_record
from adalora_repro.tasks.base import Evaluation
from adalora_repro.training import checkpoint
from adalora_repro.training.batches import evaluation_batches, on_device
from adalora_repro.training.folder import Log, figures
from adalora_repro.training.signals import Interrupted
from adalora_repro.training.state import RunState

if TYPE_CHECKING:
    from adalora_repro.training.progress import Watch

LONG_EVALUATION = 200  # batches: a checkpoint is saved first, so that a kill does not cost the steps before it


def evaluate(run: RunState, watch: Watch) -> Evaluation:
    """The task's metrics of the model at its budget (pruned triplets masked), on every evaluation split.

    Raises:
        NonFiniteLossError: a weight is not finite; its predictions might look like a result.
        Interrupted: a signal asked the run to stop.
    """
    run.check_weights()
    run.model.eval()
    autocast = run.processes.accelerator.autocast()
    with run.method.masked(), torch.inference_mode(), run.products(), autocast:
        predictions = {name: run.processes.gathered(_predictions(run, name, watch)) for name in run.data.evaluation}
        files: dict[str, Any] = {}  # kept in the main process, which writes them

        def scored() -> Evaluation:
            evaluation = run.task.metrics(predictions)
            files.update(evaluation.files)
            return replace(evaluation, files={})

        return replace(run.processes.on_main(scored), files=files)


def _predictions(run: RunState, name: str, watch: Watch) -> Iterator[dict[str, Any]]:
    """Yields this process's batches of predictions, on the host; a task keeps only what it needs of them.

    Each batch is launched before the one before it is fetched, so that the device never waits for the host.
    """
    rows, processes = run.data.evaluation[name], run.processes
    batches = evaluation_batches(rows["length"][:], run.plan.cfg.eval.batch_size)
    own = processes.own(batches)
    ready = zip(on_device(run, rows, own, len(own)), own, strict=True)
    before: tuple[dict[str, Tensor], list[int]] | None = None
    for done in range(0, len(batches), processes.size):  # as many rounds in every process: they agree on stopping
        watch.evaluating(name, done, len(batches))
        for batch, index in islice(ready, 1):
            predicted = run.task.predict(run.model, batch)
            if before is not None:
                yield _fetched(*before)
            before = predicted, index
    if before is not None:
        yield _fetched(*before)


def _fetched(predicted: dict[str, Tensor], index: list[int]) -> dict[str, Any]:
    return {name: value.cpu().numpy() for name, value in predicted.items()} | {"index": index}


# -- when one is due ------------------------------------------------------------------------------------------------


def evaluate_due(run: RunState, log: Log, watch: Watch) -> None:
    """Evaluates after step t; if a signal stops the evaluation, the resumed run repeats it.

    Raises:
        Interrupted: a signal asked the run to stop; a checkpoint of the step is saved.
    """
    batches = sum(math.ceil(len(rows) / run.plan.cfg.eval.batch_size) for rows in run.data.evaluation.values())
    saved = batches >= LONG_EVALUATION
    if saved:
        save(run, log)
    began = time.perf_counter()
    try:
        evaluation = evaluate(run, watch)
    except Interrupted:
        if not saved:
            save(run, log)
        raise
    run.eval_s += time.perf_counter() - began
    run.evaluation_due = False
    entry = evaluation.entry | {"step": run.t}
    if run.method.at_final_budget(run.t - 1) and (run.best is None or _score(run, entry) > _score(run, run.best)):
        run.best = entry
        _write_files(run, "best", evaluation)
    if run.t == run.plan.total_steps:
        run.final, run.constant = entry, evaluation.constant
        _write_files(run, "final", evaluation)
    _log(run, evaluation, log, watch)


def evaluate_before(run: RunState, log: Log, watch: Watch) -> None:
    """Before the first step: repeats an evaluation that a signal stopped, or evaluates the untrained model
    (``eval.untrained``)."""
    if run.evaluation_due:
        evaluate_due(run, log, watch)
    elif run.plan.cfg.eval.untrained and run.t == 0:
        _log(run, evaluate(run, watch), log, watch)


def save(run: RunState, log: Log) -> None:
    """A checkpoint of step t.

    Raises:
        NonFiniteLossError: a weight is not finite after a step whose loss was; no run could resume from it.
    """
    run.check_weights()
    run.log_bytes = log.length
    state = run.state_dict()

    def write() -> None:
        run.check_folder()
        checkpoint.save(run.plan.folder, state)

    run.processes.on_main(write)


def _score(run: RunState, entry: dict[str, Any]) -> float:
    score: float = run_record.figures_to_choose_by(entry)[run.task.primary_metric]
    return score


def _write_files(run: RunState, name: str, evaluation: Evaluation) -> None:
    def write() -> None:
        run.check_folder()
        run_record.write_files(run.plan.folder / name, evaluation.files)

    run.processes.on_main(write)


def _log(run: RunState, evaluation: Evaluation, log: Log, watch: Watch) -> None:
    line = {"t": run.t, "evaluation": evaluation.metrics}
    log.append(line if evaluation.holdout is None else line | {"holdout": evaluation.holdout})
    watch.progress.line(run.t, figures(run.plan.measured, evaluation.entry))
