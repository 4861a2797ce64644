"""A run that is asked to stop while it evaluates: the evaluation gives way and is made when the run goes on.

SIGUSR2, by which a scheduler announces the end of a job: first a checkpoint, then whoever had a handler for it.
"""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import TINY, Cli, Whole, at_call, find_runs, ok, only_run, predictions, require_same

import adalora_repro
from adalora_repro.errors import EXIT_FAILED, EXIT_OK, EXIT_TERMINATED
from adalora_repro.records import lock
from adalora_repro.tasks import glue
from adalora_repro.training import checkpoint, evaluate, kept, progress, runner
from adalora_repro.training import loop as training_loop

COMMAND = (
    "task=cola",
    "method=adalora",
    "train.max_steps=6",
    "train.eval_steps=3",
    "train.save_steps=100",
    "eval.batch_size=8",  # four batches
)


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize(
    ("call", "step", "more"),
    [
        pytest.param(2, 3, [], id="between"),
        pytest.param(6, 6, [], id="the last one"),
        pytest.param(2, 3, ["train.compile=aot_eager", "train.precision=bf16"], id="compiled", marks=pytest.mark.slow),
    ],
)
def test_an_evaluation_that_takes_long_gives_way(
    tiny: Cli, undisturbed: Whole, monkeypatch: pytest.MonkeyPatch, call: int, step: int, more: list[str]
) -> None:
    expected = undisturbed(*COMMAND, *more)
    with monkeypatch.context() as patch:
        calls = at_call(patch, glue.Task, "predict", call, terminate)
        stopped = tiny(*COMMAND, *more)
        assert calls == [call]
    assert stopped.code == EXIT_TERMINATED
    run = only_run()
    assert (run.record.status, run.record.progress["step"]) == ("cancelled", step)
    assert run.record.final is None
    again = ok(tiny(*COMMAND, *more))
    assert f"at step {step} of 6" in again.err
    require_same(run, expected)
    assert run.record.best["step"] == 6  # at step 3 the last mask is still to come
    assert {Path(name).parent.name for name in predictions(run)} == {"best", "final"}


@pytest.mark.parametrize(("owner", "name"), [(runner, "_keep_model"), (kept, "write_card")], ids=["model", "card"])
def test_a_signal_after_the_last_step_ends_the_command_and_not_the_run(
    tiny: Cli, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str
) -> None:
    with monkeypatch.context() as patch:
        at_call(patch, owner, name, 1, terminate)
        done = tiny("-m", *COMMAND, "seed=0,1")
    assert (done.code, done.out.splitlines()[-1]) == (EXIT_TERMINATED, "sweep: 1 done, 1 not started")
    assert (only_run().folder / kept.FOLDER / kept.CARD).exists()
    at_call(monkeypatch, runner, "_keep_model", 1, terminate)
    with pytest.raises(KeyboardInterrupt, match="is finished"):
        adalora_repro.run(*TINY, "task=cola", "method=lora")
    assert [run.record.status for run in find_runs()] == ["ok", "ok"]


class KilledError(BaseException):
    """Nothing in a run expects it, as nothing sees a SIGKILL."""


@pytest.mark.parametrize(("call", "step"), [(2, 3), (8, 6)], ids=["between", "the last one"])
def test_a_kill_in_a_long_evaluation_costs_no_step(
    tiny: Cli, undisturbed: Whole, monkeypatch: pytest.MonkeyPatch, call: int, step: int
) -> None:
    expected = undisturbed(*COMMAND)  # which is none, and saves nothing
    monkeypatch.setattr(evaluate, "LONG_EVALUATION", 4)

    def kill() -> None:
        raise KilledError

    with monkeypatch.context() as patch:
        at_call(patch, glue.Task, "predict", call, kill)
        with pytest.raises(KilledError):
            tiny(*COMMAND)
    (path,) = Path("results").rglob("checkpoint.pt")
    state, problems = checkpoint.load(path.parent, expected.record.key["hash"])
    assert (state["t"], state["loop"]["evaluation_due"], problems) == (step, True, [])
    again = ok(tiny(*COMMAND))
    assert f"resuming {path.parent} at step {step} of 6" in again.err
    require_same(only_run(), expected)


def test_nothing_is_saved_before_the_first_step(tiny: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        at_call(patch, glue.Task, "predict", 1, terminate)
        assert tiny(*COMMAND, "eval.untrained=true").code == EXIT_TERMINATED
    run = only_run()
    assert run.record.status == "cancelled"
    assert not list(run.folder.glob("*.pt"))
    assert tiny(*COMMAND, "eval.untrained=true").code == EXIT_OK
    assert run.log[0]["t"] == 0


def test_steps_renew_the_record_by_the_clock(tiny: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not only those that are logged, evaluated or saved, which may be an hour apart."""
    monkeypatch.setattr(progress, "HEARTBEAT_S", -1.0)
    seen = []
    step = training_loop.step

    def watched(*args: Any) -> Any:
        seen.append(only_run().record)
        return step(*args)

    monkeypatch.setattr(training_loop, "step", watched)
    assert tiny(*COMMAND, "train.log_steps=100", "train.eval_steps=100").code == EXIT_OK
    assert [record.progress["step"] for record in seen] == [0, 1, 2, 3, 4, 5]
    spent = [record.time["train_s"] for record in seen]
    assert spent == sorted(set(spent))  # for the time that is left
    assert [line["t"] for line in only_run().steps] == [6]


# -- SIGUSR2 ---------------------------------------------------------------------------------------------------------


REQUEUED = "SIGUSR2: goes on if its job is requeued; the same command resumes it"


class RequeuedError(SystemExit):
    """What submitit's handler ends the process with."""


@pytest.fixture
def handed() -> Iterator[list[dict[str, Any]]]:
    """A handler like submitit's; what it saw of the run when it was called."""
    seen: list[dict[str, Any]] = []

    def handler(signum: int, frame: Any) -> None:
        run = only_run()
        checkpoints = list(run.folder.glob("*.pt"))
        seen.append({"status": run.record.status, "saved": len(checkpoints), "held": lock.held(run.folder)})
        raise RequeuedError(255)

    before = signal.signal(signal.SIGUSR2, handler)
    yield seen
    assert signal.getsignal(signal.SIGUSR2) is handler
    signal.signal(signal.SIGUSR2, before)


def announce() -> None:
    os.kill(os.getpid(), signal.SIGUSR2)


@pytest.mark.parametrize(
    ("owner", "name", "call", "step"),
    [(training_loop, "step", 2, 2), (glue.Task, "predict", 2, 3)],
    ids=["step", "evaluation"],
)
def test_a_checkpoint_then_the_handler_then_on_as_if_nothing_had_happened(
    tiny: Cli,
    undisturbed: Whole,
    monkeypatch: pytest.MonkeyPatch,
    handed: list[dict[str, Any]],
    owner: Any,
    name: str,
    call: int,
    step: int,
) -> None:
    with monkeypatch.context() as patch:
        at_call(patch, owner, name, call, announce)
        assert tiny(*COMMAND).code == 255  # the handler's
    assert handed == [{"status": "cancelled", "saved": 1, "held": False}]
    run = only_run()
    assert (run.record.error, run.record.progress["step"]) == (REQUEUED, step)
    again = ok(tiny(*COMMAND))
    assert f"at step {step} of 6" in again.err
    require_same(run, undisturbed(*COMMAND))


def test_before_the_first_step_it_goes_on_at_once(tiny: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    before = signal.signal(signal.SIGUSR2, lambda *_: seen.append(list(Path().rglob(".lock"))))
    try:
        at_call(monkeypatch, runner, "build", 1, announce)
        stopped = tiny(*COMMAND)
    finally:
        signal.signal(signal.SIGUSR2, before)
    assert stopped.code == EXIT_TERMINATED  # of a handler that returns
    assert seen == [[]]


def test_a_run_that_fails_is_not_requeued(
    tiny: Cli, monkeypatch: pytest.MonkeyPatch, handed: list[dict[str, Any]]
) -> None:
    at_call(monkeypatch, training_loop, "step", 2, announce)
    done = tiny(*COMMAND, "optim.lr=1e38")
    assert done.code == EXIT_FAILED, done.err
    assert only_run().record.status == "failed"
    assert handed == []
