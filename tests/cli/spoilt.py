"""A run in a forked process that something happens to. It imports no conftest: in a child another has that name."""

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adalora_repro.cli import run
from adalora_repro.records import run_record
from adalora_repro.tasks import glue
from adalora_repro.training import checkpoint


def in_child(folder: Path, words: tuple[str, ...], spoil: Callable[[], None]) -> None:
    import torch

    multiprocessing.set_start_method("fork", force=True)  # its locks have no name that a kill would leave behind
    torch.set_num_threads(1)
    os.chdir(folder)
    for number, name in ((1, "out.txt"), (2, "err.txt")):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    spoil()
    sys.argv = ["adalora-run", *words]
    code = run.main()
    sys.stdout.flush()
    os._exit(code)  # what multiprocessing does at an end is not what is tested


@dataclass
class SignalInWrite:
    """A signal when ``name`` is written for the ``count``-th time: half of it is on the disk, or its old name gone."""

    name: str
    count: int
    where: str = "half"
    signum: int = signal.SIGKILL

    def __call__(self) -> None:
        write_atomic, replace = run_record.write_atomic, os.replace

        def half(handle: int) -> None:
            os.ftruncate(handle, os.fstat(handle).st_size // 2)
            os.kill(os.getpid(), self.signum)

        def write(path: Path, content: Any) -> None:
            self.count -= path.name == self.name
            if not self.count and self.where == "half":
                os.fsync = half
            write_atomic(path, content)

        def rename(source: Any, target: Any) -> None:
            if not self.count and self.where == "rename" and Path(source).name == self.name:
                os.kill(os.getpid(), self.signum)
            replace(source, target)

        run_record.write_atomic = checkpoint.write_atomic = write
        os.replace = rename


@dataclass
class SignalInStep:
    """A signal in the middle of the ``count``-th optimizer step of the process."""

    count: int
    signum: int = signal.SIGKILL

    def __call__(self) -> None:
        loss = glue.Task.loss

        def signalled(task: Any, model: Any, batch: Any) -> Any:
            self.count -= 1
            if not self.count:
                os.kill(os.getpid(), self.signum)
            return loss(task, model, batch)

        glue.Task.loss = signalled


def unspoilt() -> None:
    pass
