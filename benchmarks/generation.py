"""Time to write XSum's summaries by beam search in bf16: our LoRA and AdaLoRA, evaluated at their budget.

    python -m benchmarks.generation --device cuda     # BART-large's shape, 8 beams, 16 documents a batch

The search is that of conf/task/xsum.yaml, but every summary gets its maximum length: random weights end anywhere.
Documents have lengths of XSum's; the methods take turns on each batch.
"""

from __future__ import annotations

import random
import statistics
import sys
import time

import torch
from transformers import GenerationConfig

from adalora_repro.config.catalog import read, resource
from adalora_repro.training.cost import ratio_text, wait_for
from benchmarks.contenders import Contender, in_turn
from benchmarks.lengths import Tensors, lengths_of
from benchmarks.results import parser, print_table, ratio, start, write

SEARCH = ("num_beams", "length_penalty", "no_repeat_ngram_size", "early_stopping")


def seconds_of(contender: Contender, batch: Tensors, search: GenerationConfig) -> float:
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    device = torch.device(contender.device)
    contender.model.eval()
    wait_for(device)
    began = time.perf_counter()
    with contender.method.masked(), torch.inference_mode(), torch.autocast(contender.device, torch.bfloat16):
        written = contender.model.generate(**inputs, generation_config=search)
    wait_for(device)
    assert written.shape[1] == search.max_length
    return time.perf_counter() - began


def main() -> int:
    xsum = read(resource("conf") / "task" / "xsum.yaml")
    arguments = parser(__doc__)
    arguments.set_defaults(shape="bart-large")
    arguments.add_argument("--batch", type=int, default=xsum["eval"]["batch_size"], help="documents")
    arguments.add_argument("--written", type=int, default=xsum["task"]["max_target_length"], help="tokens a summary")
    arguments.add_argument("--rounds", type=int, default=3)
    args = start(arguments)
    contenders = [
        Contender("ours", name, bf16=True, shape=args.shape, device=args.device, vocabulary=None)
        for name in ("lora", "adalora")
    ]
    ids = {name: value for name, value in contenders[0].model.config.to_dict().items() if name.endswith("_token_id")}
    limits = {"max_length": args.written, "min_length": args.written}
    search = GenerationConfig(**{name: xsum["task"][name] for name in SEARCH}, **ids, **limits)
    documents = random.Random(0).choices(lengths_of("xsum"), k=args.batch * (args.rounds + 1))
    for number in range(args.rounds + 1):  # the first warms up
        batch = contenders[0].batch(documents[number * args.batch :][: args.batch], number)
        for contender in in_turn(contenders, number):
            seconds = seconds_of(contender, batch, search)
            contender.times += [seconds] if number else []
    write(args, f"generation_{args.device}", {"seconds": {each.label: each.times for each in contenders}})
    rows = []
    for each in contenders:
        median = statistics.median(each.times)
        to_lora = ratio_text(ratio(each.times, contenders[0].times))
        rows.append([each.label, f"{median:.3g}", f"{args.batch / median:.3g}", to_lora])
    heading = f"{search.num_beams} beams, {args.written} tokens"
    print_table([heading, "s / batch", "documents / s", "x our LoRA [95%]"], rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
