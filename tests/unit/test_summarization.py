"""The summarization family: loss against transformers' own, generation, ROUGE of what was written."""

import copy
import json
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import DictConfig
from task_configs import task_config, with_backbone, write_jsonl
from torch import Tensor
from transformers import GenerationConfig

from adalora_repro.metrics import rouge
from adalora_repro.models import backbones
from adalora_repro.tasks import sources
from adalora_repro.tasks.base import TaskData
from adalora_repro.tasks.summarization import IGNORED, Task

PAD, BOS, EOS = (backbones.BYTE_IDS[f"{name}_token_id"] for name in ("pad", "bos", "eos"))
START = backbones.BYTE_IDS["decoder_start_token_id"]
LIMIT = 16  # of a summary, unless a test sets another


def small(tmp_path: Path, **options: Any) -> DictConfig:
    """XSum on tiny-bart, with little of everything."""
    sizes = {"data__sample_rows": 12, "data__sample_validation_rows": 9, "data__cache_dir": str(tmp_path / "cache")}
    limits = {"task__max_length": 64, "task__max_target_length": LIMIT, "task__num_beams": 2}
    return with_backbone(task_config("xsum", **sizes | limits | options), "tiny-bart")


def loaded(cfg: DictConfig) -> tuple[Task, TaskData]:
    task = Task(cfg)
    return task, task.load(backbones.load_tokenizer(cfg))


def bart(cfg: DictConfig, seed: int = 0, std: float = 0.3) -> Any:
    """tiny-bart in evaluation mode; with its own ``init_std`` of 0.02 all documents would look the same to it."""
    cfg = copy.deepcopy(cfg)
    cfg.backbone.architecture["init_std"] = std
    torch.manual_seed(seed)
    return backbones.load_model(cfg).eval()


def varied(cfg: DictConfig) -> DictConfig:
    """``cfg`` with local rows of many lengths, documents and summaries."""
    text = "rain fell on the town and seven roads were closed by noon while trains ran late"
    words = text.split()
    root = Path(cfg.data.cache_dir).parent / "files"
    for split, rows in (("train", 12), ("validation", 9)):
        lines = [
            {
                "id": f"{split}-{i}",
                "document": " ".join(words[(i + k) % 15] for k in range(1 + 5 * i % 13)) + ".",
                "summary": " ".join(words[(2 * i + k) % 15] for k in range(1 + i * i % 5)),
            }
            for i in range(rows)
        ]
        write_jsonl(root / "xsum" / f"{split}.jsonl.gz", lines)
    cfg.data.source, cfg.data.dir = "local", str(root)
    return cfg


def written_by(task: Task, model: Any, rows: list[dict[str, Any]]) -> list[list[int]]:
    """Tokens of each row without the padding behind them."""
    with torch.inference_mode():
        tokens = task.predict(model, task.collate(rows))["tokens"].tolist()
    return [row[: max(i for i, token in enumerate(row) if token != PAD) + 1] for row in tokens]


# Rows


def test_rows_are_those_of_the_tokenizer(tmp_path: Path) -> None:
    cfg = small(tmp_path, task__max_length=40, task__max_target_length=24)
    task, data = loaded(cfg)
    tokenizer = task.tokenizer
    assert sorted(data.train.column_names) == ["attention_mask", "input_ids", "labels", "length"]
    assert sorted(data.evaluation["validation"].column_names) == ["attention_mask", "input_ids", "length"]
    for split, rows in (("train", data.train), ("validation", data.evaluation["validation"])):
        found = sources.load_split(cfg, split, task, sources.BadRows(False))
        assert len(found) == len(rows)
        for row, source in zip(rows, found, strict=True):
            whole = tokenizer(source["document"])["input_ids"]
            assert len(whole) > 40  # what comes after the limit is cut, the end mark kept
            assert row["input_ids"] == [*whole[:39], EOS]
            assert row["attention_mask"] == [1] * 40
            assert row["length"] == 40
            if split == "train":
                target = tokenizer(source["summary"])["input_ids"]
                assert row["labels"] == (target if len(target) <= 24 else [*target[:23], EOS])


def test_batches_are_padded_in_eights(tmp_path: Path) -> None:
    task, data = loaded(varied(small(tmp_path)))
    rows = [data.train[i] for i in (1, 4, 7)]
    batch = task.collate(rows)
    widths = [-(-max(len(row[name]) for row in rows) // 8) * 8 for name in ("input_ids", "labels")]
    assert batch["input_ids"].shape == batch["attention_mask"].shape == (3, widths[0])
    assert batch["labels"].shape == (3, widths[1])
    assert batch["labels"].dtype == torch.int64
    assert batch["terms"] == sum(len(row["labels"]) for row in rows) == int((batch["labels"] != IGNORED).sum())
    assert batch["terms"] < batch["labels"].numel()
    for i, row in enumerate(rows):
        assert batch["input_ids"][i].tolist() == row["input_ids"] + [PAD] * (widths[0] - row["length"])
        assert batch["attention_mask"][i].tolist() == [1] * row["length"] + [0] * (widths[0] - row["length"])
        assert batch["labels"][i].tolist() == row["labels"] + [IGNORED] * (widths[1] - len(row["labels"]))
    assert "labels" not in task.collate([data.evaluation["validation"][0]])


# Loss


@pytest.mark.parametrize("padding", ["longest", "max_length"])
def test_loss_is_transformers_own(tmp_path: Path, padding: str) -> None:
    task, data = loaded(varied(small(tmp_path, train__padding=padding)))
    batch, model = task.collate([data.train[i] for i in range(6)]), bart(task.cfg)
    assert (batch["labels"] == IGNORED).any()
    assert not batch["attention_mask"].all()
    expected = model(**{name: batch[name] for name in ("input_ids", "attention_mask", "labels")}).loss
    loss, terms = task.loss(model, batch)
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)
    assert terms == (batch["labels"] != IGNORED).sum()


# Generation


#: what a model's files may say of generation, beside its token ids: no part of a run's settings
FOREIGN: dict[str, Any] = {"repetition_penalty": 5.0, "min_length": 30, "max_new_tokens": 3, "num_beams": 7}
FOREIGN |= {"length_penalty": 4.0, "early_stopping": "never", "no_repeat_ngram_size": 1, "do_sample": True, "top_k": 4}
#: unlike anybody's, so that none of them can have come from elsewhere
IDS = {f"{name}_token_id": 31 + i for i, name in enumerate(("pad", "bos", "eos", "decoder_start"))}
IDS |= {"forced_bos_token_id": 35, "forced_eos_token_id": 36}


class Writer:
    """In the place of a model: remembers how it was asked."""

    def __init__(self) -> None:
        self.generation_config = GenerationConfig(**IDS)
        self.generation_config.update(**FOREIGN)

    def generate(self, **options: Any) -> Tensor:
        self.options = options
        return torch.tensor([[START, EOS]])


def asked(**options: Any) -> dict[str, Any]:
    """All that generation was told, token ids apart; what is left at None is transformers' default."""
    writer, batch = Writer(), {"input_ids": torch.ones(1, 8), "attention_mask": torch.ones(1, 8), "index": [0]}
    task = Task(task_config("xsum", **options))
    task._tokenizer = backbones.byte_tokenizer()
    found = task.predict(writer, batch)
    assert found["tokens"].tolist() == [[START, EOS]]
    assert writer.options.pop("input_ids") is batch["input_ids"]
    assert writer.options.pop("attention_mask") is batch["attention_mask"]
    config = writer.options.pop("generation_config")
    assert writer.options == {}
    assert writer.generation_config is config  # or `generate` would fill in what the model's own says
    told = config.to_dict()
    unset = GenerationConfig().to_dict()
    assert {name: told.pop(name) for name in IDS} == IDS
    assert set(told) <= set(unset)
    return {name: value for name, value in told.items() if value != unset[name]}


def test_every_setting_reaches_generate() -> None:
    search = {"length_penalty": 1.0, "early_stopping": True, "do_sample": False, "no_repeat_ngram_size": 3}
    assert asked() == search | {"max_length": 64, "min_length": 0, "num_beams": 8}
    given = {"max_target_length": 30, "min_target_length": 7, "num_beams": 3, "no_repeat_ngram_size": 2}
    given |= {"length_penalty": 2.5, "early_stopping": False}
    expected = {"max_length": 30, "min_length": 7, "num_beams": 3, "no_repeat_ngram_size": 2, "do_sample": False}
    expected |= {"length_penalty": 2.5, "early_stopping": False}
    assert asked(**{f"task__{name}": value for name, value in given.items()}) == expected
    unset = dict.fromkeys(("min_target_length", "no_repeat_ngram_size", "length_penalty", "early_stopping"))
    off = {"min_length": 0, "no_repeat_ngram_size": 0, "do_sample": False}
    assert asked(**{f"task__{name}": None for name in unset}) == off | {"max_length": 64, "num_beams": 8}
    assert set(asked(task__num_beams=1)) == {"max_length", "num_beams", *off}  # greedy search has no more


@pytest.mark.parametrize("num_beams", [1, 3])
def test_a_row_is_written_the_same_in_any_batch_whatever_the_models_files_say(tmp_path: Path, num_beams: int) -> None:
    options = {"task__num_beams": num_beams, "task__no_repeat_ngram_size": 2, "task__min_target_length": 6}
    task, data = loaded(varied(small(tmp_path, **options)))
    rows, model = list(data.evaluation["validation"]), bart(task.cfg)
    alone = [written_by(task, model, [row])[0] for row in rows]
    assert len(set(map(tuple, alone))) > 3  # the model looks at what it is given
    for row in alone:
        assert (row[0], row[-1]) == (START, EOS)
        assert 6 <= len(row) <= LIMIT  # the start token counts, as it does in the released script
        pairs = list(pairwise(row[1:-1]))
        assert len(pairs) == len(set(pairs))
    assert written_by(task, model, rows[::-1]) == alone[::-1]
    other, _ = loaded(task.cfg)
    said = bart(task.cfg)
    said.generation_config.update(**FOREIGN)
    assert written_by(other, said, rows[2:7]) == alone[2:7]


# Scores


def batches_of(task: Task, texts: list[str], order: list[int], size: int) -> Iterator[dict[str, Any]]:
    for start in range(0, len(order), size):
        index = order[start : start + size]
        rows = [[START, *task.tokenizer(texts[i])["input_ids"][1:]] for i in index]  # no beginning mark
        width = max(map(len, rows)) + len(index) % 3
        yield {"tokens": np.array([row + [PAD] * (width - len(row)) for row in rows]), "index": index}


def test_figures_and_files_do_not_depend_on_the_order(tmp_path: Path) -> None:
    task, _ = loaded(small(tmp_path, data__sample_validation_rows=5))
    references = task.side["validation"]["reference"][:]
    written = ["The dog sat.", "", "Rain fell on the town. Roads were closed.", "No word of it.", "12 people, 3 cats"]
    # half of each is the reference, so that every score is different from 0
    texts = [f"{text} {references[i][: 10 + 12 * i]}".strip() for i, text in enumerate(written)]
    scores = rouge.rouge_scores(texts, references)
    assert len(set(scores["rouge2"])) > 2
    for size in (1, 2, 5):
        order = np.random.default_rng(size).permutation(5).tolist()
        found = task.metrics({"validation": batches_of(task, texts, order, size)})
        assert found.files == {
            "predictions.jsonl.gz": [
                {"id": f"sample-validation-{i}", "prediction": texts[i]} | {key: scores[key][i] for key in rouge.NAMES}
                for i in range(5)
            ]
        }
        assert json.loads(json.dumps(found.files)) == found.files  # plain numbers, not NumPy's
        tokens = found.metrics.pop("written_tokens")
        assert tokens == sum(len(text.encode()) for text in texts) / 5  # tiny-bart's tokens are bytes
        assert found.metrics == rouge.summarize(scores)


def test_special_tokens_are_no_part_of_a_text(tmp_path: Path) -> None:
    task, _ = loaded(small(tmp_path, data__sample_validation_rows=3))
    ids = task.tokenizer("Hi you", add_special_tokens=False)["input_ids"]
    rows = [[START, BOS, *ids, EOS, PAD, PAD], [START, EOS] + [PAD] * 8, [START, *ids, *ids[:3]]]
    tokens = np.array([row + [PAD] * (11 - len(row)) for row in rows])
    found = task.metrics({"validation": iter([{"tokens": tokens, "index": [2, 0, 1]}])})
    assert [row["prediction"] for row in found.files["predictions.jsonl.gz"]] == ["", "Hi youHi", "Hi you"]
    assert found.metrics["written_tokens"] == (6 + 0 + 9) / 3
    assert found.files["predictions.jsonl.gz"][0]["rouge1"] == 0.0


@pytest.mark.parametrize(
    ("texts", "constant"),
    [
        (["", "", ""], {"validation": "a text of 0 characters"}),
        (["Hi you"] * 3, {"validation": "a text of 6 characters"}),
        (["Hi you", "Hi you", "Hi"], {}),
    ],
)
def test_the_same_summary_of_every_document_is_noticed(tmp_path: Path, texts: list[str], constant: Any) -> None:
    task, _ = loaded(small(tmp_path, data__sample_validation_rows=3))
    assert task.metrics({"validation": batches_of(task, texts, [2, 0, 1], 2)}).constant == constant
