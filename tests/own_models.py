"""Tiny models with random weights, one of each model type, saved with a tokenizer of bytes like a user's model."""

from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig

from adalora_repro.models.backbones import byte_tokenizer

WIDTHS: dict[str, Any] = {"vocab_size": 261, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
WIDTHS |= {"intermediate_size": 64, "max_position_embeddings": 130}
IDS = {"pad_token_id": 0, "bos_token_id": 1, "cls_token_id": 1, "eos_token_id": 2, "sep_token_id": 2}
DECODER = WIDTHS | {"num_key_value_heads": 2, "head_dim": 8}
T5 = {"vocab_size": 261, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 3, "num_decoder_layers": 2, "num_heads": 4}
START = {"decoder_start_token_id": 0}
ENCODER_DECODER = {"vocab_size": 261, "d_model": 32, "max_position_embeddings": 130} | {
    f"{stack}_{name}": value
    for stack in ("encoder", "decoder")
    for name, value in (("layers", 2), ("attention_heads", 4), ("ffn_dim", 64))
}
#: folder -> model type and what its configuration says beyond ``IDS``
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: (name, WIDTHS) for name in ("bert", "roberta", "xlm-roberta", "mpnet", "modernbert")},
    "electra": ("electra", WIDTHS | {"embedding_size": 16}),
    "distilbert": (
        "distilbert",
        {"vocab_size": 261, "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64, "max_position_embeddings": 130},
    ),
    "deberta": ("deberta", WIDTHS | {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "type_vocab_size": 0}),
    "deberta-v2": (
        "deberta-v2",
        WIDTHS | {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "position_buckets": 16},
    ),
    "bart": ("bart", ENCODER_DECODER | START),
    "pegasus": ("pegasus", ENCODER_DECODER | START),
    "t5": ("t5", T5 | START),
    "t5-gated": ("t5", T5 | START | {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}),
    **{name: (name, DECODER) for name in ("llama", "qwen2", "qwen3", "gemma")},
}
SUMMARIZES = ("bart", "pegasus", "t5", "t5-gated")


@cache
def config_of(name: str) -> Any:
    model_type, options = MODELS[name]
    return AutoConfig.for_model(model_type, **(IDS | options))


def save(folder: Path, config: Any, padding: bool = True) -> Path:
    """A model of the task-free class of ``config`` and its tokenizer.

    Args:
        padding: whether the tokenizer and the configuration have a token for it: many decoders do not.
    """
    torch.manual_seed(0)
    model = transformers.AutoModel.from_config(config)
    if not getattr(config, "scale_decoder_outputs", True):  # T5 1.1's files have an output layer of its own
        model = transformers.AutoModelForSeq2SeqLM.from_config(config)
        model.lm_head.weight = torch.nn.Parameter(torch.randn_like(model.lm_head.weight))
    model.save_pretrained(folder)
    tokenizer = byte_tokenizer(128)
    tokenizer.model_input_names = ["input_ids", "attention_mask"]
    if not padding:
        tokenizer.pad_token = None
    tokenizer.save_pretrained(folder)
    return folder
