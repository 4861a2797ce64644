"""The same model at less cost: avoids repeated computations, casts and waits."""

from __future__ import annotations

import os
import shutil
import sys
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from adalora_repro.errors import InputError
from adalora_repro.models.sites import architecture

if TYPE_CHECKING:
    from transformers import PreTrainedModel

COMPILER = "clang++" if sys.platform == "darwin" else "g++"  # inductor's default without CXX
aten = torch.ops.aten
ATTENTION = aten._scaled_dot_product_flash_attention_for_cpu.default
#: every operation of PyTorch that multiplies matrices in a transformer, forward and backward
PRODUCTS = {
    *(aten.mm.default, aten.addmm.default, aten.bmm.default, aten.baddbmm.default),
    *(aten.linear.default, aten.matmul.default),  # in inference mode these are not divided into the four above
    ATTENTION,
    aten._scaled_dot_product_flash_attention_for_cpu_backward.default,
    aten.scaled_dot_product_attention.default,
}
CROP_STEP = 16  # spans are multiples of it, so that few shapes occur, which compiler and allocator can reuse


def store_frozen(model: nn.Module, dtype: torch.dtype) -> None:
    """Stores the frozen weights and biases of linear layers in ``dtype``, to which autocast would cast them each time.

    Results are bit-identical: the products have the same operands. A weight shared with another kind of module (an
    embedding tied to the head) is left unchanged, because that module is not autocast.
    """
    linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
    own = {id(module) for module in linear}
    elsewhere = {id(p) for module in model.modules() if id(module) not in own for p in module.parameters(recurse=False)}
    for module in linear:
        for parameter in module.parameters(recurse=False):
            if not parameter.requires_grad and id(parameter) not in elsewhere:
                parameter.data = parameter.data.to(dtype)


def round_biases(model: nn.Module) -> None:
    """Takes DeBERTa V1's biases of queries and values as bf16, like the products to which they are added.

    In fp32 they give queries in fp32, whose lowest number transformers writes into scores in bf16, where it overflows.
    """
    attention: Any
    for attention in model.modules():
        if hasattr(attention, "q_bias"):
            plain = attention.transpose_for_scores
            attention.transpose_for_scores = lambda x, plain=plain: plain(x.bfloat16())


class Bf16ProductsInFp32(TorchDispatchMode):
    """Inside, products of bf16 matrices are computed in fp32 and rounded to bf16, for CPUs without bf16 instructions.

    There PyTorch multiplies bf16 matrices one number at a time: a training step of MiniLM takes 17 times as long. The
    result is what a CPU with these instructions computes, up to the order of sums: it, too, multiplies exactly, adds in
    fp32 and rounds once.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func not in PRODUCTS or args[0].dtype is not torch.bfloat16:
            return func(*args, **kwargs)
        result = func(*map(_widened, args), **{name: _widened(value) for name, value in kwargs.items()})
        if func is ATTENTION:  # its log-sums of exponentials, for the backward pass, are in fp32 on any CPU
            return result[0].bfloat16(), result[1]
        return tuple(map(Tensor.bfloat16, result)) if isinstance(result, tuple) else result.bfloat16()


def _widened(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.dtype is torch.bfloat16 else value


def use_4d_masks(model: PreTrainedModel) -> None:
    """Passes attention masks with four dimensions, so that the host does not wait for the device in a training step.

    With PyTorch's fused attention, transformers reads a two-dimensional mask on the host, to drop it if a batch has no
    padding: once for an encoder, three times for an encoder-decoder, and each time everything queued on an accelerator
    has to finish first. It uses a mask of four dimensions as it is. The function is the same; for a batch without
    padding the kernel with a mask is used, whose rounding and dropout may differ.
    """
    plain = architecture(model.config.model_type).plain_masks
    if model.config._attn_implementation != "sdpa" or not plain:  # else causal or local attention would be lost
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


def cache_positions(model: PreTrainedModel) -> None:
    """Computes DeBERTa's buckets of relative positions once, in a table.

    transformers computes them in every pass, with a number that it copies from the host; for that copy the host waits
    until everything queued on an accelerator has finished. The table holds the same integers, up to the model's own
    maximum length; longer batches are left to transformers. Models without relative positions are left unchanged.
    """
    encoder: Any = getattr(model.base_model, "encoder", None)
    if not hasattr(encoder, "get_rel_pos"):
        return
    longest = model.config.max_position_embeddings
    table = encoder.get_rel_pos(torch.empty(1, longest, 1, device=model.device))
    if table is None:  # a DeBERTa without relative positions
        return
    encoder.register_buffer("relative_positions", table, persistent=False)

    def before_forward(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        length = (args[0] if args else kwargs["hidden_states"]).shape[1]
        if length <= longest:
            kwargs["relative_pos"] = module.relative_positions[:, :length, :length]
        return args, kwargs

    encoder.register_forward_pre_hook(before_forward, with_kwargs=True)


def crop_positions(model: PreTrainedModel) -> None:
    """DeBERTa's attention without the relative positions that do not occur in a batch.

    Each layer projects all 2k embeddings of relative positions (k = 256 buckets on either side), multiplies every query
    and key with all of them and picks those that occur: in a batch of L tokens at most 2L - 1 of 512. Here the layers
    use only the middle 2s embeddings, s >= L a multiple of ``CROP_STEP``. Distances up to k / 2 have buckets of their
    own, so a batch of up to k / 2 tokens is cropped; a longer one is not.

    The result is the same up to the order of sums: the embeddings are cropped after their dropout, which draws as many
    random numbers as before.
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

    Compiling takes a minute or more, at the first step; again for the first batch of a single row, which torch treats
    as a special case, and with ``crop_positions`` for the first batch that is too long to be cropped. Evaluation uses
    the model itself, because generation would need programs of its own. Fused operations round differently.
    """
    return torch.compile(model, backend=backend, dynamic=True)


def require_compiler(backend: str) -> None:
    """Raises InputError if ``backend`` is ``inductor`` and there is no C++ compiler."""
    compiler = os.environ.get("CXX") or COMPILER
    if backend == "inductor" and not shutil.which(compiler):
        raise InputError(f"train.compile=inductor needs a C++ compiler: no {compiler} here (CXX names another)")
