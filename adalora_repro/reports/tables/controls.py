"""Controls, beyond the paper: which part of AdaLoRA's gain is its allocation, its ranks, its learning rate."""

from __future__ import annotations

from adalora_repro.reports.spec import Spec
from adalora_repro.reports.tables.table1 import columns_of

SPEC = Spec(
    name="controls",
    title="Controls, beyond the paper",
    paper_file="controls.csv",
    printed=False,
    methods=(
        "lora",
        "lora_at_adalora",
        "lora_init_r",
        "lora_rank_pattern",
        "svd_lora",
        "svd_lora_init_r",
        "adalora_uniform",
        "adalora_random",
        "adalora_gradient",
        "adalora",
    ),
    columns=columns_of("mnli", "sst2", "cola", "rte"),
    notes=(
        "The paper's numbers of LoRA and AdaLoRA are those of its Table 1; it has none of the others.",
        "LoRA and SVD-LoRA at the initial rank hold 1.5 to 2 times the parameters of the budget (twice at 0.3M), as "
        "AdaLoRA does at the start.",
        "LoRA (ranks of AdaLoRA) starts from a finished run of AdaLoRA: adalora-run method=lora_rank_pattern "
        "method.rank_pattern=RUN. Ranks of another run are another setting.",
    ),
)
