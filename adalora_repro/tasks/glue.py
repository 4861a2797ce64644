"""The GLUE family: classification of one or two texts, and regression (STS-B)."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf

from adalora_repro.errors import InputError, one_of
from adalora_repro.metrics.glue import METRICS, OF_SCORES
from adalora_repro.records.validation import shown
from adalora_repro.settings import setting
from adalora_repro.tasks import sources
from adalora_repro.tasks.base import BaseTask, Batch, Scores, constant, pad, to_device_of

if TYPE_CHECKING:
    from datasets import Features
    from numpy.typing import NDArray
    from omegaconf import DictConfig
    from torch import Tensor, nn


LARGEST = 2**127  # of a label: labels are kept in 32 bits


@dataclass
class Options:
    """Settings of this family alone."""

    classifier_dropout: float | None = setting(None, minimum=0, below=1)
    "Dropout of the classification head; null: as the backbone's configuration has it."


class Task(BaseTask):
    """One task of the family, as its YAML in conf/task/ describes it.

    Raises:
        InputError: as ``BaseTask``; labels that are neither classes nor scores of a range; names, a head or metrics
            for another number of labels; a maximum length that leaves no room for text.
    """

    architectures = ("encoder", "decoder")
    code_version = 2
    options = Options
    measured = tuple(METRICS)
    blank_texts = True  # GLUE has some

    def __init__(self, cfg: DictConfig) -> None:
        super().__init__(cfg)
        self.regression: bool = cfg.task.num_labels == 1
        self.classes = list(cfg.task.class_names)
        bounds, least = list(cfg.task.label_range), 1 + 2 * len(cfg.task.text_columns)
        if not self.regression and bounds:
            raise InputError(f"task.label_range={bounds} is for scores (task.num_labels=1), not for classes")
        free = cfg.task.hub is None and not bounds
        if self.regression and not free and not (len(bounds) == 2 and -math.inf < bounds[0] < bounds[1] < math.inf):
            raise InputError(f"task.label_range={bounds} must be two ascending numbers where task.num_labels is 1")
        counts = {"class_names": len(self.classes), "head.num_labels": cfg.task.head.get("num_labels")}
        for name, count in counts.items():
            if count and count != cfg.task.num_labels:
                raise InputError(f"task.{name} is for {count} labels, but task.num_labels={cfg.task.num_labels}")
        for name in cfg.task.metrics:
            if (self.regression and name not in OF_SCORES) or (name == "f1" and cfg.task.num_labels != 2):
                wanted = "two classes" if name == "f1" else "classes"
                raise InputError(f"task.metrics: {name} is of {wanted}, but task.num_labels={cfg.task.num_labels}")
        if cfg.task.max_length < least:
            raise InputError(f"task.max_length={cfg.task.max_length} must be {least} or more: a token of each text")

    @classmethod
    def from_labels(cls, cfg: DictConfig, labels: Sequence[Mapping[str, str]]) -> dict[str, Any]:
        """Classes (their names sorted, numbers by size) with their number, the head and the metrics."""
        task = cfg.task
        head: dict[str, Any] = {"num_labels": 1, "problem_type": "regression"}
        values: dict[str, Any] = {}
        metrics = ["corr", "pearson", "spearman"]
        if task.num_labels != 1:
            classes = list(task.class_names) or distinct_classes(task, labels[0])
            if len(set(classes)) < len(classes):
                raise InputError(f"task.class_names={classes}: a name appears twice")
            if task.num_labels not in (None, len(classes)):
                raise InputError(
                    f"task.num_labels={task.num_labels}, but the data have {len(classes)} classes: {', '.join(classes)}"
                )
            head = {"num_labels": len(classes), "problem_type": "single_label_classification"}
            metrics = ["accuracy", "matthews_correlation", *["f1"] * (len(classes) == 2)]
            values = {"num_labels": len(classes), "class_names": classes}
            for text, where in (pair for of_split in labels for pair in of_split.items()):
                try:
                    class_number(json.loads(text), classes, task.label_column)
                except ValueError as error:
                    if not cfg.data.skip_invalid:
                        raise InputError(f"{where}: {error}") from None
        metrics = list(task.metrics) or metrics
        if OmegaConf.is_missing(task, "primary_metric"):
            values["primary_metric"] = f"{metrics[0]}{next(iter(task.validation), '')}"
        return values | {"head": {**task.head, **head}, "metrics": metrics}

    def read_label(self, value: Any) -> Any:
        name = self.cfg.task.label_column
        if not self.regression:
            return class_number(value, self.classes, name)
        if isinstance(value, str):
            try:
                value = float(value)
            except ValueError:
                raise ValueError(f"column '{name}' must be a number, is {shown(value)}") from None
        return value

    def label_problem(self, row: dict[str, Any]) -> str | None:
        """A class is an integer in [0, num_labels); a score (num_labels 1) is a number in label_range."""
        task = self.cfg.task
        name, label = task.label_column, row[task.label_column]
        if isinstance(label, bool) or not isinstance(label, int | float):
            return f"column '{name}' must be a number, is {shown(label)}"
        if self.regression:
            if not task.label_range:
                return None if abs(label) < LARGEST else f"{name} {shown(label)} is not a finite number of 32 bits"
            low, high = task.label_range
            return None if low <= label <= high else f"{name} {label} is out of range, must be {low:g} to {high:g}"
        if not isinstance(label, int):
            return f"{name} {label} is not an integer"
        if not 0 <= label < task.num_labels:
            return f"{name} {label} is out of range, must be 0 to {task.num_labels - 1}"
        return None

    def features(self) -> Features:
        from datasets import Features, Value

        types = dict.fromkeys(self.columns, Value("string"))
        return Features(types | {self.cfg.task.label_column: Value("float32" if self.regression else "int64")})

    def stratum(self, label: Any) -> Hashable:
        return None if self.regression else label

    def recipe(self) -> list[Any]:
        classes = self.classes if self.cfg.task.hub is None else []  # labels are their names there
        return [int(self.cfg.task.num_labels), *map(float, self.cfg.task.label_range), *classes]

    def encode(self, batch: dict[str, list[Any]], numbers: list[int], split: str) -> dict[str, list[Any]]:
        """One or two text columns -> input_ids, … cut to ``max_length`` (longest text first), labels, length."""
        texts = (batch[column] for column in self.cfg.task.text_columns)
        encoded = dict(self.tokenizer(*texts, truncation=True, max_length=self.max_length))
        lengths = [len(ids) for ids in encoded["input_ids"]]
        return encoded | {"labels": batch[self.cfg.task.label_column], "length": lengths}

    def collate(self, rows: list[dict[str, Any]]) -> Batch:
        """Pads to the longest row, rounded up to a multiple of 8, or to max_length (``train.padding=max_length``).

        Returns:
            input_ids, attention_mask, … (rows, length) int64; labels (rows,) int64, float32 for regression.
        """
        import torch

        names = [name for name in rows[0] if name not in ("labels", "length")]
        batch = pad(self.tokenizer, rows, names, self.max_length, self.cfg.train.padding == "max_length")
        kind = torch.float32 if self.regression else torch.int64
        return batch | {"labels": torch.tensor([row["labels"] for row in rows], dtype=kind)}

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, int]:
        """Mean cross entropy, or mean squared error for regression, in float32; and the number of examples."""
        from torch.nn import functional

        logits, labels = self._logits(model, batch), batch["labels"]
        if self.regression:
            return functional.mse_loss(logits[:, 0], labels), len(labels)
        return functional.cross_entropy(logits, labels), len(labels)

    def predict(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """``prediction``: the score, or the most likely class and -1 where a logit is not finite; ``label``; for
        classes ``logits`` (rows, classes)."""
        logits = self._logits(model, batch)
        if self.regression:
            return {"prediction": logits[:, 0], "label": batch["labels"]}
        best = logits.argmax(-1).where(logits.isfinite().all(-1), -1)
        return {"prediction": best, "label": batch["labels"], "logits": logits}

    def score(self, split: str, name: str, batches: Iterable[dict[str, Any]]) -> Scores:
        """Every metric of the task, and ``predictions.<split>.jsonl.gz``, by example: ``index`` (its row in the split),
        ``label``, ``prediction``; for classes ``logits`` to six digits, and both names where the classes have names.

        Raises:
            FloatingPointError: a prediction is not finite; names the split.
        """
        import numpy as np

        made = list(batches)
        predicted, labels, index = (
            np.concatenate([np.asarray(batch[column]) for batch in made]) for column in ("prediction", "label", "index")
        )
        broken = ~np.isfinite(predicted) if self.regression else predicted < 0
        if broken.any():
            raise FloatingPointError(f"{int(broken.sum())} of {len(broken)} predictions on {split} are not finite")
        figures = {metric: METRICS[metric](labels, predicted) for metric in self.cfg.task.metrics}
        order = np.argsort(index)
        columns = {"index": index, "label": labels, "prediction": predicted}
        values = zip(*(column[order].tolist() for column in columns.values()), strict=True)
        rows: list[dict[str, Any]] = [dict(zip(columns, row, strict=True)) for row in values]
        if not self.regression:
            logits = np.concatenate([np.asarray(batch["logits"]) for batch in made])[order]
            for row, own in zip(rows, logits.tolist(), strict=True):
                row["logits"] = [float(f"{logit:.6g}") for logit in own]
                if self.classes:
                    row |= {f"{name}_name": self.classes[row[name]] for name in ("label", "prediction")}
        return Scores(figures, {f"predictions.{split}.jsonl.gz": rows}, self._constant(labels, predicted))

    def answers(self, model: nn.Module, rows: list[dict[str, str]]) -> list[dict[str, Any]]:
        """``score`` for regression; otherwise ``label``, the name of the most likely class, and ``probabilities``."""
        columns = self.cfg.task.text_columns
        encoded = self.tokenizer(
            *([row[column] for row in rows] for column in columns), truncation=True, max_length=self.max_length
        )
        names = list(encoded)
        encoded_rows = [{name: encoded[name][i] for name in names} for i in range(len(rows))]
        batch = pad(self.tokenizer, encoded_rows, names, self.max_length, to_limit=False)
        logits = self._logits(model, to_device_of(model, batch))
        if self.regression:
            return [{"score": score} for score in logits[:, 0].tolist()]
        classes = self.classes or list(map(str, range(self.cfg.task.num_labels)))
        return [
            {
                "label": classes[max(range(len(classes)), key=probabilities.__getitem__)],
                "probabilities": dict(zip(classes, probabilities, strict=True)),
            }
            for probabilities in logits.softmax(-1).tolist()
        ]

    def _constant(self, labels: NDArray[Any], predicted: NDArray[Any]) -> str | None:
        """Scores count as the same if they differ only by rounding, that is, by less than 1e-5 of the labels' range."""
        if not self.regression:
            only = constant(predicted.tolist())
            return None if only is None else f"class {only}"
        low, high = self.cfg.task.label_range or (labels.min(), labels.max())
        same = len(predicted) > 1 and predicted.max() - predicted.min() < 1e-5 * (high - low)
        return f"{predicted[0]:.4g}" if same else None

    def _logits(self, model: nn.Module, batch: Batch) -> Tensor:
        inputs = {name: value for name, value in batch.items() if name != "labels"}
        logits: Tensor = model(**inputs).logits
        return logits.float()


# -- labels of the user's own files --------------------------------------------------------------------------------

WHOLE = re.compile(r"-?\d+", re.ASCII)


def class_number(value: Any, classes: Sequence[str], column: str) -> int:
    """The number of the class that a label names: its place in ``classes``; where none of these is a number, the label
    may be the place itself.

    Raises:
        ValueError: it names none.
    """
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise ValueError(f"column '{column}' must be a class, text or a whole number, is {shown(value)}")
    text = str(value)
    if text in classes:
        return classes.index(text)
    if not text.strip():
        raise ValueError(f"the {column} is empty")
    if WHOLE.fullmatch(text) and 0 <= int(text) < len(classes) and not any(map(WHOLE.fullmatch, classes)):
        return int(text)
    raise ValueError(str(one_of(column, text, classes)))


def distinct_classes(task: DictConfig, labels: Mapping[str, str]) -> list[str]:
    """The classes of train's labels: sorted text, or whole numbers by size.

    Args:
        labels: label as JSON -> where it is first.

    Raises:
        InputError: some labels are numbers and some are not, they have fractions, are fewer than two or too many.
    """
    name = task.label_column
    locations = {str(value): where for text, where in labels.items() if _is_class(value := json.loads(text))}
    numbers = {text: where for text, where in locations.items() if WHOLE.fullmatch(text)}
    others = {text: where for text, where in locations.items() if text not in numbers}
    hint = "task.class_names=[…] names the classes"
    if others and all(map(_is_number, others)):
        text, where = next(iter(others.items()))
        raise InputError(f"{where}: the {name} is {text}: task.num_labels=1 for a score; {hint}")
    if numbers and others:
        (number, location), (text, where) = next(iter(numbers.items())), next(iter(others.items()))
        raise InputError(f"{where}: the {name} is the text '{text}', but the number {number} in {location}; {hint}")
    if len(labels) >= sources.MOST_LABELS:
        raise InputError(f"column '{name}' has {len(labels):,} or more labels; task.num_labels=1 for a score; {hint}")
    if numbers and task.num_labels is not None:
        return [str(number) for number in range(task.num_labels)]
    classes = sorted(numbers, key=int) or sorted(others)
    if labels and not classes:
        text, where = next(iter(labels.items()))
        raise InputError(f"{where}: column '{name}' must be a class, text or a whole number, is {text}")
    if len(classes) < 2:
        raise InputError(f"column '{name}' of the train split has {''.join(classes) or 'no label'} alone; {hint}")
    return classes


def _is_class(value: Any) -> bool:
    return isinstance(value, int | str) and not isinstance(value, bool) and bool(str(value).strip())


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
