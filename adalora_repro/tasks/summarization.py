"""The summarization family: an encoder-decoder reads a document and writes its summary.

Training: mean cross entropy over the tokens of the reference summary, the decoder seeing those before (teacher
forcing). Evaluation: beam search, then ROUGE of what was written (``metrics/rouge.py``).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from adalora_repro.errors import InputError
from adalora_repro.metrics import rouge
from adalora_repro.settings import setting
from adalora_repro.tasks import sources
from adalora_repro.tasks.base import BaseTask, Batch, Scores, constant, pad, padded_length, to_device_of

if TYPE_CHECKING:
    from datasets import Features
    from omegaconf import DictConfig
    from torch import Tensor, nn
    from transformers import GenerationConfig

IGNORED = -100  # label of padding: what torch's cross entropy leaves out
SHORTEST = 3
INPUTS = ["input_ids", "attention_mask"]


@dataclass
class Options:
    """Settings of this family alone; null: transformers' default, whatever the model's files say."""

    max_target_length: int = setting(minimum=1)
    "Tokens of the longest summary."
    num_beams: int = setting(minimum=1)
    "Beams of the search; 1: greedy."
    length_penalty: float | None = setting(None, later=None)
    "Exponent of the length that a beam's score is divided by."
    min_target_length: int | None = setting(None, later=None, minimum=0)
    "Tokens of the shortest summary."
    no_repeat_ngram_size: int | None = setting(None, later=None, minimum=0)
    "No n-gram of this size occurs twice in a summary; 0: any may."
    early_stopping: bool | None = setting(None, later=None)
    "The search ends as soon as there are num_beams summaries."


class Task(BaseTask):
    """One task of the family, as its YAML in conf/task/ describes it.

    Raises:
        InputError: as ``BaseTask``; lengths that contradict each other.
    """

    architectures = ("encoder-decoder",)
    code_version = 1
    has_ids = True
    text_label = True
    texts = (1,)
    options = Options
    measured = rouge.NAMES
    side_columns = ("id", "reference")

    def __init__(self, cfg: DictConfig) -> None:
        super().__init__(cfg)
        task = cfg.task
        self.blank_texts = task.hub is not None  # the paper's sets are taken as they are: T counts every row
        for name in ("max_length", "max_target_length"):
            if task[name] < SHORTEST:
                raise InputError(f"task.{name}={task[name]} must be {SHORTEST} or more: a token between start and end")
        if (task.min_target_length or 0) >= task.max_target_length:
            raise InputError(
                f"task.min_target_length={task.min_target_length} must be below "
                f"task.max_target_length={task.max_target_length}"
            )
        self._generation: GenerationConfig | None = None

    # -- rows ------------------------------------------------------------------------------------------------------

    def features(self) -> Features:
        from datasets import Features, Value

        return Features(dict.fromkeys(self.columns, Value("string")))

    def recipe(self) -> list[Any]:
        return [self.max_target_length]

    @property
    def max_target_length(self) -> int:
        """Tokens of a summary: as configured, or fewer where the model's decoder takes fewer."""
        return min(int(self.cfg.task.max_target_length), int(self.tokenizer.model_max_length))

    def encode(self, batch: dict[str, list[Any]], numbers: list[int], split: str) -> dict[str, list[Any]]:
        """Rows -> input_ids, attention_mask cut to ``max_length``, length; for training labels, cut to
        ``max_target_length``, for evaluation id and reference."""
        text, label = batch[self.cfg.task.text_columns[0]], batch[self.cfg.task.label_column]
        encoded = self.tokenizer(text, truncation=True, max_length=self.max_length)
        columns = {name: encoded[name] for name in INPUTS} | {"length": [len(ids) for ids in encoded["input_ids"]]}
        if split != sources.TRAIN:
            return columns | {"id": batch["id"], "reference": label}
        targets = self.tokenizer(text_target=label, truncation=True, max_length=self.max_target_length)
        return columns | {"labels": targets["input_ids"]}

    # -- the model -------------------------------------------------------------------------------------------------

    def collate(self, rows: list[dict[str, Any]]) -> Batch:
        """Pads documents and summaries to the longest, rounded up to multiples of 8, or to their maximum lengths
        (``train.padding=max_length``).

        Returns:
            input_ids, attention_mask (rows, length) int64; in training labels (rows, target length) int64, padded with
            -100, and terms, how many of them count.
        """
        import torch

        to_limit = self.cfg.train.padding == "max_length"
        batch = pad(self.tokenizer, rows, INPUTS, self.max_length, to_limit)
        if "labels" in rows[0]:
            longest = max(len(row["labels"]) for row in rows)
            limit = self.max_target_length
            width = limit if to_limit else min(padded_length(longest), limit)
            padded = [row["labels"] + [IGNORED] * (width - len(row["labels"])) for row in rows]
            batch |= {"labels": torch.tensor(padded), "terms": sum(len(row["labels"]) for row in rows)}
        return batch

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, int]:
        """Mean cross entropy over the summaries' tokens, in float32; and how many these are.

        The decoder reads the labels one place to the right, its start token first.
        """
        from torch.nn import functional

        shift: Any = model.prepare_decoder_input_ids_from_labels
        inputs = {name: batch[name] for name in INPUTS}
        logits = model(**inputs, decoder_input_ids=shift(labels=batch["labels"]), use_cache=False).logits
        loss = functional.cross_entropy(logits.flatten(0, 1).float(), batch["labels"].flatten(), ignore_index=IGNORED)
        return loss, batch["terms"]

    def predict(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """``tokens`` (rows, written length): the best beam, special tokens and padding included."""
        generate: Any = model.generate
        return {"tokens": generate(**{name: batch[name] for name in INPUTS}, generation_config=self._search(model))}

    def _search(self, model: Any) -> GenerationConfig:
        """How summaries are searched for: the task's settings, the model's token ids, and nothing else of what the
        model's files say of generation (``generate`` would fill it in), for the record must hold all that matters."""
        from transformers import GenerationConfig

        if self._generation is not None:
            return self._generation
        task = self.cfg.task
        settings = model.generation_config.to_dict()
        ids = {name: value for name, value in settings.items() if name.endswith("_token_id")}
        search = {name: task[name] for name in ("length_penalty", "early_stopping") if task[name] is not None}
        self._generation = model.generation_config = GenerationConfig(
            max_length=self.max_target_length,
            min_length=task.min_target_length or 0,
            num_beams=task.num_beams,
            no_repeat_ngram_size=task.no_repeat_ngram_size or 0,
            do_sample=False,
            **(search if task.num_beams > 1 else {}),  # greedy search has neither
            **ids,
        )
        return self._generation

    # -- scores ----------------------------------------------------------------------------------------------------

    def score(self, split: str, name: str, batches: Iterable[dict[str, Any]]) -> Scores:
        """ROUGE F-measures in percent with 95% intervals (``<name>_low``, ``<name>_high``), and ``written_tokens``, the
        mean length of what was written.

        Files: ``predictions.jsonl.gz``, by document: id, what was written, its scores.
        """
        written: dict[int, str] = {}  # row -> text: of a batch nothing else is kept
        tokens, special = 0, set(self.tokenizer.all_special_ids)
        for batch in batches:
            decoded = self.tokenizer.batch_decode(batch["tokens"], skip_special_tokens=True)
            written.update(zip(batch["index"], decoded, strict=True))
            tokens += sum(token not in special for row in batch["tokens"].tolist() for token in row)
        texts = [written[row].strip() for row in sorted(written)]
        side = self.side[split]
        scores = rouge.rouge_scores(texts, side["reference"][:])
        rows = [
            {"id": document, "prediction": text} | {metric: scores[metric][row] for metric in scores}
            for row, (document, text) in enumerate(zip(side["id"][:], texts, strict=True))
        ]
        only = constant(texts)
        return Scores(
            rouge.summarize(scores) | {"written_tokens": tokens / len(texts)},
            {f"predictions{name}.jsonl.gz": rows},
            None if only is None else f"a text of {len(only):,} characters",
        )

    def answers(self, model: nn.Module, rows: list[dict[str, str]]) -> list[dict[str, Any]]:
        """``summary`` of each document."""
        texts = [row[self.cfg.task.text_columns[0]] for row in rows]
        encoded = self.tokenizer(texts, truncation=True, max_length=self.max_length)
        batch = self.collate([{name: encoded[name][i] for name in INPUTS} for i in range(len(rows))])
        tokens = self.predict(model, to_device_of(model, batch))["tokens"]
        written = self.tokenizer.batch_decode(tokens, skip_special_tokens=True)
        return [{"summary": text.strip()} for text in written]
