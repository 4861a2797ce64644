"""Submissions on disk, and what becomes of them in the queue; SLURM's commands are played."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from fake_records import make

from adalora_repro.cli import slurm as slurm_queue
from adalora_repro.cli.report import main as report
from adalora_repro.errors import EXIT_OK, InputError
from adalora_repro.records import run_record
from adalora_repro.records.run_record import RECORD_NAME, RecordError

RESULTS = Path("results")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def submitted(job: str, *seeds: int, when: float = 1e9, **changes: Any) -> Path:
    """A submission of one run for each seed, as the launcher leaves it."""
    runs = {}
    for task, seed in enumerate(seeds):
        key = make(seed=seed).key
        result = Path("jobs").absolute() / f"{job}_{task}_0_result.pkl"
        runs[f"{job}_{task}"] = {
            "folder": str(run_record.run_folder(RESULTS, key)),
            "key": key,
            "words": [f"seed={seed}"],
            "log": str(result.with_name("log")),
            "result": str(result),
        }
    submission = slurm_queue.Submission(job, when, str(Path.cwd()), runs, **changes)
    return slurm_queue.write(submission, RESULTS / "sweeps" / f"sweep-{job}")


def queue(
    monkeypatch: pytest.MonkeyPatch, states: dict[str, str], looks_until_gone: float = 0
) -> list[tuple[str, ...]]:
    """squeue and scancel, and a clock that only waiting moves; returns the other commands that were run.

    Args:
        looks_until_gone: how often squeue still has a cancelled task.
    """
    commands: list[tuple[str, ...]] = []
    looks: dict[str, int] = {}
    clock = [0.0]

    def slurm(*words: str) -> str:
        if words[0] == "squeue":
            left = {task: state for task, state in states.items() if looks.get(task, 0) <= looks_until_gone}
            looks.update({task: looks[task] + 1 for task in left if task in looks})
            return "".join(f"{task} {state}\n" for task, state in left.items())
        commands.append(words)
        looks.update(dict.fromkeys(slurm_queue.tasks_of(words[1], states), 1))
        return ""

    def sleep(seconds: float) -> None:
        clock[0] += seconds

    monkeypatch.setattr(slurm_queue, "slurm", slurm)
    monkeypatch.setattr(slurm_queue.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(slurm_queue.time, "sleep", sleep)
    return commands


def seeds_queued() -> list[int]:
    found, refused = slurm_queue.queued(RESULTS, list(run_record.find(RESULTS)))
    assert not refused
    assert {record.status for _, record in found} <= {"queued"}
    return [record.key["seed"] for _, record in found]


def test_what_is_written_is_read_again() -> None:
    path = submitted("12", 0, 1)
    assert path == RESULTS / "sweeps" / "sweep-12" / "submitted-12.json"
    found, refused = slurm_queue.read_all(RESULTS)
    assert (list(found), refused) == ([path], [])
    assert found[path].runs["12_1"]["key"]["seed"] == 1
    assert found[path].cancelled is None


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", "[" * 10_000]
    + [
        json.dumps({"job": "1", "submitted": 0, "cwd": "", "runs": runs})
        for runs in ([], 3, {"1_0": 3}, {"1_0": {}}, {"1_0": {"key": {"task": "x"}, "result": "y"}})
    ]
    + [json.dumps({"job": "x; rm", "submitted": 0, "cwd": "", "runs": {}})],
)
def test_a_damaged_file_is_refused_by_name(text: str) -> None:
    path = submitted("12", 0)
    path.write_text(text, encoding="utf-8")
    with pytest.raises(RecordError, match=r"submitted-12\.json: "):
        slurm_queue.read(path)
    assert len(slurm_queue.queued(RESULTS, [])[1]) == 1


def test_queued_is_what_left_neither_record_nor_result(capsys: pytest.CaptureFixture[str]) -> None:
    submitted("12", 0, 1, 2)
    assert seeds_queued() == [0, 1, 2]
    done = make(seed=0)
    folder = run_record.run_folder(RESULTS, done.key)
    folder.mkdir(parents=True)
    run_record.write(done, folder)
    Path("jobs").mkdir()
    Path("jobs/12_1_0_result.pkl").touch()  # refused in its job: no record
    assert seeds_queued() == [2]
    assert report(["status", "--backbone", "minilm"]) == EXIT_OK
    out = capsys.readouterr().out
    assert "2 runs: 1 finished, 1 queued" in out
    assert "Queued (submitted to a cluster, not begun):\n  cola lora 0.3M lr 1e-3 seed 2\n" in out
    assert any("1 q1" in line for line in out.splitlines() if line.startswith("LoRA 0.3M"))


def test_the_last_submission_of_a_run_counts() -> None:
    submitted("13", 0, when=2e9)
    submitted("12", 0, 1, when=1e9)
    Path("jobs").mkdir()
    Path("jobs/13_0_0_result.pkl").touch()
    assert seeds_queued() == [1]


def test_a_run_in_the_queue_is_found_by_its_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    submitted("12", 0, 1)
    queue(monkeypatch, {"12_1": "PENDING", "99_0": "RUNNING"})
    found = slurm_queue.waiting(RESULTS, slurm_queue.in_queue())
    assert found == {run_record.run_folder(RESULTS, make(seed=1).key): "12_1"}


def test_cancel_ends_what_is_recorded_and_in_the_queue(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for job in ("12", "13", "14"):
        submitted(job, int(job))
    commands = queue(monkeypatch, {"12_0": "RUNNING", "12_1": "PENDING", "12_2": "PENDING", "14": "PENDING", "9": "X"})
    assert slurm_queue.cancel(["14"]) == EXIT_OK
    assert commands == [("scancel", "14")]
    submitted("14", 14)
    commands = queue(monkeypatch, {"12_0": "RUNNING", "12_1": "PENDING", "12_2": "PENDING", "14": "PENDING", "9": "X"})
    assert slurm_queue.cancel(["results.dir=results"]) == EXIT_OK
    assert commands == [("scancel", "12"), ("scancel", "14")]
    assert capsys.readouterr().out.splitlines()[1:] == [
        "cancelled: job 12, 2 pending, 1 running; the same sweep goes on with its runs",
        "cancelled: job 14, 1 pending; the same sweep goes on with its runs",
    ]
    assert seeds_queued() == [13]


@pytest.mark.parametrize(("looks", "seconds"), [(0, 0.0), (3, 3.0), (float("inf"), slurm_queue.KILL_S)])
def test_cancel_waits_until_the_tasks_have_left_the_queue(
    monkeypatch: pytest.MonkeyPatch, looks: float, seconds: float
) -> None:
    """They save a checkpoint first; one that never leaves is not waited for for ever."""
    submitted("12", 0)
    commands = queue(monkeypatch, {"12_0": "RUNNING", "9": "RUNNING"}, looks)
    assert slurm_queue.cancel([]) == EXIT_OK
    assert commands == [("scancel", "12")]
    assert slurm_queue.time.monotonic() == seconds


def test_nothing_to_cancel(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert slurm_queue.cancel([]) == EXIT_OK  # nothing was ever submitted: squeue is not even asked
    submitted("12", 0)
    commands = queue(monkeypatch, {"9": "RUNNING"})
    assert slurm_queue.cancel([]) == slurm_queue.cancel(["12"]) == EXIT_OK
    assert commands == []
    assert [line.partition(":")[0] for line in capsys.readouterr().out.splitlines()] == ["nothing to cancel"] * 3
    assert seeds_queued() == [0]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["9"], "job 9 was not submitted from results; valid: 12"),
        (["12_0"], "'12_0' is no job id"),
        (["task=rte"], "'task=rte' is no job id"),
        (["9", "results.dir=other"], "job 9 was not submitted from other; valid: none"),
    ],
)
def test_cancel_touches_nothing_else(monkeypatch: pytest.MonkeyPatch, words: list[str], said: str) -> None:
    submitted("12", 0)
    commands = queue(monkeypatch, {"9": "RUNNING", "12_0": "RUNNING"})
    with pytest.raises(InputError, match=said):
        slurm_queue.cancel(words)
    assert commands == []


def test_slurm_s_own_complaint_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"^sh failed: slurm_load_jobs error: no controller$"):
        slurm_queue.slurm(
            "sh", "-c", "echo 'slurm_load_jobs error:'; echo 'slurm_load_jobs error:\n no controller' >&2; exit 1"
        )
    monkeypatch.setenv("PATH", "")
    with pytest.raises(InputError, match=r"^no squeue here"):
        slurm_queue.in_queue()


def test_a_controller_that_does_not_answer_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slurm_queue, "ASK_S", 0.1)
    with pytest.raises(InputError, match=r"^sleep: no answer within 0\.1 s; is SLURM's controller up\?$"):
        slurm_queue.slurm("sleep", "30")


def test_the_record_wins_over_the_queue() -> None:
    assert RECORD_NAME == "metrics.json"
    submitted("12", 0)
    running = make(seed=0, status="running")
    folder = run_record.run_folder(RESULTS, running.key)
    folder.mkdir(parents=True)
    run_record.write(running, folder)
    assert seeds_queued() == []
