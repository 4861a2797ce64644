"""The modules of the model types in conf/sites/, on the meta device, built with torch alone.

A plan needs names, shapes and types of modules, but no weights and no forward pass. Importing transformers' models
would take longer than everything else in a dry run, so four architectures are written out here; a test compares the
name and shape of every parameter with transformers' own model. For others ``build`` returns None, and transformers is
used.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

PREFIXES = {"bert": "bert", "roberta": "roberta", "deberta-v2": "deberta", "bart": "model"}
CLASSIFIER, SPANS, SEQ2SEQ = (
    f"AutoModelFor{head}" for head in ("SequenceClassification", "QuestionAnswering", "Seq2SeqLM")
)


class Unfilled(TorchFunctionMode):
    """Inside, weights on the meta device are not initialized: torch would import its compiler for that, which takes a
    second."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (nn.init.normal_, nn.init.uniform_, nn.init.kaiming_uniform_):
            tensor = args[0] if args else kwargs["tensor"]
            if tensor.is_meta:
                return tensor
        return func(*args, **(kwargs or {}))


class MetaModel(nn.Module):
    """The part of a ``PreTrainedModel`` that sites, injection and counting use."""

    def __init__(self, config: SimpleNamespace) -> None:
        super().__init__()
        self.config = config
        self.base_model_prefix = PREFIXES[config.model_type]
        self.device = torch.device("meta")

    @property
    def base_model(self) -> nn.Module:
        return self.get_submodule(self.base_model_prefix)


def build(architecture: dict[str, Any], auto_model: str, num_labels: int) -> MetaModel | None:
    """The modules of ``auto_model`` for an architecture of ``conf/backbone``; None if they are not written out here."""
    config = SimpleNamespace(**architecture)
    if config.model_type not in PREFIXES or not _usual(config):
        return None
    bart = config.model_type == "bart"
    if bart:
        config.hidden_size = config.d_model
    with torch.device("meta"):
        head = _head(config, auto_model, num_labels)
        if head is None:
            return None
        base = _bart(config) if bart else _encoder(config)
    model = MetaModel(config)
    for path, module in ({f"{model.base_model_prefix}.{path}": module for path, module in base.items()} | head).items():
        _put(model, path, module)
    if bart:
        stacks: Any = model.base_model
        for module in (stacks.encoder.embed_tokens, stacks.decoder.embed_tokens, head["lm_head"]):
            module.weight = stacks.shared.weight
    return model


def _usual(c: SimpleNamespace) -> bool:
    """Whether a DeBERTa-v2 is built like DeBERTaV3: relative positions in buckets, attended with the weights of the
    text, no convolution, embeddings of full width."""
    if c.model_type != "deberta-v2":
        return True
    parts = {"relative_attention": True, "share_att_key": True, "norm_rel_ebd": "layer_norm"}
    return (
        all(getattr(c, name, None) == value for name, value in parts.items())
        and getattr(c, "position_buckets", -1) > 0
        and not getattr(c, "conv_kernel_size", 0)
        and getattr(c, "embedding_size", c.hidden_size) == c.hidden_size
    )


def _put(model: nn.Module, path: str, module: nn.Module) -> None:
    *parents, name = path.split(".")
    for parent in parents:
        if not hasattr(model, parent):
            model.add_module(parent, nn.Module())
        model = getattr(model, parent)
    model.add_module(name, module)


def _encoder(c: SimpleNamespace) -> dict[str, nn.Module]:
    """BERT, RoBERTa, DeBERTa-v2/v3: they differ in embeddings and in the names of three projections."""
    h, deberta = c.hidden_size, c.model_type == "deberta-v2"
    modules: dict[str, nn.Module] = {"embeddings.word_embeddings": nn.Embedding(c.vocab_size, h)}
    if not deberta or c.position_biased_input:
        modules["embeddings.position_embeddings"] = nn.Embedding(c.max_position_embeddings, h)
    if c.type_vocab_size > 0:
        modules["embeddings.token_type_embeddings"] = nn.Embedding(c.type_vocab_size, h)
    modules["embeddings.LayerNorm"] = nn.LayerNorm(h)
    if deberta:
        modules["encoder.rel_embeddings"] = nn.Embedding(2 * c.position_buckets, h)
        modules["encoder.LayerNorm"] = nn.LayerNorm(h)
    projections = [f"{name}_proj" if deberta else name for name in ("query", "key", "value")]
    for i in range(c.num_hidden_layers):
        modules |= {f"encoder.layer.{i}.attention.self.{name}": nn.Linear(h, h) for name in projections} | {
            f"encoder.layer.{i}.attention.output.dense": nn.Linear(h, h),
            f"encoder.layer.{i}.attention.output.LayerNorm": nn.LayerNorm(h),
            f"encoder.layer.{i}.attention.output.dropout": nn.Dropout(),
            f"encoder.layer.{i}.intermediate.dense": nn.Linear(h, c.intermediate_size),
            f"encoder.layer.{i}.output.dense": nn.Linear(c.intermediate_size, h),
            f"encoder.layer.{i}.output.LayerNorm": nn.LayerNorm(h),
            f"encoder.layer.{i}.output.dropout": nn.Dropout(),
        }
    return modules


def _head(c: SimpleNamespace, auto_model: str, labels: int) -> dict[str, nn.Module] | None:
    """The task head; None if no task puts this one on such a model."""
    h = c.hidden_size
    if c.model_type == "bart":
        return {"lm_head": nn.Linear(h, c.vocab_size, bias=False)} if auto_model == SEQ2SEQ else None
    if auto_model == SPANS:
        return {"qa_outputs": nn.Linear(h, labels)}
    if auto_model != CLASSIFIER:
        return None
    if c.model_type == "roberta":
        return {"classifier.dense": nn.Linear(h, h), "classifier.out_proj": nn.Linear(h, labels)}
    pooler = "bert.pooler.dense" if c.model_type == "bert" else "pooler.dense"
    return {pooler: nn.Linear(h, h), "classifier": nn.Linear(h, labels)}


def _bart(c: SimpleNamespace) -> dict[str, nn.Module]:
    d = c.d_model
    modules: dict[str, nn.Module] = {"shared": nn.Embedding(c.vocab_size, d)}
    for stack, attentions in (("encoder", ("self_attn",)), ("decoder", ("self_attn", "encoder_attn"))):
        modules[f"{stack}.embed_tokens"] = nn.Embedding(c.vocab_size, d)  # tied to `shared`
        modules[f"{stack}.embed_positions"] = nn.Embedding(c.max_position_embeddings + 2, d)
        modules[f"{stack}.layernorm_embedding"] = nn.LayerNorm(d)
        for i in range(getattr(c, f"{stack}_layers")):
            layer, ffn = f"{stack}.layers.{i}", getattr(c, f"{stack}_ffn_dim")
            for attention in attentions:
                modules |= {
                    f"{layer}.{attention}.{name}": nn.Linear(d, d)
                    for name in ("k_proj", "v_proj", "q_proj", "out_proj")
                }
                modules[f"{layer}.{attention}_layer_norm"] = nn.LayerNorm(d)
            modules |= {f"{layer}.fc1": nn.Linear(d, ffn), f"{layer}.fc2": nn.Linear(ffn, d)}
            modules[f"{layer}.final_layer_norm"] = nn.LayerNorm(d)
    return modules
