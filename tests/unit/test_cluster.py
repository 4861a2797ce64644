"""Submissions on disk, and which of them wait in the queue; squeue is a script."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from fake_records import make

from adalora_repro.cli.report import main as report
from adalora_repro.errors import EXIT_OK, InputError
from adalora_repro.records import run_record, slurm

RESULTS = Path("results")
Squeue = Callable[[str], None]


@pytest.fixture(autouse=True)
def squeue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Squeue:
    """Gives squeue a body; it begins with an empty queue."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "bin" / "squeue"
    path.parent.mkdir()
    monkeypatch.setenv("PATH", f"{path.parent}{os.pathsep}{os.environ['PATH']}")

    def write(body: str) -> None:
        path.write_text(f"#!/bin/sh\n{body}\n", encoding="utf-8")
        path.chmod(0o755)

    write("")
    return write


def submitted(job: str, *seeds: int, when: float = 1e9) -> Path:
    """A submission of one run for each seed, as the launcher leaves it."""
    runs = {f"{job}_{task}": dict(make(seed=seed).key) for task, seed in enumerate(seeds)}
    folder = RESULTS / "sweeps" / f"sweep-{job}"
    slurm.write(slurm.Submission(job, when, runs), folder)
    return folder / f"submitted-{job}.json"


def seeds_queued() -> list[int]:
    records, refused = slurm.queued(RESULTS, list(run_record.find(RESULTS)))
    assert not refused
    assert {record.status for _, record in records} <= {"queued"}
    return [record.key["seed"] for _, record in records]


def test_queued_is_what_waits_in_the_queue_and_has_no_record(
    squeue: Squeue, capsys: pytest.CaptureFixture[str]
) -> None:
    assert slurm.queued(RESULTS, []) == ([], [])  # nothing was submitted: squeue is not even asked
    submitted("12", 0, 1, 2)
    submitted("13", 3)
    assert seeds_queued() == []
    squeue("echo 12_0; echo 12_1; echo 13_0; echo 99_0")
    assert seeds_queued() == [0, 1, 3]
    folders = [run_record.run_folder(RESULTS, make(seed=seed).key) for seed in (0, 1, 3)]
    assert slurm.waiting(RESULTS, slurm.in_queue()) == dict(zip(folders, ["12_0", "12_1", "13_0"], strict=True))
    folders[0].mkdir(parents=True)
    run_record.write(make(seed=0, status="running"), folders[0])
    assert seeds_queued() == [1, 3]
    assert report(["status", "--backbone", "minilm"]) == EXIT_OK
    assert "queued" in capsys.readouterr().out


@pytest.mark.parametrize(
    "text",
    ["", "[]", "[" * 10_000]
    + [json.dumps({"job": "1", "submitted": 0, "runs": runs}) for runs in ([], 3, {"1_0": 3}, {"1_0": {"task": "x"}})]
    + [json.dumps({"job": "x; rm", "submitted": 0, "runs": {}})]
    + [json.dumps({"job": "1", "submitted": 0, "runs": {"1_0": dict(make(seed=0).key) | {"task": "../../etc"}}})],
)
def test_a_damaged_file_is_refused_by_name(text: str) -> None:
    path = submitted("12", 0)
    path.write_text(text, encoding="utf-8")
    (line,) = slurm.read_all(RESULTS)[1]
    assert "submitted-12.json" in line


def test_squeue_that_fails_hangs_or_is_missing_is_one_line(squeue: Squeue, monkeypatch: pytest.MonkeyPatch) -> None:
    submitted("12", 0)
    squeue("echo 'slurm_load_jobs error:\n no controller' >&2; exit 1")
    with pytest.raises(InputError, match=r"^squeue failed: slurm_load_jobs error: no controller$"):
        slurm.in_queue()
    records, (line,) = slurm.queued(RESULTS, [])  # a report is made without it
    assert (records, "no controller" in line) == ([], True)
    squeue("exec sleep 30")
    monkeypatch.setattr(slurm, "ASK_S", 0.1)
    with pytest.raises(InputError, match=r"^squeue: no answer within 0\.1 s"):
        slurm.in_queue()
    monkeypatch.setenv("PATH", "")
    with pytest.raises(InputError, match=r"^no squeue here"):
        slurm.in_queue()
