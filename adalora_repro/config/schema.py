"""The typed schema of the configuration and what can be told from a composed one without torch.

Hydra composes ``conf/`` into ``Config``: a misspelt or ill-typed key fails before anything is loaded. ``method`` is the
one open node: its keys are those of the chosen method's YAML (Hydra refuses others) and its types those of the method's
``Options`` dataclass, so that a new method needs no change here.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from adalora_repro.config.catalog import GROUPS as GROUPS
from adalora_repro.config.catalog import add_folder as add_folder
from adalora_repro.config.catalog import added_folders as added_folders
from adalora_repro.config.catalog import base_files as base_files
from adalora_repro.config.catalog import choices_of as choices_of
from adalora_repro.config.catalog import resource as resource

LAUNCHES = ("wait", "detach")


@dataclass
class TaskConfig:
    """One task of a family; which fields matter is the family's business (``tasks/<family>.py``)."""

    name: str = MISSING
    family: str = MISSING  # module in tasks/: glue, squad, summarization
    budgets: str = MISSING  # budget family: glue, qa, nlg
    more_budgets: list[str] = field(default_factory=list)  # families that are valid too
    auto_model: str = MISSING  # transformers' auto class that carries the right head
    head: dict[str, Any] = field(default_factory=dict)  # what the model's configuration must know of the task
    hub: str = MISSING  # data set on the hub, its configuration and pinned revision
    hub_config: str | None = None
    revision: str = MISSING
    text_columns: list[str] = field(default_factory=list)
    label_column: str = "label"
    num_labels: int = 2  # 1: regression
    label_range: list[float] = field(default_factory=list)  # regression only: smallest and largest label
    metrics: list[str] = field(default_factory=list)
    primary_metric: str = MISSING
    validation: dict[str, str] = field(default_factory=dict)  # metric suffix -> split (a default would be merged in)
    holdout_by: list[str] = field(default_factory=list)  # texts by which held-out rows are grouped; none: all texts
    max_length: int = MISSING
    max_target_length: int | None = None
    stride: int | None = None  # tokens that neighbouring windows over a long context share
    n_best: int | None = None  # spans kept of each window, and answers kept of each question
    max_answer_length: int | None = None  # tokens
    null_threshold: float | None = None  # no answer where its score exceeds the best span's by more; null: never
    num_beams: int | None = None
    length_penalty: float | None = None
    min_target_length: int | None = None
    no_repeat_ngram_size: int | None = None
    early_stopping: bool | None = None
    classifier_dropout: float | None = None
    rows: dict[str, int] = field(default_factory=dict)  # official sizes: T is known before any download
    total_steps: int = MISSING  # T of the paper: what method.schedule=scaled scales from


@dataclass
class BudgetConfig:
    """What a run may train: the sizes of a label, or as many parameters as it says (``budgets.py``)."""

    label: str = MISSING
    family: str = MISSING
    match: str = "label"  # label: the method's sizes for the label | params: sizes that fill the number it says
    params: int | None = None  # with match=params: this number instead of the label's


@dataclass
class BackboneConfig:
    name: str = MISSING
    source: str = MISSING  # hub | package | random
    hub: str | None = None
    revision: str | None = None
    package: str | None = None  # installed Python package that carries the files
    sha256: str | None = None  # of model.safetensors, checked when loading from a package
    path: str | None = None  # a local folder instead of the hub
    weights: str = "pretrained"  # pretrained | random: for measure=cost alone, which they do not change
    tokenizer: str = MISSING  # hub | package | bytes
    architecture: dict[str, Any] = field(default_factory=dict)  # transformers' configuration: plans need no network
    gradient_checkpointing: bool = False
    lora_init: str = "kaiming"  # default of method.init; kaiming: as in loralib and PEFT; normal: N(0, init_std²)


@dataclass
class DataConfig:
    source: str = MISSING  # hub | local | sample
    dir: str | None = None
    cache_dir: str = "~/.cache/adalora-repro"  # tokenized data; not part of the result
    sample_rows: int = 1500
    sample_validation_rows: int = 400
    sample_seed: int = 0
    num_proc: int | None = None  # processes that tokenize a split; null: 1, for a large one up to 8
    holdout: int | float | None = None  # rows of train, or a fraction of them, to hold out: `best` is chosen on them
    skip_invalid: bool = False  # leave bad rows out, counted and reported, instead of stopping


@dataclass
class ProtocolConfig:
    name: str = MISSING  # paper | released


@dataclass
class TrainConfig:
    epochs: float = 3.0
    max_steps: int | None = None  # wins over epochs
    batch_size: int = 32  # examples of one optimizer step, whatever grad_accumulation is
    grad_accumulation: int = 1  # parts of a step's examples that go through the model in turn (on a CPU: or more)
    eval_steps: int | None = None  # null: once per epoch
    save_steps: int = 500
    log_steps: int = 50
    precision: str = "fp32"  # fp32 | bf16
    padding: str = "longest"  # longest (of what goes through the model at once) | max_length (as the released scripts)
    group_by_length: bool = False  # batches of rows of similar length; false: drawn at random, as the released scripts
    attention: str = "eager"  # eager (transformers' code) | cropped (DeBERTa: only the relative positions that occur)
    compile: str = "none"  # of training steps: none | inductor | aot_eager (traced alone, to see that it can be)
    num_workers: int | None = None  # processes that make batches; null: 0 on a CPU, 2 beside an accelerator
    device: str = "auto"  # auto | cpu | cuda


@dataclass
class OptimConfig:
    lr: float = MISSING
    warmup_steps: int = 0
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8


@dataclass
class EvalConfig:
    batch_size: int = 64
    max_examples: int | None = None  # a quick look: such a record enters no table unless asked
    untrained: bool = False  # evaluate before the first step too: in log.jsonl at t 0


@dataclass
class CostConfig:
    """What ``measure=cost`` measures (cost.py)."""

    steps: int = 20  # of each method, on the same batches
    warmup_steps: int = 3  # before these, not measured
    against: str | None = None  # the method beside the chosen one: a file of conf/method; null: it is measured alone


@dataclass
class ResultsConfig:
    dir: str = "results"


@dataclass
class Config:
    task: TaskConfig = field(default_factory=TaskConfig)
    method: dict[str, Any] = field(default_factory=dict)
    budget: BudgetConfig = field(default_factory=BudgetConfig)
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    data: DataConfig = field(default_factory=DataConfig)
    protocol: ProtocolConfig = field(default_factory=ProtocolConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    results: ResultsConfig = field(default_factory=ResultsConfig)
    measure: str = "score"  # score | cost: train and evaluate, or time some steps of it
    cost: CostConfig = field(default_factory=CostConfig)
    recipe: dict[str, Any] = field(default_factory=dict)  # AdaLoRA's of the task, for YAMLs that take some of it
    seed: int = 0
    dry_run: bool = False
    force: bool = False
    launch: str = "wait"  # wait | detach: of a sweep on a cluster, for its jobs or not
