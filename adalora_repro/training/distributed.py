"""The processes of one run: what they sum, gather and agree on; with one process, no message is sent.

Data parallel without a wrapper around the model: few parameters train, so one message per optimizer step carries their
gradients, and every process then does the same arithmetic on the same numbers. Only the main process writes files.

torch and accelerate are imported where a message is sent, so that a program that only asks for its rank starts fast.
"""

from __future__ import annotations

import os
import pickle
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import zip_longest
from typing import TYPE_CHECKING, Any, TypeVar

from adalora_repro.errors import EXIT_BAD_INPUT, clean
from adalora_repro.tasks.processes import SIGNALS

if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator
    from torch import Tensor

T = TypeVar("T")

#: steps or evaluated batches after which processes on accelerators ask each other whether one was asked to stop; the
#: answer waits for the device. On a CPU they ask every time.
AGREE_CALLS = 5


def launched() -> tuple[int, int]:
    """This process's rank and the number of processes, from torchrun or accelerate launch; (0, 1) without them.

    Raises:
        SystemExit: the variables are wrong. The line is printed here, because printing an error needs the rank first.
    """
    if os.environ.get("LOCAL_RANK", "-1") == "-1":
        return 0, 1
    rank, size = (os.environ.get(name, default) for name, default in (("RANK", "0"), ("WORLD_SIZE", "1")))
    if rank.isdecimal() and size.isdecimal() and int(rank) < int(size):
        return int(rank), int(size)
    problem = f"environment variables RANK={rank} and WORLD_SIZE={size}: torchrun and accelerate launch set them"
    print(f"adalora-run: error: {clean(problem)}", file=sys.stderr)
    raise SystemExit(EXIT_BAD_INPUT)


# -- messages -------------------------------------------------------------------------------------------------------


class LostError(RuntimeError):
    """Another process of this run has ended or does not answer."""


class Processes:
    """``size`` processes, this one is ``rank`` (from 0); ``main`` is rank 0.

    All processes call every method but ``own``, in the same order. If one ends early, the others get a ``LostError`` or
    are stopped by the launcher.

    Attributes:
        common: the last exception that ``on_main`` raised in all processes.
        signum: the signal that this process received (0: none), for the next gradient message.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self.accelerator = accelerator
        self.size: int = accelerator.num_processes
        self.rank: int = accelerator.process_index
        self.common: Exception | None = None
        self.signum = 0
        self._flags: Tensor | None = None  # of the last gradient message: how many processes received which signal
        self._calls = 0  # steps and evaluated batches, the same number in all processes

    @property
    def main(self) -> bool:
        return self.rank == 0

    def add_up(self, parameters: Sequence[torch.nn.Parameter], others: Tensor) -> Tensor:
        """Replaces every gradient by its sum over the processes; returns the sum of ``others`` (a vector).

        One message, which also carries ``signum``. A gradient that is None here counts as zero; one that is None in all
        processes stays None, and the optimizer skips its parameter.
        """
        if self.size == 1:
            return others
        import torch

        here = [parameter.grad is not None for parameter in parameters]
        # in the usual case, where all are here, nothing is copied from the host: that would wait for the device
        present = others.new_ones(len(here)) if all(here) else others.new_tensor(here)
        flags = others.new_zeros(len(SIGNALS))
        if self.signum:
            flags[SIGNALS.index(self.signum)] = 1
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        gradients = [p.grad for p in parameters if p.grad is not None]
        head = (others, flags, present)
        flat = torch.cat([*head, *(gradient.flatten() for gradient in gradients)])
        with _talking():
            torch.distributed.all_reduce(flat)
        sizes = [part.numel() for part in (*head, *gradients)]
        others, self._flags, present, *sums = flat.split(sizes)
        torch._foreach_copy_(gradients, [total.view_as(g) for total, g in zip(sums, gradients, strict=True)])
        if not all(here):
            for parameter, count in zip(parameters, present.tolist(), strict=True):
                if count == 0:
                    parameter.grad = None
        return others

    def from_main(self, tensors: Iterable[Tensor]) -> None:
        """Gives the tensors the main process's values."""
        if self.size == 1:
            return
        import torch

        with _talking(), torch.no_grad():
            for tensor in tensors:
                value = tensor.clone(memory_format=torch.contiguous_format)
                torch.distributed.broadcast(value, 0)
                tensor.copy_(value)

    def received(self) -> int:
        """After a step: a signal that any process received before it, the same in all of them; 0: none."""
        if self.size == 1:
            return self.signum
        if not self._due() or self._flags is None:
            return 0
        counts = self._flags.tolist()
        return next((signum for signum, count in zip(SIGNALS, counts, strict=True) if count), 0)

    def agreed(self, number: int) -> int:
        """During an evaluation: the maximum of ``number`` over the processes; 0 in calls that send no message."""
        if self.size == 1:
            return number
        return self.largest(number) if self._due() else 0

    def _due(self) -> bool:
        self._calls += 1
        return self.accelerator.device.type == "cpu" or self._calls % AGREE_CALLS == 0

    def largest(self, number: int) -> int:
        """The maximum over the processes."""
        if self.size == 1:
            return number
        import torch

        tensor = torch.tensor(number, device=self.accelerator.device)
        with _talking():
            torch.distributed.all_reduce(tensor, torch.distributed.ReduceOp.MAX)
            return int(tensor)

    def own(self, items: Sequence[T]) -> Sequence[T]:
        """This process's share: items number rank, rank + size, …"""
        return items[self.rank :: self.size]

    def gathered(self, items: Iterable[T]) -> Iterable[T]:
        """The items of all processes, in every process, in the order from which ``own`` dealt them out.

        A single process gets its iterable back unconsumed.
        """
        if self.size == 1:
            return items
        from accelerate.utils import gather_object

        mine = [list(items)]
        with _talking():
            shares: list[list[T]] = gather_object(mine)
        nothing: Any = object()
        dealt = zip_longest(*shares, fillvalue=nothing)
        return [item for items in dealt for item in items if item is not nothing]

    def on_main(self, make: Callable[[], T]) -> T:
        """Calls ``make`` in the main process; returns its result, or raises its exception, in every process."""
        if self.size == 1:
            return make()
        from accelerate.utils import broadcast_object_list

        outcome: list[Any] = [None, None]
        raised: Exception | None = None
        if self.main:
            try:
                outcome[0] = make()
            except Exception as error:
                raised = error
                outcome[1] = _portable(error)
        with _talking():
            broadcast_object_list(outcome)
        self.common = raised or outcome[1]
        if self.common is not None:
            raise self.common
        return outcome[0]

    def main_first(self, make: Callable[[], T]) -> T:
        """Calls ``make`` in the main process and then in the others, so that a cache is filled only once.

        Raises:
            Exception: what the main process raises, in all of them.
        """
        results: list[T] = []
        self.on_main(lambda: results.append(make()))
        return results[0] if results else make()


@contextmanager
def _talking() -> Iterator[None]:
    """Around a message: torch has no exception of its own for a process that has ended."""
    import torch

    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise LostError(f"another process of this run ended ({' '.join(str(error).split())[:200]})") from error


def _portable(error: Exception) -> Exception:
    """The exception in a form that can be pickled and read back; not every exception can."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error
