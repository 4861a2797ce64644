"""Lengths of the tasks' examples in tokens, and batches that have them: benchmarks need neither data nor tokenizer.

    python -m benchmarks.lengths DIR      # from DIR/<task>/train.jsonl.gz, with MiniLM's WordPiece tokenizer

writes lengths.json: task -> {length: examples}, special tokens included, cut at the task's max_length or MiniLM's 512.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch

from adalora_repro.config.schema import TrainConfig
from adalora_repro.tasks.base import padded_length
from adalora_repro.training.batches import by_length, epoch_order, longest_first

STORED = Path(__file__).with_name("lengths.json")
Tensors = dict[str, torch.Tensor]
VOCABULARY = 250  # tokens drawn: those of the smallest model, for which ones they are costs no time
TASKS = ("mnli", "qqp", "cola", "rte", "xsum")


def lengths_of(task: str) -> list[int]:
    """One length per stored example of the training split."""
    histogram = json.loads(STORED.read_text(encoding="utf-8"))[task]
    return [int(length) for length, examples in histogram.items() for _ in range(examples)]


def padded(lengths: Sequence[int]) -> int:
    """Length of a batch as the tasks pad it."""
    return padded_length(max(lengths))


def cut(lengths: Sequence[int], pass_tokens: int) -> list[list[int]]:
    """Places of a batch's examples in parts of similar length, as ``batches.by_length`` cuts them."""
    return by_length(longest_first(lengths, range(len(lengths))), lengths, pass_tokens)


def tokens_in_parts(lengths: Sequence[int]) -> int:
    """Tokens of a batch with padding, cut as on a CPU."""
    return sum(len(part) * padded([lengths[i] for i in part]) for part in cut(lengths, TrainConfig.pass_tokens))


def sampled_epoch(lengths: Sequence[int], batch_size: int, batches: int, grouped: bool = True) -> list[list[int]]:
    """Lengths of the examples of so many batches that stand for an epoch's, grouped by length or drawn at random.

    The epoch's batches in order of their tokens with padding (random ones in parts) are dealt into ``batches`` equal
    shares; of each the batch next to the share's mean is taken, so that the sample has the epoch's mean.
    """
    order = epoch_order(lengths, batch_size, seed=0, group=grouped)
    full = [[lengths[row] for row in rows] for rows in order if len(rows) == batch_size]
    size = padded if grouped else tokens_in_parts
    sizes = [size(batch) for batch in full]
    by_size = sorted(range(len(full)), key=sizes.__getitem__)
    shares = [by_size[i * len(full) // batches : (i + 1) * len(full) // batches] for i in range(batches)]
    means = [statistics.fmean(sizes[i] for i in share) for share in shares]
    return [full[min(s, key=lambda i: abs(sizes[i] - mean))] for s, mean in zip(shares, means, strict=True)]


def tensors(lengths: Sequence[int], seed: int, padded_to: int | None = None, target: int | None = None) -> Tensors:
    """A batch with random tokens, to be classified or, with ``target``, to be summarized in so many tokens."""
    generator = torch.Generator().manual_seed(seed)
    width = padded_to or padded(lengths)
    mask = (torch.arange(width) < torch.tensor(lengths)[:, None]).long()
    tokens = torch.randint(5, VOCABULARY, mask.shape, generator=generator) * mask
    if target is None:
        labels = torch.randint(0, 2, (len(lengths),), generator=generator)
    else:
        labels = torch.randint(5, VOCABULARY, (len(lengths), target), generator=generator)
    return {"input_ids": tokens, "attention_mask": mask, "labels": labels}


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("folder", metavar="DIR", help="with the tasks' files, as data=local takes it")
    folder = arguments.parse_args().folder
    from adalora_repro.models import backbones
    from adalora_repro.tasks import load_family
    from benchmarks.runs import composed

    found = {}
    for task in TASKS:
        cfg = composed([f"task={task}", "method=lora", "backbone=minilm", "data=local", f"data.dir={folder}"])
        data = load_family(cfg).load(backbones.load_tokenizer(cfg))
        found[task] = {str(n): count for n, count in sorted(Counter(data.train["length"][:]).items())}
    STORED.write_text(json.dumps(found, indent=None, allow_nan=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
