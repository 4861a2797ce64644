"""Which rows share a batch, and how batches reach the device."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from itertools import chain, tee
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import DataLoader

from adalora_repro.tasks.base import padded_length
from adalora_repro.tasks.processes import forking, settle, usable

if TYPE_CHECKING:
    from datasets import Dataset

    from adalora_repro.tasks.base import Batch
    from adalora_repro.training.state import RunState

WORKERS = 2
#: fewer batches are faster without workers: starting and ending two takes 0.1 s, in a process of 3 GB 1 s (measured),
#: and a worker saves 1 to 6 ms a batch
FEW_BATCHES = 200


# -- the batches of a run -------------------------------------------------------------------------------------------


def training_batches(run: RunState) -> Iterator[list[Batch]]:
    """This process's micro-batches of every step from ``run.t`` on; they depend on t and the seed alone."""
    per_epoch = run.plan.steps_per_epoch
    lengths = run.data.train["length"][:]
    for epoch in range(run.t // per_epoch, math.ceil(run.plan.total_steps / per_epoch)):
        first, last = run.t - epoch * per_epoch, run.plan.total_steps - epoch * per_epoch
        batches = steps_of(run, epoch, lengths)[first:last]
        steps, ahead = tee(parts_of(run, rows, lengths) for rows in batches)  # cut as they are loaded
        ready = on_device(run, run.data.train, chain.from_iterable(ahead), len(batches))
        for rows, parts in zip(batches, steps, strict=True):
            run.tokens += sum(lengths[row] for row in rows)
            yield [next(ready) for _ in parts]


def first_batches(run: RunState) -> Iterator[Batch]:
    """The batches of the first epoch, the same in every process; a step's in ``train.grad_accumulation`` parts."""
    steps = steps_of(run, 0, run.data.train["length"][:])
    parts = [part for rows in steps for part in split(rows, run.plan.cfg.train.grad_accumulation)]
    return loaded(run.data.train, parts, run.task.collate, run.device, workers=0)


def steps_of(run: RunState, epoch: int, lengths: Sequence[int]) -> list[list[int]]:
    """Row numbers of every optimizer step of an epoch; ``lengths`` are the tokens of each row."""
    cfg = run.plan.cfg
    return epoch_order(lengths, cfg.train.batch_size, cfg.seed * 100_003 + epoch, cfg.train.group_by_length)


def parts_of(run: RunState, rows: list[int], lengths: Sequence[int]) -> list[list[int]]:
    """This process's rows of a step, cut into micro-batches.

    A batch drawn at random is dealt out to the processes and cut in order of length: a step's gradient is the mean over
    all its rows. On a CPU it is cut further where that saves padding; on an accelerator a pass takes at least the time
    to launch its operations.
    """
    train, processes = run.plan.cfg.train, run.processes
    if train.group_by_length or train.padding == "max_length":
        return list(processes.own(split(rows, train.grad_accumulation * processes.size)))
    parts = split(list(processes.own(longest_first(lengths, rows))), train.grad_accumulation)
    if run.device.type != "cpu":
        return parts
    return [cut for part in parts for cut in by_length(part, lengths, train.pass_tokens)]


def on_device(run: RunState, rows: Dataset, batches: Iterable[list[int]], count: int) -> Iterator[Batch]:
    """The batches (at least ``count``), collated, on the run's device."""
    workers = workers_for(run.plan.cfg.train.num_workers, run.device, count)
    return loaded(rows, batches, run.task.collate, run.device, workers)


# -- which rows share a batch ---------------------------------------------------------------------------------------


def epoch_order(lengths: Sequence[int], batch_size: int, seed: int, group: bool) -> list[list[int]]:
    """Row numbers of the batches of one epoch, each row once.

    Without ``group`` rows are drawn at random, as in the released scripts. With it, rows of similar length share a
    batch (little padding), and the order of batches is random.
    """
    generator = torch.Generator().manual_seed(seed)
    if group:
        from transformers.trainer_pt_utils import get_length_grouped_indices

        order = get_length_grouped_indices(lengths, batch_size, generator=generator)
    else:
        order = torch.randperm(len(lengths), generator=generator).tolist()
    batches = _in_order(order, batch_size)
    return [batches[i] for i in torch.randperm(len(batches), generator=generator)]


def longest_first(lengths: Sequence[int], rows: Iterable[int]) -> list[int]:
    """The rows, in order of length."""
    return sorted(rows, key=lengths.__getitem__, reverse=True)


def evaluation_batches(lengths: Sequence[int], batch_size: int) -> list[list[int]]:
    """Every row once, with little padding; the batch that needs the most memory comes first."""
    return _in_order(longest_first(lengths, range(len(lengths))), batch_size)


def by_length(order: list[int], lengths: Sequence[int], pass_tokens: int) -> list[list[int]]:
    """Rows, the longest first, cut into micro-batches of similar length.

    Of all ways to cut them the one with the least sum, over micro-batches, of ``pass_tokens`` and of the tokens with
    padding: rows times the longest, rounded up as the tasks pad.
    """
    widths = [padded_length(lengths[row]) for row in order]
    least, starts = [0], [0]  # of the first so many rows: their cost, and where their last micro-batch begins
    for end in range(1, len(order) + 1):
        best, where = math.inf, 0
        for start in reversed(range(end)):
            last = (end - start) * widths[start]
            if last > best:  # and an earlier start makes it larger still
                break
            if least[start] + last <= best:
                best, where = least[start] + last, start
        least.append(int(best) + pass_tokens)
        starts.append(where)
    cut, end = [], len(order)
    while end:
        cut.append(order[starts[end] : end])
        end = starts[end]
    return cut[::-1]


def split(rows: list[int], parts: int) -> list[list[int]]:
    """At most ``parts`` pieces of equal size (the last may be smaller); of no rows none."""
    return _in_order(rows, max(1, math.ceil(len(rows) / parts)))


def _in_order(rows: list[int], size: int) -> list[list[int]]:
    return [rows[i : i + size] for i in range(0, len(rows), size)]


# -- loading --------------------------------------------------------------------------------------------------------


def workers_for(asked: int | None, device: torch.device, batches: int) -> int:
    """How many worker processes collate: ``asked`` (``train.num_workers``) if it is a number.

    Otherwise 0 for a model on a CPU, whose cores they would take, with a single CPU, or for fewer than ``FEW_BATCHES``
    batches; else ``WORKERS``.
    """
    if asked is not None:
        return asked
    return 0 if device.type == "cpu" or usable() == 1 or batches < FEW_BATCHES else WORKERS


def loaded(
    rows: Dataset,
    batches: Iterable[list[int]],
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
