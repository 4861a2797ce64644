"""A sweep on a real SLURM: tasks are killed, preempted, requeued, and one fails; see slurm.sh, `make test-cluster`."""

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from shell import COMMAND, FAILING, PATIENCE_S, SEEDS, Shell, until

pytestmark = pytest.mark.cluster
KILLED, PREEMPTED, REQUEUED = 0, 1, 2  # seeds
SLURM = (
    "hydra/launcher=slurm",
    "hydra.launcher.gpus_per_node=null",
    "hydra.launcher.cpus_per_task=1",
    "hydra.launcher.mem_gb=1",
    "hydra.launcher.timeout_min=30",
)


@pytest.fixture(scope="module", autouse=True)
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    folder = tmp_path_factory.mktemp("slurm")
    script = str(Path(__file__).with_name("slurm.sh"))
    before = os.environ.get("SLURM_CONF")
    os.environ["SLURM_CONF"] = str(folder / "slurm.conf")
    try:
        subprocess.run([script, "up", str(folder)], check=True)
        yield
    finally:
        subprocess.run([script, "down", str(folder)], check=True)
        del os.environ["SLURM_CONF"]
        if before is not None:
            os.environ["SLURM_CONF"] = before


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    return Shell(tmp_path)


def squeue() -> str:
    return subprocess.run(["squeue", "-r"], capture_output=True, text=True, check=True, encoding="utf-8").stdout


def test_a_sweep_of_which_some_tasks_are_ended(shell: Shell) -> None:
    cache = f"data.cache_dir={shell.folder / 'cache'}"
    sweep = shell.start("run", "-m", *COMMAND, *SEEDS, *SLURM, cache, slow="0.3")
    for seed in (KILLED, PREEMPTED, REQUEUED):
        until(lambda seed=seed: shell.checkpoint(seed), lambda: (squeue(), shell.records()))
    os.kill(shell.records()[KILLED].progress["pid"], signal.SIGKILL)
    (submission,) = (shell.folder / "results").glob("sweeps/*/submitted-*.json")
    job = json.loads(submission.read_text(encoding="utf-8"))["job"]
    subprocess.run(["scancel", "--signal=USR2", f"{job}_{PREEMPTED}"], check=True)
    subprocess.run(["scontrol", "requeue", f"{job}_{REQUEUED}"], check=True)
    until(lambda: shell.records()[PREEMPTED].status == "cancelled")
    assert str(shell.records()[PREEMPTED].error).startswith("SIGUSR2: goes on if its job is requeued")
    out, err = sweep.communicate(timeout=PATIENCE_S)
    assert sweep.returncode == 143, (out, err)
    assert out.splitlines()[-1] == "sweep: 4 done, 1 failed, 1 interrupted"
    assert "failed: [4/6] cola adalora 0.3M lr 1e-2 seed 3: NonFiniteLossError: the loss is nan at step 0" in out
    assert err == ""
    logs = {
        seed: (submission.parent / "slurm" / f"{job}_{seed}_0_log.err").read_text(encoding="utf-8") for seed in range(6)
    }
    for seed in (PREEMPTED, REQUEUED):
        assert "resuming results/runs/" in logs[seed]
    assert "Caught signal SIGUSR2" in logs[PREEMPTED]
    assert all(shell.records()[seed].status == "ok" for seed in range(6) if seed not in (KILLED, FAILING))

    status = shell.status()
    assert "6 runs: 4 finished, 1 interrupted, 1 failed" in status
    assert "cola adalora 0.3M lr 1e-2 seed 3: step 2/36, NonFiniteLossError: the loss is nan at step 0" in status
    code, out, err = shell.run("-m", *COMMAND, *SEEDS, *SLURM, slow="0.01")
    assert (code, out.splitlines()[-1]) == (1, "sweep: 1 done, 4 already done, 1 failed"), err
    assert "6 runs: 5 finished, 1 failed" in shell.status()

    shell.require_undisturbed(0, 1, 2, 4, 5)


def test_detached_runs_are_queued_then_run_then_cancelled(shell: Shell) -> None:
    words = ("-m", *COMMAND, *SLURM, "launch=detach", "hydra.launcher.array_parallelism=1")
    code, out, err = shell.run(*words, "seed=0,1", slow="0.5")
    assert (code, out.splitlines()[-1]) == (0, "sweep: 2 submitted"), err
    assert "Queued (" in shell.status()
    until(lambda: shell.checkpoint(0), squeue)
    assert "2 runs: 1 running, 1 queued" in shell.status()
    code, out, err = shell.run(*words, "seed=0,1,2", slow="0.5")
    assert out.splitlines()[-1] == "sweep: 1 submitted, 2 already queued"
    (line,) = (line for line in out.splitlines() if line.startswith("  scancel "))
    jobs = sorted((path.stem.partition("-")[2] for path in shell.folder.rglob("submitted-*.json")), key=int)
    assert line.split()[1] == jobs[-1]
    for job in jobs:
        subprocess.run(["scancel", job], check=True)
    until(lambda: shell.records()[0].status == "cancelled", squeue)
    assert shell.records()[0].error == "SIGTERM: the same command resumes it"
    until(lambda: squeue().count("\n") == 1, squeue)
    assert "Queued (" not in shell.status()
    code, out, err = shell.run("-m", *COMMAND, *SLURM, "seed=0")
    assert (code, out.splitlines()[-1]) == (0, "sweep: 1 done"), err
