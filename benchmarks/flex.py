"""DeBERTa's disentangled attention through torch's ``flex_attention``: is it exact, and is it faster?

    python -m benchmarks.flex --device cuda          # batch 32, DeBERTaV3-base's heads, 64, 128 and 256 tokens
    python -m benchmarks.flex --lengths 16 --batch 2 # on a CPU: only exactness is meaningful

With Q, K, V of one head (L x D) and projected embeddings of relative positions P_k, P_q (2k x D), both ways compute

    softmax((Q Kᵀ + C + R) / sqrt(3 D)) V,   C_ij = (Q P_kᵀ)[i, δ(i, j)],   R_ij = (K P_qᵀ)[j, δ(i, j)]

δ(i, j) is the bucket of the distance i - j. ``eager`` is what transformers does (two gathers and their scattered
gradients over L x L); ``flex`` adds C and R to the scores inside one fused kernel. Measured are the forward pass and
the gradients of Q, K, V, P_k and P_q. Errors are ||x - y|| / ||y|| against ``eager`` in fp32 on the same bf16 numbers.
There is no dropout: ``flex_attention`` has none for the probabilities, while DeBERTa trains with 0.1.
"""

from __future__ import annotations

import math
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import flex_attention

from adalora_repro.training.cost import wait_for
from benchmarks.contenders import architecture
from benchmarks.results import parser, print_table, ratio, ratio_text, start, write

Attention = Callable[..., Tensor]
NAMES = ("Q", "K", "V", "P_k", "P_q")


def buckets(length: int, span: int) -> Tensor:
    """δ(i, j) of every pair of tokens, as transformers makes them; (L, L), in 0 … 2 span - 1."""
    from transformers.models.deberta_v2.modeling_deberta_v2 import build_relative_position

    layer = torch.empty(1, length, 1)
    distance: Tensor = build_relative_position(layer, layer, bucket_size=span, max_position=512)
    return torch.clamp(distance.squeeze(0) + span, 0, 2 * span - 1)


def eager(q: Tensor, k: Tensor, v: Tensor, p_k: Tensor, p_q: Tensor, delta: Tensor, lengths: Tensor) -> Tensor:
    """q, k, v (B, H, L, D); p_k, p_q (H, 2k, D); delta (L, L); lengths (B,): tokens without padding."""
    index = delta.expand(*q.shape[:2], -1, -1)
    scores = q @ k.transpose(-1, -2)
    scores = scores + torch.gather(q @ p_k.transpose(-1, -2), -1, index)
    scores = scores + torch.gather(k @ p_q.transpose(-1, -2), -1, index.transpose(-1, -2)).transpose(-1, -2)
    padding = torch.arange(k.shape[-2], device=k.device) >= lengths[:, None, None, None]
    scores = (scores / math.sqrt(3 * q.shape[-1])).masked_fill(padding, -math.inf)
    return scores.softmax(-1) @ v


def flex(call: Attention) -> Attention:
    """The same through ``call``: flex_attention, compiled or not."""

    def attention(q: Tensor, k: Tensor, v: Tensor, p_k: Tensor, p_q: Tensor, delta: Tensor, lengths: Tensor) -> Tensor:
        scale = 1 / math.sqrt(3 * q.shape[-1])
        of_query, of_key = q @ p_k.transpose(-1, -2), k @ p_q.transpose(-1, -2)

        def with_positions(score: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
            relative = of_query[b, h, i, delta[i, j]] + of_key[b, h, j, delta[i, j]]
            return torch.where(j < lengths[b], score + scale * relative, -math.inf)

        return call(q, k, v, score_mod=with_positions, scale=scale)

    return attention


def outcome(attention: Attention, inputs: tuple[Tensor, ...], rest: tuple[Tensor, ...], above: Tensor) -> list[Tensor]:
    """The output and the gradients of all inputs; ``above`` is the output's gradient."""
    leaves = [value.detach().requires_grad_() for value in inputs]
    out = attention(*leaves, *rest)
    return [out.detach(), *torch.autograd.grad(out, leaves, above.to(out.dtype))]


def measure(length: int, args: Any, ways: Mapping[str, Attention]) -> dict[str, Any]:
    sizes = architecture(args.shape)
    heads, width = sizes["num_attention_heads"], sizes["hidden_size"] // sizes["num_attention_heads"]
    span = sizes["position_buckets"]
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(args.device, torch.bfloat16)

    inputs = (*(drawn(args.batch, heads, length, width) for _ in "qkv"), *(drawn(heads, 2 * span, width) for _ in "kq"))
    lengths = torch.randint(length // 2, length + 1, (args.batch,), generator=generator).to(args.device)
    rest, above = (buckets(length, span).to(args.device), lengths), drawn(args.batch, heads, length, width)
    exact = outcome(eager, tuple(value.float() for value in inputs), rest, above)
    found: dict[str, Any] = {}
    for name, attention in ways.items():
        try:
            values = outcome(attention, inputs, rest, above)
        except Exception as error:  # a kernel that cannot be compiled is a result too
            found[name] = {"error": f"{type(error).__name__}: {error}".splitlines()[0]}
            continue
        pairs = zip(("output", *NAMES), values, exact, strict=True)
        found[name] = {"errors": {what: float((a.float() - b).norm() / b.norm()) for what, a, b in pairs}}
    device = torch.device(args.device)
    times: dict[str, list[float]] = {name: [] for name in found if "errors" in found[name]}
    for number in range(-3, args.rounds):
        for name in list(times)[:: 1 if number % 2 else -1]:
            wait_for(device)
            began = time.perf_counter()
            outcome(ways[name], inputs, rest, above)
            wait_for(device)
            if number >= 0:
                times[name].append(time.perf_counter() - began)
    return {name: figures | {"seconds": times.get(name, [])} for name, figures in found.items()}


def main() -> int:
    arguments = parser(__doc__, devices=True)
    arguments.add_argument("--lengths", default="64,128,256", help="tokens (default: %(default)s)")
    arguments.add_argument("--batch", type=int, default=32)
    arguments.add_argument("--rounds", type=int, default=20)
    args = start(arguments)
    ways: dict[str, Attention] = {"eager": eager}
    if args.device == "cuda":
        ways |= {"eager compiled": torch.compile(eager, dynamic=False)}
        ways |= {"flex": flex(torch.compile(flex_attention, dynamic=False))}
    else:  # on a CPU torch compiles only the forward pass
        ways |= {"flex": flex(flex_attention)}
    results = {length: measure(int(length), args, ways) for length in args.lengths.split(",")}
    write(args, f"flex_{args.device}", {"attention": results})
    rows = []
    for length, found in results.items():
        for name, figures in found.items():
            if "error" in figures:
                rows.append([length, name, figures["error"], "", ""])
                continue
            times = figures["seconds"]
            ratios = ratio_text(ratio(times, found["eager"]["seconds"]))
            errors = " ".join(f"{what} {error:.1e}" for what, error in figures["errors"].items())
            rows.append([length, name, f"{1000 * statistics.median(times):.3f}", ratios, errors])
    print_table(["tokens", "attention", "ms forward + backward", "x eager [95%]", "errors against fp32"], rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
