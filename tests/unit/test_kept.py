"""training/kept.py and models/export.py: what a run keeps of its model is that model (for PEFT alone: test_peft.py)."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from omegaconf import OmegaConf
from safetensors import SafetensorError
from tiny_runs import built, inputs_of, logits

from adalora_repro.errors import InputError
from adalora_repro.lowrank import LoRALinear, SVDLinear
from adalora_repro.models import export, inject
from adalora_repro.models.backbones import WORD_PIECES
from adalora_repro.training import answers, kept
from adalora_repro.training.state import RunState

LOW_RANK = ("lora", "adalora", "svd_lora", "lora_regu", "prune_lora", "lora_qv")
OTHERS = ("bitfit", "houlsby", "pfeiffer")
BACKBONES = {"tiny-bert": "sst2", "tiny-deberta": "sst2", "tiny-bart": "xsum"}


def changed(folder: Path, *words: str) -> RunState:
    """A run whose trained parameters have all left their initial values, half of the triplets pruned."""
    run = built(folder, *words)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in inject.trained(run.model).values():
            parameter.add_(0.1 * torch.randn_like(parameter))
        for module in run.model.modules():
            if isinstance(module, SVDLinear):
                module.lora_E[: module.r // 2] = 0.0
    return run


def words_of(backbone: str, method: str) -> list[str]:
    task = BACKBONES[backbone]
    words = [f"task={task}", f"backbone={backbone}", f"method={method}"]
    words += ["budget=0.26%", "task.max_length=32", "task.max_target_length=8"] if task == "xsum" else ["budget=0.6M"]
    return words


@pytest.mark.parametrize("method", [*LOW_RANK, *OTHERS])
@pytest.mark.parametrize("backbone", BACKBONES)
def test_what_is_kept_is_the_model(backbone: str, method: str, tmp_path: Path) -> None:
    run = changed(tmp_path, *words_of(backbone, method))
    kept.keep(run.model, run.plan.cfg, tmp_path / "model", "adapter")
    before = torch.get_rng_state()
    model, tokenizer = kept.load(tmp_path)
    assert torch.equal(torch.get_rng_state(), before)  # of the program that loads it
    inputs = inputs_of(run)
    assert torch.allclose(logits(model, inputs), logits(run.model, inputs), atol=1e-5)
    assert tokenizer("a word")["input_ids"]
    names = {path.name for path in (tmp_path / "model").iterdir()}
    weights = {export.PEFT_CONFIG, export.PEFT_WEIGHTS} if method in LOW_RANK else {kept.OWN_WEIGHTS}
    assert names == {kept.CONFIG, *weights}


def test_a_layer_of_ones_own_is_no_lora(tmp_path: Path) -> None:
    """It may compute something else, which PEFT's format would lose."""
    run = changed(tmp_path, *words_of("tiny-bert", "lora"))
    for layer in export.low_rank_layers(run.model).values():
        layer.__class__ = type("Own", (LoRALinear,), {})
    assert not export.expressible(run.model)


@pytest.mark.parametrize("method", ["lora", "adalora", "bitfit", "full"])
def test_merged_is_a_checkpoint_of_transformers(method: str, tmp_path: Path) -> None:
    run = changed(tmp_path, *words_of("tiny-bert", method), "save=merged")
    assert run.plan.keeps == "merged"
    kept.keep(run.model, run.plan.cfg, tmp_path / "model", "merged")
    inputs = inputs_of(run)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "model")
    assert torch.allclose(logits(model, inputs), logits(run.model, inputs), atol=1e-5)
    assert torch.equal(logits(kept.load(tmp_path)[0], inputs), logits(model, inputs))


def test_a_bf16_run_is_merged_into_the_backbones_own_weights(tmp_path: Path) -> None:
    run = changed(tmp_path, *words_of("tiny-bert", "lora"), "train.precision=bf16")
    kept.keep(run.model, run.plan.cfg, tmp_path / "model", "adapter")
    whole = tmp_path / "whole"
    kept.write_export(tmp_path, whole, "merged")
    weight = transformers.AutoModelForSequenceClassification.from_pretrained(
        whole
    ).bert.embeddings.word_embeddings.weight
    assert weight.dtype == torch.float32
    assert (weight != weight.bfloat16().float()).any()


def test_matrices_without_triplets_are_left_out(tmp_path: Path) -> None:
    run = changed(tmp_path, *words_of("tiny-bert", "adalora"))
    layers = export.low_rank_layers(run.model)
    first = next(iter(layers))
    with torch.no_grad():
        layers[first].lora_E.zero_()
    tensors, config = export.peft_form(run.model, run.plan.cfg)
    assert first not in config["target_modules"]
    assert len(config["target_modules"]) == len(layers) - 1
    assert not any(first in name for name in tensors)
    with torch.no_grad():
        for layer in layers.values():
            layer.lora_E.zero_()
    kept.keep(run.model, run.plan.cfg, tmp_path / "model", "adapter")  # PEFT has no LoRA without a matrix
    assert (tmp_path / "model" / kept.OWN_WEIGHTS).exists()
    inputs = inputs_of(run)
    assert torch.allclose(logits(kept.load(tmp_path)[0], inputs), logits(run.model, inputs), atol=1e-5)


def test_what_is_trained_beside_the_increments_is_kept_too(tmp_path: Path) -> None:
    """As a method of the user's may do; PEFT's LoRA cannot say it."""
    run = changed(tmp_path, *words_of("tiny-bert", "lora"))
    norm = run.model.get_submodule("bert.embeddings.LayerNorm").requires_grad_(True)
    with torch.no_grad():
        norm.weight.add_(1.0)
    kept.keep(run.model, run.plan.cfg, tmp_path / "model", "adapter")
    kept.write_export(tmp_path, tmp_path / "whole", "merged")
    model = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "whole")
    inputs = inputs_of(run)
    assert torch.allclose(logits(model, inputs), logits(run.model, inputs), atol=1e-5)
    with pytest.raises(InputError, match="the trained model is not a plain BertForSequenceClassification"):
        export.write_merged(run.model, kept.load(tmp_path)[1], tmp_path)


def test_another_backbone_is_refused(tmp_path: Path) -> None:
    run = changed(tmp_path, *words_of("tiny-bert", "lora"))
    kept.keep(run.model, run.plan.cfg, tmp_path / "model", "adapter")
    config = tmp_path / "model" / kept.CONFIG
    text = config.read_text(encoding="utf-8")
    config.write_text(text.replace("num_hidden_layers: 2", "num_hidden_layers: 1"), encoding="utf-8")
    with pytest.raises(InputError, match="the backbone is another one: no matrix"):
        kept.load(tmp_path)


def test_export_refuses_forms_that_are_not(tmp_path: Path) -> None:
    run = changed(tmp_path, *words_of("tiny-bert", "houlsby"))
    kept.keep(run.model, run.plan.cfg, tmp_path / "model", "adapter")
    for form, message in (("peft", "not in PEFT's format"), ("merged", "adapters cannot be merged")):
        with pytest.raises(InputError, match=message):
            kept.write_export(tmp_path, tmp_path / "new", form)
    assert not (tmp_path / "new").exists()


def interrupted(*_: Any) -> None:
    raise KeyboardInterrupt


def full(*_: Any) -> None:
    raise SafetensorError("No space left on device (os error 28)")


def test_an_export_is_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = changed(tmp_path, *words_of("tiny-bert", "lora"))
    folder = tmp_path / "run"
    kept.keep(run.model, run.plan.cfg, folder / "model", "adapter")
    (folder / "metrics.json").touch()
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("nowhere")
    for to, message in (
        (folder / "model" / "new", "is inside"),
        (folder / "new", "is inside"),
        (tmp_path / "link", "already exists"),
        (tmp_path / "file" / "new", "cannot write"),
    ):
        for form in ("peft", "merged"):
            with pytest.raises(InputError, match=message):
                kept.write_export(folder, to, form)
    for failing, error, message in (
        (interrupted, KeyboardInterrupt, None),
        (full, InputError, r"cannot write '.*new': No space left"),
    ):
        monkeypatch.setattr(export, "write_merged", failing)
        with pytest.raises(error, match=message):
            kept.write_export(folder, tmp_path / "new", "merged")
    assert not list(tmp_path.glob("new*"))
    (tmp_path / "new").mkdir()
    kept.write_export(folder, tmp_path / "new", "peft")
    assert {path.name for path in (tmp_path / "new").iterdir()} >= {export.PEFT_CONFIG, kept.CONFIG, "tokenizer.json"}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (export.PEFT_WEIGHTS, b"", "SafetensorError"),
        (export.PEFT_WEIGHTS, None, "FileNotFoundError"),
        (export.PEFT_CONFIG, b"[}", "JSONDecodeError"),
        (kept.CONFIG, b"\xff\xfe", "cannot be read"),
        (kept.CONFIG, b"{}", "names no task"),
    ],
)
def test_a_damaged_model_is_one_line(name: str, content: bytes | None, message: str, tmp_path: Path) -> None:
    run = changed(tmp_path, *words_of("tiny-bert", "lora"))
    kept.keep(run.model, run.plan.cfg, tmp_path / "model", "adapter")
    if content is None:
        (tmp_path / "model" / name).unlink()
    else:
        (tmp_path / "model" / name).write_bytes(content)
    for action in (kept.load, lambda folder: kept.write_export(folder, tmp_path / "new", "peft")):
        with pytest.raises(InputError, match=message) as raised:
            action(tmp_path / "model")
        assert "\n" not in str(raised.value)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("name", "content", "texts"),
    [
        ("a.jsonl", '\ufeff{"sentence": "a\u2028b"}\r\n\n{"sentence": "c"}\n', ["a\u2028b", "c"]),
        ("A.CSV", 'id,sentence\n1,"a\nb"\n', ["a\nb"]),
        ("long.csv", f"sentence\n{'x' * 200_000}\n", ["x" * 200_000]),
        ("a.txt", '[a]\n{"sentence": "b"}\n', ["[a]", "b"]),
    ],
)
def test_rows_of_files(name: str, content: str, texts: list[str], tmp_path: Path) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8", newline="")
    assert [row["sentence"] for row in answers.read_rows(str(tmp_path / name), ["sentence"])] == texts


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", "", "no rows in 'a.jsonl'"),
        ("a.csv", "sentence\n", "no rows in 'a.csv'"),
        ("a.json", '[{"sentence": "a"}]', "a.json:1: not a JSON object"),
        ("a.csv", 'sentence\n"a\nb"\n" "\n', "a.csv:4: no text 'sentence'"),
        ("a.txt", "a\udcff\n", "a.txt:1: 'sentence' is not valid UTF-8"),
    ],
)
def test_rows_that_cannot_be_read_are_named(
    name: str, content: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(name).write_text(content, encoding="utf-8", errors="surrogateescape")
    with pytest.raises(InputError, match=re.escape(message)):
        answers.read_rows(name, ["sentence"])


@pytest.mark.parametrize("name", ["foo", "meta", "cuda:99"])
def test_a_device_that_is_not_there(name: str) -> None:
    with pytest.raises(InputError, match=f"--device {name} cannot be used here"):
        answers.checked_device(name)


def test_the_config_of_peft_is_what_peft_writes(tmp_path: Path) -> None:
    import peft

    run = changed(tmp_path, *words_of("tiny-bert", "adalora"))
    _, config = export.peft_form(run.model, run.plan.cfg)
    peft.LoraConfig(**config)  # knows every key
    assert json.loads(json.dumps(config)) == config
    # of a task family of the user's, whose model PEFT has no name for, and of a backbone from a package
    cfg = OmegaConf.merge(run.plan.cfg, {"task": {"auto_model": "AutoModelForMultipleChoice"}})
    cfg = OmegaConf.merge(cfg, {"backbone": {"source": "package", "package": WORD_PIECES}})
    _, config = export.peft_form(run.model, cfg)
    assert config["task_type"] is None
    assert transformers.AutoConfig.from_pretrained(config["base_model_name_or_path"]).model_type == "bert"
