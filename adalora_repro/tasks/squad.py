"""The SQuAD family: extracting the span of a context that answers a question, or (2.0) saying that there is none.

A long context is cut into windows of ``max_length`` tokens (question included) that share ``stride`` tokens. The model
gives every token two logits, s for being the first of the answer and e for being the last. Training: cross entropy of
the true first and last token, or of [CLS] twice where a window does not hold the whole answer. Evaluation: over all
windows of a question

    score(i, j) = s_i + e_j,  i <= j < i + max_answer_length,  both tokens of the context
    null = min over windows of s_CLS + e_CLS

the answer is the span with the best score, or none (2.0) where null - best > null_threshold.
"""

from __future__ import annotations

import json
import math
import re
from bisect import bisect_left, bisect_right
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from adalora_repro.errors import InputError, shortened
from adalora_repro.metrics.squad import best_thresholds, score_all, squad_metrics
from adalora_repro.records.validation import shown
from adalora_repro.settings import setting
from adalora_repro.tasks import sources, tokenized
from adalora_repro.tasks.base import BaseTask, Batch, Scores, TaskData, constant, pad, to_device_of

if TYPE_CHECKING:
    from datasets import Features
    from omegaconf import DictConfig
    from torch import Tensor, nn
    from transformers import PreTrainedTokenizerBase

INPUT = "input"  # the split of texts that are no data set's
WINDOWS = 32  # of long contexts at once, when texts are answered


@dataclass
class Options:
    """Settings of this family alone."""

    stride: int = setting(minimum=0)
    "Tokens that neighbouring windows over a long context share."
    n_best: int = setting(later=None, minimum=1)
    "Spans kept per window and answers kept per question."
    max_answer_length: int = setting(later=None, minimum=1)
    "Tokens of the longest answer."
    null_threshold: float | None = setting(None, later=None)
    "Predict no answer if its score exceeds the best span's by more than this; null: always predict a span."


class Task(BaseTask):
    """One task of the family, as its YAML in conf/task/ describes it.

    Raises:
        InputError: as ``BaseTask``; a stride that leaves no room for a context.
    """

    architectures = ("encoder",)
    code_version = 2
    has_ids = True
    texts = (2,)
    options = Options
    side_columns = ("example", "id", "context", "answers", "starts", "ends")

    def __init__(self, cfg: DictConfig) -> None:
        super().__init__(cfg)
        task = cfg.task
        if task.stride >= task.max_length:
            raise InputError(
                f"task.stride={task.stride} must be below task.max_length={task.max_length}: a window has to bring "
                "more than it shares with the one before"
            )
        if task.num_labels != 2:
            raise InputError(f"task.num_labels={task.num_labels}: start and end of a span take 2")

    @property
    def nullable(self) -> bool:
        """Whether "no answer" is one of the answers."""
        return self.cfg.task.null_threshold is not None

    @property
    def measured(self) -> tuple[str, ...]:  # type: ignore[override]
        return ("exact", "f1", *(("best_exact", "best_f1") if self.nullable else ()))

    # -- rows and windows ------------------------------------------------------------------------------------------

    def read_label(self, value: Any) -> Any:
        if isinstance(value, str):
            try:
                return json.loads(value)
            except (ValueError, RecursionError):
                form = 'must be the JSON {"text": [text, …], "answer_start": [integer, …]}'
                raise ValueError(f"column '{self.cfg.task.label_column}' {form}, is {shown(value)}") from None
        return value

    def label_problem(self, row: dict[str, Any]) -> str | None:
        """``answers`` are {text: [text, …], answer_start: [characters, …]}, each text found at its offset."""
        name = self.cfg.task.label_column
        context, answers = row[self.cfg.task.text_columns[1]], row[name]
        form = f"column '{name}' must be {{text: [text, …], answer_start: [integer, …]}} of equal lengths"
        if not isinstance(answers, dict):
            return f"{form}, is {shown(answers)}"
        texts, starts = answers.get("text"), answers.get("answer_start")
        if not isinstance(texts, list) or not isinstance(starts, list) or len(texts) != len(starts):
            return form
        for text, start in zip(texts, starts, strict=True):
            if not isinstance(text, str) or not isinstance(start, int) or isinstance(start, bool):
                return form
            if not text.strip():
                return "an answer is empty"
            if start < 0 or context[start : start + len(text)] != text:
                excerpt = context[start : start + len(text)] if 0 <= start < len(context) else ""
                return f"the answer '{_short(text)}' is not at its offset {start}, there is '{_short(excerpt)}'"
        if not texts and not self.nullable:
            way = "task.null_threshold=0" if self.cfg.task.hub is None else "task=squad_v2"
            return f"no answer, but every question of {self.cfg.task.name} has one ({way} allows none)"
        return None

    def features(self) -> Features:
        from datasets import Features, List, Value

        types: dict[str, Any] = dict.fromkeys(self.columns, Value("string"))
        answers = {"text": List(Value("string")), "answer_start": List(Value("int32"))}
        return Features(types | {self.cfg.task.label_column: answers})

    def stratum(self, label: Any) -> Hashable:
        """Questions with an answer, and those without."""
        return bool(label["text"])

    def recipe(self) -> list[Any]:
        return [int(self.cfg.task.stride), self.nullable]

    def types(self, split: str) -> Features:
        """As ``encode`` describes them: the first rows may all have no answer, which would make no type."""
        from datasets import Features, List, Value

        number, numbers, text = Value("int32"), List(Value("int32")), Value("string")
        types: dict[str, Any] = dict.fromkeys(self.tokenizer.model_input_names, numbers)
        types |= {"length": number, tokenized.PROBLEM: text}
        if split == sources.TRAIN:
            return Features(types | dict.fromkeys(("start", "end"), number))
        types |= dict.fromkeys(("cls", "first", "tokens", "example"), number)
        types |= dict.fromkeys(("starts", "ends"), numbers) | dict.fromkeys(("id", "context"), text)
        return Features(types | {"answers": List(text)})

    def encode(self, batch: dict[str, list[Any]], numbers: list[int], split: str) -> dict[str, list[Any]]:
        """Rows -> windows: input_ids, … and length, and for training ``start`` and ``end`` (token positions).

        For evaluation: ``cls`` and ``first``, the positions of [CLS] and of the first context token; ``tokens``, how
        many these are; ``starts`` and ``ends``, the characters that each of them covers; the row's number
        (``example``), id, context and answers. A bad row becomes one window with nothing but its problem.
        """
        task, tokenizer = self.cfg.task, self.tokenizer
        questions, contexts = ([text.strip() for text in batch[task.text_columns[0]]], batch[task.text_columns[1]])
        types = self.types(split)
        windows: list[dict[str, Any]] = []
        kept = []

        def bad(row: int, problem: str) -> None:
            where = f"{task.name} {split}: id {batch['id'][row]!r}"
            windows.append(dict.fromkeys(types) | {tokenized.PROBLEM: f"{where}: {problem}"})

        room = self.max_length - tokenizer.num_special_tokens_to_add(pair=True) - task.stride
        asked = tokenizer(questions, add_special_tokens=False, verbose=False)["input_ids"]
        for row, ids in enumerate(asked):
            if len(ids) < room:
                kept.append(row)
            else:
                bad(
                    row,
                    f"the question has {len(ids)} tokens, which leaves no room for a context in windows of "
                    f"{self.max_length} tokens that share {task.stride} (task.max_length, task.stride)",
                )
        if not kept:
            return {name: [window[name] for window in windows] for name in types}
        encoded = tokenizer(
            [questions[row] for row in kept],
            [contexts[row] for row in kept],
            truncation="only_second",
            max_length=self.max_length,
            stride=task.stride,
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
        )
        origins = [None, *encoded["overflow_to_sample_mapping"], None]  # windows of a row follow each other
        for window, (before, kept_row, after) in enumerate(zip(origins, origins[1:], origins[2:], strict=False)):
            row = kept[kept_row]
            ids, sequence = encoded["input_ids"][window], encoded.sequence_ids(window)
            if 1 not in sequence:
                bad(row, "the context has no tokens")
                continue
            first, stop = sequence.index(1), len(sequence) - sequence[::-1].index(1)
            starts, ends = (list(side) for side in zip(*encoded["offset_mapping"][window][first:stop], strict=True))
            cls = ids.index(tokenizer.cls_token_id)
            values = {name: encoded[name][window] for name in tokenizer.model_input_names} | {"length": len(ids)}
            if split == sources.TRAIN:
                left = starts[0] if before == kept_row else 0
                right = ends[-1] if after == kept_row else len(contexts[row])
                span = answer_span(batch[task.label_column][row], starts, ends, left, right)
                values["start"], values["end"] = (cls, cls) if span is None else (first + span[0], first + span[1])
            else:
                values |= {"cls": cls, "first": first, "starts": starts, "ends": ends, "example": numbers[row]}
                values |= {"tokens": stop - first, "id": batch["id"][row], "context": contexts[row]}
                values["answers"] = batch[task.label_column][row]["text"]
            windows.append(values | {tokenized.PROBLEM: None})
        return {name: [window[name] for window in windows] for name in types}

    def load(self, tokenizer: PreTrainedTokenizerBase) -> TaskData:
        if not tokenizer.is_fast:
            raise InputError(
                f"backbone '{self.cfg.backbone.name}': {type(tokenizer).__name__} does not say which characters a "
                f"token covers, which {self.cfg.task.name} needs; a fast tokenizer (tokenizer.json) does"
            )
        data = super().load(tokenizer)
        data.provenance["windows"] = {"train": len(data.train)}
        for split, windows in data.evaluation.items():
            data.provenance["windows"][split] = len(windows)
        return data

    # -- the model -------------------------------------------------------------------------------------------------

    def collate(self, rows: list[dict[str, Any]]) -> Batch:
        """Pads to the longest window, rounded up to a multiple of 8, or to max_length (``train.padding=max_length``).

        Returns:
            input_ids, attention_mask, … (windows, length) int64. Training: start, end (windows,) int64. Evaluation:
            cls (windows,) int64 and context (windows, length) bool, true for tokens of the context.
        """
        import torch

        names = [name for name in self.tokenizer.model_input_names if name in rows[0]]
        batch = pad(self.tokenizer, rows, names, self.max_length, self.cfg.train.padding == "max_length")
        for name in ("start", "end", "cls"):
            if name in rows[0]:
                batch[name] = torch.tensor([row[name] for row in rows])
        if "first" in rows[0]:
            positions = torch.arange(batch["input_ids"].shape[1])
            first, tokens = (torch.tensor([[row[name]] for row in rows]) for name in ("first", "tokens"))
            batch["context"] = (positions >= first) & (positions < first + tokens)
        return batch

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, int]:
        """Half the sum of the two mean cross entropies, in float32; and the number of windows.

        Padding takes no part in the softmax, or the loss of a window would depend on those it shares a batch with.
        """
        from torch.nn import functional

        padding = batch["attention_mask"] == 0
        start, end = (logits.masked_fill(padding, -math.inf) for logits in self._logits(model, batch))
        loss = functional.cross_entropy(start, batch["start"]) + functional.cross_entropy(end, batch["end"])
        return loss / 2, len(batch["start"])

    def predict(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """The ``n_best`` best spans of each window: score (-inf: there are no more), start and end, counted from the
        first token of the context; and null, NaN where a logit of the context is not finite.
        """
        start, end = self._logits(model, batch)
        both = start + end
        finite = (both.isfinite() | ~batch["context"]).all(1)
        null = both.gather(1, batch["cls"][:, None])[:, 0].masked_fill(~finite, math.nan)
        task = self.cfg.task
        spans = best_spans(start, end, batch["context"], task.max_answer_length, task.n_best)
        first = batch["context"].int().argmax(1, keepdim=True)
        return {"score": spans["score"], "start": spans["start"] - first, "end": spans["end"] - first, "null": null}

    def _logits(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        inputs = {name: batch[name] for name in self.tokenizer.model_input_names if name in batch}
        outputs = model(**inputs)
        return outputs.start_logits.float(), outputs.end_logits.float()

    # -- answers ---------------------------------------------------------------------------------------------------

    def score(self, split: str, name: str, batches: Iterable[dict[str, Any]]) -> Scores:
        """Exact match and F1 in percent; 2.0: of both kinds of question apart, and with the best null threshold too.

        Files: ``predictions.json`` (id -> answer, what SQuAD's own script reads), ``nbest.jsonl.gz`` (by question: its
        scores and its best answers), 2.0 also ``null_odds.json`` (id -> null - best).

        Raises:
            FloatingPointError: a logit is not finite; names the split.
        """
        questions = self._questions(split, batches)
        threshold = self.cfg.task.null_threshold
        best = {question.id: question.best(self.cfg.task.n_best) for question in questions}
        texts = {key: answers[0]["text"] for key, answers in best.items()}
        odds = {question.id: question.null - best[question.id][0]["score"] for question in questions}
        given = {key: "" if self.nullable and odds[key] > threshold else text for key, text in texts.items()}
        references = {question.id: question.answers for question in questions}
        scores = score_all(given, references)
        figures = squad_metrics(given, references)
        if self.nullable:
            figures |= best_thresholds(texts, odds, references)
        else:
            figures = {metric: figures[metric] for metric in ("exact", "f1")}
        figures = {metric: value for metric, value in figures.items() if "total" not in metric}
        rows = []
        for question in questions:
            key, answers = question.id, best[question.id]
            row = {"id": key, "prediction": given[key], "exact": scores[key][0], "f1": scores[key][1]}
            if self.nullable:
                row["null_odds"] = odds[key]
                answers = [*answers, {"text": "", "start": None, "score": question.null}]
            rows.append(row | {"n_best": with_probabilities(answers)})
        files = {f"predictions{name}.json": given, f"nbest{name}.jsonl.gz": rows}
        if self.nullable:
            files[f"null_odds{name}.json"] = odds
        only = constant(given.values())
        return Scores(figures, files, None if only is None else repr(_short(only)) if only else "no answer")

    def _questions(self, split: str, batches: Iterable[dict[str, Any]]) -> list[Question]:
        """The windows' best spans put together by question, in the order of the rows; nothing else is kept of them."""
        questions: dict[int, Question] = {}
        for batch in batches:
            windows = self.side[split][batch["index"]]
            for window, example in enumerate(windows["example"]):
                null, scores = float(batch["null"][window]), batch["score"][window].tolist()
                if not math.isfinite(null) or any(math.isnan(score) or score == math.inf for score in scores):
                    raise FloatingPointError(f"a prediction on {split} is not finite: id {windows['id'][window]!r}")
                texts = (windows[name][window] for name in ("id", "context", "answers"))
                question = questions.setdefault(example, Question(*texts))
                question.null = min(question.null, null)
                starts, ends = windows["starts"][window], windows["ends"][window]
                firsts, lasts = batch["start"][window].tolist(), batch["end"][window].tolist()
                for score, i, j in zip(scores, firsts, lasts, strict=True):
                    if score > -math.inf:
                        question.add(starts[i], ends[j], score)
        return [questions[example] for example in sorted(questions)]

    def _predicted(self, model: nn.Module, windows: list[dict[str, Any]], index: list[int]) -> dict[str, Any]:
        spans = self.predict(model, to_device_of(model, self.collate([windows[i] for i in index])))
        return {name: value.cpu().numpy() for name, value in spans.items()} | {"index": index}

    def answers(self, model: nn.Module, rows: list[dict[str, str]]) -> list[dict[str, Any]]:
        """``answer``, ``start`` (its first character in the context), ``score`` s_i + e_j and ``probability`` among the
        best answers; "" and null where there is none (2.0)."""
        from datasets import Dataset

        batch: dict[str, list[Any]] = {name: [row[name] for row in rows] for name in self.cfg.task.text_columns}
        batch |= {"id": [shortened(row[self.cfg.task.text_columns[0]], 40) for row in rows]}  # for messages alone
        batch[self.cfg.task.label_column] = [{"text": [], "answer_start": []} for _ in rows]
        encoded = self.encode(batch, list(range(len(rows))), INPUT)
        if problem := next(filter(None, encoded[tokenized.PROBLEM]), None):
            raise InputError(problem)
        windows = [{name: values[i] for name, values in encoded.items()} for i in range(len(encoded["id"]))]
        self.side[INPUT] = Dataset.from_dict({name: encoded[name] for name in self.side_columns})
        size = max(WINDOWS, len(rows))
        batches = [range(len(windows))[i : i + size] for i in range(0, len(windows), size)]
        given = []
        for question in self._questions(INPUT, (self._predicted(model, windows, list(index)) for index in batches)):
            best = question.best(self.cfg.task.n_best)
            none: list[dict[str, Any]] = [{"text": "", "start": None, "score": question.null}] * self.nullable
            empty = self.nullable and question.null - best[0]["score"] > self.cfg.task.null_threshold
            chosen = next(row for row in with_probabilities([*best, *none]) if (row["start"] is None) == empty)
            given.append({"answer": chosen.pop("text"), **chosen})
        return given


@dataclass
class Question:
    """What the windows of one question found: ``spans`` of its context in characters, and their scores."""

    id: str
    context: str
    answers: list[str]
    null: float = math.inf
    spans: dict[tuple[int, int], float] = field(default_factory=dict)

    def add(self, start: int, end: int, score: float) -> None:
        """Adds a span of characters without the blanks around it; the best score counts of one that is added twice."""
        text = self.context[start:end]
        start += len(text) - len(text.lstrip())
        end = start + len(text.strip())
        self.spans[start, end] = max(score, self.spans.get((start, end), -math.inf))

    def best(self, count: int) -> list[dict[str, Any]]:
        """Text, start and score of the best spans, at least one; of equal scores the earlier and shorter span first.

        Blanks alone, which some tokens are, count only if there is nothing else: "" says that there is no answer.
        """
        order = sorted(self.spans, key=lambda span: (-self.spans[span], span))
        texts = {span: self.context[slice(*span)] for span in order}
        chosen = ([span for span in order if texts[span]] or order)[:count]
        return [{"text": texts[span], "start": span[0], "score": self.spans[span]} for span in chosen]


def with_probabilities(answers: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """An n-best list by descending score; ``probability`` is a softmax over the list alone."""
    rows = sorted(answers, key=lambda answer: -answer["score"])
    weights = [math.exp(row["score"] - rows[0]["score"]) for row in rows]
    total = sum(weights)
    return [row | {"probability": weight / total} for row, weight in zip(rows, weights, strict=True)]


def best_spans(start: Tensor, end: Tensor, context: Tensor, max_length: int, count: int) -> dict[str, Tensor]:
    """The ``count`` best of all valid spans of each window: score(i, j) = start_i + end_j, i <= j < i + max_length.

    Every valid span is looked at, in one tensor (windows, length, max_length); the usual search among the 20 best
    starts and 20 best ends may miss some, or all. Of equal scores the earlier and shorter span comes first.

    Args:
        start, end: logits (windows, length).
        context: bool (windows, length): both ends of a span must be true.

    Returns:
        score, start, end (windows, k), k <= count; score is -inf where a window has no further span.
    """
    from torch.nn import functional

    width = min(max_length, start.shape[1])
    low = -math.inf
    lasts = functional.pad(end.masked_fill(~context, low), (0, width - 1), value=low).unfold(1, width, 1)
    scores = start.masked_fill(~context, low)[:, :, None] + lasts
    # the best spans begin where the best of each start is among the best: few starts are left to search
    firsts = _largest(scores.amax(2), count).sort(1).values
    scores = scores.gather(1, firsts[:, :, None].expand(-1, -1, width)).flatten(1)
    best = _largest(scores, count)
    first = firsts.gather(1, best // width)
    return {"score": scores.gather(1, best), "start": first, "end": first + best % width}


def _largest(values: Tensor, count: int) -> Tensor:
    """Places of the ``count`` largest float32 values of each row, of equal ones the first.

    ``topk`` alone takes any of them, which depends on the device and on the padding.
    """
    import torch

    bits = (values + 0.0).view(torch.int32).long()  # + 0: there is but one zero
    ranks = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits) << 32  # as integers negative floats are in the wrong order
    return (ranks - torch.arange(values.shape[1], device=values.device)).topk(min(count, values.shape[1])).indices


def answer_span(
    answers: dict[str, list[Any]], starts: list[int], ends: list[int], left: int, right: int
) -> tuple[int, int] | None:
    """(first, last) of the context tokens, covering characters [starts_i, ends_i), that the first answer touches.

    Blanks around the answer do not count: some tokens cover the blank before their word, and some blanks no token does.
    A context may also begin or end with characters that the tokenizer drops: ``left`` and ``right`` cover them.

    Args:
        left, right: the window's characters; the first one of a context starts at 0, the last one ends with it.

    Returns:
        None: there is no answer, or the window does not hold all of it.
    """
    if not answers["text"]:
        return None
    text = answers["text"][0]
    begin = answers["answer_start"][0] + len(text) - len(text.lstrip())
    stop = begin + len(text.strip())
    if left > begin or right < stop:
        return None
    first, last = bisect_right(ends, begin), bisect_left(starts, stop) - 1  # several tokens may cover one character
    return (first, last) if first <= last else None


def _short(text: str) -> str:
    """For a message of one line."""
    return shortened(re.sub(r"\s", " ", text), 40)
