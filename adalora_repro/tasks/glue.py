"""The GLUE family: classification of one or two texts, and regression (STS-B)."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from adalora_repro.errors import one_of
from adalora_repro.tasks import cache, sources
from adalora_repro.tasks.base import Batch, TaskData

if TYPE_CHECKING:
    from datasets import Dataset
    from numpy.typing import NDArray
    from omegaconf import DictConfig
    from torch import Tensor, nn
    from transformers import PreTrainedTokenizerBase

CODE_VERSION = 1  # of the tokenization below: a change makes cached data again
MULTIPLE = 8  # padded lengths: what tensor cores like


class Task:
    """One task of the family, as its YAML in conf/task/ describes it (the protocol: ``tasks/base.py``).

    Raises:
        InputError: a metric of ``task.metrics`` that this family does not know.
    """

    def __init__(self, cfg: DictConfig) -> None:
        self.cfg = cfg
        self.primary_metric: str = cfg.task.primary_metric
        self.regression: bool = cfg.task.num_labels == 1
        for name in cfg.task.metrics:
            if name not in METRICS:
                raise one_of("metric", name, METRICS)
        self._tokenizer: PreTrainedTokenizerBase | None = None

    def load(self, tokenizer: PreTrainedTokenizerBase) -> TaskData:
        """Tokenized splits, from the cache where an earlier run left them; see ``sources.load_split`` for errors."""
        self._tokenizer = tokenizer
        train, *evaluation = sources.splits(self.cfg)
        data = TaskData(self._tokenized(train), {split: self._tokenized(split) for split in evaluation})
        limit = self.cfg.eval.max_examples
        if limit is not None:
            data.evaluation = {
                split: rows.select(range(min(limit, len(rows)))) for split, rows in data.evaluation.items()
            }
        counts = {train: len(data.train)} | {split: len(rows) for split, rows in data.evaluation.items()}
        data.provenance = sources.provenance(self.cfg, counts)
        return data

    def collate(self, rows: list[dict[str, Any]]) -> Batch:
        """Pads to the longest row, rounded up to a multiple of 8, or to max_length (``train.padding=max_length``).

        Returns:
            input_ids, attention_mask, … (rows, length) int64; labels (rows,) int64, float32 for regression.
        """
        import torch
        from transformers.data.data_collator import pad_without_fast_tokenizer_warning

        assert self._tokenizer is not None, "load comes first"
        longest = max(len(row["input_ids"]) for row in rows)
        length = limit = self._max_length(self._tokenizer)
        if self.cfg.train.padding != "max_length":
            length = min(-(-longest // MULTIPLE) * MULTIPLE, limit)
        names = [name for name in rows[0] if name not in ("labels", "length")]
        batch = pad_without_fast_tokenizer_warning(
            self._tokenizer,
            {name: [row[name] for row in rows] for name in names},
            padding="max_length",
            max_length=length,
            return_tensors="pt",
        )
        kind = torch.float32 if self.regression else torch.int64
        return dict(batch) | {"labels": torch.tensor([row["labels"] for row in rows], dtype=kind)}

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, int]:
        """Mean cross entropy, or mean squared error for regression, in float32; and the number of examples."""
        from torch.nn import functional

        logits, labels = self._logits(model, batch), batch["labels"]
        if self.regression:
            return functional.mse_loss(logits[:, 0], labels), len(labels)
        return functional.cross_entropy(logits, labels), len(labels)

    def predict(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """``prediction``: the score, or the most likely class and -1 where a logit is not finite; ``label``."""
        logits = self._logits(model, batch)
        if self.regression:
            return {"prediction": logits[:, 0], "label": batch["labels"]}
        best = logits.argmax(-1)
        return {"prediction": best.where(logits.isfinite().all(-1), -1), "label": batch["labels"]}

    def metrics(self, predictions: Mapping[str, Iterable[dict[str, Any]]]) -> dict[str, float]:
        """Every metric of the task on every split, as ``<metric><suffix>`` (MNLI: accuracy_m, accuracy_mm).

        Raises:
            FloatingPointError: a prediction is not finite; names the split.
        """
        figures = {}
        for suffix, split in self.cfg.task.validation.items():
            batches = list(predictions[split])
            predicted = np.concatenate([np.asarray(batch["prediction"]) for batch in batches])
            labels = np.concatenate([np.asarray(batch["label"]) for batch in batches])
            broken = ~np.isfinite(predicted) if self.regression else predicted < 0
            if broken.any():
                raise FloatingPointError(f"{int(broken.sum())} of {len(broken)} predictions on {split} are not finite")
            for name in self.cfg.task.metrics:
                figures[f"{name}{suffix}"] = METRICS[name](labels, predicted)
        return figures

    def _logits(self, model: nn.Module, batch: Batch) -> Tensor:
        inputs = {name: value for name, value in batch.items() if name != "labels"}
        logits: Tensor = model(**inputs).logits
        return logits.float()

    def _max_length(self, tokenizer: PreTrainedTokenizerBase) -> int:
        return min(int(self.cfg.task.max_length), int(tokenizer.model_max_length))

    def _tokenized(self, split: str) -> Dataset:
        assert self._tokenizer is not None
        tokenizer, task = self._tokenizer, self.cfg.task
        length = self._max_length(tokenizer)
        name = cache.key(
            sources.split_fingerprint(self.cfg, split),
            cache.tokenizer_hash(tokenizer),
            length,
            [*task.text_columns, task.label_column],
            [task.num_labels, *task.label_range],  # what the labels were checked against
            CODE_VERSION,
        )

        def build() -> Dataset:
            return tokenize(
                sources.load_split(self.cfg, split), tokenizer, task.text_columns, task.label_column, length
            )

        return cache.cached(Path(self.cfg.data.cache_dir).expanduser() / "tokenized", name, build)


def tokenize(
    rows: Dataset, tokenizer: PreTrainedTokenizerBase, text_columns: Iterable[str], label_column: str, max_length: int
) -> Dataset:
    """One or two text columns -> input_ids, … cut to ``max_length`` (longest text first), labels, length in tokens."""
    columns = list(text_columns)

    def encode(batch: dict[str, list[Any]]) -> dict[str, Any]:
        encoded = dict(tokenizer(*(batch[column] for column in columns), truncation=True, max_length=max_length))
        lengths = [len(ids) for ids in encoded["input_ids"]]
        return encoded | {"labels": batch[label_column], "length": lengths}

    return rows.map(
        encode,
        batched=True,
        remove_columns=rows.column_names,
        keep_in_memory=True,
        load_from_cache_file=False,
        desc="tokenizing",
    )


# Metrics: figures of (labels, predictions), fractions of 1; scikit-learn and scipy are imported when one is computed.
# Where a figure is undefined (a correlation with a constant, F1 with no positive at all) it is 0: no better than chance


def accuracy(labels: NDArray[Any], predicted: NDArray[Any]) -> float:
    return float(np.mean(labels == predicted))


def f1(labels: NDArray[Any], predicted: NDArray[Any]) -> float:
    """2 TP / (2 TP + FP + FN) of class 1."""
    from sklearn.metrics import f1_score

    return float(f1_score(labels, predicted, pos_label=1, zero_division=0.0))


def matthews_correlation(labels: NDArray[Any], predicted: NDArray[Any]) -> float:
    """Phi coefficient of two classes, its generalization for more; 0 for constant labels or predictions."""
    from sklearn.metrics import matthews_corrcoef

    if _constant(labels) or _constant(predicted):
        return 0.0
    return float(matthews_corrcoef(labels, predicted))


def pearson(labels: NDArray[Any], predicted: NDArray[Any]) -> float:
    """Linear correlation in float64; 0 for constant labels or predictions."""
    from scipy.stats import pearsonr

    return _correlation(lambda a, b: pearsonr(a, b).statistic, labels, predicted)


def spearman(labels: NDArray[Any], predicted: NDArray[Any]) -> float:
    """Rank correlation, ties at their mean rank; 0 for constant labels or predictions."""
    from scipy.stats import spearmanr

    return _correlation(lambda a, b: spearmanr(a, b).statistic, labels, predicted)


def corr(labels: NDArray[Any], predicted: NDArray[Any]) -> float:
    """Mean of Pearson and Spearman, the paper's figure for STS-B."""
    return (pearson(labels, predicted) + spearman(labels, predicted)) / 2


def _correlation(measure: Callable[..., Any], labels: NDArray[Any], predicted: NDArray[Any]) -> float:
    if _constant(labels) or _constant(predicted):
        return 0.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # almost constant predictions: the figure is what it is
        value = float(measure(labels.astype(np.float64), predicted.astype(np.float64)))
    return value if np.isfinite(value) else 0.0


def _constant(values: NDArray[Any]) -> bool:
    return bool((values == values[0]).all())


METRICS: dict[str, Callable[[NDArray[Any], NDArray[Any]], float]] = {
    "accuracy": accuracy,
    "f1": f1,
    "matthews_correlation": matthews_correlation,
    "pearson": pearson,
    "spearman": spearman,
    "corr": corr,
}
