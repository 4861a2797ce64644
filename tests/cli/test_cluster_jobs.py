"""hydra/launcher=slurm and ray: scripts in the place of SLURM's commands; tests/cluster has real clusters."""

import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import ROOT, Cli, ok, refused
from fake_records import make
from submitit.core.utils import DelayedSubmission
from test_sweep import GRID, STAGES, counts, save

from adalora_repro.cli.ledger import FAILED, Ledger, SweepRun
from adalora_repro.config.plan import Plan
from adalora_repro.errors import EXIT_BAD_INPUT, EXIT_OK, EXIT_TERMINATED, InputError
from adalora_repro.records import run_record
from adalora_repro.records import slurm as slurm_queue

SLURM = ("hydra/launcher=slurm", "hydra.launcher.partition=gpu")
WORDS = ("-m", "task=rte", "method=lora", "budget=0.3M", *SLURM)
#: job 7, and 8 after it, whose tasks wait in the queue
SBATCH = """#!/bin/bash
[ ! -e {state}/refuse ] || { echo "sbatch: error: no such partition" >&2; exit 1; }
count=$(sed -n 's/^#SBATCH --array=0-\\([0-9]*\\).*/\\1/p' "$1")
echo >>{state}/jobs; job=$((6 + $(wc -l <{state}/jobs)))
[ -z "$count" ] && echo $job >>{state}/queue || seq -f ${job}_%g 0 "$count" >>{state}/queue
cp "$1" {state}/script; echo "Submitted batch job $job"
"""
SQUEUE = """#!/bin/bash
[ -n "$SQUEUE_STATES" -o ! -e {state}/queue ] || cat {state}/queue
"""


@pytest.fixture
def slurm(tiny: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """SLURM's commands; returns the folder of their state: ``queue`` there has the ids of tasks."""
    state, commands = tmp_path / "slurm", tmp_path / "bin"
    state.mkdir()
    commands.mkdir()
    for name, text in {"sbatch": SBATCH, "srun": "", "squeue": SQUEUE}.items():
        path = commands / name
        path.write_text(text.replace("{state}", str(state)), encoding="utf-8")
        path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{commands}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("SQUEUE_STATES", "RUNNING")  # a user's default, which hides tasks that wait
    return state


def submission() -> slurm_queue.Submission:
    submissions, refused = slurm_queue.read_all(Path("results"))
    assert refused == []
    return submissions[-1]


# Wrong input


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        ("task=rte launch=detach", "launch=detach are for a sweep: adalora-run -m …"),
        ("task=rte hydra/launcher=slurm", "are for a sweep: adalora-run -m …"),
        ("-m task=rte launch=detach", "launch=detach leaves the runs to the queue of a cluster: hydra/launcher=slurm"),
        ("-m task=rte,cola hydra/launcher=slurm measure=cost", "measure=cost measures the machine"),
        (
            "-m +sweep=stages task=rte method=lora hydra/launcher=slurm launch=detach force=true",
            "launch=detach force=true: every call would start stage 1 again; leave out one of them",
        ),
        ("-m task=rte hydra.sweeper.max_batch_size=0", "hydra.sweeper.max_batch_size must be positive, not 0"),
        ("-m task=rte launch=later", "unknown launch 'later'; valid: wait, detach"),
        ("-m task=rte launch=wait,detach", "launch must be one for all runs"),
        ("-m task=rte hydra/launcher=pbs", "unknown hydra/launcher 'pbs'; valid: basic, ray, slurm, submitit_local, "),
        ("-m task=rte hydra/launcher=slurm hydra.launcher.time=9", "no setting 'hydra.launcher.time'"),
        ("-m task=rte hydra/launcher=slurm hydra.launcher.timeout_min=2h", "'2h' of type 'str' could not be converted"),
        ("-m RAY launch=detach", "launch=detach leaves the runs to the queue of a cluster: hydra/launcher=slurm"),
        ("-m RAY hydra.launcher.gpus=1", "(did you mean hydra.launcher.num_gpus?); valid: hydra.launcher.address, "),
        (
            "-m RAY hydra.launcher.num_cpus=few",
            "hydra.launcher.num_cpus: Value 'few' of type 'str'",
        ),
        ("-m RAY hydra.launcher.num_gpus=1.5", "hydra.launcher: num_gpus is a part of one GPU or a whole number"),
        ("-m RAY hydra.launcher.num_gpus=-1", "hydra.launcher: The quantity of resource num_gpus cannot be negative"),
    ],
)
def test_one_line_before_anything_is_submitted(slurm: Path, tiny: Cli, words: str, problem: str) -> None:
    if "RAY" in words:
        pytest.importorskip("ray")
        words = words.replace("RAY", "task=rte hydra/launcher=ray")
    done = tiny(*words.split())
    assert problem in refused(done)
    assert done.out == ""
    assert list(slurm.iterdir()) == []


def test_without_slurm_or_its_consent_nothing_is_recorded(
    tiny: Cli, slurm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setenv("PATH", "")
        assert "hydra/launcher=slurm: no sbatch here" in tiny(*WORDS).err
        done = tiny(*WORDS, "seed=0,1", "launch=detach", "dry_run=true")  # which needs none
        assert (done.code, counts(done)) == (EXIT_OK, "2 planned")
    (slurm / "refuse").touch()
    done = tiny(*WORDS)
    assert (done.code, done.out) == (EXIT_BAD_INPUT, "")
    assert done.err == "adalora-run: error: sbatch refused: no such partition\n"
    assert not list(Path("results").rglob("submitted-*"))


@pytest.mark.parametrize("address", ["127.0.0.1:1", "auto"])
def test_an_address_where_nothing_answers(address: str, tiny: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray")
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    done = tiny("-m", "task=rte", "hydra/launcher=ray", f"hydra.launcher.address={address}")
    assert done.code == EXIT_BAD_INPUT
    variable = " (RAY_ADDRESS=127.0.0.1:1)" if address == "auto" else ""
    problem = f"hydra.launcher.address={address}{variable}: [Errno 111] Connection refused"
    assert done.err == f"adalora-run: error: {problem}\n"
    assert not list(Path("results").rglob("metrics.json"))


def test_without_a_cluster_and_sigterm_between_two_stages(monkeypatch: pytest.MonkeyPatch) -> None:
    from hydra_plugins.adalora_ray import RayLauncher

    class Ray:
        is_initialized, nodes = bool, list

        def init(self, *_: object, **__: object) -> None:
            signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
            if not running:
                raise ConnectionError("Could not find any running Ray instance.")

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    launcher = RayLauncher("auto", num_gpus=0, num_cpus=0, max_retries=0)
    launcher.ray = Ray()
    before, running = signal.getsignal(signal.SIGTERM), False
    try:
        with pytest.raises(InputError, match=r"^hydra\.launcher\.address=auto: Could not find any"):
            launcher.connect()
        running = True
        launcher.connect()
        with pytest.raises(SystemExit) as ended:
            signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert ended.value.code == EXIT_TERMINATED


def test_without_ray(tiny: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    line = refused(tiny("-m", "task=rte", "hydra/launcher=ray"))
    assert line == "hydra/launcher=ray needs Ray: pip install 'adalora-repro[ray]'"


def test_force_starts_over_once_and_not_at_every_requeue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from adalora_repro.cli import run
    from hydra_plugins import adalora_launcher, adalora_ray

    seen: list[list[str]] = []

    def one_of_many(words: Sequence[str]) -> tuple[str, int]:
        seen.append(list(words))
        return "done", EXIT_OK

    monkeypatch.setattr(run, "one_of_many", one_of_many)
    monkeypatch.setattr(adalora_launcher.signal, "signal", lambda *_: None)
    monkeypatch.chdir(tmp_path)
    words, forced = ("task=cola", "force=true"), SweepRun("a", tmp_path, make(progress={}))
    for progress in ({}, {}, {"step": 1}):  # the second time it was requeued before it had started over
        run_record.write(make(progress=progress), tmp_path)
        adalora_launcher.ArrayLauncher()(words, str(tmp_path), forced)
        adalora_ray.run_one(words, str(tmp_path), sys.path, tmp_path / "1", forced)
    assert seen == [[*words]] * 4 + [["task=cola"]] * 2


# launch=detach


def test_detached_runs_are_submitted_once(tiny: Cli, slurm: Path) -> None:
    words = (*WORDS, "launch=detach", "hydra.launcher.max_num_timeout=5")
    done = tiny(*words, "seed=0,1,-1")
    assert done.code == EXIT_BAD_INPUT
    assert "seed must be 0 or more, not -1" in done.err
    assert "submitted: job 7, 2 runs; logs in " in done.out
    assert "\n  scancel 7 " in done.out
    assert counts(done) == "2 submitted, 1 refused"
    kept = submission()
    assert [(task, key["seed"]) for task, key in kept.runs.items()] == [("7_0", 0), ("7_1", 1)]
    script = (slurm / "script").read_text(encoding="utf-8")
    lines = ["array=0-1%2", "partition=gpu", "gpus-per-node=1", "requeue", "signal=USR2@120", "mem=32GB"]
    assert all(f"#SBATCH --{line}\n" in script for line in lines)
    assert "--cpus-per-task=4" in script.split("# command")[1]
    assert f"#SBATCH --output={Path('results/sweeps').absolute()}" in script
    (task,) = Path("results/sweeps").glob("*/slurm/7_0_submitted.pkl")
    assert DelayedSubmission.load(task)._timeout_countdown == 5

    again = ok(tiny(*words, "seed=0,1"))
    assert again.out.count("already queued: results/runs/") == 2
    assert counts(again) == "2 already queued"
    more = tiny(*words, "method=bitfit", "budget=0.3M,1.2M")  # which is one run
    assert counts(more) == "1 submitted"
    assert list(submission().runs) == ["8"]  # one run is no array


def test_detached_stages_wait_for_each_other(tiny: Cli, slurm: Path) -> None:
    words = (*STAGES, *SLURM, "launch=detach")
    done = ok(tiny(*words))
    assert "stage 1 of 2: when its runs have ended, repeat the command for the next\n" in done.out
    assert counts(done) == "3 submitted"
    assert counts(tiny(*words)) == "3 already queued"
    for number, key in enumerate(submission().runs.values()):  # two finish, one fails
        save(key, 0.4 + number / 10, error="loss is nan" if number == 2 else "")
    (slurm / "queue").unlink()
    done = tiny(*words)
    assert "stage 2, rte lora 0.3M: optim.lr=1e-3, the best of 2 (2 of 3 runs finished)" in done.out
    assert counts(done) == "2 already done, 5 submitted"  # the failed one again, and four seeds


def test_a_stage_without_a_run_goes_on_to_the_next(tiny: Cli, slurm: Path, tmp_path: Path) -> None:
    """The best rate is inside its grid, which is not widened; in the end every stage is finished."""
    stages = '[{seed: "0"}, {seed: "0", optim.lr: widened}, {seed: "1", optim.lr: chosen}]'
    (tmp_path / "sweep").mkdir()
    text = f"# @package _global_\nhydra: {{sweeper: {{stages: {stages}}}}}\n"
    (tmp_path / "sweep" / "small.yaml").write_text(text, encoding="utf-8")
    words = (f"--config-dir={tmp_path}", *WORDS, "+sweep=small", GRID, "launch=detach")
    for summary in ("3 submitted", "3 already done, 1 submitted"):
        done = tiny(*words)
        assert (done.code, counts(done)) == (EXIT_OK, summary), done.err
        for key in submission().runs.values():
            save(key, 0.6 if key["lr"] == 1e-3 else 0.5)
        (slurm / "queue").unlink()
    assert counts(tiny(*words)) == "4 already done"


def test_runs_and_submissions_share_a_folder_below_home(
    tiny: Cli, slurm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    words = (*WORDS, 'results.dir="~/r"', "launch=detach")
    assert counts(tiny(*words)) == "1 submitted"
    assert counts(tiny(*words)) == "1 already queued"
    assert not Path("~").exists()


# waiting


def test_what_became_of_a_task_that_left_the_queue_is_in_its_record(
    tiny: Cli, slurm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The two tasks that are in the queue from before are waited for as well."""
    from hydra_plugins import adalora_launcher

    assert counts(tiny(*WORDS, "seed=0,1", "launch=detach")) == "2 submitted"
    statuses = {0: None, 1: "running", 2: "cancelled", 3: "failed", 4: "ok"}

    def end(_: float) -> None:
        for kept in slurm_queue.read_all(Path("results"))[0]:
            for key in kept.runs.values():
                if status := statuses[key["seed"]]:
                    save(key, 0.5, status=status)
        (slurm / "queue").unlink(missing_ok=True)

    monkeypatch.setattr(adalora_launcher, "POLL_S", 0.3)
    monkeypatch.setattr(adalora_launcher, "LATE_S", 0.0)
    nap = time.sleep
    monkeypatch.setattr(time, "sleep", lambda seconds: end(seconds) if seconds == 0.3 else nap(seconds))
    done = tiny(*WORDS, "seed=0,1,2,3,4")
    assert done.code == EXIT_TERMINATED, done.err
    assert counts(done) == "1 done, 2 failed, 2 interrupted"


def test_a_run_is_given_up_when_it_is_in_no_queue_and_its_record_had_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """squeue takes 20 s; another command has submitted the run as well, so its own task found it held and ended."""
    from hydra_plugins.adalora_launcher import ArrayLauncher

    launcher, words, clock = ArrayLauncher(), ("seed=0",), [0.0]
    launcher.results, launcher.plans = tmp_path, {words: Plan(None, {}, {}, tmp_path, 6, 6)}
    launcher.ledger = Ledger(sweep={words: SweepRun("a", tmp_path)})
    queues = [["7_0"], ["8_0"], [], []]

    def in_queue() -> list[str]:
        clock[0] += 20.0
        return queues.pop(0)

    monkeypatch.setattr(time, "sleep", lambda _: None)
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(slurm_queue, "in_queue", in_queue)
    monkeypatch.setattr(slurm_queue, "waiting", lambda _, queue: dict.fromkeys([tmp_path] * ("8_0" in queue)))
    launcher.wait({words: "7_0"}, launcher.ledger.outcomes)
    assert (queues, launcher.ledger.outcomes[words][0]) == ([], FAILED)


def test_a_run_needs_room_on_one_node(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from hydra_plugins.adalora_ray import RayLauncher

    nodes = [{"Alive": alive, "Resources": {"CPU": cpus}} for alive, cpus in ((True, 4.0), (True, 4.0), (False, 9.0))]
    launcher = RayLauncher("auto", num_gpus=0, num_cpus=8, max_retries=0)
    launcher.ray = SimpleNamespace(is_initialized=bool, init=lambda *_, **__: None, nodes=lambda: nodes)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    launcher.connect()
    line = "adalora-run: hydra.launcher.num_cpus=8: no node has over 4; runs wait for one\n"
    assert capsys.readouterr().err == line
