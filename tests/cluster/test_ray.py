"""Sweeps on a real Ray of two workers: a process is killed, a node lost, a run fails, Ctrl-C; `make test-cluster`."""

import os
import signal
from pathlib import Path

import pytest
from shell import COMMAND, FAILING, PATIENCE_S, SEEDS, Shell, until

pytest.importorskip("ray")
pytestmark = pytest.mark.cluster
WORDS = ("-m", *COMMAND, "hydra/launcher=ray")
#: two at a time, whatever this machine has
TWO = ("hydra.launcher.num_gpus=0", f"hydra.launcher.num_cpus={(os.cpu_count() or 1) / 2:g}")


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    return Shell(tmp_path)


def running(shell: Shell) -> dict[int, int]:
    """Seeds of the runs that are being trained and have a checkpoint -> their processes."""
    records = {seed: record for seed, record in shell.records().items() if record.status == "running"}
    pids = {seed: record.progress["pid"] for seed, record in records.items() if shell.checkpoint(seed)}
    return {seed: pid for seed, pid in pids.items() if Path(f"/proc/{pid}").exists()}


def test_a_killed_process_a_lost_node_and_a_failing_run(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two runs at a time share a GPU, which the node only says it has; then another node takes over."""
    from ray.cluster_utils import Cluster

    for name, value in shell.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("ADALORA_SLOW", "0.2")  # runs have the environment of the cluster
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    try:
        node = cluster.add_node(num_cpus=4, num_gpus=1)
        words = f"hydra.launcher.address={cluster.address}", "hydra.launcher.num_gpus=0.5"
        sweep = shell.start("run", *WORDS, *SEEDS, *words, f"data.cache_dir={shell.folder / 'cache'}")
        until(lambda: len(running(shell)) == 2)
        killed, pid = running(shell).popitem()
        os.kill(pid, signal.SIGKILL)
        until(lambda: pid not in running(shell).values() and len(running(shell)) == 2)
        cluster.add_node(num_cpus=4, num_gpus=1)
        cluster.remove_node(node, allow_graceful=False)
        out, err = sweep.communicate(timeout=2 * PATIENCE_S)
    finally:
        cluster.shutdown()
    assert sweep.returncode == 1, (out, err)
    assert out.splitlines()[-1] == "sweep: 5 done, 1 failed"
    assert f"failed: [4/6] cola adalora 0.3M lr 1e-2 seed {FAILING}: NonFiniteLossError: the loss is nan" in out
    assert f"[{killed + 1}/6] cola adalora 0.3M lr 1e-2 seed {killed} resuming results/runs/" in err
    assert err.count(" resuming results/runs/") == 3
    shell.require_undisturbed(0, 1, 2, 4, 5)
    code, out, err = shell.run(*WORDS, *SEEDS, *TWO)
    assert (code, out.splitlines()[-1]) == (0, "sweep: 1 done, 5 already done"), err
    assert len(list(max(shell.folder.glob("results/sweeps/*")).glob("ray/*.err"))) == 1  # finished runs are no tasks


def test_a_machine_without_room_for_a_run(shell: Shell) -> None:
    code, out, err = shell.run(*WORDS, "hydra.launcher.num_gpus=1000")
    assert (code, out) == (2, "")
    assert err.startswith("adalora-run: error: hydra.launcher.num_gpus=1000: this machine has ")


def test_ctrl_c_leaves_all_runs_to_the_same_command(shell: Shell) -> None:
    cache = f"data.cache_dir={shell.folder / 'cache'}"
    seeds = "seed=0,1,2,4"
    sweep = shell.start("run", *WORDS, seeds, *TWO, cache, slow="0.2")
    until(lambda: len(running(shell)) == 2)
    interrupted = shell.records()
    sweep.send_signal(signal.SIGINT)
    out, err = sweep.communicate(timeout=PATIENCE_S)
    assert sweep.returncode == 130, (out, err)
    assert out.splitlines()[-1] == "sweep: 2 interrupted, 2 not started"
    assert shell.records().keys() == interrupted.keys()
    for record in shell.records().values():
        assert (record.status, record.error) == ("cancelled", "SIGINT: the same command resumes it")
    code, out, err = shell.run(*WORDS, seeds, *TWO)
    assert (code, out.splitlines()[-1]) == (0, "sweep: 4 done"), err
    assert err.count(" resuming results/runs/") == 2
    shell.require_undisturbed(0, 1, 2, 4)
