"""Which rows share a batch, and bringing them to the device."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import DataLoader
from transformers.trainer_pt_utils import get_length_grouped_indices

from adalora_repro.processes import forking, settle, usable

if TYPE_CHECKING:
    from datasets import Dataset

    from adalora_repro.tasks.base import Batch

WORKERS = 2
#: to start and end two workers takes 0.1 s, 1 s in a process of 3 GB (measured), and what a worker takes over is 1 to
#: 6 ms a batch: what is shorter than this is sooner done without them
FEW_BATCHES = 200


def epoch_order(lengths: Sequence[int], batch_size: int, seed: int, group: bool) -> list[list[int]]:
    """Row numbers of the batches of one epoch, each row once.

    With ``group``, rows of similar length share a batch (little padding); the order of batches is random either way.
    """
    generator = torch.Generator().manual_seed(seed)
    if group:
        order = get_length_grouped_indices(lengths, batch_size, generator=generator)
    else:
        order = torch.randperm(len(lengths), generator=generator).tolist()
    batches = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    return [batches[i] for i in torch.randperm(len(batches), generator=generator)]


def longest_first(lengths: Sequence[int], batch_size: int) -> list[list[int]]:
    """Batches for evaluation: little padding, and the one that needs the most memory comes first."""
    order = sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True)
    return [order[i : i + batch_size] for i in range(0, len(order), batch_size)]


def split(rows: list[int], parts: int) -> list[list[int]]:
    """At most ``parts`` pieces of equal size (the last may be smaller)."""
    size = math.ceil(len(rows) / parts)
    return [rows[i : i + size] for i in range(0, len(rows), size)]


def workers_for(asked: int | None, device: torch.device, batches: int) -> int:
    """How many processes make so many batches; ``asked`` (``train.num_workers``), where it is a number, says it.

    Otherwise none beside a model on a CPU, whose cores they would take, where there is only one CPU, or for fewer than
    ``FEW_BATCHES``.
    """
    if asked is not None:
        return asked
    return 0 if device.type == "cpu" or usable() == 1 or batches < FEW_BATCHES else WORKERS


def loaded(
    rows: Dataset,
    batches: Sequence[list[int]],
    collate: Callable[[list[dict[str, Any]]], Batch],
    device: torch.device,
    workers: int,
) -> Iterator[Batch]:
    """The batches, collated by ``workers`` processes (0: by this one), their tensors on the device."""
    loader: Any = DataLoader(
        rows,
        batch_sampler=batches,
        collate_fn=collate,
        num_workers=workers,
        pin_memory=device.type == "cuda",
        generator=torch.Generator(),  # the loader draws a seed for its workers; not from the run's stream
        worker_init_fn=settle,
        multiprocessing_context="fork" if workers else None,  # a function of a task is not pickled
    )
    with forking() if workers else nullcontext():
        made = iter(loader)
    for batch in made:
        yield {
            name: value.to(device, non_blocking=True) if isinstance(value, torch.Tensor) else value
            for name, value in batch.items()
        }
