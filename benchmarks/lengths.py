"""Lengths of the tasks' examples in tokens, and batches that have them: benchmarks need neither data nor tokenizer.

    python -m benchmarks.lengths DIR      # from DIR/<task>/train.jsonl.gz, with MiniLM's WordPiece tokenizer

writes lengths.json: task -> {length: examples}, special tokens included, cut at the task's max_length or MiniLM's 512.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch

from adalora_repro.batches import epoch_order

STORED = Path(__file__).with_name("lengths.json")
Tensors = dict[str, torch.Tensor]
VOCABULARY = 250  # tokens drawn: those of the smallest model, for which ones they are costs no time
TASKS = ("mnli", "qqp", "cola", "rte", "xsum")


def lengths_of(task: str) -> list[int]:
    """One length per stored example of the training split."""
    histogram = json.loads(STORED.read_text())[task]
    return [int(length) for length, examples in histogram.items() for _ in range(examples)]


def sampled_epoch(lengths: Sequence[int], batch_size: int, batches: int, grouped: bool = True) -> list[list[int]]:
    """Lengths of the examples of so many batches, evenly spread over an epoch's batches sorted by their tokens."""
    order = epoch_order(lengths, batch_size, seed=0, group=grouped)
    full = sorted(([lengths[row] for row in rows] for rows in order if len(rows) == batch_size), key=sum)
    return [full[int((i + 0.5) * len(full) / batches)] for i in range(batches)]


def tensors(lengths: Sequence[int], seed: int, padded_to: int | None = None, target: int | None = None) -> Tensors:
    """A batch with random tokens, to be classified or, with ``target``, to be summarized in so many tokens."""
    generator = torch.Generator().manual_seed(seed)
    width = padded_to or max(lengths)
    mask = (torch.arange(width) < torch.tensor(lengths)[:, None]).long()
    tokens = torch.randint(5, VOCABULARY, mask.shape, generator=generator) * mask
    if target is None:
        labels = torch.randint(0, 2, (len(lengths),), generator=generator)
    else:
        labels = torch.randint(5, VOCABULARY, (len(lengths), target), generator=generator)
    return {"input_ids": tokens, "attention_mask": mask, "labels": labels}


def main(folder: str) -> int:
    from adalora_repro import backbones
    from adalora_repro.tasks import load_family
    from benchmarks.runs import composed

    found = {}
    for task in TASKS:
        cfg = composed([f"task={task}", "method=lora", "backbone=minilm", "data=local", f"data.dir={folder}"])
        data = load_family(cfg).load(backbones.load_tokenizer(cfg))
        found[task] = {str(n): count for n, count in sorted(Counter(data.train["length"][:]).items())}
    STORED.write_text(json.dumps(found, indent=None) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
