"""Processes forked from this one: what a fork needs to be safe and quiet, and work dealt to several of them.

A child has the memory of its parent, so that nothing is pickled on the way there, but of its threads only one. It
therefore never uses a pool of threads that the parent may have used: the Rust tokenizers' least of all.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

Piece = TypeVar("Piece")
Outcome = TypeVar("Outcome")

#: what asks a run to stop: it reaches a whole group of processes, of which the parent decides for all
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)
TOKENIZER_THREADS = "TOKENIZERS_PARALLELISM"


def usable() -> int:
    """CPUs that this process may use; 1 where the system cannot say (macOS, where a fork is not safe either)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1


@contextmanager
def forking() -> Iterator[None]:
    """Around a fork whose child calls ``settle`` first.

    Without it the tokenizers would warn on standard error of the threads that the child lost, or, told by the user to
    use threads, wait for them for ever; and a signal that comes before ``settle`` would be the child's too.
    """
    threads = os.environ.get(TOKENIZER_THREADS)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    os.environ[TOKENIZER_THREADS] = "false"
    try:
        yield
    finally:
        if threads is None:
            del os.environ[TOKENIZER_THREADS]
        else:
            os.environ[TOKENIZER_THREADS] = threads
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def settle(*_: Any) -> None:
    """In a child: signals that ask the run to stop are for the parent, with which it ends, even if that is killed."""
    for signum in SIGNALS:
        signal.signal(signum, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def in_order(work: Callable[[Piece], Outcome], pieces: Sequence[Piece], count: int) -> Iterator[Outcome]:
    """What ``work`` makes of each piece, in the order of the pieces, by ``count`` processes.

    Raises:
        Exception: what ``work`` raised, of the earliest piece.
        RuntimeError: a process was killed.
    """
    global _work
    _work = work  # for the children to find: a function within a function cannot be sent to them
    with ProcessPoolExecutor(count, multiprocessing.get_context("fork"), settle) as pool:
        with forking():  # the first piece that is handed in starts all processes
            outcomes = pool.map(_call, pieces)
        _work = _no_work  # the children have theirs; what it holds may be large
        yield from outcomes


def _no_work(piece: Any) -> Any:
    raise AssertionError("only a child has work")


_work: Callable[[Any], Any] = _no_work


def _call(piece: Any) -> Any:
    return _work(piece)
