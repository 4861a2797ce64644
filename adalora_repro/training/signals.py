"""What ends a run cleanly: Ctrl-C, SIGTERM, SIGHUP and SIGUSR2, after the current step or evaluated batch."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from adalora_repro.errors import EXIT_INTERRUPTED, EXIT_TERMINATED


class Interrupted(BaseException):
    """Ctrl-C, SIGTERM, SIGHUP or SIGUSR2; ``exit_code`` is 130 or 143.

    ``agreed``: all processes of the run raise it, at the same point.
    """

    def __init__(self, signum: int, agreed: bool = False) -> None:
        super().__init__(signal.Signals(signum).name)
        self.signum, self.agreed = signum, agreed
        self.exit_code = EXIT_INTERRUPTED if signum == signal.SIGINT else EXIT_TERMINATED


_remembered: list[int] = []


@contextmanager
def remembered() -> Iterator[None]:
    """SIGINT raises KeyboardInterrupt and is remembered: if a library that was being imported swallows it,
    ``StopSignal.installed`` raises it again. For Ray, which interrupts a run only once.
    """

    def handle(signum: int, frame: Any) -> None:
        _remembered.append(signum)
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        _remembered.clear()


class StopSignal:
    """Turns SIGINT, SIGTERM and SIGHUP (a lost connection; ``nohup`` ignores it) into ``Interrupted``: at once, or,
    inside ``deferred``, when ``check`` is called.

    A second signal raises at once; one that another process received first does not count as the first. SIGUSR2 is
    handled likewise if a handler for it was installed before (submitit's); ``hand_on`` passes it on to that handler.

    Attributes:
        signum: the first signal that a process of this run received; 0: none.
    """

    def __init__(self) -> None:
        self.signum = 0
        self._deferred = self._own = False
        self._others = callable(signal.getsignal(signal.SIGUSR2))

    @contextmanager
    def installed(self) -> Iterator[None]:
        signals = [signal.SIGINT, signal.SIGTERM, *([signal.SIGUSR2] if self._others else [])]
        signals += [signal.SIGHUP] if signal.getsignal(signal.SIGHUP) == signal.SIG_DFL else []
        before = {s: signal.signal(s, self._handle) for s in signals}
        try:
            if _remembered:
                raise Interrupted(_remembered[0])
            yield
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
    def exit_code(self) -> int:
        """The exit code for the signal received; 0 without one."""
        return Interrupted(self.signum).exit_code if self.signum else 0

    def adopt(self, signum: int) -> None:
        self.signum = self.signum or signum

    def check(self) -> None:
        if self.signum:
            raise Interrupted(self.signum, agreed=True)

    def hand_on(self) -> None:
        """Passes a SIGUSR2 on to its original handler; call it after the run is saved, outside ``installed``.

        Raises:
            BaseException: what that handler raises; submitit's requeues the job and ends the process.
        """
        if self.signum == signal.SIGUSR2 and self._others:
            signal.raise_signal(signal.SIGUSR2)

    def _handle(self, signum: int, frame: Any) -> None:
        waits = self._deferred and not self._own
        self._own = self._own or self._deferred
        self.adopt(signum)
        if not waits:
            raise Interrupted(signum)
