"""Lengths of the tasks' examples in tokens, and batches of such lengths, so that benchmarks need no data.

``lengths.json``: task -> {length: examples} by MiniLM's WordPiece tokenizer, special tokens included, cut at the task's
max_length or MiniLM's 512.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from pathlib import Path

import torch

from adalora_repro.tasks.base import padded_length
from adalora_repro.training.batches import epoch_order

STORED = Path(__file__).with_name("lengths.json")
Tensors = dict[str, torch.Tensor]
VOCABULARY = 250  # as small as that of the tiny models: the choice of tokens costs no time
TASKS = ("mnli", "qqp", "cola", "rte", "xsum")


def lengths_of(task: str) -> list[int]:
    """One length per stored example of the training split."""
    histogram = json.loads(STORED.read_text(encoding="utf-8"))[task]
    return [int(length) for length, examples in histogram.items() for _ in range(examples)]


def padded(lengths: Sequence[int]) -> int:
    """Length to which the tasks pad a batch."""
    return padded_length(max(lengths))


def sampled_epoch(lengths: Sequence[int], batch_size: int, batches: int) -> list[list[int]]:
    """Lengths of the examples of ``batches`` batches that represent an epoch of length-grouped ones.

    The epoch's batches, sorted by padded length, are divided into ``batches`` equal shares; from each share the batch
    nearest to its mean is taken, so that the sample has the epoch's mean.
    """
    order = epoch_order(lengths, batch_size, seed=0, group=True)
    full = [[lengths[row] for row in rows] for rows in order if len(rows) == batch_size]
    sizes = [padded(batch) for batch in full]
    by_size = sorted(range(len(full)), key=sizes.__getitem__)
    shares = [by_size[i * len(full) // batches : (i + 1) * len(full) // batches] for i in range(batches)]
    means = [statistics.fmean(sizes[i] for i in share) for share in shares]
    return [full[min(s, key=lambda i: abs(sizes[i] - mean))] for s, mean in zip(shares, means, strict=True)]


def tensors(lengths: Sequence[int], seed: int, target: int | None = None) -> Tensors:
    """A batch of random tokens with random classes, or with random summaries of ``target`` tokens."""
    generator = torch.Generator().manual_seed(seed)
    mask = (torch.arange(padded(lengths)) < torch.tensor(lengths)[:, None]).long()
    tokens = torch.randint(5, VOCABULARY, mask.shape, generator=generator) * mask
    if target is None:
        labels = torch.randint(0, 2, (len(lengths),), generator=generator)
    else:
        labels = torch.randint(5, VOCABULARY, (len(lengths), target), generator=generator)
    return {"input_ids": tokens, "attention_mask": mask, "labels": labels}
