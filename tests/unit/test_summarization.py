"""The summarization family: loss against transformers' own, generation, ROUGE of what was written, bad rows."""

from __future__ import annotations

import copy
import json
import logging
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hydra import compose
from omegaconf import DictConfig, OmegaConf
from task_configs import CONF, task_config, write_jsonl
from torch import Tensor, nn
from transformers import GenerationConfig

from adalora_repro.config import resolve as plan
from adalora_repro.errors import InputError
from adalora_repro.lowrank import SVDLinear
from adalora_repro.metrics import rouge
from adalora_repro.models import backbones, inject
from adalora_repro.tasks import sources
from adalora_repro.tasks.base import Evaluation, TaskData
from adalora_repro.tasks.summarization import IGNORED, Task
from adalora_repro.training import loop as training_loop
from adalora_repro.training import runner
from adalora_repro.training.evaluate import evaluate

PAD, BOS, EOS = (backbones.BYTE_IDS[f"{name}_token_id"] for name in ("pad", "bos", "eos"))
START = backbones.BYTE_IDS["decoder_start_token_id"]
LIMIT = 16  # of a summary, unless a test sets another
QUIET: Any = SimpleNamespace(evaluating=lambda *_: None)


def small(tmp_path: Path, name: str = "xsum", **options: Any) -> DictConfig:
    """A task on tiny-bart, with little of everything."""
    sizes = {"data__sample_rows": 12, "data__sample_validation_rows": 9, "data__cache_dir": str(tmp_path / "cache")}
    limits = {"task__max_length": 64, "task__max_target_length": LIMIT, "task__num_beams": 2}
    cfg = task_config(name, **sizes, **limits)
    cfg = OmegaConf.merge(cfg, {"backbone": OmegaConf.load(CONF / "backbone" / "tiny-bart.yaml")})
    for option, value in options.items():
        OmegaConf.update(cfg, option.replace("__", "."), value)
    assert isinstance(cfg, DictConfig)
    return cfg


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
    document, summary = cfg.task.text_columns[0], cfg.task.label_column
    for split, rows in (("train", 12), ("validation", 9)):
        lines = [
            {
                "id": f"{split}-{i}",
                document: " ".join(words[(i + k) % 15] for k in range(1 + 5 * i % 13)) + ".",
                summary: " ".join(words[(2 * i + k) % 15] for k in range(1 + i * i % 5)),
            }
            for i in range(rows)
        ]
        write_jsonl(root / cfg.task.name / f"{split}.jsonl.gz", lines)
    cfg.data.source, cfg.data.dir = "local", str(root)
    return cfg


def training_batch(tmp_path: Path, rows: int = 6, **options: Any) -> tuple[Task, dict[str, Any]]:
    task, data = loaded(varied(small(tmp_path, **options)))
    return task, task.collate([data.train[i] for i in range(rows)])


def written_by(task: Task, model: Any, rows: list[dict[str, Any]]) -> list[list[int]]:
    """Tokens of each row without the padding behind them."""
    with torch.inference_mode():
        tokens = task.predict(model, task.collate(rows))["tokens"].tolist()
    return [strip(row) for row in tokens]


def strip(tokens: list[int]) -> list[int]:
    while tokens[-1] == PAD:
        tokens = tokens[:-1]
    return tokens


def evaluation_rows(data: TaskData) -> list[dict[str, Any]]:
    return list(data.evaluation["validation"])


# Rows


@pytest.mark.parametrize(
    ("name", "text", "summary"), [("xsum", "document", "summary"), ("cnn_dailymail", "article", "highlights")]
)
def test_rows_are_those_of_the_tokenizer(tmp_path: Path, name: str, text: str, summary: str) -> None:
    cfg = small(tmp_path, name, task__max_length=40, task__max_target_length=24)
    task, data = loaded(cfg)
    tokenizer = task.tokenizer
    assert sorted(data.train.column_names) == ["attention_mask", "input_ids", "labels", "length"]
    assert sorted(data.evaluation["validation"].column_names) == ["attention_mask", "input_ids", "length"]
    for split, rows in (("train", data.train), ("validation", data.evaluation["validation"])):
        found = sources.load_split(cfg, split, task, sources.BadRows(False))
        assert len(found) == len(rows)
        for row, source in zip(rows, found, strict=True):
            whole = tokenizer(source[text])["input_ids"]
            assert len(whole) > 40  # what comes after the limit is cut, the end mark kept
            assert row["input_ids"] == [*whole[:39], EOS]
            assert row["attention_mask"] == [1] * 40
            assert row["length"] == 40
            if split == "train":
                target = tokenizer(source[summary])["input_ids"]
                assert row["labels"] == (target if len(target) <= 24 else [*target[:23], EOS])


def test_summaries_are_cut_to_what_the_model_takes(tmp_path: Path) -> None:
    cfg = varied(small(tmp_path, task__max_length=999, task__max_target_length=999))
    path = Path(cfg.data.dir) / "xsum" / "train.jsonl.gz"
    write_jsonl(path, [{"id": "a", "document": "x" * 600, "summary": "y" * 600}])
    task, data = loaded(cfg)
    model = bart(cfg)
    (row,) = data.train
    assert len(row["labels"]) == len(row["input_ids"]) == 512
    assert row["labels"][-1] == EOS
    loss, terms = task.loss(model, task.collate([row]))
    assert torch.isfinite(loss)
    assert terms == 512
    model.final_logits_bias[0, EOS] = -30.0
    assert len(written_by(task, model, evaluation_rows(data)[:1])[0]) == 512


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


def test_batches_are_padded_to_the_limits_on_demand(tmp_path: Path) -> None:
    task, batch = training_batch(tmp_path, train__padding="max_length", task__max_length=61, task__max_target_length=45)
    assert batch["input_ids"].shape == (6, 61)
    assert batch["labels"].shape == (6, 45)
    assert task.collate([loaded(task.cfg)[1].evaluation["validation"][0]])["input_ids"].shape == (1, 61)


# Loss


@pytest.mark.parametrize("padding", ["longest", "max_length"])
def test_loss_is_transformers_own(tmp_path: Path, padding: str) -> None:
    task, batch = training_batch(tmp_path, train__padding=padding)
    model = bart(task.cfg)
    assert (batch["labels"] == IGNORED).any()
    assert not batch["attention_mask"].all()
    expected = model(**{name: batch[name] for name in ("input_ids", "attention_mask", "labels")}).loss
    loss, terms = task.loss(model, batch)
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)
    assert terms == (batch["labels"] != IGNORED).sum()


def test_the_decoder_reads_its_start_and_the_labels_before(tmp_path: Path) -> None:
    task, batch = training_batch(tmp_path)
    model, seen = bart(task.cfg), []
    model.register_forward_pre_hook(lambda _, args, kwargs: seen.append((args, kwargs)), with_kwargs=True)
    task.loss(model, batch)
    ((args, kwargs),) = seen
    read, labels = kwargs.pop("decoder_input_ids"), batch["labels"]
    assert read[:, 0].tolist() == [START] * 6
    assert torch.equal(read[:, 1:], labels[:, :-1].where(labels[:, :-1] != IGNORED, PAD))
    # nothing else of the summary, no loss of the model's own beside ours, no keys and values kept
    assert (args, sorted(kwargs)) == ((), ["attention_mask", "input_ids", "use_cache"])
    assert kwargs["use_cache"] is False
    assert kwargs["input_ids"] is batch["input_ids"]
    assert kwargs["attention_mask"] is batch["attention_mask"]


def test_what_is_padded_does_not_matter(tmp_path: Path) -> None:
    task, batch = training_batch(tmp_path)
    model = bart(task.cfg)

    def gradients(batch: dict[str, Any]) -> list[Tensor]:
        model.zero_grad()
        loss, _ = task.loss(model, batch)
        loss.backward()
        return [loss.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]

    expected = gradients(batch)
    wider = batch | {"labels": torch.cat([batch["labels"], torch.full((6, 24), IGNORED)], 1)}
    other = batch | {"input_ids": batch["input_ids"].where(batch["attention_mask"].bool(), 77)}
    for changed in (wider, other):
        torch.testing.assert_close(gradients(changed), expected, rtol=1e-4, atol=1e-6)


class Fixed(nn.Module):
    """A model that answers with these logits."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = logits

    def prepare_decoder_input_ids_from_labels(self, labels: Tensor) -> Tensor:
        return labels

    def forward(self, **_: Any) -> SimpleNamespace:
        return SimpleNamespace(logits=self.logits)


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_loss_is_the_mean_over_tokens_in_float32(kind: torch.dtype) -> None:
    logits = torch.randn(2, 3, 7, generator=torch.Generator().manual_seed(0)).to(kind).requires_grad_()
    labels = torch.tensor([[3, 6, 0], [2, IGNORED, IGNORED]])
    batch = {"input_ids": labels, "attention_mask": labels, "labels": labels, "terms": 4}
    loss, terms = Task(task_config("xsum")).loss(Fixed(logits), batch)
    logs = logits.detach().float().log_softmax(-1)
    assert loss.dtype == torch.float32
    assert terms == 4
    torch.testing.assert_close(loss, -(logs[0, 0, 3] + logs[0, 1, 6] + logs[0, 2, 0] + logs[1, 0, 2]) / 4)
    loss.backward()
    assert logits.grad is not None
    assert (logits.grad.abs().sum(-1) > 0).tolist() == [[True, True, True], [True, False, False]]


# Runs, as the runner builds them


def run_of(tmp_path: Path, method: str, *overrides: str) -> training_loop.RunState:
    cfg = varied(small(tmp_path))
    words = ["task=xsum", "backbone=tiny-bart", "budget=0.26%", f"method={method}", "data=local"]
    words += [f"data.dir={cfg.data.dir}", f"data.cache_dir={cfg.data.cache_dir}", "train.device=cpu"]
    words += ["task.max_length=64", f"task.max_target_length={LIMIT}", "task.num_beams=2", "train.batch_size=6"]
    words += ["train.max_steps=4", "method.schedule=scaled", "optim.lr=1e-2", "optim.warmup_steps=0"]
    return runner.build(plan.count(plan.resolve(compose("config", [*words, *overrides]))))


@pytest.mark.parametrize("method", ["lora", "adalora"])
def test_micro_batches_give_the_gradient_of_the_batch(hydra: None, tmp_path: Path, method: str) -> None:
    """Weighted by their tokens, not by their rows: the parts have summaries of different lengths."""

    def gradients(parts: int) -> tuple[dict[str, Tensor], float, list[int]]:
        options = ["+backbone.architecture.dropout=0.0", "+backbone.architecture.init_std=0.2"]
        loop = run_of(tmp_path, method, f"train.grad_accumulation={parts}", *options, "optim.max_grad_norm=1e9")
        torch.manual_seed(1)
        with torch.no_grad():  # away from the zero start, where half of the low-rank gradients vanish
            for parameter in inject.trained(loop.model).values():
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
        found: dict[str, Tensor] = {}
        before_update = loop.method.before_update

        def look(t: int) -> None:
            found.update({name: p.grad.clone() for name, p in inject.trained(loop.model).items()})  # type: ignore
            before_update(t)

        loop.method.before_update = look  # type: ignore[method-assign]
        (batches, *_) = training_loop.training_batches(loop)
        training_loop.step(loop, batches)
        return found, loop.losses[0].item(), [batch["terms"] for batch in batches]

    expected, loss, (total,) = gradients(1)
    for parts in (2, 3, 6):
        found, mean, terms = gradients(parts)
        assert len(terms) == parts
        assert len(set(terms)) > 1
        assert sum(terms) == total
        assert mean == pytest.approx(loss, rel=1e-5)
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=3e-5)


def test_evaluation_does_not_depend_on_its_batches(hydra: None, tmp_path: Path) -> None:
    options = ["+backbone.architecture.init_std=0.3", "task.max_target_length=24"]
    found = [
        evaluate(run_of(tmp_path, "lora", f"eval.batch_size={size}", f"train.padding={padding}", *options), QUIET)
        for size, padding in ((9, "longest"), (1, "longest"), (4, "longest"), (2, "max_length"))
    ]
    rows = found[0].files["predictions.jsonl.gz"]
    assert len({row["prediction"] for row in rows}) > 3  # it does read its documents
    assert [row["id"] for row in rows] == [f"validation-{i}" for i in range(9)]
    assert all(other == found[0] for other in found[1:])


def test_what_is_evaluated_is_the_masked_model(hydra: None, tmp_path: Path) -> None:
    loop = run_of(tmp_path, "adalora", "+backbone.architecture.init_std=0.3", "method.init_std=0.3")
    task, rows = loop.task, evaluation_rows(loop.data)
    layers = [module for module in loop.model.modules() if isinstance(module, SVDLinear)]
    torch.manual_seed(1)
    with torch.no_grad():
        for layer in layers:
            layer.lora_E.normal_()
    loop.method.share()  # type: ignore[attr-defined]
    allocator = loop.method.allocator  # type: ignore[attr-defined]
    allocator._mask = torch.arange(len(allocator._mask)) % 2 == 0

    state = torch.get_rng_state()
    found = evaluate(loop, QUIET)
    assert torch.equal(torch.get_rng_state(), state)  # or what is trained would depend on when it is evaluated
    texts = [row["prediction"] for row in found.files["predictions.jsonl.gz"]]

    def text(model: Any) -> list[str]:
        decode = task.tokenizer.batch_decode  # type: ignore[attr-defined]
        tokens = written_by(task, model.eval(), rows)  # type: ignore[arg-type]
        return [text.strip() for text in decode(tokens, skip_special_tokens=True)]

    assert text(loop.model) != texts  # outside of evaluation nothing is masked
    kept = iter(torch.split(allocator._mask, [layer.r for layer in layers]))
    with torch.no_grad():
        for layer in allocator.layers.values():
            layer.lora_E.mul_(next(kept).unsqueeze(1))
    assert text(loop.model) == texts


def test_bfloat16_trains_and_writes(hydra: None, tmp_path: Path) -> None:
    loop = run_of(tmp_path, "adalora", "train.precision=bf16", "+backbone.architecture.init_std=0.3")
    kinds = []
    loop.model.lm_head.register_forward_hook(lambda module, args, out: kinds.append(out.dtype))
    before = {name: p.detach().clone() for name, p in inject.trained(loop.model).items()}
    for batches in training_loop.training_batches(loop):
        training_loop.step(loop, batches)
    loop.look()
    assert len(loop.looked) == 4
    after = inject.trained(loop.model)
    assert all(p.dtype == torch.float32 for p in after.values())
    assert any(not torch.equal(after[name], value) for name, value in before.items())
    found = evaluate(loop, QUIET)
    assert set(kinds) == {torch.bfloat16}
    assert found.metrics["written_tokens"] > 0
    assert any(row["prediction"] for row in found.files["predictions.jsonl.gz"])


# Generation


#: what a model's files may say of generation, beside its token ids: no part of a run's settings
FOREIGN: dict[str, Any] = {
    "repetition_penalty": 5.0,
    "min_length": 30,
    "max_new_tokens": 3,
    "num_beams": 7,
    "num_beam_groups": 2,
    "diversity_penalty": 0.5,
    "length_penalty": 4.0,
    "early_stopping": "never",
    "no_repeat_ngram_size": 1,
    "encoder_no_repeat_ngram_size": 2,
    "do_sample": True,
    "temperature": 0.3,
    "top_k": 4,
    "suppress_tokens": [40, 41],
    "exponential_decay_length_penalty": (2, 3.0),
}
#: unlike anybody's, so that none of them can have come from elsewhere
IDS = {
    "pad_token_id": 31,
    "bos_token_id": 32,
    "eos_token_id": 33,
    "decoder_start_token_id": 34,
    "forced_bos_token_id": 35,
    "forced_eos_token_id": 36,
}


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
    name = options.pop("name", "xsum")
    task = Task(task_config(name, **options))
    task._tokenizer = backbones.byte_tokenizer()
    found = task.predict(writer, batch)  # type: ignore[arg-type]
    assert found["tokens"].tolist() == [[START, EOS]]
    assert writer.options.pop("input_ids") is batch["input_ids"]
    assert writer.options.pop("attention_mask") is batch["attention_mask"]
    config = writer.options.pop("generation_config")
    assert writer.options == {}
    assert writer.generation_config is config  # or `generate` would fill in what the model's own says
    task.predict(writer, batch)  # type: ignore[arg-type]
    assert writer.options["generation_config"] is writer.generation_config is config  # made once
    told = config.to_dict()
    unset = GenerationConfig().to_dict()
    assert {name: told.pop(name) for name in IDS} == IDS
    assert set(told) <= set(unset)
    return {name: value for name, value in told.items() if value != unset[name]}


def test_every_setting_reaches_generate() -> None:
    search = {"length_penalty": 1.0, "early_stopping": True, "do_sample": False, "no_repeat_ngram_size": 3}
    assert asked() == search | {"max_length": 64, "min_length": 0, "num_beams": 8}
    assert asked(name="cnn_dailymail") == search | {"max_length": 160, "min_length": 0, "num_beams": 4}
    given = {"max_target_length": 30, "min_target_length": 7, "num_beams": 3, "no_repeat_ngram_size": 2}
    given |= {"length_penalty": 2.5, "early_stopping": False}
    assert asked(**{f"task__{name}": value for name, value in given.items()}) == {
        "max_length": 30,
        "min_length": 7,
        "num_beams": 3,
        "no_repeat_ngram_size": 2,
        "length_penalty": 2.5,
        "early_stopping": False,
        "do_sample": False,
    }
    assert set(asked(task__num_beams=1)) == {
        "max_length",
        "min_length",
        "num_beams",
        "no_repeat_ngram_size",
        "do_sample",
    }


def test_what_is_not_set_is_off_or_transformers_default(tmp_path: Path) -> None:
    unset = dict.fromkeys(("min_target_length", "no_repeat_ngram_size", "length_penalty", "early_stopping"))
    options = asked(**{f"task__{name}": None for name in unset})
    assert options == {
        "max_length": 64,
        "min_length": 0,
        "num_beams": 8,
        "no_repeat_ngram_size": 0,
        "do_sample": False,
    }
    cfg = varied(small(tmp_path, **{f"task__{name}": None for name in unset}))
    default = {"length_penalty": 1.0, "early_stopping": False, "min_target_length": 0, "no_repeat_ngram_size": 0}
    said = varied(small(tmp_path, **{f"task__{name}": value for name, value in default.items()}))
    found = []
    for settings in (cfg, said):
        task, data = loaded(settings)
        found.append(written_by(task, foreign(bart(task.cfg)), evaluation_rows(data)))
    assert found[0] == found[1]
    assert len(found[0]) == 9


def foreign(model: Any, **ids: int) -> Any:
    """``model`` with files that say much of generation."""
    model.generation_config.update(**FOREIGN, **ids)
    return model


@pytest.mark.parametrize("num_beams", [1, 3])
def test_of_the_models_own_generation_settings_only_the_token_ids_count(tmp_path: Path, num_beams: int) -> None:
    cfg = varied(small(tmp_path, task__num_beams=num_beams))

    def written(make: Callable[[Any], Any]) -> list[list[int]]:
        task, data = loaded(cfg)
        return written_by(task, make(bart(cfg)), evaluation_rows(data))

    def forced(model: Any, **ids: int) -> Any:
        model.generation_config.update(**ids)
        return model

    plain = written(lambda model: model)
    assert len(set(map(tuple, plain))) > 3
    assert written(foreign) == plain
    first = written(lambda model: foreign(model, forced_bos_token_id=77))
    assert first == written(lambda model: forced(model, forced_bos_token_id=77)) != plain
    assert {row[1] for row in first} == {77}
    never = written(lambda model: forced(foreign(model), forced_eos_token_id=78))
    assert never == written(lambda model: forced(model, forced_eos_token_id=78))
    assert {row[-1] for row in never if len(row) == LIMIT} == {78}
    assert any(len(row) == LIMIT for row in never)


@pytest.mark.parametrize("num_beams", [1, 2])
def test_lengths_hold(tmp_path: Path, num_beams: int) -> None:
    """The start token counts, as it does in the released script."""
    free, data = loaded(varied(small(tmp_path, task__num_beams=num_beams, task__max_target_length=20)))
    held = Task(free.cfg)
    held.cfg = OmegaConf.merge(free.cfg, {"task": {"min_target_length": 14}})  # type: ignore[assignment]
    held._tokenizer = free.tokenizer
    rows = evaluation_rows(data)
    lengths: dict[str, list[int]] = {"free": [], "held": []}
    for seed in range(3):
        model = bart(free.cfg, seed)
        # a model that ends at once: the end mark is always the likeliest, but for the token before it
        model.final_logits_bias[0, EOS] = 30.0
        for name, task in (("free", free), ("held", held)):
            tokens = written_by(task, model, rows)
            assert all(row[0] == START for row in tokens)
            assert all(row[-1] == EOS for row in tokens)
            lengths[name] += map(len, tokens)
    assert max(lengths["free"]) < 14 <= min(lengths["held"])
    assert max(lengths["held"]) <= 20
    model.final_logits_bias[0, EOS] = -30.0  # and one that never would
    assert {len(row) for row in written_by(free, model, rows)} == {20}


def ngrams(tokens: list[int], n: int) -> list[tuple[int, ...]]:
    return list(zip(*(tokens[i:] for i in range(n)), strict=False))


@pytest.mark.parametrize("num_beams", [1, 3])
def test_no_ngram_is_written_twice(tmp_path: Path, num_beams: int) -> None:
    options = {"task__num_beams": num_beams, "task__max_target_length": 24}
    repeated = {}
    for n in (0, 2):
        task, data = loaded(varied(small(tmp_path, **options, task__no_repeat_ngram_size=n)))
        model = bart(task.cfg)
        model.final_logits_bias[0, EOS] = -30.0
        rows = [row[1:-1] for row in written_by(task, model, evaluation_rows(data))]
        repeated[n] = sum(len(ngrams(row, 2)) > len(set(ngrams(row, 2))) for row in rows)
    assert repeated[0] == 9
    assert repeated[2] == 0


@pytest.mark.parametrize("num_beams", [1, 3])
def test_a_row_is_written_the_same_in_any_batch(tmp_path: Path, num_beams: int) -> None:
    task, data = loaded(varied(small(tmp_path, task__num_beams=num_beams)))
    rows = evaluation_rows(data)
    assert len({row["length"] for row in rows}) > 4
    different = 0
    for seed in range(4):
        model = bart(task.cfg, seed)
        alone = [written_by(task, model, [row])[0] for row in rows]
        assert written_by(task, model, rows) == alone
        assert written_by(task, model, rows[::-1]) == alone[::-1]
        assert written_by(task, model, rows[2:7]) == alone[2:7]
        different += len(set(map(tuple, alone))) > 1
    assert different >= 3  # the models look at what they are given


def greedy(model: Any, row: dict[str, Any], limit: int) -> list[int]:
    """The likeliest token, again and again: no cache, no batch; the last is the end mark (forced_eos_token_id)."""
    tokens = [START]
    while len(tokens) < limit - 1 and (len(tokens) == 1 or tokens[-1] != EOS):
        logits = model(input_ids=torch.tensor([row["input_ids"]]), decoder_input_ids=torch.tensor([tokens])).logits
        tokens.append(int(logits[0, -1].argmax()))
    return tokens if tokens[-1] == EOS and len(tokens) > 1 else [*tokens, EOS]


def test_one_beam_is_the_greedy_choice(tmp_path: Path) -> None:
    task, data = loaded(varied(small(tmp_path, task__num_beams=1, task__no_repeat_ngram_size=0)))
    rows = evaluation_rows(data)
    lengths = set()
    for seed in range(4):
        model = bart(task.cfg, seed)
        model.final_logits_bias[0, EOS] = 3.0  # some end early
        with torch.inference_mode():
            expected = [greedy(model, row, LIMIT) for row in rows]
        assert written_by(task, model, rows) == expected
        lengths |= set(map(len, expected))
    assert LIMIT in lengths
    assert min(lengths) < LIMIT


@pytest.mark.parametrize("num_beams", [1, 2])
def test_generation_warns_of_nothing(
    tmp_path: Path, num_beams: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Not even where the model's files bring settings of beams, as BART-large's do."""
    task, data = loaded(varied(small(tmp_path, task__num_beams=num_beams)))
    model = bart(task.cfg)
    model.generation_config.update(num_beams=4, early_stopping=True, no_repeat_ngram_size=3, length_penalty=2.0)
    model.generation_config.update(repetition_penalty=2.0, forced_bos_token_id=BOS)
    log = logging.getLogger("transformers")
    monkeypatch.setattr(log, "propagate", True)
    monkeypatch.setattr(log, "level", logging.WARNING)
    for logger in list(log.manager.loggerDict.values()):
        if isinstance(logger, logging.Logger):
            logger._cache.clear()  # type: ignore[attr-defined]  # what was enabled at the level before
    transformers.utils.logging.warning_once.cache_clear()
    with warnings.catch_warnings(), caplog.at_level(logging.WARNING):
        warnings.simplefilter("error")
        written_by(task, model, evaluation_rows(data))
    assert caplog.messages == []


# Scores


WRITTEN = ["The dog sat.", "", "Rain fell on the town. Roads were closed.", "No word of it.", "12 people, 3 cats"]


def scored(
    tmp_path: Path, texts: list[str], order: list[int], size: int, name: str = "xsum", **options: Any
) -> tuple[Evaluation, Task]:
    """What the family makes of these texts, coming in batches of ``size`` in this order."""
    task, _ = loaded(small(tmp_path, name, data__sample_validation_rows=len(texts), **options))
    return task.metrics({"validation": batches_of(task, texts, order, size)}), task


def batches_of(task: Task, texts: list[str], order: list[int], size: int) -> Iterator[dict[str, Any]]:
    for start in range(0, len(order), size):
        index = order[start : start + size]
        rows = [[START, *task.tokenizer(texts[i])["input_ids"][1:]] for i in index]  # no beginning mark
        width = max(map(len, rows)) + len(index) % 3
        yield {"tokens": np.array([row + [PAD] * (width - len(row)) for row in rows]), "index": index}


@pytest.mark.parametrize("name", ["xsum", "cnn_dailymail"])
def test_figures_and_files_do_not_depend_on_the_order(tmp_path: Path, name: str) -> None:
    columns = {"xsum": "summary", "cnn_dailymail": "highlights"}
    rng = np.random.default_rng(0)
    cfg = small(tmp_path, name, data__sample_validation_rows=5)
    rows = sources.load_split(cfg, "validation", Task(cfg), sources.BadRows(False))
    # half of each is the reference, so that every score is different from 0
    texts = [f"{text} {rows[columns[name]][i][: 10 + 12 * i]}".strip() for i, text in enumerate(WRITTEN)]
    scores = rouge.rouge_scores(texts, rows[columns[name]][:])
    assert len(set(scores["rouge2"])) > 2
    for size in (1, 2, 5):
        found, _ = scored(tmp_path, texts, rng.permutation(5).tolist(), size, name)
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
        for key in rouge.NAMES:
            assert found.metrics[key] == pytest.approx(np.mean(scores[key]))
            assert found.metrics[f"{key}_low"] < found.metrics[key] < found.metrics[f"{key}_high"]


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


def test_a_quick_look_scores_its_own_rows(tmp_path: Path) -> None:
    cfg = small(tmp_path, data__sample_validation_rows=9, eval__max_examples=3)
    task, data = loaded(cfg)
    assert data.provenance["rows"] == {"train": 12, "validation": 3}
    references = sources.load_split(cfg, "validation", task, sources.BadRows(False))["summary"][:]
    chosen = [references[i] for i in (0, 3, 6)]
    found = task.metrics({"validation": batches_of(task, chosen, [1, 2, 0], 2)})
    rows = found.files["predictions.jsonl.gz"]
    assert [(row["id"], row["rouge1"]) for row in rows] == [(f"sample-validation-{i}", 100.0) for i in (0, 3, 6)]
    assert found.metrics["rougeLsum"] == 100.0


# Bad input


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"metrics": ["rouge3"]}, r"unknown metric 'rouge3' .*; valid: rouge1, rouge2, rougeL, rougeLsum"),
        ({"max_target_length": None}, r"task\.max_target_length is not set, xsum needs a value"),
        ({"num_beams": None}, r"task\.num_beams is not set, xsum needs a value"),
        ({"min_target_length": 64}, r"task\.min_target_length=64 must be below task\.max_target_length=64"),
        ({"max_target_length": 2}, r"task\.max_target_length=2 must be 3 or more: a token between start and end"),
        ({"max_length": 2}, r"task\.max_length=2 must be 3 or more"),
        ({"text_columns": ["document", "summary"]}, r"task\.text_columns: xsum reads 1, not 2"),
        ({"stride": 4}, r"task\.stride is a setting of family squad, not of xsum"),
        ({"min_target_length": 5, "max_target_length": 4}, r"min_target_length=5 must be below .*max_target_length=4"),
    ],
)
def test_settings_that_make_no_sense(options: dict[str, Any], problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        Task(task_config("xsum", **{f"task__{name}": value for name, value in options.items()}))


GOOD = {"id": "a", "document": "Rain fell.", "summary": "Rain."}


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        (GOOD, None),
        (GOOD | {"document": ""}, "the document is empty"),
        (GOOD | {"document": " \n\t "}, "the document is empty"),
        (GOOD | {"summary": ""}, "the summary is empty"),
        (GOOD | {"summary": "\u00a0"}, "the summary is empty"),
        (GOOD | {"summary": None}, "column 'summary' must be text, is null"),
        (GOOD | {"summary": ["Rain."]}, "column 'summary' must be text, is a list"),
        (GOOD | {"document": None}, "column 'document' must be text, is null"),
    ],
)
def test_problems_of_a_row(row: dict[str, Any], problem: str | None) -> None:
    assert Task(task_config("xsum")).row_problem(row) == problem
