"""What was submitted to a SLURM cluster, and which of it is in the queue.

Standard library only: ``adalora-report status`` asks too. Submitting is the launcher's
(``hydra_plugins/adalora_launcher.py``).
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Container, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from adalora_repro.errors import InputError
from adalora_repro.records import run_record
from adalora_repro.records.run_record import KEY_FIELDS, RecordError, RunRecord
from adalora_repro.records.validation import AMOUNT, a, checked, dump, each, fields, schema

PREFIX = "submitted-"  # results/sweeps/<time>/submitted-<job>.json
ASK_S = 20.0  # squeue itself gives up after 9 s if the controller is down, and never if its answers get lost
JOB = a("a job's id", lambda value: isinstance(value, str) and value.isdecimal())


@dataclass
class Submission:
    """One job array.

    Attributes:
        job: the array's id, as SLURM shows it.
        submitted: Unix time.
        runs: id of the task ("12_3"; "12" where there is no array) -> the key of its run, as in its record.
    """

    job: str = checked(JOB)
    submitted: float = checked(AMOUNT)
    runs: dict[str, dict[str, Any]] = checked(each(fields(KEY_FIELDS)))


def write(submission: Submission, folder: Path) -> None:
    """Writes ``folder/submitted-<job>.json`` atomically."""
    folder.mkdir(parents=True, exist_ok=True)
    run_record.write_atomic(folder / f"{PREFIX}{submission.job}.json", dump(asdict(submission), indent=1))


def read_all(results: Path) -> tuple[list[Submission], list[str]]:
    """All submissions below ``results/sweeps``, oldest first, and a line for each file or folder refused."""
    submissions: list[Submission] = []
    refused: list[str] = []
    for path in run_record.walk(results / "sweeps", lambda name: name.startswith(PREFIX), 1, refused.append):
        try:
            submissions.append(run_record.read_json(path, _submission))
        except (RecordError, FileNotFoundError) as error:
            refused.append(str(error))
    return sorted(submissions, key=lambda submission: submission.submitted), refused


def _submission(values: Any, where: str) -> Submission:
    try:
        schema(Submission)(values, "")
        for key in values["runs"].values():
            run_record.run_folder(Path(), key)
    except ValueError as error:
        raise RecordError(f"{where}: not a submission of adalora-run: {error}") from None
    return Submission(**values)


def in_queue() -> frozenset[str]:
    """Ids of this user's tasks that wait, run or end.

    Raises:
        InputError: there is no squeue here, it failed, or it has no answer within ``ASK_S`` seconds.
    """
    command = ["squeue", "--me", "--noheader", "--array", "--format=%i"]
    env = {name: value for name, value in os.environ.items() if not name.startswith("SQUEUE_")}  # a user's defaults
    try:
        done = subprocess.run(
            command, capture_output=True, encoding="utf-8", errors="replace", check=False, timeout=ASK_S, env=env
        )
    except subprocess.TimeoutExpired:
        raise InputError(f"squeue: no answer within {ASK_S:g} s; is SLURM's controller up?") from None
    except OSError:
        raise InputError("no squeue here; this needs a machine from which SLURM takes jobs") from None
    if done.returncode != 0:
        raise InputError(f"squeue failed: {' '.join(done.stderr.split())}")
    return frozenset(done.stdout.split())


def waiting(results: Path, queue: Container[str]) -> dict[Path, str]:
    """Folder of each run that was submitted and whose task is in the queue -> the task's id."""
    runs = [run for submission in read_all(results)[0] for run in submission.runs.items()]
    return {run_record.run_folder(results, key): task for task, key in runs if task in queue}


def queued(results: Path, existing: Sequence[Path]) -> tuple[list[tuple[Path, RunRecord]], list[str]]:
    """Runs that wait in the queue and have no record yet, as records of a status of their own; lines for people.

    Args:
        existing: the records there are.
    """
    submissions, refused = read_all(results)
    if not submissions:
        return [], refused
    try:
        queue = in_queue()
    except InputError as error:
        return [], [*refused, f"{results / 'sweeps'}: cannot tell which of its runs are queued: {error}"]
    records: dict[Path, RunRecord] = {}
    for submission in submissions:
        for task, key in submission.runs.items():
            if task in queue:
                path = run_record.run_folder(results, key) / run_record.RECORD_NAME
                progress = {"updated": submission.submitted}
                records[path] = RunRecord(key, primary_metric="", status="queued", progress=progress)
    for path in existing:
        records.pop(path, None)
    return list(records.items()), refused
