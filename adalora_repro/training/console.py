"""Progress for people: a rich bar on a terminal, plain lines anywhere else; and clean stops on signals.

Of several processes the main one speaks; what they all have to say is said once.
"""

from __future__ import annotations

import io
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from adalora_repro.errors import EXIT_BAD_INPUT, EXIT_INTERRUPTED, EXIT_TERMINATED, InputError
from adalora_repro.terminal import CleanStream, clean, raw

if TYPE_CHECKING:
    from adalora_repro.training.distributed import World

EVALUATION_LINE_S = 60.0  # between the lines that a long evaluation prints where there is no bar
HEARTBEAT_S = 60.0  # a running record is renewed at least this often, at the next step or evaluated batch
AGREE_S = 1.0  # about how often several processes ask each other whether one was asked to stop
AGREE_CALLS = 100  # and at least once in so many steps or evaluated batches
GRACE_S = 10.0  # how long an evaluation may go on when the run was asked to stop: schedulers kill after half a minute
ALONE_S = 15.0  # how long a process with a problem waits for the launcher to end it, because the main one has it too
LAUNCHERS = "torchrun and accelerate launch set it"


def tolerate_any_locale() -> None:
    """Makes standard streams write a question mark for a character that the terminal's encoding lacks.

    Without this, printing such a character would raise an error and end the run. Both programs call it first.
    """
    for stream in map(raw, (sys.stdout, sys.stderr)):
        if isinstance(stream, io.TextIOWrapper):  # tests and notebooks replace the streams
            stream.reconfigure(errors="replace")


def launched() -> tuple[int, int]:
    """This process's rank and how many there are, as torchrun and accelerate launch say; (0, 1) without them.

    Raises:
        SystemExit: a variable says none of this. The line is printed here: who prints others asks first who it is.
    """
    if os.environ.get("LOCAL_RANK", "-1") == "-1":
        return 0, 1
    try:
        _number("LOCAL_RANK", 0, 0)
        size = _number("WORLD_SIZE", 1, 1)
        return _number("RANK", 0, 0, size - 1), size
    except InputError as error:
        print(f"adalora-run: error: {clean(str(error))}", file=sys.stderr)
        raise SystemExit(EXIT_BAD_INPUT) from None


def check_meeting_point() -> None:
    """Whether a launcher said where several processes meet.

    Raises:
        InputError: a variable is missing or wrong.
    """
    _, processes = launched()
    if processes == 1:
        return
    if not os.environ.get("MASTER_ADDR"):
        raise InputError(
            f"environment variable MASTER_ADDR is not set, where {processes} processes (WORLD_SIZE) meet; {LAUNCHERS}"
        )
    _number("MASTER_PORT", -1, 1, 65535)


def _number(name: str, default: int, least: int, most: int | None = None) -> int:
    """A launcher's environment variable.

    Raises:
        InputError: it is no whole number, or out of range.
    """
    text = os.environ.get(name, str(default))
    if text.strip().isdecimal() and least <= int(text) and (most is None or int(text) <= most):
        return int(text)
    found = f"is '{text}'" if name in os.environ else "is not set"
    valid = f"{least} or more" if most is None else f"{least} to {most}"
    raise InputError(f"environment variable {name} {found}, must be {valid}; {LAUNCHERS}")


def tell(text: str) -> None:
    """A line on standard error, from the main process."""
    if launched()[0] == 0:
        print(clean(text), file=sys.stderr)


def complain(problem: str, details: str = "") -> None:
    """A problem that ends this process: the main one says it, for all of them have it.

    Another process says it, with ``details``, if it has it alone: if it still lives after ``ALONE_S``.
    """
    rank, _ = launched()
    if rank:
        time.sleep(ALONE_S)
        problem = f"process {rank}: {problem}"
    else:
        details = ""
    CleanStream(raw(sys.stderr)).write(f"adalora-run: {clean(problem)}\n{details}".rstrip() + "\n")


class Interrupted(BaseException):
    """Ctrl-C, SIGTERM or SIGUSR2; ``exit_code`` is 130 or 143.

    ``agreed``: in all processes of the run, at the same place.
    """

    def __init__(self, signum: int, agreed: bool = False) -> None:
        super().__init__(signal.Signals(signum).name)
        self.signum, self.agreed = signum, agreed
        self.exit_code = EXIT_INTERRUPTED if signum == signal.SIGINT else EXIT_TERMINATED


class EvaluationStopped(Exception):
    """The run was asked to stop and its evaluation takes long: it is made when the run goes on."""


class StopSignal:
    """Turns SIGINT and SIGTERM into ``Interrupted``: at once, or, inside ``deferred``, where ``check`` is called.

    A second signal does not wait; one that another process received first does not count. SIGUSR2, by which a scheduler
    announces the end of a job, is taken likewise where somebody has a handler for it, who gets it from ``hand_on``.
    """

    def __init__(self) -> None:
        self._received: int | None = None
        self._when = 0.0
        self._deferred = self._own = False
        self._others = callable(signal.getsignal(signal.SIGUSR2))

    @contextmanager
    def installed(self) -> Iterator[StopSignal]:
        signals = [signal.SIGINT, signal.SIGTERM, *([signal.SIGUSR2] if self._others else [])]
        before = {s: signal.signal(s, self._handle) for s in signals}
        try:
            yield self
        finally:
            for signum, handler in before.items():
                signal.signal(signum, handler)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False

    @property
    def waiting_s(self) -> float:
        """Seconds since the signal came; 0 without one."""
        return 0.0 if self._received is None else time.monotonic() - self._when

    @property
    def exit_code(self) -> int:
        """Of the signal received; 0 without one."""
        return 0 if self._received is None else Interrupted(self._received).exit_code

    @property
    def signum(self) -> int:
        """The signal received; 0 without one."""
        return self._received or 0

    def adopt(self, signum: int) -> None:
        """Remembers the first signal that a process of this run received (0: none)."""
        if signum and self._received is None:
            self._received, self._when = signum, time.monotonic()

    def check(self) -> None:
        if self._received is not None:
            raise Interrupted(self._received, agreed=True)

    def hand_on(self) -> None:
        """To be called when the run is safe and ``installed`` is left: a SIGUSR2 goes to whom it was meant for.

        Raises:
            BaseException: what that handler raises; submitit's requeues the job and ends the process.
        """
        if self._received == signal.SIGUSR2 and self._others:
            signal.raise_signal(signal.SIGUSR2)

    def _handle(self, signum: int, frame: Any) -> None:
        waits = self._deferred and not self._own
        self._own = self._own or self._deferred
        self.adopt(signum)
        if not waits:
            raise Interrupted(signum)


class Progress:
    """``update`` once per step costs a comparison; what is shown changes a few times a second, or per logged line."""

    def __init__(self, title: str, start: int, total: int, quiet: bool = False) -> None:
        self._quiet = quiet
        self._title, self._total, self._start, self._began = clean(title), total, start, time.monotonic()
        self._bar: Any = None
        self._shown = self._told = 0.0
        if sys.stderr.isatty() and not quiet:
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar

            columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
            heading = TextColumn("{task.description}", markup=False)
            self._bar = Bar(heading, *columns, console=Console(file=raw(sys.stderr)))
            self._bar.start()
            self._task = self._bar.add_task(self._title, total=total, completed=start)

    def update(self, step: int) -> None:
        if self._bar is not None and (now := time.monotonic()) - self._shown > 0.2:
            self._bar.update(self._task, completed=step)
            self._shown = now

    def evaluating(self, split: str, done: int, total: int) -> None:
        """How far an evaluation is: beside the bar, or a line every ``EVALUATION_LINE_S`` seconds of it."""
        if self._quiet:
            return
        now = time.monotonic()
        if done == 0:
            self._told = now
        text = f"evaluating {clean(split)} {done}/{total} batches"
        if self._bar is not None:
            if done == 0 or now - self._shown > 0.2:
                self._bar.update(self._task, description=f"{self._title}: {text}")
                self._shown = now
        elif now - self._told > EVALUATION_LINE_S:
            print(text, file=sys.stderr, flush=True)
            self._told = now

    def line(self, step: int, text: str) -> None:
        """A line that stays: above the bar, or plain with the time left."""
        if self._quiet:
            return
        if self._bar is not None:
            self._bar.update(self._task, completed=step, description=self._title)
            self._bar.console.print(f"step {step:,}  {clean(text)}", highlight=False, markup=False)
            return
        done = step - self._start
        left = (time.monotonic() - self._began) / done * (self._total - step) if done > 0 else 0.0
        print(f"step {step:,}/{self._total:,}  {clean(text)}  {left:.0f} s left", file=sys.stderr, flush=True)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()


class Agreement:
    """A number that several processes agree on, now and then: a message waits for the device and for all of them.

    All of them call at the same points of the run.
    """

    def __init__(self, world: World) -> None:
        self._world = world
        self._calls, self._every, self._began = 0, 1, time.perf_counter()

    def largest(self, number: int) -> int:
        """The largest of the processes' numbers; 0 where they do not ask each other."""
        if self._world.size == 1:
            return number
        self._calls += 1
        if self._calls < self._every:
            return 0
        per_call = max((time.perf_counter() - self._began) / self._calls, AGREE_S / AGREE_CALLS)
        number, every = self._world.largest(number, -max(1, int(AGREE_S / per_call)))
        self._calls, self._every, self._began = 0, -every, time.perf_counter()
        return number


class Watch:
    """What goes on beside the loop: progress for people, the heartbeat of the record, the wish to stop."""

    def __init__(self, progress: Progress, stop: StopSignal, publish: Callable[[], None], world: World) -> None:
        self.progress, self.stop, self.world = progress, stop, world
        self._steps, self._batches = Agreement(world), Agreement(world)
        self._publish = publish
        self.publish()

    def publish(self) -> None:
        """Tells the world how far the run is."""
        self._publish()
        self._published = time.perf_counter()

    def due(self) -> bool:
        return time.perf_counter() - self._published > HEARTBEAT_S

    def beat(self) -> None:
        """The same, if it is due."""
        if self.due():
            self.publish()

    def stopping(self) -> bool:
        """After a step: whether the run is to stop here. All processes say the same."""
        signum = self._steps.largest(self.stop.signum)
        self.stop.adopt(signum)
        return signum != 0

    def evaluating(self, split: str, done: int, total: int) -> None:
        """Before each batch of an evaluation.

        Raises:
            EvaluationStopped: asked to stop ``GRACE_S`` ago.
        """
        if overdue := self._batches.largest(self.stop.signum if self.stop.waiting_s > GRACE_S else 0):
            self.stop.adopt(overdue)
            raise EvaluationStopped
        self.progress.evaluating(split, done, total)
        self.beat()
