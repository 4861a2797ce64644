"""hydra/launcher=slurm, launch=detach: scripts in the place of SLURM's commands; tests/cluster has a real one."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, Outcome, find_runs
from test_sweep import STAGES, last_line, save

from adalora_repro.cli import slurm as slurm_queue
from adalora_repro.config.plan import Plan
from adalora_repro.errors import EXIT_BAD_INPUT, EXIT_FAILED, EXIT_INTERRUPTED, EXIT_OK, EXIT_TERMINATED
from adalora_repro.records import run_record

pytest.importorskip("submitit")

Cli = Callable[..., Outcome]
SLURM = ("hydra/launcher=slurm", "hydra.launcher.partition=gpu")
WORDS = ("-m", "task=rte", "method=lora", "budget=0.3M", *SLURM)
#: job 7; where tasks are to run, they do so behind sbatch's back, which returns before
SBATCH = """#!/bin/bash
[ ! -e {state}/refuse ] || { echo "sbatch: error: no such partition" >&2; exit 1; }
script=$(readlink -f "$1") count=$(sed -n 's/^#SBATCH --array=0-\\([0-9]*\\).*/\\1/p' "$1")
[ -z "$count" ] && echo 7 >{state}/queue || seq -f 7_%g 0 "$count" >{state}/queue
cp "$1" {state}/script; echo "Submitted batch job 7"
[ -e {state}/run ] || exit 0
( for task in $(cat {state}/queue); do
    SLURM_JOB_ID=1${task#7_} SLURM_ARRAY_JOB_ID=7 SLURM_ARRAY_TASK_ID=${task#7_} bash {state}/script
    echo "$task $?" >>{state}/ended; sed -i "/^$task\\$/d" {state}/queue
  done ) >/dev/null 2>&1 &
"""
SRUN = """#!/bin/bash
while [ "${1#/}" = "$1" ]; do case $1 in --output|--error) shift 2;; *) shift;; esac; done
exec "$@"
"""
SQUEUE = """#!/bin/bash
[ ! -e {state}/queue ] || sed 's/$/ RUNNING/' {state}/queue
"""
SCANCEL = """#!/bin/bash
echo $* >>{state}/scancel
sed -i "/^$1\\(_\\|$\\)/d" {state}/queue
"""


@pytest.fixture
def slurm(tiny: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """SLURM's commands; returns the folder of their state: ``run`` there lets jobs run, ``queue`` has their ids."""
    state, commands = tmp_path / "slurm", tmp_path / "bin"
    state.mkdir()
    commands.mkdir()
    for name, text in {"sbatch": SBATCH, "srun": SRUN, "squeue": SQUEUE, "scancel": SCANCEL}.items():
        path = commands / name
        path.write_text(text.replace("{state}", str(state)), encoding="utf-8")
        path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{commands}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return state


def submission() -> tuple[Path, slurm_queue.Submission]:
    found, refused = slurm_queue.read_all(Path("results"))
    assert refused == []
    return list(found.items())[-1]


# Wrong input


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            "task=rte launch=detach",
            "launch=detach submits a sweep: adalora-run -m … hydra/launcher=slurm launch=detach",
        ),
        ("task=rte hydra/launcher=slurm", "hydra/launcher=slurm submits a sweep: adalora-run -m …"),
        ("-m task=rte launch=detach", "launch=detach leaves the runs to a cluster: add hydra/launcher=slurm"),
        ("-m task=rte launch=later", "unknown launch 'later'; valid: wait, detach"),
        ("-m task=rte launch=wait,detach", "launch is one for all runs: launch=wait"),
        ("task=rte launch=later", "unknown launch 'later'; valid: wait, detach"),
        (
            "-m task=rte hydra/launcher=pbs",
            "unknown hydra/launcher 'pbs'; valid: basic, slurm, submitit_local, ",
        ),
        ("-m task=rte hydra/launcher=slurm hydra.launcher.time=9", "no setting 'hydra.launcher.time'"),
        ("-m task=rte hydra/launcher=slurm hydra.launcher.timeout_min=2h", "'2h' of type 'str' could not be converted"),
        ("-m task=rte hydra/launcher=slurm hydra.launcher.nodelist=n1", "no setting 'hydra.launcher.nodelist'; valid:"),
        ("cancel 12", "cancel: job 12 was not submitted from results; valid: none"),
        ("cancel all", "cancel: 'all' is no job id; adalora-run cancel [JOB_ID …] [results.dir=DIR]"),
    ],
)
def test_one_line_before_anything_is_submitted(slurm: Path, tiny: Cli, cli: Cli, words: str, said: str) -> None:
    done = cli(*words.split()) if words.startswith("cancel") else tiny(*words.split())
    assert (done.code, done.out) == (EXIT_BAD_INPUT, "")
    (line,) = done.err.splitlines()
    assert said in line
    assert list(slurm.iterdir()) == []
    assert not Path("results").exists()


def test_what_is_missing_is_said(tiny: Cli, slurm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setenv("PATH", "")
        done = tiny(*WORDS)
    assert done.err == "adalora-run: error: hydra/launcher=slurm: no sbatch here; start it where SLURM takes jobs\n"
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "submitit", None)
        done = tiny(*WORDS)
    extra = "hydra/launcher=slurm needs submitit: pip install 'adalora-repro[slurm]'"
    assert (done.code, done.err) == (EXIT_BAD_INPUT, f"adalora-run: error: {extra}\n")
    (slurm / "refuse").touch()
    done = tiny(*WORDS)
    assert done.code == EXIT_BAD_INPUT
    assert done.err == "adalora-run: error: sbatch refused: no such partition\n"
    assert not list(Path("results").rglob("submitted-*"))


def test_a_dry_run_needs_no_cluster(tiny: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    done = tiny(*WORDS, "seed=0,1", "launch=detach", "dry_run=true")
    assert done.code == EXIT_OK, done.err
    assert last_line(done) == "sweep: 2 planned"


def test_force_starts_over_once_and_not_at_every_requeue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from hydra_plugins import adalora_launcher

    seen: list[list[str]] = []
    monkeypatch.setattr(adalora_launcher, "one_of_many", lambda words: (seen.append(list(words)), ("done", EXIT_OK))[1])
    monkeypatch.setattr(adalora_launcher.signal, "signal", lambda *_: None)
    monkeypatch.chdir(tmp_path)
    task = adalora_launcher.ArrayTask(("task=cola", "force=true"), str(tmp_path))
    task()
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    task()
    assert seen == [["task=cola", "force=true"], ["task=cola"]]


def test_a_measurement_is_refused(tiny: Cli, slurm: Path) -> None:
    done = tiny(*WORDS, "measure=cost")
    assert done.code == EXIT_BAD_INPUT
    assert done.err == "refused: measure=cost measures where it is started; leave out hydra/launcher\n"
    assert list(slurm.iterdir()) == []


# launch=detach


def test_detached_runs_are_submitted_once_and_cancelled(tiny: Cli, cli: Cli, slurm: Path) -> None:
    words = (*WORDS, "launch=detach")
    done = tiny(*words, "seed=0,1,-1")
    assert done.code == EXIT_BAD_INPUT
    assert done.err.startswith("refused: ")
    assert " seed=-1 " in done.err
    assert done.err.endswith(": seed must be 0 or more, not -1\n")
    assert "submitted: job 7, 2 runs; logs in " in done.out
    assert "adalora-run cancel 7 " in done.out
    assert last_line(done) == "sweep: 2 submitted, 1 refused"
    path, kept = submission()
    assert path.parent.parent == Path("results/sweeps")
    assert list(kept.runs) == ["7_0", "7_1"]
    assert [f"seed={seed}" in run["words"] for seed, run in enumerate(kept.runs.values())] == [True, True]
    assert not any(word.startswith(("launch", "hydra")) for run in kept.runs.values() for word in run["words"])
    script = (slurm / "script").read_text(encoding="utf-8")
    for line in (
        "--array=0-1%2",
        "--partition=gpu",
        "--gpus-per-node=1",
        "--requeue",
        "--signal=USR2@120",
        "--mem=32GB",
    ):
        assert f"#SBATCH {line}\n" in script
    assert "--cpus-per-task=4" in script.split("# command")[1]
    assert f"#SBATCH --output={path.parent.absolute()}" in script

    again = tiny(*words, "seed=0,1")
    assert again.code == EXIT_OK
    assert again.out.count("in the queue already: results/runs/") == 2
    assert last_line(again) == "sweep: 2 in the queue already"
    more = tiny(*words, "method=bitfit", "budget=0.3M,1.2M")  # which is one run
    assert last_line(more) == "sweep: 1 submitted, 1 in the queue already"
    assert list(submission()[1].runs) == ["7"]  # one run is no array

    (slurm / "queue").write_text("7_0\n7_1\n", encoding="utf-8")
    assert "cancelled: job 7, 2 running" in cli("cancel", "7").out
    assert (slurm / "scancel").read_text(encoding="utf-8") == "7\n"
    assert (slurm / "queue").read_text(encoding="utf-8") == ""


def test_detached_stages_wait_for_each_other(tiny: Cli, slurm: Path) -> None:
    words = (*STAGES, *SLURM, "launch=detach")
    done = tiny(*words)
    assert done.code == EXIT_OK, done.err
    assert "stage 1 of 2: when its runs have ended, repeat the command for the next\n" in done.out
    assert last_line(done) == "sweep: 3 submitted"
    assert last_line(tiny(*words)) == "sweep: 3 in the queue already"
    for number, run in enumerate(submission()[1].runs.values()):  # two finish, one fails
        folder = Path(run["folder"])
        plan = Plan(None, run["key"], {}, folder, 6, 6)  # type: ignore[arg-type]
        save(plan, 0.4 + number / 10)
    failed = run_record.read(folder / run_record.RECORD_NAME)
    failed.status, failed.final = "failed", None
    run_record.write(failed, folder)
    (slurm / "queue").unlink()
    done = tiny(*words)
    assert "stage 2, rte lora 0.3M: optim.lr=1e-3, the best of 2 (2 of 3 runs finished)" in done.out
    assert last_line(done) == "sweep: 2 already done, 5 submitted"  # the failed one again, and four seeds


# waiting


def test_tasks_run_and_report_to_who_waits(tiny: Cli, slurm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two real runs in processes of their own; one fails for reasons of its own, which SLURM hears of."""
    from hydra_plugins import adalora_launcher

    monkeypatch.setattr(adalora_launcher, "POLL_S", 0.2)
    (slurm / "run").touch()
    done = tiny(*WORDS, "optim.lr=1e-3,1e38")
    assert done.code == EXIT_FAILED, done.err
    assert last_line(done) == "sweep: 1 done, 1 failed"
    assert [run.record.status for run in sorted(find_runs(), key=lambda run: run.record.key["lr"])] == ["ok", "failed"]
    (line,) = (line for line in done.out.splitlines() if line.startswith("failed: "))
    assert line.endswith("slurm/7_1_0_log.err)")
    for _ in range(600):  # a task ends after it has left its result
        if (slurm / "queue").read_text(encoding="utf-8") == "":
            break
        time.sleep(0.1)
    assert set((slurm / "ended").read_text(encoding="utf-8").splitlines()) == {"7_0 0", "7_1 1"}
    assert last_line(tiny(*WORDS, "optim.lr=1e-3")) == "sweep: 1 already done"


class Task:
    """submitit's job, of which a result may be lost."""

    def __init__(self, folder: Path, job_id: str, outcome: Any = None) -> None:
        self.job_id, self.outcome, self.paths = job_id, outcome, self
        self.result_pickle, self.stderr, self.folder = folder / job_id, folder / "log", folder
        if outcome is not None:
            self.result_pickle.touch()

    def result(self) -> Any:
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return self.outcome


def test_a_lost_result_does_not_hide_the_others(
    tiny: Cli, slurm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from submitit.core.utils import FailedJobError

    from hydra_plugins import adalora_launcher

    monkeypatch.setattr(adalora_launcher, "POLL_S", 0.0)
    monkeypatch.setattr(adalora_launcher, "LATE_S", 0.0)
    statuses = {0: None, 1: "running", 2: "cancelled", 3: "failed", 4: "ok"}
    results = {5: ("done", EXIT_OK), 6: FailedJobError("a bug")}

    def submit(self: Any, words: Any) -> dict[Any, Task]:
        for job in words:
            plan = self.plans[job]
            if status := statuses.get(plan.key["seed"]):
                save(plan, 0.5)
                record = run_record.read(plan.folder / run_record.RECORD_NAME)
                record.status = status
                run_record.write(record, plan.folder)
        return {job: Task(tmp_path, f"7_{n}", results.get(n)) for n, job in enumerate(words)}

    with monkeypatch.context() as patch:
        patch.setattr(adalora_launcher.ArrayLauncher, "submit", submit)
        done = tiny(*WORDS, "seed=0,1,2,3,4,5,6")
    assert done.code == EXIT_TERMINATED, done.err
    assert last_line(done) == "sweep: 2 done, 3 failed, 2 interrupted"


def test_ctrl_c_leaves_the_runs_in_the_queue(tiny: Cli, slurm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nap = time.sleep

    def interrupted(seconds: float) -> None:
        if seconds < 0.1:  # subprocess naps so while it waits for SLURM's commands to end
            return nap(seconds)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("time.sleep", interrupted)
        done = tiny(*WORDS, "seed=0,1")
    assert done.code == EXIT_INTERRUPTED
    assert done.err == "the runs go on without this process\n"
    assert last_line(done) == "sweep: 2 submitted"
    assert not (slurm / "scancel").exists()
    kept = json.loads(submission()[0].read_text(encoding="utf-8"))
    assert kept["cancelled"] is None
