"""Folders of backbone.path that are not the backbone, although a library would load them or spend minutes on them: one
line that names the file, exit code 2, nothing on disk."""

import json
import os
import shutil
from pathlib import Path

import pytest
import safetensors.torch
import torch
from conftest import ok, refused
from small_backbone import SHRINK, SMALL, save_deberta
from task_configs import task_config, with_backbone

from adalora_repro.errors import InputError
from adalora_repro.models import backbone_files, backbones

RUN = (*SMALL, "backbone=deberta-v3-base", "method=lora", "train.max_steps=2", "train.device=cpu")
BIN, SAFE = "pytorch_model.bin", "model.safetensors"
INDEX = "model.safetensors.index.json"
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 371146213\n"
LAYER, QUERY = "deberta.encoder.layer.1.", "deberta.encoder.layer.1.attention.self.query_proj.weight"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("backbone") / "whole"
    folder.mkdir()
    save_deberta(folder)
    return folder


@pytest.fixture
def weights(whole):
    return torch.load(whole / BIN, weights_only=True)


@pytest.fixture
def broken(whole, tmp_path):
    return Path(shutil.copytree(whole, tmp_path / "broken"))


def save(folder, weights, kind):
    (folder / BIN).unlink()
    if kind == BIN:
        torch.save(weights, folder / BIN)
    else:
        weights = {name: value.clone().contiguous() for name, value in weights.items()}
        safetensors.torch.save_file(weights, folder / SAFE, metadata={"format": "pt"})


def refusal(cli, folder, *words):
    return refused(cli(*RUN, f"backbone.path={folder}", *words))


def test_random_weights_take_a_folder_s_tokenizer_alone(cli, whole):
    """Their architecture is what the command says, not that of the model beside the tokenizer."""
    random = ("backbone.source=random", "backbone.architecture.num_hidden_layers=1")
    assert "is not the architecture" in refusal(cli, whole, random[1])
    ok(cli(*RUN, f"backbone.path={whole}", *random))


def without_a_layer(weights):
    return {name: value for name, value in weights.items() if not name.startswith(LAYER)}


def with_a_prefix(weights):
    return {f"module.{name}": value for name, value in weights.items()}


def with_a_third_layer(weights):
    return weights | {name.replace(".layer.1.", ".layer.2."): weights[name] for name in weights if LAYER in name}


def of_the_base_with_a_third_layer(weights):
    base = {name: value for name, value in with_a_third_layer(weights).items() if name.startswith("deberta.")}
    return {name.removeprefix("deberta."): value for name, value in base.items()}


def cut_in_half(weights):
    return weights | {QUERY: weights[QUERY][:16]}


def not_finite(weights):
    return weights | {QUERY: torch.full_like(weights[QUERY], float("nan"))}


def configured(folder):
    return with_backbone(task_config("rte"), "deberta-v3-base", architecture=SHRINK, path=str(folder))


def load(folder):
    """The model alone, without the run around it."""
    return backbones.load_model(configured(folder))


@pytest.mark.parametrize("kind", [BIN, SAFE])
@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (without_a_layer, "weights that are missing (16): deberta.encoder.layer.1.attention.output.LayerNorm.bias, "),
        (with_a_prefix, "weights that are missing (38): deberta.embeddings.LayerNorm.bias, deberta.emb"),
        (
            with_a_third_layer,
            "weights that belong to another model (16): deberta.encoder.layer.2.attention.output.LayerNorm",
        ),
        (of_the_base_with_a_third_layer, "weights that belong to another model (16): encoder.layer.2.attention.output"),
        (cut_in_half, f"weights that have another shape (1): {QUERY} (16, 32), not (32, 32)"),
        (not_finite, f"weights that are not finite (1): {QUERY}"),
    ],
)
def test_weights_that_are_not_the_backbone_s(broken, weights, kind, change, expected):
    save(broken, change(weights), kind)
    with pytest.raises(InputError) as refused:
        load(broken)
    line = str(refused.value)
    assert line.startswith(f"backbone 'deberta-v3-base': {broken / kind}")
    assert expected in line


def test_a_saved_head_for_other_classes_is_drawn_anew(broken, weights):
    torch.save(weights | {"classifier.weight": torch.ones(3, 32), "classifier.bias": torch.ones(3)}, broken / BIN)
    head = load(broken).classifier
    assert (head.weight.shape, bool((head.weight == 1).any())) == ((2, 32), False)


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        (BIN, POINTER, "is a pointer to a large file, not the file itself: git lfs pull"),
        (BIN, b"", "is truncated, or not a PyTorch weight file"),
        (BIN, b"<html>404</html>", "is truncated, or not a PyTorch weight file"),
        (SAFE, b"", "is truncated, or not a safetensors file"),
        (SAFE, (2**60).to_bytes(8, "little") + b"{}", "is truncated, or not a safetensors file"),
        (INDEX, b'{"weight_map": {"a": "model-00001-of-00002.safetensors"}}', "names model-00001-of-00002.safetensors"),
        (INDEX, b"[]", "is not an index of weight files"),
        ("spm.model", POINTER, "is a pointer to a large file"),
        ("adapter_config.json", b"{}", "the folder also holds an adapter"),
    ],
)
def test_files_that_are_not_what_their_name_says(broken, name, content, expected):
    (broken / name).write_bytes(content)
    with pytest.raises(InputError, match=expected) as refused:
        backbone_files.check(broken)
    assert str(refused.value).startswith(str(broken / name))


def test_a_plan_names_a_file_that_is_cut_short_or_none(cli, broken):
    (broken / BIN).write_bytes((broken / BIN).read_bytes()[:20_000])
    assert "is truncated, or not a PyTorch weight file" in refusal(cli, broken, "dry_run=true")
    os.mkfifo(broken / "vocab.txt")
    assert f"{broken / 'vocab.txt'}: a named pipe, not a file" in refusal(cli, broken)
    for name in ("vocab.txt", BIN):
        (broken / name).unlink()
    assert f"backbone.path={broken} is not a folder with a model" in refusal(cli, broken)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"hidden_size": 10**9, "vocab_size": 10**9}, "vocab_size is 1000000000, not 128"),
        ({"model_type": "bert"}, "model_type is bert, not deberta-v2"),
        (None, "cannot load backbone 'deberta-v3-base'"),
    ],
)
def test_a_configuration_of_another_model_or_none(broken, change, expected):
    config = json.loads((broken / "config.json").read_text(encoding="utf-8"))
    text = "[" * 100_000 if change is None else json.dumps(config | change)
    (broken / "config.json").write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=expected):
        backbones.load_tokenizer(configured(broken))


def test_a_folder_without_its_tokenizer(cli, broken):
    (broken / "spm.model").unlink()
    line = refusal(cli, broken)
    assert f"({broken}): its tokenizer (" in line
    assert "is not this model's" in line
    assert "spm.model or tokenizer.json" in line


def test_an_older_pickle_that_is_cut_short_is_named_and_a_foreign_one_never_runs(cli, broken, weights, tmp_path):
    torch.save(weights, broken / BIN, _use_new_zipfile_serialization=False)
    content = (broken / BIN).read_bytes()
    (broken / BIN).write_bytes(content[: len(content) // 2])
    assert f"cannot load backbone 'deberta-v3-base' ({broken})" in refusal(cli, broken)

    class Foreign:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    torch.save({"a": Foreign()}, broken / BIN)
    assert f"cannot load backbone 'deberta-v3-base' ({broken})" in refusal(cli, broken)
    assert not (tmp_path / "ran").exists()


def test_shards_are_read_and_named(cli, broken, weights):
    (broken / BIN).unlink()
    names = {key: f"model-0000{1 + (LAYER in key)}-of-00002.safetensors" for key in weights}
    for name in set(names.values()):
        part = {key: value.clone().contiguous() for key, value in weights.items() if names[key] == name}
        safetensors.torch.save_file(part, broken / name, metadata={"format": "pt"})
    (broken / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": names}), encoding="utf-8")
    model = load(broken)
    torch.testing.assert_close(model.get_parameter(QUERY), weights[QUERY].float(), rtol=0, atol=0)
    assert (model.config.cls_dropout, model.config.num_labels) == (0.2, 2)  # the task's, not the file's
    shard = broken / "model-00002-of-00002.safetensors"
    shard.write_bytes(shard.read_bytes()[:-10])
    assert str(shard) in refusal(cli, broken)


def test_every_file_of_a_tokenizer_is_part_of_the_identity(whole, tmp_path):
    kinds = ["spm.model", "sentencepiece.bpe.model", "tokenizer.json", "tokenizer_config.json", "vocab.txt"]
    kinds += ["merges.txt", "vocab.json", "added_tokens.json", "special_tokens_map.json", "bpe.codes"]
    prints = [backbone_files.fingerprint(whole)]
    for kind in kinds:
        folder = Path(shutil.copytree(whole, tmp_path / kind))
        with (folder / kind).open("ab") as file:
            file.write(b" ")
        prints.append(backbone_files.fingerprint(folder))
    (folder / "README.md").write_text("says nothing", encoding="utf-8")
    prints.append(backbone_files.fingerprint(folder))
    assert len(set(prints)) == len(prints) - 1
    assert prints[-1] == prints[-2]
