"""What was submitted to a SLURM cluster: kept beside the sweep, looked up in the queue, cancelled.

Standard library only: ``adalora-report status`` reads the submissions. Submitting itself is the launcher's
(``hydra_plugins/adalora_launcher.py``).
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from adalora_repro.errors import EXIT_OK, InputError
from adalora_repro.records import run_record
from adalora_repro.records.run_record import KEY_FIELDS, RecordError, RunRecord
from adalora_repro.records.validation import AMOUNT, TEXT, a, dump, each, fields, items, optional
from adalora_repro.terminal import clean

PREFIX = "submitted-"  # results/sweeps/<time>/submitted-<job>.json
USAGE = "adalora-run cancel [JOB_ID …] [results.dir=DIR]"
ASK_S = 20.0  # where the controller is down squeue says so itself, after 9 s; where answers get lost it just waits
#: what a submission must look like
FIELDS = fields(
    {
        "job": a("a job's id", lambda value: isinstance(value, str) and value.isdecimal()),
        "submitted": AMOUNT,
        "cwd": TEXT,
        "runs": each(fields({"key": fields(KEY_FIELDS), "result": TEXT}, {"folder": TEXT, "words": items(TEXT)})),
    },
    {"cancelled": optional(AMOUNT)},
    closed=True,
)
KILL_S = 60.0  # how long cancelled tasks may take to save a checkpoint and leave the queue


@dataclass
class Submission:
    """One job array.

    Attributes:
        job: the array's id, as SLURM shows it.
        submitted: Unix time; ``cancelled`` likewise, by ``adalora-run cancel``.
        cwd: the folder that the runs start in.
        runs: id of the task ("12_3") -> ``folder`` of the run, its ``key`` as in its record, its ``words`` for
            adalora-run, and the files that submitit leaves: ``log`` and, when the task has ended, ``result``.
    """

    job: str
    submitted: float
    cwd: str
    runs: dict[str, dict[str, Any]] = field(default_factory=dict)
    cancelled: float | None = None


def write(submission: Submission, folder: Path) -> Path:
    """Writes ``folder/submitted-<job>.json`` atomically and returns its path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{PREFIX}{submission.job}.json"
    run_record.write_atomic(path, dump(asdict(submission), indent=1))
    return path


def read(path: Path) -> Submission:
    """Reads and validates one submission.

    Raises:
        RecordError: damaged or foreign; the message names the file and why.
    """
    try:
        return run_record.read_json(path, _submission)
    except FileNotFoundError:
        raise RecordError(f"{path}: not found") from None


def _submission(values: Any, where: str) -> Submission:
    def refuse(why: str) -> RecordError:
        return RecordError(f"{where}: not a submission of adalora-run: {why}")

    if not isinstance(values, dict):
        raise refuse("not a JSON object")
    FIELDS(values, "", refuse)
    for task, run in values["runs"].items():
        try:
            run_record.run_folder(Path(), run["key"])
        except RecordError as error:
            raise refuse(f"runs.{task}: {error}") from None
    return Submission(**values)


def read_all(results: Path) -> tuple[dict[Path, Submission], list[str]]:
    """All submissions below ``results/sweeps``, and a line for each file or folder refused."""
    submissions: dict[Path, Submission] = {}
    refused: list[str] = []
    for path in run_record.walk(results / "sweeps", _is_submission, 1, refused.append):
        if path.parent.parent == results / "sweeps":
            try:
                submissions[path] = read(path)
            except RecordError as error:
                refused.append(str(error))
    return submissions, refused


def _is_submission(name: str) -> bool:
    return name.startswith(PREFIX) and name.endswith(".json")


def queued(results: Path, known: Sequence[Path]) -> tuple[list[tuple[Path, RunRecord]], list[str]]:
    """Runs that were submitted, not cancelled and left nothing yet, as records of a status of their own.

    From files alone: a task that died before it could write anything counts until its run is submitted again.

    Args:
        known: the records there are.
    """
    submissions, refused = read_all(results)
    left: dict[Path, RunRecord] = {}
    for submission in sorted(submissions.values(), key=lambda one: one.submitted):
        for run in submission.runs.values():
            path = run_record.run_folder(results, run["key"]) / run_record.RECORD_NAME
            left.pop(path, None)
            if submission.cancelled is None and not os.path.exists(run["result"]):
                left[path] = _unstarted(run["key"], submission)
    return [(path, record) for path, record in left.items() if path not in set(known)], refused


def _unstarted(key: dict[str, Any], submission: Submission) -> RunRecord:
    return RunRecord(key, primary_metric="", status="queued", progress={"updated": submission.submitted})


# -- SLURM's own commands ------------------------------------------------------------------------------------------


def slurm(*words: str) -> str:
    """Runs one of SLURM's commands and returns what it prints.

    Raises:
        InputError: there is no such command here, it failed, or it has no answer within ``ASK_S`` seconds.
    """
    try:
        done = subprocess.run(
            words, capture_output=True, encoding="utf-8", errors="replace", check=False, timeout=ASK_S
        )
    except subprocess.TimeoutExpired:
        raise InputError(f"{words[0]}: no answer within {ASK_S:g} s; is SLURM's controller up?") from None
    except OSError:
        raise InputError(f"no {words[0]} here; this needs a machine from which SLURM takes jobs") from None
    if done.returncode != 0:
        raise InputError(f"{words[0]} failed: {' '.join(done.stderr.split())}")
    return done.stdout


def in_queue() -> dict[str, str]:
    """Id of each of this user's tasks that waits, runs or ends ("12_3"; "12" where there is no array) -> its state.

    Raises:
        InputError: squeue cannot be asked.
    """
    lines = slurm("squeue", "--me", "--noheader", "--array", "--format=%i %T").splitlines()
    return dict(line.split() for line in lines)


def tasks_of(job: str, queue: Mapping[str, str]) -> list[str]:
    return [task for task in queue if task.partition("_")[0] == job]


def waiting(results: Path, queue: Mapping[str, str]) -> dict[Path, str]:
    """Folder of each run that was submitted and whose task is in the queue -> the task's id."""
    submissions, _ = read_all(results)
    runs = [(task, run) for submission in submissions.values() for task, run in submission.runs.items()]
    return {run_record.run_folder(results, run["key"]): task for task, run in runs if task in queue}


def _folder(word: str) -> str:
    """The folder of ``results.dir=…``, read by Hydra's grammar as in the command of a run.

    Raises:
        HydraException, OmegaConfBaseException: it cannot be read.
        InputError: there are several values.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from omegaconf import OmegaConf

    from adalora_repro.config.schema import ResultsConfig

    (override,) = OverridesParser.create().parse_overrides([word])
    if override.is_sweep_override():
        raise InputError(f"cancel: {word}: give one folder; put a name with a comma in quotes")
    return str(OmegaConf.merge(OmegaConf.structured(ResultsConfig), {"dir": override.value()}).dir)


def cancel(words: Sequence[str]) -> int:
    """``adalora-run cancel [JOB_ID …] [results.dir=DIR]``: the jobs submitted from there, or these of them.

    Raises:
        InputError: a word that is neither, a job that was not submitted from there, SLURM cannot be asked.
    """
    results, jobs = Path("results"), []
    if {"-h", "--help"} & set(words):
        print(USAGE)
        return EXIT_OK
    for word in words:
        if word.startswith("results.dir=") and word != "results.dir=":
            results = Path(_folder(word)).expanduser()
        elif word.isdecimal():
            jobs.append(word)
        else:
            raise InputError(f"cancel: '{word}' is no job id; {USAGE}")
    submissions, refused = read_all(results)
    for line in refused:
        print(f"adalora-run: note: {clean(line)}", file=sys.stderr)
    recorded = {submission.job: path for path, submission in submissions.items()}
    for job in jobs:
        if job not in recorded:
            known = ", ".join(recorded) or "none"
            raise InputError(f"cancel: job {job} was not submitted from {results}; valid: {known}")
    queue = in_queue() if recorded else {}
    found = []
    for job in dict.fromkeys(jobs or recorded):
        tasks = tasks_of(job, queue)
        if not tasks:
            continue
        slurm("scancel", job)
        submission = submissions[recorded[job]]
        submission.cancelled = time.time()
        write(submission, recorded[job].parent)
        states = Counter(queue[task].lower() for task in tasks)
        counts = ", ".join(f"{count} {state}" for state, count in sorted(states.items()))
        print(f"cancelled: job {job}, {counts}; the same sweep goes on with its runs")
        found.append(job)
    end = time.monotonic() + KILL_S  # until then a task is in the queue, and would not be submitted again
    while time.monotonic() < end and any(tasks_of(job, in_queue()) for job in found):
        time.sleep(1)
    if not found:
        print(f"nothing to cancel: no {'such job' if jobs else 'job'} of {results} is in the queue")
    return EXIT_OK
