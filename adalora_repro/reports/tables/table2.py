"""Table 2: DeBERTaV3-base on the development sets of SQuAD 1.1 and 2.0 (paper, section 4.2).

The paper prints budgets as columns; here, as in every table, a method at a budget is a row, smallest budget first.
"""

from __future__ import annotations

from adalora_repro.reports.spec import Column, Spec

SPEC = Spec(
    name="table2",
    title="Reproduction of Table 2, SQuAD development sets",
    paper_file="table2_squad.csv",
    shares=True,
    decimals=1,
    columns=(
        Column(
            "squad",
            "SQuADv1.1",
            "EM/F1",
            ("exact", "f1"),
            ("squad_em", "squad_f1"),
            settings=("task.max_length", "task.stride", "task.max_answer_length"),
        ),
        Column(
            "squad_v2",
            "SQuADv2.0",
            "EM/F1",
            ("exact", "f1"),
            ("squad_v2_em", "squad_v2_f1"),
            settings=("task.max_length", "task.stride", "task.max_answer_length", "task.null_threshold"),
        ),
    ),
    notes=(
        "SQuADv2.0: EM and F1 of ours are at the null threshold of the run (task.null_threshold, 0 if nothing else is "
        "said: no answer where that scores above every span). best_exact and best_f1 take the threshold that suits the "
        "evaluated answers best, which is optimistic; the records have them. The paper does not say which it reports.",
        "The paper prints one decimal here: up to 0.05 of a difference is its rounding.",
        "Budgets are not equal at one label: 0.08, 0.16, 0.32 and 0.65% are the adapters' weights without their biases "
        "(0.080, 0.160, 0.321, 0.642% of DeBERTaV3-base). With biases Houlsby has 0.090, 0.171, 0.331, 0.652% and "
        "Pfeiffer 0.085, 0.166, 0.326, 0.647%; LoRA has 0.090, 0.180, 0.361, 0.722% and AdaLoRA about as many: at "
        "0.65%, 11 to 12% more than the adapters.",
    ),
)
