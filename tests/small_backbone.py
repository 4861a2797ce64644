"""A small model with the files of microsoft/deberta-v3-base: a half-precision .bin with the head of its pretraining,
config.json, spm.model and tokenizer_config.json."""

import json
from pathlib import Path

import sentencepiece
import torch
from omegaconf import OmegaConf
from task_configs import CONF
from transformers import AutoConfig, AutoModelForMaskedLM

from adalora_repro.tasks import toy_text

SHRINK = {
    "vocab_size": 128,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "position_buckets": 16,
}
#: a run of a model like that
SMALL = (
    *("task=rte", "data=sample", *(f"backbone.architecture.{name}={value}" for name, value in SHRINK.items())),
    *("data.sample_rows=32", "data.sample_validation_rows=16", "train.batch_size=8", "task.max_length=48"),
)


def save_deberta(folder: Path) -> dict[str, torch.Tensor]:
    """Writes the files; returns the weights."""
    backbone = OmegaConf.load(CONF / "backbone" / "deberta-v3-base.yaml")
    architecture = OmegaConf.to_container(backbone.architecture) | SHRINK
    model_type = architecture.pop("model_type")
    torch.manual_seed(0)
    weights = AutoModelForMaskedLM.from_config(AutoConfig.for_model(model_type, **architecture)).half().state_dict()
    torch.save(weights, folder / "pytorch_model.bin")
    (folder / "config.json").write_text(json.dumps({"model_type": model_type} | architecture), encoding="utf-8")
    rows = toy_text.generate("rte", "train", {"train": 300, "validation": 10}, 0)
    train_sentencepiece(folder, [text for row in rows for text in (row["sentence1"], row["sentence2"])], 127)
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"do_lower_case": False, "vocab_type": "spm"}), encoding="utf-8"
    )
    return weights


def train_sentencepiece(folder: Path, lines: list[str], pieces: int) -> None:
    """``spm.model`` with the special pieces of DeBERTaV3's and its normalization (nmt_nfkc, the default)."""
    text = folder / "text.txt"
    text.write_text("\n".join(lines), encoding="utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(text),
        model_prefix=str(folder / "spm"),
        vocab_size=pieces,
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
        num_threads=1,
    )
    text.unlink()
    (folder / "spm.vocab").unlink()
