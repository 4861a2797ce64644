"""The processes of one run: what is added up, gathered and agreed between them; with one process, nothing.

Data-parallel without a wrapper around the model: few parameters train, so one message per optimizer step carries their
gradients, and every process then does the same arithmetic on the same numbers. Only the main process writes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from accelerate.utils import broadcast_object_list, gather_object
from torch import Tensor

if TYPE_CHECKING:
    from accelerate import Accelerator

T = TypeVar("T")


class World:
    """``size`` processes, this one is ``rank`` (from 0); ``main`` is rank 0."""

    def __init__(self, accelerator: Accelerator) -> None:
        self.accelerator = accelerator
        self.size: int = accelerator.num_processes
        self.rank: int = accelerator.process_index

    @property
    def main(self) -> bool:
        return self.rank == 0

    def add_up(self, parameters: Sequence[torch.nn.Parameter], others: Tensor) -> Tensor:
        """Replaces every gradient by its sum over the processes, and returns that of ``others`` (a vector).

        One message; a parameter that has no gradient here counts as zero and gets one.
        """
        if self.size == 1:
            return others
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        gradients = [p.grad for p in parameters if p.grad is not None]
        flat = torch.cat([others, *(gradient.flatten() for gradient in gradients)])
        torch.distributed.all_reduce(flat)
        parts = flat.split([len(others), *(gradient.numel() for gradient in gradients)])
        torch._foreach_copy_(gradients, [part.view_as(g) for part, g in zip(parts[1:], gradients, strict=True)])
        return parts[0]

    def largest(self, number: int) -> int:
        """The largest of the processes' numbers."""
        if self.size == 1:
            return number
        tensor = torch.tensor([number], device=self.accelerator.device)
        torch.distributed.all_reduce(tensor, torch.distributed.ReduceOp.MAX)
        return int(tensor.item())

    def own(self, items: Sequence[T]) -> Sequence[T]:
        """This process's share: items rank, rank + size, …"""
        return items[self.rank :: self.size]

    def gathered(self, items: Iterable[T]) -> Iterable[T]:
        """The items of all processes, in every process; with one process they are not even collected."""
        if self.size == 1:
            return items
        found: list[T] = gather_object(list(items))
        return found

    def wait(self) -> None:
        """Until every process is here."""
        self.accelerator.wait_for_everyone()

    def on_main(self, make: Callable[[], T]) -> T:
        """What ``make`` returns in the main process, in every process; its exception likewise."""
        if self.size == 1:
            return make()
        outcome: list[Any] = [None, None]
        if self.main:
            try:
                outcome[0] = make()
            except Exception as error:
                outcome[1] = error
        broadcast_object_list(outcome)
        if outcome[1] is not None:
            raise outcome[1]
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
