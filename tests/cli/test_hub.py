"""The hub path, with a hub cache made here: the files of microsoft/deberta-v3-base (half-precision .bin, spm.model)."""

import json
import shutil
import socket
import ssl
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import sentencepiece
import torch
from conftest import ok, refused
from huggingface_hub import constants
from omegaconf import OmegaConf
from own_models import ENCODER_DECODER
from small_backbone import SHRINK, SMALL, save_deberta
from task_configs import CONF, task_config, with_backbone
from tokenizers import ByteLevelBPETokenizer
from tokenizers.processors import RobertaProcessing
from transformers import AutoConfig, BartModel

from adalora_repro.errors import InputError
from adalora_repro.models import backbones, hub
from adalora_repro.records import run_record
from adalora_repro.tasks import summarization, toy_text


@pytest.fixture(scope="module")
def hub_cache(tmp_path_factory) -> Path:
    """What huggingface_hub leaves below HF_HUB_CACHE after a download, for a small model of the same kind."""
    root = tmp_path_factory.mktemp("hub")
    revision = OmegaConf.load(CONF / "backbone" / "deberta-v3-base.yaml").revision
    snapshot = root / "models--microsoft--deberta-v3-base" / "snapshots" / revision
    snapshot.mkdir(parents=True)
    save_deberta(snapshot)
    return root


def test_a_backbone_of_the_hub_trains_from_the_cache_without_a_network(cli, hub_cache, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(hub_cache))
    ok(cli(*SMALL, "method=lora", "budget=0.3M", "train.max_steps=3"))
    (path,) = Path("results").glob("runs/deberta-v3-base/rte/lora/0.3M/*/metrics.json")
    assert run_record.read(path).status == "ok"


def test_without_a_connection_the_cache_serves_and_what_it_lacks_is_refused_at_once(monkeypatch, hub_cache, capfd):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(hub_cache))
    cfg = with_backbone(task_config("rte"), "deberta-v3-base", architecture=SHRINK)
    (model,) = hub_cache.rglob("spm.model")
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(model)).get_piece_size()
    assert backbones.load_tokenizer(cfg).vocab_size == pieces
    cfg.backbone.hub = "microsoft/another"
    planned = hub_cache / "models--microsoft--another" / "snapshots" / cfg.backbone.revision
    planned.mkdir(parents=True)
    shutil.copy(model.with_name("config.json"), planned)  # all that a plan downloads
    began = time.monotonic()
    with pytest.raises(InputError, match=r"cannot load backbone 'deberta-v3-base' \(microsoft/another\): .* offline"):
        backbones.load_model(cfg)
    assert time.monotonic() - began < 10  # a minute, were each request tried again
    assert "thrown while requesting" not in capfd.readouterr().err
    assert not constants.HF_HUB_OFFLINE


@pytest.mark.parametrize(
    ("answers", "reachable"),
    [
        ([None], True),
        ([socket.gaierror(-2, "Name or service not known")] * 2, False),
        ([TimeoutError()] * 2, False),
        ([ssl.SSLCertVerificationError()], True),  # somebody is there
        ([ValueError("no URL")], True),
        ([ConnectionResetError(), None], True),
    ],
)
def test_only_a_connection_that_fails_twice_is_none(monkeypatch, answers, reachable):
    asked = iter(answers)

    def head(url: str, timeout: float) -> None:
        assert (url, timeout) == ("https://a.hub", hub.TIMEOUT_S)
        if answer := next(asked):
            raise RuntimeError("of the HTTP library") from answer

    monkeypatch.setattr("huggingface_hub.get_session", lambda: SimpleNamespace(head=head))
    assert hub._reachable.__wrapped__("https://a.hub", 0) == reachable
    assert list(asked) == []


BART = ENCODER_DECODER | {"vocab_size": 400, "max_position_embeddings": 128}


def bart_folder(folder: Path) -> dict[str, torch.Tensor]:
    """A small BART as facebook/bart-large is stored: a model without a head, so no key begins with "model."."""
    folder.mkdir()
    architecture = OmegaConf.to_container(OmegaConf.load(CONF / "backbone" / "bart-large.yaml").architecture) | BART
    model_type = architecture.pop("model_type")
    torch.manual_seed(7)
    weights = BartModel(AutoConfig.for_model(model_type, **architecture | {"init_std": 0.3})).state_dict()
    torch.save(weights, folder / "pytorch_model.bin")
    config = {"model_type": model_type, "architectures": ["BartModel"]} | architecture
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")

    rows = toy_text.generate("xsum", "train", {"train": 100, "validation": 10}, 0)
    tokenizer = ByteLevelBPETokenizer()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    tokenizer.train_from_iterator(
        [f"{row['document']} {row['summary']}" for row in rows], vocab_size=400, special_tokens=special
    )
    tokenizer.post_processor = RobertaProcessing(("</s>", 2), ("<s>", 0))
    tokenizer.save_model(str(folder))
    assert tokenizer.get_vocab_size() == 400
    return weights


def test_a_saved_bart_trains_and_writes(tmp_path, tiny, monkeypatch):
    weights = bart_folder(tmp_path / "bart")
    predict, models, texts = summarization.Task.predict, [], []

    def predicted(self, model, batch):
        models.append(model)
        texts.extend(self.tokenizer.batch_decode(batch["input_ids"], skip_special_tokens=True))
        return predict(self, model, batch)

    monkeypatch.setattr(summarization.Task, "predict", predicted)
    words = ["task=xsum", "backbone=bart-large", f"backbone.path={tmp_path / 'bart'}"]
    words += [f"backbone.architecture.{name}={value}" for name, value in BART.items()]
    words += ["budget=0.13%", "method=lora", "train.max_steps=1"]
    line = refused(tiny(*words, "task.max_length=128", "task.max_target_length=129"))  # its tokenizer knows no limit
    assert line == "task.max_target_length=129: backbone 'bart-large' takes at most 128 tokens"
    done = tiny(
        *words,
        *("task.max_length=96", "task.max_target_length=12", "task.num_beams=2", "task.min_target_length=4"),
        *("data.sample_rows=16", "data.sample_validation_rows=6", "optim.warmup_steps=0", "optim.lr=1e-3"),
    )
    assert done.code == 0, done.err
    (path,) = Path("results").rglob("metrics.json")
    assert run_record.read(path).final["metrics"]["written_tokens"] > 0

    # the weights of the file
    model = models[0]
    found = {name.replace(".base.", "."): value for name, value in model.model.state_dict().items()}
    assert sum(value.ndim > 1 for value in weights.values()) >= 3 + 32  # embeddings, positions of two stacks, matrices
    for name, value in weights.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=0)
    shared = model.model.shared.weight
    for tied in (model.lm_head, model.model.encoder.embed_tokens, model.model.decoder.embed_tokens):
        assert tied.weight is shared
    assert not model.final_logits_bias.any()

    # its vocabulary
    articles = [row["document"] for row in toy_text.generate("xsum", "validation", {"train": 16, "validation": 6}, 0)]
    assert texts
    assert all(any(article.startswith(text.strip()[:20]) for article in articles) for text in texts)
