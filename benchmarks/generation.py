"""Time to write XSum's summaries by beam search: our LoRA and AdaLoRA, evaluated at their budget.

    python -m benchmarks.generation --device cuda     # BART-large's shape, 8 beams, 16 documents a batch, bf16

The search is that of conf/task/xsum.yaml, but every summary gets its maximum length: random weights end anywhere.
Documents have lengths of XSum's; the methods take turns on each batch.
"""

from __future__ import annotations

import random
import statistics
import sys
import time
from pathlib import Path

import torch
import yaml
from transformers import GenerationConfig

from adalora_repro.config.catalog import resource
from adalora_repro.training.cost import ratio_text, wait_for
from benchmarks.contenders import Contender
from benchmarks.lengths import lengths_of
from benchmarks.results import parser, print_table, ratio, start, write


def main() -> int:
    xsum = yaml.safe_load(Path(resource("conf") / "task" / "xsum.yaml").read_text(encoding="utf-8"))
    task = xsum["task"]
    arguments = parser(__doc__)
    arguments.set_defaults(shape="bart-large")
    arguments.add_argument(
        "--batch", type=int, default=xsum["eval"]["batch_size"], help="documents (default: %(default)s)"
    )
    arguments.add_argument(
        "--written", type=int, default=task["max_target_length"], help="tokens of a summary (default: %(default)s)"
    )
    arguments.add_argument("--rounds", type=int, default=3)
    arguments.add_argument("--precision", choices=("fp32", "bf16"), default="bf16")
    args = start(arguments)
    bf16, device = args.precision == "bf16", torch.device(args.device)
    contenders = [
        Contender("ours", name, bf16, shape=args.shape, device=args.device, vocabulary=None)
        for name in ("lora", "adalora")
    ]
    stored = random.Random(0).sample(lengths_of("xsum"), args.batch * (args.rounds + 1))
    for number in range(args.rounds + 1):  # the first warms up
        lengths = stored[number * args.batch : (number + 1) * args.batch]
        for contender in contenders[:: 1 if number % 2 else -1]:
            batch = contender.batch(lengths, number)
            search = GenerationConfig(
                **{
                    name: task[name]
                    for name in ("num_beams", "length_penalty", "no_repeat_ngram_size", "early_stopping")
                },
                **{
                    name: getattr(contender.model.config, name)
                    for name in ("bos_token_id", "eos_token_id", "pad_token_id")
                },
                decoder_start_token_id=contender.model.config.decoder_start_token_id,
                max_length=args.written,
                min_length=args.written,
                do_sample=False,
            )
            contender.model.eval()
            wait_for(device)
            began = time.perf_counter()
            with (
                contender.method.masked(),
                torch.inference_mode(),
                torch.autocast(args.device, torch.bfloat16, enabled=bf16),
            ):
                written = contender.model.generate(
                    batch["input_ids"], attention_mask=batch["attention_mask"], generation_config=search
                )
            wait_for(device)
            if number:
                contender.times.append(time.perf_counter() - began)
            assert written.shape == (args.batch, args.written)
    figures = {contender.label: contender.times for contender in contenders}
    write(args, f"generation_{args.device}", {"beams": task["num_beams"], "seconds": figures})
    rows = [
        [
            label,
            f"{statistics.median(times):.3g}",
            f"{args.batch * len(times) / sum(times):,.3g}",
            ratio_text(ratio(times, contenders[0].times)),
        ]
        for label, times in figures.items()
    ]
    print_table(
        [f"{task['num_beams']} beams, {args.written} tokens", "s / batch", "documents / s", "x our LoRA [95%]"], rows
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
