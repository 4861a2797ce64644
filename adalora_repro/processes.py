"""Processes forked from this one: what a fork needs to be safe and quiet, and work dealt to several of them.

A child has the memory of its parent, so that nothing is pickled on the way there, but of its threads only one. It
therefore never uses a pool of threads that the parent may have used: the Rust tokenizers' least of all.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any, TypeVar

from adalora_repro.errors import InputError

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
    """In a child: signals that ask the run to stop are the parent's, which ends its children."""
    for signum in SIGNALS:
        signal.signal(signum, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


def in_order(work: Callable[[Piece], Outcome], pieces: Sequence[Piece], count: int) -> Iterator[Outcome]:
    """What ``work`` makes of each piece, in the order of the pieces, by ``count`` processes.

    A process waits with what it has made until that is asked for, or fits into a pipe: it is never far ahead.

    Raises:
        InputError: what ``work`` raises, of the earliest piece.
        RuntimeError: ``work`` raised something else (with the child's traceback), or a child was killed.
    """
    fork = multiprocessing.get_context("fork")
    children: list[Any] = []
    receivers: list[Connection] = []
    try:
        with forking():
            for number in range(count):
                receiver, sender = fork.Pipe(duplex=False)
                receivers.append(receiver)
                own = pieces[number::count]
                child = fork.Process(target=_serve, args=(work, own, sender, receivers), daemon=True)
                child.start()
                children.append(child)
                sender.close()  # or the end of the child would not be the end of the pipe
        for number in range(len(pieces)):
            try:
                problem, details, outcome = receivers[number % count].recv()
            except EOFError:
                child = children[number % count]
                child.join()
                raise RuntimeError(
                    f"one of {count} processes ended with code {child.exitcode} (-9: killed, memory may be short)"
                ) from None
            if problem is not None:
                raise InputError(problem)
            if details is not None:
                raise RuntimeError(f"in one of {count} processes:\n{details}")
            yield outcome
    finally:
        for receiver in receivers:
            receiver.close()
        for child in children:
            child.kill()  # it holds nothing but memory
            child.join()


def _serve(work: Callable[[Any], Any], pieces: Sequence[Any], sender: Connection, receivers: list[Connection]) -> None:
    settle()
    for receiver in receivers:  # or a child would wait for ever when the parent, the only reader, is killed
        receiver.close()
    try:
        for piece in pieces:
            answer: tuple[str | None, str | None, Any]
            try:
                answer = (None, None, work(piece))
            except InputError as error:
                answer = (str(error), None, None)
            except Exception:
                answer = (None, traceback.format_exc(), None)
            sender.send(answer)
    except BrokenPipeError:
        pass
