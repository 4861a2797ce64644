"""A run's folder: the lease on it, files of an earlier attempt, the settings, the record, and its curve."""

from __future__ import annotations

import math
import os
import re
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from adalora_repro.config.resolve import record_in
from adalora_repro.config.words import command_line
from adalora_repro.errors import InputError
from adalora_repro.records import provenance, run_record, validation
from adalora_repro.records.lock import Lock, LostFolderError
from adalora_repro.training import checkpoint, kept, trackers
from adalora_repro.training.distributed import Processes
from adalora_repro.training.progress import say
from adalora_repro.training.state import RunState

CONFIG = "config.yaml"
ERROR = "error.txt"  # the traceback of a run that failed
SKIPPED = "skipped.json"  # the invalid rows that were left out, by split, one line each
SIZES = ("params", "b_0", "b_T", "n", "r", "d", "wider", "widths")
BUDGET_FIELDS = (*SIZES, "t_i", "t_f", "delta_t", "mask_events", "gamma")


# -- the lease --------------------------------------------------------------------------------------------------


@contextmanager
def leased(folder: Path, processes: Processes) -> Iterator[Lock | None]:
    """Reserves the run's folder for the processes of this run; the main one holds the lease, which ends with it.

    Yields:
        The lease in the main process, None in the others.

    Raises:
        InputError: the folder cannot be written, or another process trains there.
    """
    with ExitStack() as stack:
        locks: list[Lock] = []
        processes.on_main(lambda: locks.append(stack.enter_context(_locked(folder))))
        yield locks[0] if locks else None


@contextmanager
def _locked(folder: Path) -> Iterator[Lock]:
    made = [parent for parent in (folder, *folder.parents) if not parent.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = Lock(folder)
        lock.take(lambda line: say(f"adalora-run: {line}"))
    except OSError as error:
        _remove_empty(made)
        raise InputError(f"results.dir: cannot write {error.filename or folder}: {error.strerror}") from None
    try:
        yield lock
    finally:
        lock.release()
        _remove_empty(made)


def _remove_empty(folders: list[Path]) -> None:
    """A run that failed before it wrote anything leaves no folders."""
    with suppress(OSError):
        for folder in folders:
            folder.rmdir()


# -- an earlier attempt ---------------------------------------------------------------------------------------


def set_aside(folder: Path) -> list[str]:
    """Before a start from step 0 (``force=true``, or nothing to resume): renames the files of an earlier attempt.

    Returns:
        The new, numbered names of its checkpoints: they may be large, and nothing removes them.
    """
    taken = [re.fullmatch(r"[\w.]+\.old-(\d+)(\.\w+)?", path.name) for path in folder.iterdir()]
    number = 1 + max((int(match[1]) for match in taken if match), default=0)
    saved = []
    # checkpoints first: none may be resumed without its log; the record last: until then the folder is a run's
    for name in (*checkpoint.FILES, "log.jsonl", "final", "best", kept.FOLDER, SKIPPED, ERROR, run_record.RECORD_NAME):
        path = folder / name
        if path.exists():
            renamed = path.rename(path.with_suffix(f".old-{number}{path.suffix}"))
            saved += [renamed.name] if name in checkpoint.FILES else []
    return saved


# -- settings and record -------------------------------------------------------------------------------------------


def write_settings(run: RunState) -> None:
    nested = OmegaConf.create()
    for name, value in run_record.stated(run.plan.settings).items():
        OmegaConf.update(nested, name, value)
    text = f"{command_line(run.plan.overrides)}\n{OmegaConf.to_yaml(nested)}"
    run_record.write_atomic(run.plan.folder / CONFIG, text.encode())
    if run.data.skipped:
        run_record.write_files(run.plan.folder, {SKIPPED: run.data.skipped})


def new_record(run: RunState, resumed: bool) -> run_record.RunRecord:
    plan = run.plan
    earlier = record_in(plan.folder) if resumed else None
    return run_record.RunRecord(
        key=plan.key,
        primary_metric=run.task.primary_metric,
        params=plan.params,
        budget={name: plan.method[name] for name in BUDGET_FIELDS if name in plan.method} or None,
        data=run.data.provenance,
        settings=plan.settings,
        memory=earlier.memory if earlier else {},
        environment=provenance.environment(run.device) | {"processes": run.processes.size},
    )


def write_record(run: RunState, record: run_record.RunRecord, status: str, error: str | None = None) -> None:
    """Updates the record from the run and writes it, in the main process.

    Raises:
        LostFolderError: the folder was removed, or another process has it.
    """
    if not run.processes.main:
        return
    run.check_folder()
    record.status, record.error = status, error
    record.best, record.final, record.degenerate = run.best, run.final, bool(run.constant)
    # after a failure the device may fail again when ranks or memory are read: the record is then written without them
    with suppress(Exception) if status == "failed" else nullcontext():
        _measure(run, record)
    record.progress = {"step": run.t, "total_steps": run.plan.total_steps, "updated": time.time()}
    if status == "running":
        record.progress |= {"host": socket.gethostname(), "pid": os.getpid()}
    run_record.write(record, run.plan.folder)


def _measure(run: RunState, record: run_record.RunRecord) -> None:
    """Updates the record's ranks, counts, time and memory."""
    summary = run.method.summary()
    record.rank_pattern = summary.get("rank_pattern")
    if run.final is not None and "params" in summary:
        record.params = record.params | {
            "method": summary["params"],
            "total": summary["params"] + record.params["head"],
        }
    record.time = {
        "train_s": run.train_s,
        "eval_s": run.eval_s,
        "s_per_step": run.train_s / run.t if run.t else 0.0,
        "s_per_epoch": run.train_s / run.t * run.plan.steps_per_epoch if run.t else 0.0,
        "tokens_per_s": run.tokens / run.train_s if run.train_s else 0.0,
    }
    memory, before = provenance.peak_memory(run.device), record.memory
    # an earlier attempt of a resumed run may have needed more
    if before.get("of") != memory["of"] or before.get("peak", 0) < memory["peak"]:
        record.memory = memory


# -- the curve ------------------------------------------------------------------------------------------------------


class Log:
    """``log.jsonl`` of a run, and its trackers; processes other than the main one write to ``os.devnull``."""

    def __init__(self, run: RunState) -> None:
        """Opens the file and cuts off the lines after the checkpoint, which will be written again."""
        self._run, self._path, main = run, run.plan.folder / "log.jsonl", run.processes.main
        self._file = (self._path if main else Path(os.devnull)).open("a+b")
        if main:
            self._file.truncate(min(run.log_bytes, self._path.stat().st_size))
        self._trackers = trackers.start(run.plan, run.t) if main else trackers.Trackers()

    @property
    def length(self) -> int:
        """In bytes."""
        return self._file.seek(0, os.SEEK_END)

    def append(self, line: dict[str, Any]) -> None:
        """Writes a line; a number that is not finite, which JSON does not have, is written as null.

        Raises:
            LostFolderError: the file was removed, or the folder is no longer this run's.
        """
        self._run.check_folder()
        if os.fstat(self._file.fileno()).st_nlink == 0:
            raise LostFolderError(f"{self._path} was removed while the run was training")
        line = _finite(line)
        self._file.write(validation.dump(line))
        self._file.flush()
        self._trackers.log(line)

    def close(self) -> None:
        self._file.close()
        self._trackers.finish()


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def figures(names: Sequence[str], entry: Mapping[str, Any]) -> str:
    """The metrics of these names in an evaluation (such as ``final`` of a record), as text."""

    def text(metrics: Mapping[str, float]) -> str:
        return ", ".join(f"{name} {metrics[name]:.4f}" for name in names if name in metrics)

    return text(entry["metrics"]) + (f"; held out: {text(entry['holdout'])}" if "holdout" in entry else "")
