"""Writing summaries: which cache of keys and values is faster, and what it saves.

    python -m benchmarks.generation                # BART-large's shape, beam search as on XSum

Beam search over random documents with random weights and every summary at its maximum length, so that all ways write
the same number of tokens. The ways take turns; medians of the ratios.
"""

from __future__ import annotations

import statistics
import sys
import time
from typing import Any

import torch
from transformers import GenerationConfig

from adalora_repro.training.cost import wait_for
from benchmarks.contenders import make_model
from benchmarks.lengths import tensors
from benchmarks.results import parser, print_table, ratio, ratio_text, start, write

WAYS: dict[str, dict[str, Any]] = {
    "dynamic cache": {"use_cache": True},
    "static cache": {"use_cache": True, "cache_implementation": "static", "disable_compile": True},
    "no cache": {"use_cache": False},
}


def main() -> int:
    arguments = parser(__doc__, devices=True)
    arguments.set_defaults(shape="bart-large")
    arguments.add_argument("--documents", type=int, default=2, help="in a batch")
    arguments.add_argument("--tokens", type=int, default=256, help="of a document")
    arguments.add_argument("--target", type=int, default=32, help="tokens of a summary")
    arguments.add_argument("--beams", type=int, default=8)
    arguments.add_argument("--rounds", type=int, default=3)
    arguments.add_argument("--precision", choices=("fp32", "bf16"), default="bf16")
    args = start(arguments)
    model = make_model(args.shape, vocabulary=None).to(args.device).eval()
    if args.precision == "bf16":
        model = model.bfloat16()
    times: dict[str, list[float]] = {name: [] for name in WAYS}
    texts: dict[str, Any] = {}
    for number in range(-1, args.rounds):  # round -1 warms up
        batch = tensors([args.tokens] * args.documents, number + 1)
        inputs = {name: batch[name].to(args.device) for name in ("input_ids", "attention_mask")}
        for name in list(WAYS)[:: 1 if number % 2 else -1]:
            config = GenerationConfig(
                max_length=args.target, min_length=args.target, num_beams=args.beams, do_sample=False,
                decoder_start_token_id=2, bos_token_id=0, eos_token_id=2, pad_token_id=1, **WAYS[name],
            )  # fmt: skip
            wait_for(torch.device(args.device))
            began = time.perf_counter()
            with torch.inference_mode():
                texts[name] = model.generate(**inputs, generation_config=config)
            wait_for(torch.device(args.device))
            if number >= 0:
                times[name].append(time.perf_counter() - began)
        print(f"round {number + 1}/{args.rounds}: done", file=sys.stderr, flush=True)
    base = times["dynamic cache"]
    same = {name: bool(torch.equal(text, texts["dynamic cache"])) for name, text in texts.items()}
    write(args, f"generation_{args.device}", {"seconds": times, "same_text_as_dynamic": same})
    rows = [
        [name, f"{statistics.median(values):.2f}", ratio_text(ratio(values, base)), "yes" if same[name] else "no"]
        for name, values in times.items()
    ]
    print_table(["way", "s / batch", "x dynamic cache [95%]", "the same text"], rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
