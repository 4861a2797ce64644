"""What each faster way changes: loss and gradient of one batch, beside the way that is the default.

    python -m benchmarks.exactness                 # --compile: train.compile=inductor too (minutes)

AdaLoRA with all triplets in use, MNLI's lengths, the same random numbers for dropout; a compiled step draws others, so
that dropout is off where it is compared. Relative differences: |l - l₀| / |l₀| of the loss, ‖g - g₀‖ / ‖g₀‖ of the
gradient of all that trains. ``a mask without looking`` is what an accelerator gets, computed on the CPU, for BERT's
shape (transformers looks at masks for its fused attention alone, which DeBERTa has not).
"""

from __future__ import annotations

import statistics
import sys
from typing import Any

import torch

from benchmarks.contenders import Contender, can_crop
from benchmarks.lengths import lengths_of, sampled_epoch
from benchmarks.results import parser, print_table, start, write

BATCH, SEED = 8, 3
Options = dict[str, Any]


def loss_and_gradient(options: Options, lengths: list[int], dropout: bool) -> tuple[float, torch.Tensor]:
    contender = Contender("ours", "adalora", **options)
    torch.manual_seed(SEED)
    for name, parameter in contender.model.named_parameters():
        if name.endswith("lora_E"):
            torch.nn.init.normal_(parameter, std=0.1)
    contender.method.on_train_start(100_000)
    contender.model.train(dropout)  # the shortcuts that are for training alone are compared with dropout
    with torch.autocast(contender.device, torch.bfloat16, enabled=contender.bf16):
        loss = contender.loss(contender.batch(lengths, SEED))
    loss.backward()
    gradients = [parameter.grad for parameter in contender.parameters if parameter.grad is not None]
    return loss.item(), torch.cat([gradient.flatten() for gradient in gradients])


def main() -> int:
    arguments = parser(__doc__)
    arguments.add_argument("--compile", action="store_true")
    args = start(arguments)
    batches = sampled_epoch(lengths_of("mnli"), BATCH, 3)
    whole = [[max(lengths)] * BATCH for lengths in batches]  # no padding
    one, bf16, bert = {"shape": args.shape}, {"shape": args.shape, "bf16": True}, {"shape": "minilm"}
    looking = {**bert, "as_on_device": True}
    # name -> the default's options, the way's, the batches, whether with dropout
    ways: dict[str, tuple[Options, Options, list[list[int]], bool]] = {
        "train.precision=bf16": (one, bf16, batches, True),
        "… without keeping frozen weights in bf16": ({**bf16, "stored": False}, bf16, batches, True),
        "a mask without looking, padded batches": (bert, looking, batches, True),
        "a mask without looking, no padding": (bert, looking, whole, True),
    }
    if can_crop(args.shape):
        ways["train.attention=cropped, fp32"] = (one, {**one, "cropped": True}, batches, True)
        ways["train.attention=cropped, bf16"] = (bf16, {**bf16, "cropped": True}, batches, True)
    if args.compile:
        for name, plain in (("fp32", one), ("bf16", bf16)):
            ways[f"train.compile=inductor, {name}"] = (plain, {**plain, "compiler": "inductor"}, batches, False)
    rows, figures = [], {}
    for name, (plain, way, used, dropout) in ways.items():
        differences = []
        for lengths in used:
            (loss, gradient), (other, changed) = (loss_and_gradient(o, lengths, dropout) for o in (plain, way))
            norm = ((changed - gradient).norm() / gradient.norm()).item()
            differences.append({"loss": abs(other - loss) / abs(loss), "gradient": norm})
        figures[name] = {part: [each[part] for each in differences] for part in ("loss", "gradient")}
        rows.append([name, *(f"{max(values):.1e}" for values in figures[name].values())])
        print(f"{name}: {statistics.fmean(figures[name]['gradient']):.1e}", file=sys.stderr, flush=True)
    write(args, "exactness", {"relative_differences": figures})
    print_table(["way", "loss", "gradient"], rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
