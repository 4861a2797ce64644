"""What the training loop asks of a task family.

A family is one module of this package with a class ``Task``; a task of a known family is a YAML in ``conf/task/``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from datasets import Dataset
    from torch import Tensor, nn
    from transformers import PreTrainedTokenizerBase

Batch = dict[str, Any]


@dataclass
class TaskData:
    """Tokenized splits, ready for a DataLoader, with their provenance.

    Attributes:
        train: columns ``input_ids``, …, ``labels`` and ``length`` (tokens).
        evaluation: split name -> the same; one entry for most tasks, two for MNLI.
        provenance: goes into the record as ``data``: source, revision or sha256, rows per split.
    """

    train: Dataset
    evaluation: dict[str, Dataset]
    provenance: dict[str, Any] = field(default_factory=dict)


class Task(Protocol):
    """One task family. Built from its configuration alone, so that plans need no data and no torch."""

    #: name of the metric that selects and ranks
    primary_metric: str

    def load(self, tokenizer: PreTrainedTokenizerBase) -> TaskData:
        """Reads, validates and tokenizes all splits.

        Raises:
            InputError: a missing file or column, a label out of range, an empty split: named.
        """
        ...

    def collate(self, rows: list[dict[str, Any]]) -> Batch:
        """Rows of one micro-batch -> padded tensors."""
        ...

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, int]:
        """The task loss as a mean, and the number of terms in the mean (weights micro-batches against each other)."""
        ...

    def predict(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """What ``metrics`` needs of one evaluation batch, on the model's device (first dimension: examples)."""
        ...

    def metrics(self, predictions: Mapping[str, Iterable[dict[str, Any]]]) -> dict[str, float]:
        """Evaluation split -> its batches of predictions (numpy) -> named figures.

        Batches come longest first; ``index`` of a batch has the row numbers of its examples in the split.
        """
        ...
