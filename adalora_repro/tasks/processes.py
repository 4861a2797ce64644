"""Processes forked from this one: what a fork needs to be safe, quiet, and gone when this process is.

A child has the memory of its parent, but of its threads only one. It therefore never uses a pool of threads that the
parent may have used: the Rust tokenizers' least of all.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

#: what asks a run to stop (SIGUSR2: a scheduler announces the end of a job): it reaches a whole group of processes, of
#: which the parent decides for all
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2, signal.SIGHUP)
TOKENIZER_THREADS = "TOKENIZERS_PARALLELISM"


def usable() -> int:
    """CPUs that this process may use; 1 on macOS, where a fork is not safe."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1


@contextmanager
def without_tokenizer_threads() -> Iterator[None]:
    """Children forked inside use the tokenizers without threads: with them the tokenizers would warn, or wait for ever
    for threads that the child lost."""
    environment, threads = os.environ, os.environ.get(TOKENIZER_THREADS)
    os.environ[TOKENIZER_THREADS] = "false"
    try:
        yield
    finally:
        os.environ = environment  # noqa: B003 (``Dataset.map`` puts a copy in its place)
        if threads is None:
            del os.environ[TOKENIZER_THREADS]
        else:
            os.environ[TOKENIZER_THREADS] = threads


@contextmanager
def forking() -> Iterator[None]:
    """Around a fork whose child calls ``settle`` first: a signal that comes before would be the child's too."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        with without_tokenizer_threads():
            yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def mapping() -> Iterator[None]:
    """Around ``Dataset.map(num_proc=…)``, whose processes would outlive this one if it is killed, and which turns
    Ctrl+C into a TimeoutError of its own."""
    from multiprocess import TimeoutError as WorkerTimeoutError

    global _in_map
    _in_map = True
    try:
        with without_tokenizer_threads():
            yield
    except WorkerTimeoutError as error:  # raised while it cleans up after what ended the map
        raise error.__context__ or error from None
    finally:
        _in_map = False


def settle(*_: Any, ignored: Iterable[int] = SIGNALS) -> None:
    """In a child: signals that ask the run to stop are for the parent, with which it ends, even if that is killed."""
    for signum in SIGNALS:
        signal.signal(signum, signal.SIG_IGN if signum in ignored else signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


_in_map = False


def _settle_in_map() -> None:
    if _in_map:
        settle(ignored={*SIGNALS} - {signal.SIGTERM})  # by which the pool ends its workers


os.register_at_fork(after_in_child=_settle_in_map)
