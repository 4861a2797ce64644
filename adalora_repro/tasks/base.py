"""What the training loop asks of a task family, and what the families share.

A family is one module of this package with a class ``Task``, built on ``BaseTask``; a task of a known family is a YAML
in ``conf/task/``. Building a ``Task`` is cheap and imports nothing heavy, so that plans can do it.
"""

from __future__ import annotations

import importlib.metadata
import logging
from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adalora_repro.errors import InputError, expanded, one_of
from adalora_repro.records import digests
from adalora_repro.tasks import held_out, processes, sources, tokenized
from adalora_repro.tasks.held_out import HOLDOUT

if TYPE_CHECKING:
    from datasets import Dataset, Features
    from omegaconf import DictConfig
    from torch import Tensor, nn
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

Batch = dict[str, Any]
#: libraries whose version affects the tokenized rows; the families have their own ``code_version``
ROW_MAKERS = ("tokenizers", "transformers")
MULTIPLE = 8  # padded lengths: what tensor cores like
MANY_ROWS = 20_000  # a split with fewer is tokenized by one process, unless data.num_proc says otherwise
FEWEST_CPUS, MOST_PROCESSES = 4, 8


def padded_length(longest: int) -> int:
    """Tokens of each row of a batch whose longest has ``longest``, before the task's limit cuts them."""
    return -(-longest // MULTIPLE) * MULTIPLE


def check_options(task: DictConfig, options: type) -> None:
    """Checks the settings of ``task`` that only some families have.

    Args:
        options: those of the task's own family.

    Raises:
        InputError: a setting of another family, or one without a default that is not given.
    """
    from adalora_repro.tasks import families

    own = {each.name: each for each in fields(options)}
    others = {each.name: name for name, family in families().items() for each in fields(family.Options)}
    for name in others.keys() - own.keys():
        if task.get(name) is not None:
            raise InputError(
                f"task.{name} is a setting of family {others[name]}, not of {task.name} (family {task.family}); "
                f"valid: {', '.join(own)}"
            )
    for name, each in own.items():
        if each.default is MISSING and task.get(name) is None:
            raise InputError(f"task.{name} is not set, {task.name} needs a value")


@dataclass
class TaskData:
    """Tokenized splits, ready for a DataLoader, with their provenance.

    Attributes:
        train: columns ``input_ids``, …, ``labels`` and ``length`` (tokens).
        evaluation: split name -> the same; one entry for most tasks, two for MNLI, and ``holdout`` with data.holdout.
        provenance: goes into the record as ``data``: source, revision or sha256, rows per split.
        skipped: split -> what was wrong with each row that was left out.
    """

    train: Dataset
    evaluation: dict[str, Dataset]
    provenance: dict[str, Any] = field(default_factory=dict)
    skipped: dict[str, list[str]] = field(default_factory=dict)


@dataclass
class Scores:
    """The results of one evaluation on one split.

    Attributes:
        figures: metric -> value.
        files: file name -> the prediction for each example, kept beside the record: a JSON value for ``*.json``, rows
            for ``*.jsonl.gz``.
        constant: the one prediction of all examples (two or more), as text; None if predictions differ.
    """

    figures: dict[str, float]
    files: dict[str, Any]
    constant: str | None = None


@dataclass
class Evaluation:
    """The results of one evaluation on all splits.

    Attributes:
        metrics: the metrics of the validation splits, for the record.
        files: as in ``Scores``.
        holdout: the metrics of the held-out split under the same names; None without data.holdout.
        constant: split -> the one prediction of all its examples, for splits where all are the same.
    """

    metrics: dict[str, float]
    files: dict[str, Any] = field(default_factory=dict)
    holdout: dict[str, float] | None = None
    constant: dict[str, str] = field(default_factory=dict)

    @property
    def entry(self) -> dict[str, Any]:
        """The metrics as in a record and in ``log.jsonl``: ``metrics``, and ``holdout`` if there is one."""
        return {"metrics": self.metrics} | ({} if self.holdout is None else {"holdout": self.holdout})


class BaseTask:
    """One task, as the loop sees it, and what its family shares with the others: loading and caching.

    A family sets the class attributes and implements ``label_problem``, ``features``, ``recipe``,
    ``encode``, ``collate``, ``loss``, ``predict``, ``score`` and ``answers``.

    Raises:
        InputError: a setting of another family, more text columns than the family reads, a metric that it does not
            have, a column with two uses, or ``holdout_by`` names a column that is not a text.
    """

    #: ``encoder``, ``decoder``, ``encoder-decoder``: the kinds of backbones that can do it
    architectures: tuple[str, ...]
    #: of the family's tokenization: raise it with every change, and cached data are made again
    code_version: int
    #: rows carry a unique ``id``
    has_ids = False
    #: how many text columns a row may have
    texts: tuple[int, ...] = (1, 2)
    #: the label is a text too
    text_label = False
    #: a text that is no label may be nothing but blanks
    blank_texts = False
    #: a dataclass: the settings that only this family has
    options: type
    #: names that ``task.metrics`` may have
    measured: Collection[str]
    #: columns of an evaluation split that only ``score`` needs; it finds them in ``self.side``
    side_columns: tuple[str, ...] = ()

    def __init__(self, cfg: DictConfig) -> None:
        self.cfg = cfg
        check_options(cfg.task, self.options)
        if len(cfg.task.text_columns) not in self.texts:
            wanted = " or ".join(map(str, self.texts))
            raise InputError(f"task.text_columns: {cfg.task.name} reads {wanted}, not {len(cfg.task.text_columns)}")
        for name in cfg.task.metrics:
            if name not in self.measured:
                raise one_of("metric", name, self.measured)
        self.primary_metric: str = cfg.task.primary_metric
        self.columns = [*(["id"] if self.has_ids else []), *cfg.task.text_columns, cfg.task.label_column]
        if twice := [name for name in self.columns if self.columns.count(name) > 1]:
            raise InputError(f"task.text_columns, task.label_column: column '{twice[0]}' cannot be two things at once")
        for name in cfg.task.holdout_by:
            if name not in cfg.task.text_columns:
                raise one_of("column in task.holdout_by", name, cfg.task.text_columns)
        if cfg.data.holdout is not None and HOLDOUT in cfg.task.validation.values():
            raise InputError(f"task.validation: '{HOLDOUT}' is reserved for the rows that data.holdout holds out")
        self.side: dict[str, Dataset] = {}
        self._tokenizer: PreTrainedTokenizerBase | None = None

    def label_problem(self, row: dict[str, Any]) -> str | None:
        """What is wrong with the label of a row that has all columns, its texts being texts; None if nothing."""
        return None

    @classmethod
    def from_labels(cls, cfg: DictConfig, labels: Sequence[Mapping[str, str]]) -> dict[str, Any]:
        """Settings of ``cfg.task`` that are not given and follow from the labels in files of the user's own.

        Args:
            labels: of train, then of each validation file: label as JSON -> where it is first.

        Raises:
            InputError: the labels contradict each other or the settings.
        """
        return {}

    def read_label(self, value: Any) -> Any:
        """The label, as a file of the user's own has it -> as the family reads it; cells of CSV are text.

        Raises:
            ValueError: it can be none; says why.
        """
        return value

    def features(self) -> Features:
        """Types of ``columns``."""
        raise NotImplementedError

    def recipe(self) -> list[Any]:
        """All settings that ``label_problem`` and ``encode`` depend on (JSON types)."""
        raise NotImplementedError

    def encode(self, batch: dict[str, list[Any]], numbers: list[int], split: str) -> dict[str, list[Any]]:
        """Columns of a batch of rows, and the rows' numbers in the split -> the columns of ``TaskData``.

        A family whose rows may show themselves bad only now has a column ``tokenized.PROBLEM`` too.
        """
        raise NotImplementedError

    def collate(self, rows: list[dict[str, Any]]) -> Batch:
        """Rows of one micro-batch -> padded tensors."""
        raise NotImplementedError

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, int]:
        """The task loss as a mean, and the number of terms in the mean (weights micro-batches against each other)."""
        raise NotImplementedError

    def predict(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """What ``score`` needs of one evaluation batch, on the model's device (first dimension: examples)."""
        raise NotImplementedError

    def answers(self, model: nn.Module, rows: list[dict[str, str]]) -> list[dict[str, Any]]:
        """What the model says of rows with the task's text columns, one answer each, in JSON types.

        Raises:
            InputError: a row that the family cannot encode.
        """
        raise NotImplementedError

    def score(self, split: str, name: str, batches: Iterable[dict[str, Any]]) -> Scores:
        """The metrics of one split, from its batches of predictions (see ``metrics``).

        Args:
            name: the part of file names that stands for the split: the suffix of its metrics, or ``.holdout``.
        """
        raise NotImplementedError

    def types(self, split: str) -> Features | None:
        """Types of the columns that ``encode`` makes; None: as its first batch has them."""
        return None

    def stratum(self, label: Any) -> Hashable:
        """The class of a row with this label; the held-out split keeps the classes' shares. None: no classes."""
        return None

    def metrics(self, predictions: Mapping[str, Iterable[dict[str, Any]]]) -> Evaluation:
        """Every metric of the task on every split, as ``<metric><suffix>`` (MNLI: accuracy_m, accuracy_mm).

        Metrics of the held-out split have the suffix of the primary metric: on MNLI accuracy_m, because its rows come
        from the genres of the matched split.

        Args:
            predictions: evaluation split -> its batches of predictions (numpy), made one by one while they are asked
                for, longest first; ``index`` of a batch has the row numbers of its examples in the split.
        """
        evaluation = Evaluation({})

        def scored(split: str, name: str, suffix: str) -> dict[str, float]:
            scores = self.score(split, name, predictions[split])
            evaluation.files |= scores.files
            if scores.constant is not None:
                evaluation.constant[split] = scores.constant
            return {f"{metric}{suffix}": value for metric, value in scores.figures.items()}

        for suffix, split in self.cfg.task.validation.items():
            evaluation.metrics |= scored(split, suffix, suffix)
        if HOLDOUT in predictions:
            names = {f"{name}{suffix}": suffix for name in self.cfg.task.metrics for suffix in self.cfg.task.validation}
            evaluation.holdout = scored(HOLDOUT, f".{HOLDOUT}", names[self.primary_metric])
        return evaluation

    def processes(self, rows: int) -> int:
        """How many processes tokenize a split of so many rows."""
        count = self.cfg.data.num_proc
        if count is None:  # the tokenizer has threads of its own: few processes are no faster than one
            cpus = processes.usable()
            count = min(cpus, MOST_PROCESSES) if cpus >= FEWEST_CPUS and rows >= MANY_ROWS else 1
        return max(1, min(count, -(-rows // tokenized.ROWS)))

    def use(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Stores the tokenizer; ``load`` does, and ``answers`` needs it."""
        tokenizer.padding_side = tokenizer.truncation_side = "right"  # positions of answers are counted from the left
        self._tokenizer = tokenizer

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        assert self._tokenizer is not None, "load or use comes first"
        return self._tokenizer

    @property
    def max_length(self) -> int:
        """Tokens of an input: as configured, or fewer where the tokenizer's model takes fewer."""
        return min(int(self.cfg.task.max_length), int(self.tokenizer.model_max_length))

    def load(self, tokenizer: PreTrainedTokenizerBase) -> TaskData:
        """Reads, validates and tokenizes all splits; from the cache where an earlier run left them.

        Raises:
            InputError: as ``sources.load_split``.
        """
        self.use(tokenizer)
        splits = sources.splits(self.cfg) + [HOLDOUT] * (self.cfg.data.holdout is not None)
        entries = {split: self._prepared(split) for split in splits}
        limit = self.cfg.eval.max_examples
        data = TaskData(entries[splits[0]].dataset, {})
        rows = {}
        for split, entry in entries.items():
            examples, rows[split] = entry.dataset, entry.notes["rows"]
            if problems := entry.notes["skipped"]:
                data.skipped[split] = problems
                more = f" and {len(problems) - 3:,} more, see skipped.json" if len(problems) > 3 else ""
                logger.warning(
                    "%s %s: %s bad row(s) left out (data.skip_invalid=true): %s%s",
                    *(self.cfg.task.name, split, f"{len(problems):,}", "; ".join(problems[:3]), more),
                )
            if split != splits[0]:
                if limit is not None and limit < rows[split]:  # a quick look
                    examples, rows[split] = chosen(examples, limit), limit
                self.side[split] = examples.select_columns(list(self.side_columns))
                data.evaluation[split] = examples.remove_columns(list(self.side_columns))
        data.provenance = sources.provenance(self.cfg, rows)
        data.provenance["max_length"] = self.max_length
        if data.skipped:
            data.provenance["skipped"] = {split: len(problems) for split, problems in data.skipped.items()}
        return data

    def _prepared(self, split: str) -> tokenized.Entry:
        skip = bool(self.cfg.data.skip_invalid)
        origin = sources.TRAIN if split == HOLDOUT else split
        held = self.cfg.data.holdout if origin == sources.TRAIN else None
        parts = [
            sources.split_fingerprint(self.cfg, origin),
            tokenized.tokenizer_hash(self.tokenizer),
            {package: importlib.metadata.version(package) for package in ROW_MAKERS},
            [self.cfg.task.family, self.code_version, split == sources.TRAIN],
            skip and sources.location(self.cfg, origin),  # bad rows are named with their files and lines
            self.columns,
            self.max_length,
            self.recipe(),
            *([] if held is None else [[held_out.SEED, held, list(self.cfg.task.holdout_by), split]]),
        ]
        key = digests.of_values(parts, tokenized.KEY_DIGITS)

        def build(path: Path | None) -> tokenized.Entry:
            bad = sources.BadRows(skip)
            rows = sources.load_split(self.cfg, origin, self, bad)
            if held is not None:
                rows = self._part(rows, split)
            if split == HOLDOUT:
                bad.problems.clear()  # they are reported for the train split
            encode, features = partial(self.encode, split=split), self.types(split)
            examples = tokenized.mapped(rows, encode, self.processes(len(rows)), features, key, path)
            remaining, problems = tokenized.good(examples)
            for problem in problems:
                bad.add(problem)
            if not len(remaining):
                raise sources.nothing_left(f"{self.cfg.task.name} {split}", self.cfg, split, bad)
            return tokenized.Entry(examples, {"rows": len(rows) - len(problems), "skipped": bad.problems})

        entry = tokenized.cached(expanded(self.cfg.data.cache_dir) / "tokenized" / key, build)
        return tokenized.Entry(tokenized.good(entry.dataset)[0], entry.notes)

    def _part(self, rows: Dataset, split: str) -> Dataset:
        """The rows of the train split that are held out, or those to train on.

        Raises:
            InputError: there are too few valid rows, or every group of rows that share a text is too large.
        """
        count = held_out.size(self.cfg.data.holdout, len(rows))
        held, trained = sources.parted(rows, self, count)
        if not held:
            raise sources.groups_too_large(self, "data.holdout", count)
        return rows.select(held if split == HOLDOUT else trained)


def constant(predictions: Iterable[Any]) -> Any:
    """The prediction that all examples (two or more) share; None if they differ or there is only one."""
    values = list(predictions)
    return values[0] if len(values) > 1 and all(value == values[0] for value in values) else None


def chosen(examples: Dataset, limit: int) -> Dataset:
    """The examples of ``limit`` of n rows, fewer than all: of rows floor(i n / limit), for files often have an order.

    Where rows have several examples the column ``example`` holds the number of the row.
    """
    numbers = examples["example"][:] if "example" in examples.column_names else range(len(examples))
    rows = sorted(set(numbers))
    wanted = {rows[i * len(rows) // limit] for i in range(limit)}
    return examples.select([i for i, number in enumerate(numbers) if number in wanted])


def pad(
    tokenizer: PreTrainedTokenizerBase, rows: list[dict[str, Any]], names: Iterable[str], limit: int, to_limit: bool
) -> Batch:
    """Columns ``names`` of rows as padded int64 tensors (rows, length), attention mask included.

    Length: the longest row's rounded up to a multiple of 8 and never beyond ``limit``; or ``limit``, if ``to_limit``.
    """
    from transformers.data.data_collator import pad_without_fast_tokenizer_warning

    longest = max(len(row["input_ids"]) for row in rows)
    padded = pad_without_fast_tokenizer_warning(
        tokenizer,
        {name: [row[name] for row in rows] for name in names},
        padding="max_length",
        max_length=limit if to_limit else min(padded_length(longest), limit),
        return_tensors="pt",
    )
    return dict(padded)


def to_device_of(model: nn.Module, batch: Batch) -> Batch:
    device = next(model.parameters()).device
    return {name: value.to(device) for name, value in batch.items()}
