"""What a run prints: what it is, its stages, a progress bar on a terminal, and plain lines anywhere else.

Of several processes only the main one prints; a problem that all of them have is printed once.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

from adalora_repro.errors import CleanStream, clean, duration, raw
from adalora_repro.training import signals
from adalora_repro.training.distributed import Processes, launched

if TYPE_CHECKING:
    from adalora_repro.config.plan import Plan

HEARTBEAT_S = 60.0  # a running record is renewed at least this often, at the next step or evaluated batch
LINE_S = 30.0  # without a terminal (a file, a pipe) a line is printed at least this often
ALONE_S = 15.0  # how long a process waits before it prints a problem: if the main one has it too, the launcher ends it

_prefix = ""  # of every line, see ``prefixed``
_spoke = 0.0  # when the last line was printed (monotonic)


class Prefixed:
    """A text stream that writes ``prefix`` before each line and delegates everything else to ``stream``."""

    def __init__(self, stream: Any, prefix: str) -> None:
        self.stream, self.prefix = stream, prefix
        self.line_begins = True

    def write(self, text: str) -> int:
        for line in text.splitlines(keepends=True):
            self.stream.write(f"{self.prefix}{line}" if self.line_begins and line.strip() else line)
            self.line_begins = line.endswith("\n")
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


@contextmanager
def prefixed(text: str) -> Iterator[None]:
    """Inside, the lines and the bar of a run begin with ``text``, which names the run of a sweep."""
    global _prefix
    before, _prefix, out = _prefix, f"{clean(text)} ", sys.stdout
    sys.stdout = cast(Any, Prefixed(out, _prefix))
    try:
        yield
    finally:
        _prefix, sys.stdout = before, out


def say(text: str) -> None:
    """A line on standard error, from the main process."""
    global _spoke
    if launched()[0] == 0:
        _spoke = time.monotonic()
        print(f"{_prefix}{clean(text)}", file=sys.stderr, flush=True)


def complain(problem: str, details: str = "") -> None:
    """Prints a problem that ends this process.

    Usually all processes have it, and the main one prints it. Another process prints it, with ``details``, only if it
    is still running after ``ALONE_S``: then the problem is its own.
    """
    rank, _ = launched()
    if rank:
        time.sleep(ALONE_S)
        problem = f"process {rank}: {problem}"
    else:
        details = ""
    CleanStream(raw(sys.stderr)).write(f"{_prefix}adalora-run: {clean(problem)}\n{details}".rstrip() + "\n")


def heading(plan: Plan) -> None:
    """One line about the run that begins, printed before torch is imported and parameters are counted."""
    key = plan.key
    say(f"{key['task']} {key['method']} {key['budget']} on {key['backbone']}, seed {key['seed']}, data={key['data']}")


def banner(plan: Plan) -> None:
    """The line below ``heading``, from a counted plan: device, T, trainable parameters.

    It is the device that the runner will choose; importing accelerate to ask would take seconds.
    """
    import torch

    params = plan.params
    chosen, (_, processes) = plan.cfg.train.device, launched()
    device = "cuda" if chosen != "cpu" and torch.cuda.is_available() else "cpu"
    if device == "cpu":
        device += f" ({torch.get_num_threads()} thread{'s' * (torch.get_num_threads() != 1)})"
    many = f"{processes} processes, " if processes > 1 else ""
    say(f"{many}{device}, T = {plan.total_steps:,} steps, {params['at_init'] + params['head']:,} trainable parameters")


@contextmanager
def stage(name: str) -> Iterator[None]:
    """Around a part of the run before its first step: prints its name, and now and then how long it has taken."""
    say(name)
    began = time.monotonic()
    with speaking(lambda: f"{name}: {duration(time.monotonic() - began)} so far"):
        yield


@contextmanager
def speaking(line: Callable[[], str]) -> Iterator[None]:
    """Inside, without a terminal, ``line()`` is printed whenever nothing else was printed for ``LINE_S``."""
    if sys.stderr.isatty() or launched()[0] != 0:
        yield
        return
    ended = threading.Event()

    def speak() -> None:
        while not ended.wait(max(0.0, _spoke + LINE_S - time.monotonic())):
            if time.monotonic() - _spoke >= LINE_S:
                say(line())

    thread = threading.Thread(target=speak, name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


class Progress:
    """The progress of a run: a bar on a terminal, lines elsewhere. ``update`` once per step costs some microseconds."""

    def __init__(self, title: str, start: int, total: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        self._title, self._total, self._start, self._began = clean(f"{_prefix}{title}"), total, start, time.monotonic()
        self._step, self._activity = start, ""
        self._speaking = speaking(lambda: self._activity or f"step {self._step:,}/{self._total:,}{self._left()}")
        self._speaking.__enter__()
        self._terminal = sys.stderr.isatty() and launched()[0] == 0
        heading = TextColumn("{task.description}", markup=False)
        columns = (heading, BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
        self._bar = Bar(*columns, console=Console(file=raw(sys.stderr)), disable=not self._terminal)
        self._bar.start()
        self._task = self._bar.add_task(self._title, total=total, completed=start)

    def update(self, step: int) -> None:
        self._step, self._activity = step, ""
        self._bar.update(self._task, completed=step, description=self._title)

    def evaluating(self, split: str, done: int, total: int) -> None:
        """Reports the progress of an evaluation."""
        self._activity = f"evaluating {clean(split)} {done}/{total} batches"
        self._bar.update(self._task, description=f"{self._title}: {self._activity}")

    def line(self, step: int, text: str) -> None:
        """A permanent line: above the bar, or plain with the time left."""
        self.update(step)
        if self._terminal:
            self._bar.console.print(f"step {step:,}  {clean(text)}", highlight=False, markup=False)
        else:
            say(f"step {step:,}/{self._total:,}  {text}{self._left()}")

    def close(self) -> None:
        self._speaking.__exit__(None, None, None)
        self._bar.stop()

    def _left(self) -> str:
        """The time left at the average pace so far."""
        done = self._step - self._start
        if done <= 0:
            return ""
        return f"  {duration((time.monotonic() - self._began) / done * (self._total - self._step))} left"


class Watch:
    """What happens beside the steps: progress output, the heartbeat of the record, requests to stop."""

    def __init__(
        self, progress: Progress, stop: signals.StopSignal, publish: Callable[[], None], processes: Processes
    ) -> None:
        self.progress, self.stop = progress, stop
        self._processes = processes
        self._publish = publish
        self.publish()

    def publish(self) -> None:
        """Writes the record, with the current step."""
        self._publish()
        self._published = time.perf_counter()

    def due(self) -> bool:
        return time.perf_counter() - self._published > HEARTBEAT_S

    def beat(self) -> None:
        """``publish``, if it is due."""
        if self.due():
            self.publish()

    def stopping(self) -> bool:
        """After a step: whether a signal asked the run to stop. The same answer in all processes."""
        self._processes.signum = self.stop.signum
        signum = self._processes.received()
        self.stop.adopt(signum)
        return signum != 0

    def evaluating(self, split: str, done: int, total: int) -> None:
        """Before each batch of an evaluation.

        Raises:
            Interrupted: a signal asked the run to stop.
        """
        if signum := self._processes.agreed(self.stop.signum):  # by all of them, at the same batch
            self.stop.adopt(signum)
            self.stop.check()
        self.progress.evaluating(split, done, total)
        self.beat()
