"""The processes of one run: what is added up, gathered and agreed between them; with one process, nothing.

Data-parallel without a wrapper around the model: few parameters train, so one message per optimizer step carries their
gradients, and every process then does the same arithmetic on the same numbers. Only the main process writes.

Every method but ``own`` is called by all processes, in the same order. A process that leaves early ends the others:
they get a ``LostError``, or the launcher stops them.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import zip_longest
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from accelerate.utils import broadcast_object_list, gather_object
from torch import Tensor

if TYPE_CHECKING:
    from accelerate import Accelerator

T = TypeVar("T")


class LostError(RuntimeError):
    """Another process of this run ended, or does not answer."""


class World:
    """``size`` processes, this one is ``rank`` (from 0); ``main`` is rank 0.

    Attributes:
        common: the exception that ``on_main`` raised in all processes.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self.accelerator = accelerator
        self.size: int = accelerator.num_processes
        self.rank: int = accelerator.process_index
        self.common: Exception | None = None

    @property
    def main(self) -> bool:
        return self.rank == 0

    def add_up(self, parameters: Sequence[torch.nn.Parameter], others: Tensor) -> Tensor:
        """Replaces every gradient by its sum over the processes, and returns that of ``others`` (a vector).

        One message. A gradient that is missing here counts as zero; one that is missing everywhere stays so, and the
        optimizer leaves its parameter alone.
        """
        if self.size == 1:
            return others
        here = [parameter.grad is not None for parameter in parameters]
        # that all are here takes no copy from the host, which would wait for the device
        known = others.new_ones(len(here)) if all(here) else others.new_tensor(here)
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        gradients = [p.grad for p in parameters if p.grad is not None]
        flat = torch.cat([others, known, *(gradient.flatten() for gradient in gradients)])
        with _talking():
            torch.distributed.all_reduce(flat)
        others, known, *sums = flat.split([len(others), len(known), *(gradient.numel() for gradient in gradients)])
        torch._foreach_copy_(gradients, [total.view_as(g) for total, g in zip(sums, gradients, strict=True)])
        if not all(here):
            for parameter, count in zip(parameters, known.tolist(), strict=True):
                if count == 0:
                    parameter.grad = None
        return others

    def largest(self, *numbers: int) -> list[int]:
        """Of each number the largest that a process has."""
        if self.size == 1:
            return list(numbers)
        tensor = torch.tensor(numbers, device=self.accelerator.device)
        with _talking():
            torch.distributed.all_reduce(tensor, torch.distributed.ReduceOp.MAX)
            found: list[int] = tensor.tolist()
        return found

    def own(self, items: Sequence[T]) -> Sequence[T]:
        """This process's share: items rank, rank + size, …"""
        return items[self.rank :: self.size]

    def gathered(self, items: Iterable[T]) -> Iterable[T]:
        """The items of all processes, in every process: what ``own`` dealt out is in its order again.

        With one process they are not even collected.
        """
        if self.size == 1:
            return items
        mine = [list(items)]
        with _talking():
            shares: list[list[T]] = gather_object(mine)
        nothing: Any = object()
        dealt = zip_longest(*shares, fillvalue=nothing)
        return [item for items in dealt for item in items if item is not nothing]

    def on_main(self, make: Callable[[], T]) -> T:
        """What ``make`` returns in the main process, in every process; its exception likewise."""
        if self.size == 1:
            return make()
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
        """``make`` in the main process, then in the others: what it leaves in a cache is made once.

        Raises:
            Exception: what it raises in the main process, in all of them.
        """
        if self.size == 1:
            return make()
        results: list[T] = []

        def first() -> None:
            results.append(make())

        self.on_main(first)
        return results[0] if results else make()


@contextmanager
def _talking() -> Iterator[None]:
    """Around a message: torch has no exception of its own for a process that is gone."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise LostError(f"another process of this run ended ({' '.join(str(error).split())[:200]})") from error


def _portable(error: Exception) -> Exception:
    """An exception as another process can read it; some cannot be pickled, or only be written."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error
