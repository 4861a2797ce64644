"""SQuAD's windows, spans and post-processing against slow second readings: sets of characters, all pairs."""

import gzip
import json
import math
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from task_configs import REAL_DATA, needs_real_data, task_config, word_pieces, write_jsonl
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from adalora_repro.errors import InputError
from adalora_repro.models import backbones
from adalora_repro.tasks import sources, tokenized
from adalora_repro.tasks.base import Evaluation, TaskData
from adalora_repro.tasks.squad import Task, best_spans

TEXT = [
    "The Normans were the people who in the 10th and 11th centuries gave their name to Normandy, a region in France.",
    "Which NFL team represented the AFC at Super Bowl 50? Denver Broncos (24–10), in Santa Clara, California.",
    "Straße naïve café Ωmega 日本語 😀 e\u0301 ½ ﬁ words, years: 1990s; who? when? where?",
]


# Three kinds of tokenizer


def byte_pairs() -> Any:
    """As RoBERTa's: bytes, a blank belongs to the word behind it but not to its offsets, two separators."""
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    tokenizer.post_processor = processors.RobertaProcessing(
        ("</s>", 2), ("<s>", 0), trim_offsets=True, add_prefix_space=False
    )
    names = {"cls_token": "<s>", "sep_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    inputs = ["input_ids", "attention_mask"]
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=512, model_input_names=inputs, **names)


#: DeBERTaV3's: see unit/test_backbone_tokenizer.py
TOKENIZERS = {"bytes": backbones.byte_tokenizer, "wordpiece": word_pieces, "byte-pairs": byte_pairs}


@cache
def tokenizer_of(kind: str) -> Any:
    return TOKENIZERS[kind]()


# Windows


def windows_of(tokenizer: Any, rows: list[dict[str, Any]], training: bool, max_length: int, stride: int) -> list[Any]:
    """What is mapped over the rows, without the data set around it, which takes a hundred times as long."""
    task = Task(task_config("squad_v2", task__max_length=max_length, task__stride=stride))
    task._tokenizer = tokenizer
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    encoded = task.encode(columns, list(range(len(rows))), sources.TRAIN if training else "validation")
    if problems := [problem for problem in encoded[tokenized.PROBLEM] if problem is not None]:
        raise InputError(problems[0])
    return [dict(zip(encoded, values, strict=True)) for values in zip(*encoded.values(), strict=True)]


WORDS = ["the", "Normans", "France", "in", "1990s", "Straße", "naïve", "日本語", "😀", "👩\u200d👩\u200d👧", "½"]
WORDS += ["ﬁne", ".", "e\u0301t\u0301e", "\u0301", ",", "(24–10)", "…", "\u200b", "don't", "Ω", "a\u0300\u0323"]
WORDS += ["[SEP]", "ـ", "İ"]
BLANKS = [" ", " ", " ", "  ", "", "\n", "\t", "\u00a0", "\u3000", " \n "]
Case = tuple[str, list[tuple[int, int]]]


@st.composite
def contexts(draw: st.DrawFn) -> Case:
    """A text and some spans of characters of it, not of blanks alone."""
    words = draw(st.lists(st.one_of(st.sampled_from(WORDS), st.text(min_size=1, max_size=4)), min_size=1, max_size=25))
    blanks = draw(st.lists(st.sampled_from(BLANKS), min_size=len(words), max_size=len(words)))
    text = draw(st.sampled_from(["", " ", "\n  "])) + "".join(a + b for a, b in zip(words, blanks, strict=True))
    text = text if text.strip() else text + "x"
    places = st.integers(0, len(text) - 1)
    spans = draw(st.lists(st.tuples(places, places).map(lambda p: (min(p), max(p) + 1)), max_size=6))
    return text, [span for span in spans if text[slice(*span)].strip()]


@pytest.mark.parametrize("kind", TOKENIZERS)
@settings(max_examples=50)  # imports, shared processors
@given(case=contexts(), stride=st.integers(0, 9), room=st.integers(1, 30))
def test_windows_are_those_of_a_slow_reading(kind: str, case: Case, stride: int, room: int) -> None:
    tokenizer = tokenizer_of(kind)
    context, spans = case
    question = "  who or what?"
    answers = [{"text": [context[i:j]], "answer_start": [i]} for i, j in spans]
    answers.append({"text": [], "answer_start": []})
    rows = [{"id": str(n), "question": question, "context": context, "answers": a} for n, a in enumerate(answers)]

    whole = tokenizer(question.strip(), context, return_offsets_mapping=True)
    side = whole.sequence_ids()
    positions = [i for i, sequence in enumerate(side) if sequence == 1]
    if not positions:
        return
    before, behind = positions[0], len(side) - positions[-1] - 1
    offsets = [whole["offset_mapping"][i] for i in positions]
    characters = [{c for c in range(*offset) if not context[c].isspace()} for offset in offsets]
    size = stride + room  # of a window, in tokens of the context
    max_length = before + size + behind

    pieces = [range(0, min(size, len(offsets)))]  # the tokens of each window
    while pieces[-1].stop < len(offsets):
        start = pieces[-1].stop - stride
        pieces.append(range(start, min(start + size, len(offsets))))

    evaluated = windows_of(tokenizer, rows, False, max_length, stride)
    trained = windows_of(tokenizer, rows, True, max_length, stride)
    assert len(evaluated) == len(trained) == len(rows) * len(pieces)
    ids = whole["input_ids"]
    for number, window in enumerate(evaluated):
        row, piece = rows[number // len(pieces)], pieces[number % len(pieces)]
        inside = [ids[before + token] for token in piece]
        assert window["input_ids"] == ids[:before] + inside + ids[len(ids) - behind :]
        assert window["length"] == len(window["input_ids"]) <= max_length
        assert (window["first"], window["tokens"], window["cls"]) == (before, len(piece), 0)
        assert list(zip(window["starts"], window["ends"], strict=True)) == [offsets[token] for token in piece]
        assert (window["example"], window["id"]) == (number // len(pieces), row["id"])
        assert (window["context"], window["answers"]) == (context, row["answers"]["text"])

    held = [False] * len(rows)
    covered = set().union(*characters)
    for number, window in enumerate(trained):
        example, piece = number // len(pieces), pieces[number % len(pieces)]
        assert window["input_ids"] == evaluated[number]["input_ids"]
        label = window["start"], window["end"]
        if example == len(spans):  # no answer
            assert label == (0, 0)
            continue
        asked = {c for c in range(*spans[example]) if not context[c].isspace()}
        target = asked & covered
        touching = [token for token in piece if characters[token] & target]
        if not target or not target <= set().union(*(characters[token] for token in piece)):
            assert label == (0, 0)
            continue
        expected = tuple(before + token - piece.start for token in (touching[0], touching[-1]))
        dropped = not {min(asked), max(asked)} <= covered
        assert label == expected or (dropped and label == (0, 0) and len(pieces) > 1)
        if label != (0, 0):
            held[example] = True
            found = context[offsets[touching[0]][0] : offsets[touching[-1]][1]].strip()
            answer = context[slice(*spans[example])].strip()
            assert dropped or answer in found
            if kind == "bytes" and "[SEP]" not in context:  # every other token is within one character
                assert found == answer
    for example, span in enumerate(spans):
        target = covered & set(range(*span))
        touching = [token for token, inside in enumerate(characters) if inside & target]
        length = touching[-1] - touching[0] + 1 if touching else 0
        asked = {c for c in range(*span) if not context[c].isspace()}
        whole_ends = {min(asked), max(asked)} <= covered
        if target and (len(pieces) == 1 or (length <= stride + 1 and whole_ends)):
            assert held[example]


# The best spans of a window

LOGIT = st.one_of(st.floats(-20, 20, width=32), st.integers(-2, 2).map(float))


@settings(max_examples=100)
@given(st.data())
def test_best_spans_are_those_of_all_pairs(data: st.DataObject) -> None:
    windows, length = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 12))
    rows = st.lists(LOGIT, min_size=length, max_size=length)
    logits = [[data.draw(rows) for _ in range(windows)] for _ in range(2)]
    start, end = (torch.tensor(side, dtype=torch.float32) for side in logits)
    if data.draw(st.booleans()):
        start, end = start.bfloat16().float(), end.bfloat16().float()
    inside = st.lists(st.booleans(), min_size=length, max_size=length)
    context = torch.tensor(data.draw(st.lists(inside, min_size=windows, max_size=windows)))
    limit, count = data.draw(st.integers(1, length + 3)), data.draw(st.integers(1, 100))
    found = best_spans(start, end, context, limit, count)
    padding = data.draw(st.integers(1, 9))
    padded = best_spans(
        *(torch.nn.functional.pad(side, (0, padding), value=99.0) for side in (start, end)),
        torch.nn.functional.pad(context, (0, padding), value=False),
        *(limit, count),
    )
    for window in range(windows):
        expected = slow_best(start[window], end[window], context[window].tolist(), limit)[:count]
        assert spans_of(found, window) == spans_of(padded, window) == expected


def spans_of(found: dict[str, Tensor], window: int) -> list[tuple[float, int, int]]:
    columns = (found[name][window].tolist() for name in ("score", "start", "end"))
    rows = list(zip(*columns, strict=True))
    kept = [row for row in rows if row[0] > -math.inf]
    assert rows[: len(kept)] == kept  # what is no span comes last
    return kept


def slow_best(start: Tensor, end: Tensor, context: Sequence[bool], limit: int) -> list[tuple[float, int, int]]:
    found = []
    for i, inside in enumerate(context):
        for j in range(i, min(i + limit, len(context))):
            if inside and context[j]:
                found.append((float(np.float32(start[i]) + np.float32(end[j])), i, j))
    return sorted(found, key=lambda span: (-span[0], span[1], span[2]))


# Predictions of whole questions


class Noise(nn.Module):
    """A model that gives every window its logits, drawn from its tokens, and nonsense where it is padded."""

    def __init__(self, seed: int, ties: bool) -> None:
        super().__init__()
        self.seed, self.ties = seed, ties
        self.of_device = nn.Parameter(torch.zeros(()))

    def logits(self, ids: list[int]) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(self.seed + sum(i * n for i, n in enumerate(ids, 1)))
        drawn = torch.randn(2, len(ids), generator=generator) * 3
        start, end = drawn.round() if self.ties else drawn
        return start, end

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> SimpleNamespace:
        outputs = torch.full((2, *input_ids.shape), 50.0)
        for row, (ids, mask) in enumerate(zip(input_ids, attention_mask, strict=True)):
            kept = ids[mask.bool()].tolist()
            outputs[0, row, : len(kept)], outputs[1, row, : len(kept)] = self.logits(kept)
        return SimpleNamespace(start_logits=outputs[0], end_logits=outputs[1])


def evaluated(task: Task, data: TaskData, model: nn.Module, batches: list[list[int]]) -> Evaluation:
    rows = data.evaluation["validation"]

    def predictions() -> Any:
        for batch in batches:
            found = task.predict(model, task.collate([rows[i] for i in batch]))
            yield {name: value.numpy() for name, value in found.items()} | {"index": batch}

    return task.metrics({"validation": predictions()})


def slow_predictions(task: Task, rows: list[dict[str, Any]], model: Noise) -> dict[str, Any]:
    """id -> odds, answer and n-best list, by the well-known procedure: all windows, all spans, the null's minimum."""
    setting, tokenizer = task.cfg.task, task.tokenizer
    found = {}
    for row in rows:
        encoded = tokenizer(
            row["question"].strip(),
            row["context"],
            truncation="only_second",
            max_length=setting.max_length,
            stride=setting.stride,
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
        )
        null, best = math.inf, {}
        for window, ids in enumerate(encoded["input_ids"]):
            start, end = model.logits(ids)
            null = min(null, float(start[0] + end[0]))
            offsets = encoded["offset_mapping"][window]
            context = [sequence == 1 for sequence in encoded.sequence_ids(window)]
            for score, i, j in slow_best(start, end, context, setting.max_answer_length)[: setting.n_best]:
                inside = [c for c in range(offsets[i][0], offsets[j][1]) if not row["context"][c].isspace()]
                span = (inside[0], inside[-1] + 1) if inside else (0, 0)
                best[span] = max(best.get(span, score), score)
        texts = {span: row["context"][slice(*span)] for span in best}
        order = sorted((-score, span) for span, score in best.items() if texts[span])[: setting.n_best]
        n_best = [{"text": texts[span], "start": span[0], "score": -score} for score, span in order]
        odds = null + order[0][0]
        answer = n_best[0]["text"]
        if setting.null_threshold is not None:
            answer = "" if odds > setting.null_threshold else answer
            n_best = sorted([*n_best, {"text": "", "start": None, "score": null}], key=lambda entry: -entry["score"])
        total = sum(math.exp(entry["score"]) for entry in n_best)
        for entry in n_best:
            entry["probability"] = pytest.approx(math.exp(entry["score"]) / total, rel=1e-9)
        found[row["id"]] = {"odds": odds, "answer": answer, "n_best": n_best}
    return found


def local(folder: Path, task: str, rows: list[dict[str, Any]], **options: Any) -> tuple[Task, TaskData]:
    for split in ("train", "validation"):
        write_jsonl(folder / task / f"{split}.jsonl.gz", rows)
    places = {"data__dir": str(folder), "data__cache_dir": str(folder / "cache")}
    loaded = Task(task_config(task, "local", **places | options))
    return loaded, loaded.load(backbones.byte_tokenizer())


def invented(count: int) -> list[dict[str, Any]]:
    """Questions over contexts of 5 to 60 words, one in three without an answer."""
    random, rows = Random(0), []
    vocabulary = ["the", "of", "Rome", "1066", "Norman", "duke", "in", "(and)", "war."]
    for number in range(count):
        words = random.choices(vocabulary, k=random.randrange(5, 60))
        context, word = " ".join(words), random.choice(words)
        answers = {"text": [word] if number % 3 else [], "answer_start": [context.index(word)] if number % 3 else []}
        question = f"Question {number} about {random.choice(words)}?"
        rows.append({"id": f"q{number}", "question": question, "context": context, "answers": answers})
    return rows


def same_as_slow(task: Task, data: TaskData, rows: list[dict[str, Any]], seed: int, ties: bool) -> None:
    model, nullable = Noise(seed, ties), task.cfg.task.null_threshold is not None
    expected = slow_predictions(task, rows, model)
    numbers = list(range(len(data.evaluation["validation"])))
    assert len(numbers) > len(rows)  # some have several windows
    first = None
    for size in (1, 7, len(numbers)):
        Random(size).shuffle(numbers)
        found = evaluated(task, data, model, [numbers[i : i + size] for i in range(0, len(numbers), size)])
        if first is None:
            first = found
        assert found == first
        assert list(found.files["predictions.json"]) == [row["id"] for row in rows]
    assert first.files["predictions.json"] == {name: entry["answer"] for name, entry in expected.items()}
    asked = task.answers(model, [{name: row[name] for name in task.cfg.task.text_columns} for row in rows])
    assert [one["answer"] for one in asked] == [entry["answer"] for entry in expected.values()]
    if nullable:
        assert first.files["null_odds.json"] == {name: entry["odds"] for name, entry in expected.items()}
    for row in first.files["nbest.jsonl.gz"]:
        assert row["n_best"] == expected[row["id"]]["n_best"]
        assert not nullable or row["null_odds"] == expected[row["id"]]["odds"]
        assert row["prediction"] == first.files["predictions.json"][row["id"]]


@pytest.mark.parametrize("ties", [False, True], ids=["real", "whole"])
@pytest.mark.parametrize("n_best", [1, 20])
@pytest.mark.parametrize("name", ["squad", "squad_v2"])
def test_predictions_are_those_of_the_slow_procedure(tmp_path: Path, name: str, n_best: int, ties: bool) -> None:
    rows = invented(8)
    if name == "squad":
        rows = [row for row in rows if row["answers"]["text"]]
    sizes = {"task__max_length": 96, "task__stride": 24, "task__max_answer_length": 17, "task__n_best": n_best}
    task, data = local(tmp_path, name, rows, **sizes)
    same_as_slow(task, data, rows, seed=n_best, ties=ties)


@needs_real_data
def test_predictions_of_real_questions_are_those_of_the_slow_procedure(tmp_path: Path) -> None:
    with gzip.open(REAL_DATA / "squad_v2" / "validation.jsonl.gz", "rt", encoding="utf-8") as file:
        lines = [json.loads(line) for line in file]
    rows = lines[:: len(lines) // 3][:3]
    task, data = local(tmp_path, "squad_v2", rows)
    same_as_slow(task, data, rows, seed=0, ties=True)
