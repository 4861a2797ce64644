"""DeBERTa's attention through torch's ``flex_attention``: is it exact, and does it make a step faster?

    python -m benchmarks.flex --device cuda           # DeBERTaV3-base's shape, batch size 32

With Q, K, V of one head (L x D) and projected embeddings of relative positions P_k, P_q (2k x D), DeBERTa computes

    softmax((Q Kᵀ + C + R) / sqrt(3 D)) V,   C_ij = (Q P_kᵀ)[i, δ(i, j)],   R_ij = (K P_qᵀ)[j, δ(i, j)]

where δ(i, j) is the bucket of the distance i - j. ``eager`` (transformers) and ``cropped`` (train.attention) gather C
and R into L x L matrices; ``flex`` crops too, and reads C and R inside one fused kernel.

Errors: ||x - y|| / ||y|| of the logits and of the gradient of all parameters at the largest of --tokens, with padding
and without dropout; y is ``eager`` in fp32. Times: steps of our LoRA in bf16, with dropout. ``flex_attention`` cannot
drop attention probabilities (DeBERTa: 0.1), so ``flex`` computes less than a replacement would have to.

On a CPU ``flex_attention`` has no backward pass: ``flex`` is its forward pass alone, and ``dense`` the same score
modification over L x L matrices, with gradients.
"""

from __future__ import annotations

import math
import statistics
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import flex_attention

from adalora_repro.models.speedups import crop_positions
from adalora_repro.training.cost import ratio_text
from benchmarks.contenders import Contender, in_turn, make_model
from benchmarks.lengths import Tensors, tensors
from benchmarks.results import parser, print_goal, print_table, ratio, start, write

Attention = Callable[..., Tensor]


def forward(
    layer: Any, attention: Attention, hidden: Tensor, mask: Tensor, *_: Any, **given: Any
) -> tuple[Tensor, None]:
    """``DisentangledSelfAttention.forward`` of a model that shares the projections of content and positions."""

    def heads(x: Tensor) -> Tensor:  # (rows, L, H D) -> (rows, H, L, D)
        return x.unflatten(-1, (layer.num_attention_heads, -1)).transpose(1, 2)

    span = layer.pos_ebd_size
    positions = layer.pos_dropout(given["rel_embeddings"])[None, : 2 * span]
    q, k, v = (heads(project(hidden)) for project in (layer.query_proj, layer.key_proj, layer.value_proj))
    of_query = q @ heads(layer.key_proj(positions)).mT  # (rows, H, L, 2k)
    of_key = k @ heads(layer.query_proj(positions)).mT
    bucket = (given["relative_pos"][0] + span).clamp(0, 2 * span - 1)
    is_key = mask[:, 0, 0].bool()  # (rows, L); transformers masks the queries of padding, too, which nothing reads
    scale = 1 / math.sqrt(3 * q.shape[-1])

    def with_positions(score: Tensor, row: Tensor, head: Tensor, i: Tensor, j: Tensor) -> Tensor:
        relative = of_query[row, head, i, bucket[i, j]] + of_key[row, head, j, bucket[i, j]]
        return torch.where(is_key[row, j], score + scale * relative, -math.inf)

    return attention(q, k, v, score_mod=with_positions, scale=scale).transpose(1, 2).flatten(2), None


def dense(q: Tensor, k: Tensor, v: Tensor, score_mod: Callable[..., Tensor], scale: float) -> Tensor:
    """``flex_attention`` in plain operations."""
    indices = torch.meshgrid(*(torch.arange(n, device=q.device) for n in (*q.shape[:3], k.shape[2])), indexing="ij")
    return score_mod(q @ k.mT * scale, *indices).softmax(-1) @ v


def use(model: Any, way: str, attention: Attention | None) -> None:
    """``attention`` None: transformers' own."""
    if way != "eager":
        crop_positions(model)
    if attention is not None:
        for layer in model.base_model.encoder.layer:
            layer.attention.self.forward = partial(forward, layer.attention.self, attention)


def outcome(model: Any, batch: Tensors, bf16: bool, gradient: bool) -> dict[str, Tensor]:
    with torch.set_grad_enabled(gradient), torch.autocast(batch["labels"].device.type, torch.bfloat16, enabled=bf16):
        out = model(**batch)
    values = {"logits": out.logits.detach().float()}
    if gradient:
        gradients = torch.autograd.grad(out.loss, list(model.parameters()), allow_unused=True)
        values["gradient"] = torch.cat([each.flatten() for each in gradients if each is not None])
    return values


def errors_of(ways: dict[str, Attention | None], args: Any, tokens: int) -> dict[str, dict[str, float]]:
    lengths = torch.linspace(tokens // 2, tokens, args.batch).int().tolist()
    batch = {name: value.to(args.device) for name, value in tensors(lengths, seed=0).items()}
    exact: dict[str, Tensor] = {}
    errors = {}
    for way, attention in ways.items():
        use(model := make_model(args.shape, device=args.device), way, attention)
        for name, module in model.named_modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
            elif name.endswith(("query_proj", "key_proj")):  # scores of about 2, or an error in them would not show
                nn.init.normal_(module.weight, std=2 / math.sqrt(module.in_features))
        for precision in ("fp32", "bf16"):
            values = outcome(model, batch, precision == "bf16", attention is not flex_attention)
            exact = exact or values
            errors[f"{way} {precision}"] = {
                what: float((value - exact[what]).norm() / exact[what].norm()) for what, value in values.items()
            }
    return errors


def main() -> int:
    arguments = parser(__doc__)
    arguments.add_argument("--batch", type=int, default=32)
    arguments.add_argument("--tokens", default="48,128,384", help="of a row (default: %(default)s)")
    arguments.add_argument("--rounds", type=int, default=12)
    args = start(arguments)
    ways: dict[str, Attention | None] = {"eager": None, "cropped": None}
    if args.device == "cuda":  # fullgraph: too many shapes are an error, else torch would give up compiling in silence
        ways["flex"] = torch.compile(flex_attention, dynamic=False, fullgraph=True)
    else:
        ways |= {"flex": flex_attention, "dense": dense}
    lengths = [int(tokens) for tokens in args.tokens.split(",")]
    errors = errors_of(ways, args, max(lengths))

    contenders = {
        way: Contender("ours", "lora", bf16=True, eager=True, shape=args.shape, device=args.device)
        for way, attention in ways.items()
        if attention is not flex_attention
    }
    for way, contender in contenders.items():
        use(contender.model, way, ways[way])
    seconds: dict[int, dict[str, list[float]]] = {}
    for tokens in lengths:
        for contender in contenders.values():
            contender.times = []
        for number in range(-3, args.rounds):  # the first three warm up
            batch = contenders["eager"].batch([tokens] * args.batch, number + 3)
            for contender in in_turn(list(contenders.values()), number):
                time = contender.timed(batch)
                contender.times += [time] if number >= 0 else []
        seconds[tokens] = {way: contender.times for way, contender in contenders.items()}
    write(args, f"flex_{args.device}", {"errors": errors, "seconds": seconds})

    rows = [
        [str(tokens), way, f"{1000 * statistics.median(times):.3g}", ratio_text(ratio(times, each["eager"]))]
        for tokens, each in seconds.items()
        for way, times in each.items()
    ]
    print_table(["tokens", "attention", "ms / step, bf16", "x eager [95%]"], rows)
    for replaced in list(ways)[2:]:
        for what, error in errors[f"{replaced} fp32"].items():
            print_goal(f"{replaced}, fp32, error of {what}", error, "<= 1e-5")
            error = errors[f"{replaced} bf16"][what] / errors["eager bf16"][what]
            print_goal(f"{replaced}, bf16, error of {what} / eager's", error, "<= 2")
    for tokens, each in seconds.items():
        if "flex" in each:
            print_goal(f"flex / cropped, bf16, {tokens} tokens", ratio(each["flex"], each["cropped"]), "<= 0.97")
    return 0


if __name__ == "__main__":
    sys.exit(main())
