"""What processes add up, gather and agree: two real ones (gloo); and how they speak with one voice.

Run as a script this file is one of the two.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch.nn import Parameter

from adalora_repro.errors import EXIT_BAD_INPUT, EXIT_TERMINATED, InputError
from adalora_repro.training import distributed, progress, runner, signals
from adalora_repro.training.distributed import LostError, Processes


class Awkward(Exception):
    """Cannot be read back from a pickle: it wants two words."""

    def __init__(self, one: str, two: str) -> None:
        super().__init__(f"{one} {two}")


def raised(processes: Processes, error: Exception) -> list[str]:
    def fail() -> None:
        raise error

    try:
        processes.on_main(fail)
    except Exception as raised_here:
        return [type(raised_here).__name__, str(raised_here), str(processes.common is raised_here)]
    return []


def seen_by(processes: Processes) -> dict[str, Any]:
    """What each method gives in this process."""
    rank = processes.rank
    parameters = [Parameter(torch.ones(2, 3)), Parameter(torch.ones(4)), Parameter(torch.ones(1))]
    parameters[0].grad = torch.arange(6.0).view(2, 3).t().contiguous().t() * (rank + 1)  # any layout
    if rank == 1:
        parameters[1].grad = torch.full((4,), 0.5)
    processes.signum = 15 * (rank == 1)
    sums = processes.add_up(parameters, torch.tensor([1.0 + rank, 10.0]))
    weight = Parameter(torch.arange(6.0).view(2, 3).t() + rank)
    processes.from_main([weight])
    numbers = list(range(7))
    made: list[int] = []

    def make() -> int:
        made.append(time.time_ns())
        time.sleep(0.2 * (rank == 0))
        return rank

    return {
        "sums": sums.tolist(),
        "received": processes.received(),
        "gradients": [None if p.grad is None else p.grad.tolist() for p in parameters],
        "weight": weight.tolist(),
        "largest": processes.largest(15 * rank),
        "gathered": list(processes.gathered(processes.own(numbers))),
        "few": list(processes.gathered(processes.own([5]))),
        "on_main": processes.on_main(lambda: rank + 40),
        "main_first": processes.main_first(make),
        "made": made,
        "errors": [raised(processes, error) for error in (OSError(28, "full", "f"), Awkward("a", "b"))],
        "after": processes.on_main(lambda: "fine"),
        "common": str(processes.common),
    }


def process(folder: Path) -> None:
    from accelerate import Accelerator

    processes = Processes(Accelerator(cpu=True))
    seen = seen_by(processes)
    if processes.rank == 1:
        (folder / "1.json").write_text(json.dumps(seen), encoding="utf-8")
        processes.largest(1)
        time.sleep(0.5)  # the other one has its answer and waits for the next
        os._exit(0)  # as if it had been killed
    try:
        while True:
            processes.largest(1)
    except LostError as error:
        seen["lost"] = str(error)
    (folder / "0.json").write_text(json.dumps(seen), encoding="utf-8")
    os._exit(0)  # gloo's threads, cut off from the other side, now and then abort a process that ends in order


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("two")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    shared |= {"PYTHONPATH": str(Path(distributed.__file__).parents[2])}
    children = []
    try:
        for rank in ("1", "0"):  # the one that serves the port ends last
            environment = os.environ | shared | {"RANK": rank, "LOCAL_RANK": rank}
            children.append(subprocess.Popen([sys.executable, __file__, str(folder)], env=environment))
        for child in children:
            assert child.wait(timeout=120) == 0
    finally:
        for child in children:
            child.kill()
            child.wait()
    return [json.loads((folder / f"{rank}.json").read_text(encoding="utf-8")) for rank in range(2)]


def test_gradients_are_summed_and_what_no_process_has_stays_missing(two: list[dict[str, Any]]) -> None:
    for seen in two:
        assert seen["sums"] == [3.0, 20.0]
        assert seen["received"] == 15  # the signal that only one of them got
        assert seen["gradients"] == [[[0.0, 3.0, 6.0], [9.0, 12.0, 15.0]], [0.5] * 4, None]


def test_weights_become_those_of_the_main_process(two: list[dict[str, Any]]) -> None:
    assert [seen["weight"] for seen in two] == [[[0.0, 3.0], [1.0, 4.0], [2.0, 5.0]]] * 2


def test_items_are_gathered_in_the_order_they_were_dealt_from(two: list[dict[str, Any]]) -> None:
    for seen in two:
        assert seen["gathered"] == list(range(7))
        assert seen["few"] == [5]
        assert seen["largest"] == 15


def test_the_main_process_answers_for_all(two: list[dict[str, Any]]) -> None:
    main, other = two
    for seen in two:
        assert seen["on_main"] == 40
        assert seen["after"] == "fine"
        assert seen["common"] == "None"
    assert [seen["main_first"] for seen in two] == [0, 1]
    assert other["made"][0] - main["made"][0] >= 0.2e9
    assert main["errors"] == [["OSError", "[Errno 28] full: 'f'", "True"], ["Awkward", "a b", "True"]]
    assert other["errors"] == [main["errors"][0], ["RuntimeError", "Awkward: a b", "True"]]


def test_a_process_that_is_gone_is_an_error_in_the_others(two: list[dict[str, Any]]) -> None:
    assert two[0]["lost"].startswith("another process of this run ended (")


# -- who speaks, and what is agreed ---------------------------------------------------------------------------------


def test_ranks_are_those_of_a_launcher_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    monkeypatch.setenv("RANK", "3")  # left over from something else
    assert distributed.launched() == (0, 1)
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert distributed.launched() == (3, 4)


@pytest.mark.parametrize("values", [("abc", "2"), ("2", "2"), ("0", "0")])
def test_a_launchers_nonsense_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], values: tuple[str, str]
) -> None:
    for variable, value in zip(("LOCAL_RANK", "RANK", "WORLD_SIZE"), ("0", *values), strict=True):
        monkeypatch.setenv(variable, value)
    with pytest.raises(SystemExit) as end:
        distributed.launched()
    assert end.value.code == EXIT_BAD_INPUT
    assert capsys.readouterr().err.startswith(f"adalora-run: error: environment variables RANK={values[0]} and ")


def test_several_processes_need_an_address(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"LOCAL_RANK": "0", "RANK": "0", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    cfg = OmegaConf.create({"train": {"device": "cpu", "precision": "fp32"}})
    with pytest.raises(InputError, match=r"2 processes cannot start: .*MASTER_ADDR"):
        runner._accelerator(cfg)


def test_the_configuration_of_accelerate_compiles_and_divides_no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR")
    cfg = OmegaConf.create({"train": {"device": "cpu", "precision": "fp32"}})
    assert runner._accelerator(cfg).state.dynamo_plugin.backend == "NO"
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(InputError, match="configured for FSDP; for runs give"):
        runner._accelerator(cfg)


def test_without_cuda_a_run_is_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("accelerate.state.is_mps_available", lambda: True)  # a Mac
    cfg = OmegaConf.create({"train": {"device": "auto", "precision": "fp32"}})
    assert runner._accelerator(cfg).device.type == "cpu"


def test_a_problem_of_all_is_said_by_one(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    waited: list[float] = []
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(time, "sleep", waited.append)
    for rank, expected in (("0", "adalora-run: error: x\n"), ("1", "adalora-run: process 1: error: x\ntrace\n")):
        monkeypatch.setenv("LOCAL_RANK", rank)
        monkeypatch.setenv("RANK", rank)
        progress.say("note")
        progress.complain("error: x", "trace")
        assert capsys.readouterr().err == ("note\n" if rank == "0" else "") + expected
    assert waited == [progress.ALONE_S]


def test_a_signal_of_another_process_does_not_make_ones_own_the_second() -> None:
    stop = signals.StopSignal()
    with stop.deferred():
        stop.adopt(15)
        stop._handle(15, None)
        with pytest.raises(signals.Interrupted) as agreed:
            stop.check()
        with pytest.raises(signals.Interrupted) as second:
            stop._handle(15, None)
    assert (agreed.value.agreed, second.value.agreed) == (True, False)
    assert agreed.value.exit_code == stop.exit_code == EXIT_TERMINATED


def test_a_lost_connection_stops_a_run_without_nohup() -> None:
    stops = []
    for handler in (signal.SIG_DFL, signal.SIG_IGN):
        before = signal.signal(signal.SIGHUP, handler)
        stop = signals.StopSignal()
        try:
            with stop.installed(), stop.deferred():
                signal.raise_signal(signal.SIGHUP)
        finally:
            signal.signal(signal.SIGHUP, before)
        stops.append(stop.exit_code)
    assert stops == [EXIT_TERMINATED, 0]


def test_an_interrupt_that_a_library_swallowed_before_training_is_raised_again() -> None:
    with signals.remembered():
        with suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        with pytest.raises(signals.Interrupted, match="SIGINT"), signals.StopSignal().installed():
            pass
    with signals.StopSignal().installed():
        pass


if __name__ == "__main__":
    process(Path(sys.argv[1]))
