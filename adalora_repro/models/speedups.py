"""The same model at less cost: what is computed or cast again and again without need."""

from __future__ import annotations

import os
import shutil
import sys
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from adalora_repro.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

COMPILER = "clang++" if sys.platform == "darwin" else "g++"  # what inductor calls where CXX names none
CROP_STEP = 16  # a span is a multiple of it, so that few shapes occur and a compiler or allocator meets them again


def store_frozen(model: nn.Module, dtype: torch.dtype) -> None:
    """Keeps frozen weights and biases of linear layers in ``dtype``, what autocast would turn them into at every use.

    Not one number changes: the products have the same operands. A weight that another kind of module has too (an
    embedding tied to the head) stays as it is, for that module is not autocast.
    """
    linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
    own = {id(module) for module in linear}
    elsewhere = {id(p) for module in model.modules() if id(module) not in own for p in module.parameters(recurse=False)}
    for module in linear:
        for parameter in module.parameters(recurse=False):
            if not parameter.requires_grad and id(parameter) not in elsewhere:
                parameter.data = parameter.data.to(dtype)


def mask_without_looking(model: PreTrainedModel) -> None:
    """Training steps for which the host need not wait until the device has reached them.

    For models on PyTorch's fused attention transformers looks whether a batch has padding at all, to leave the mask out
    where it has none: the host reads a value, once for an encoder, three times for an encoder-decoder, and whatever was
    queued on an accelerator has to end first. A mask of four dimensions is taken as it is. What is computed is the
    same; a batch without padding takes the kernel with a mask, whose rounding, and draws of dropout, may differ.
    """
    if model.config._attn_implementation != "sdpa":
        return

    def before_forward(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        mask = kwargs.get("attention_mask")
        if not module.training or mask is None or mask.ndim != 2:
            return None
        kwargs["attention_mask"] = mask[:, None, None].bool()
        written = kwargs.get("decoder_input_ids")
        if written is not None and kwargs.get("decoder_attention_mask") is None:
            square = torch.ones(written.shape[1], written.shape[1], dtype=torch.bool, device=written.device)
            kwargs["decoder_attention_mask"] = square.tril()[None, None]
        return args, kwargs

    model.register_forward_pre_hook(before_forward, with_kwargs=True)


def positions_at_hand(model: PreTrainedModel) -> None:
    """DeBERTa's buckets of relative positions from a table that is made once.

    transformers makes them anew in every pass, with a number that it copies from the host: a copy for which the host
    waits until an accelerator has ended all that was queued before. The same integers. The table is as long as the
    model's own limit; a longer batch is left to transformers. Other models have no such positions and stay as they are.
    """
    encoder: Any = getattr(model.base_model, "encoder", None)
    if not hasattr(encoder, "get_rel_pos"):
        return
    longest = model.config.max_position_embeddings
    table = encoder.get_rel_pos(torch.empty(1, longest, 1, device=model.device))
    encoder.register_buffer("relative_positions", table, persistent=False)

    def before_forward(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        length = (args[0] if args else kwargs["hidden_states"]).shape[1]
        if length <= longest:
            kwargs["relative_pos"] = module.relative_positions[:, :length, :length]
        return args, kwargs

    encoder.register_forward_pre_hook(before_forward, with_kwargs=True)


def crop_positions(model: PreTrainedModel) -> None:
    """DeBERTa's attention without the relative positions that no two tokens of a batch have.

    Each layer projects all 2k embeddings of relative positions (k = 256 buckets on either side), multiplies every query
    and key with all of them and picks the few that occur: in a batch of L tokens at most 2L - 1 of 512. Here the layers
    go on with the middle 2s embeddings, s >= L a multiple of ``CROP_STEP``. Distances up to k / 2 are their own
    buckets, so that a batch of up to k / 2 tokens can be cropped; a longer one is not.

    What is computed is the same, up to the order of sums: the embeddings are cropped behind their dropout, which draws
    as many random numbers as ever.
    """
    encoder: Any = model.base_model.encoder
    layers: list[Any] = [layer.attention.self for layer in encoder.layer]
    full = layers[0].pos_ebd_size
    longest = encoder.position_buckets // 2 if encoder.position_buckets > 0 else full

    def before_forward(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        hidden = args[0] if args else kwargs["hidden_states"]
        span = -(-hidden.shape[1] // CROP_STEP) * CROP_STEP
        for layer in layers:
            layer.pos_ebd_size = span if span <= longest else full

    def after_dropout(layer: Any) -> Any:
        return lambda module, args, output: output[full - layer.pos_ebd_size : full + layer.pos_ebd_size]

    encoder.register_forward_pre_hook(before_forward, with_kwargs=True)
    for layer in layers:
        layer.pos_dropout.register_forward_hook(after_dropout(layer))


def compiled(model: PreTrainedModel, backend: str) -> Any:
    """``model`` for training steps, through torch.compile: one program for batches of any length.

    It is made at the first steps (a minute or more). Another is made for the first batch of a single row, for torch
    does not take 1 for one of many numbers, and with ``crop_positions`` one for the first batch that is too long to be
    cropped. The model itself stays as it is, for evaluation: generation would need programs of its own. Fused
    operations round otherwise: not the same numbers.
    """
    return torch.compile(model, backend=backend, dynamic=True)


def require_compiler(backend: str) -> None:
    """Raises InputError if ``backend`` is ``inductor`` and finds no compiler for what it writes."""
    compiler = os.environ.get("CXX") or COMPILER
    if backend == "inductor" and not shutil.which(compiler):
        raise InputError(f"train.compile=inductor needs a C++ compiler: no {compiler} here (CXX names another)")
