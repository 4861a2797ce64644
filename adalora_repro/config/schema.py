"""The typed schema of a configuration: every setting with its meaning, its range and its part in a run's identity.

Hydra composes ``conf/`` into ``Config``: a misspelt or ill-typed key fails before anything is loaded. ``method`` is the
one open node: its keys are those of the chosen method's YAML (Hydra refuses others) and its types those of the method's
``Options`` dataclass. A task has the settings of ``TaskFields``, and those of its family's ``Options``.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, get_type_hints

from omegaconf import MISSING

from adalora_repro.methods.base import AllocationOption, BaseOptions, InitOption, RankOptions
from adalora_repro.settings import setting
from adalora_repro.tasks import families

LAUNCHES = ("wait", "detach")
TRACKERS = ("tensorboard", "wandb", "trackio", "mlflow")
MOST_STEPS = 2**40  # ten thousand years of them


@dataclass
class TaskFields:
    """One task of a family. What all families share; each adds its own ``Options``."""

    name: str = MISSING
    "Id of the task, as in records and tables."
    family: str = MISSING
    "Module in tasks/ that reads and scores it: glue, squad or summarization."
    budgets: str = MISSING
    "Budget family of the task: glue, qa or nlg."
    more_budgets: list[str] = setting(factory=list, identity=False)
    "Other budget families that are valid for the task."
    auto_model: str = setting(MISSING, identity=False)
    "Auto class of transformers that carries the right head."
    head: dict[str, Any] = setting(factory=dict, identity=False)
    "Values that the task sets in the model's configuration; all but those of the labels are part of the identity."
    hub: str | None = None
    "Data set on the hub; null: your own files."
    hub_config: str | None = None
    "Configuration of the data set on the hub."
    revision: str | None = None
    "Commit of the data set on the hub."
    text_columns: list[str] = field(default_factory=list)
    "Columns with the model's input, in order."
    label_column: str = "label"
    "Column with the label, the answers or the summary."
    num_labels: int | None = setting(2, minimum=1)
    "Number of classes; 1: regression; null: counted in your own files."
    class_names: list[str] = setting(factory=list, identity=False)
    "Names of the classes, in label order; empty: the label numbers or, for your own files, the sorted labels."
    label_range: list[float] = field(default_factory=list)
    "Regression only: the smallest and the largest label."
    metrics: list[str] = field(default_factory=list)
    "Metrics of each evaluation."
    primary_metric: str = MISSING
    "The metric that chooses checkpoints and learning rates."
    validation: dict[str, str] = field(default_factory=dict)
    "Suffix of the metrics' names -> split that they are computed on."
    validation_share: int | float | None = setting(None, later=None)
    "For your own files without a validation file: how many rows of train, or what fraction, to use as one."
    holdout_by: list[str] = field(default_factory=list)
    "Text columns by which held-out rows are grouped; empty: all of them."
    max_length: int = setting(MISSING, minimum=1)
    "Tokens of an input; longer texts are cut, or give several windows."
    rows: dict[str, int] = setting(factory=dict, identity=False)
    "Official sizes of the splits, from which T follows before any download."
    total_steps: int | None = setting(None, minimum=1)
    "The paper's T, from which method.schedule=scaled scales; null: none, and null step counts become shares of T."


def _with_options(fields: type) -> type:
    """The dataclass with the ``Options`` of all families, null where a task's family has no use for them."""
    options = {}  # by name: a family may build on the options of another
    for family in families().values():
        hints = get_type_hints(family.Options)
        for each in dataclasses.fields(family.Options):
            metadata = {**each.metadata, "owner": family.Options}
            options[each.name] = each.name, hints[each.name] | None, field(default=None, metadata=metadata)
    namespace = {"__doc__": fields.__doc__}
    return dataclasses.make_dataclass("TaskConfig", options.values(), bases=(fields,), namespace=namespace)


if TYPE_CHECKING:

    class TaskConfig(TaskFields):
        """``TaskFields`` and the ``Options`` of all families."""
else:
    TaskConfig = _with_options(TaskFields)


@dataclass
class MethodFields(AllocationOption, InitOption, RankOptions, BaseOptions):
    """What the configuration itself reads of a method. The rest is in the ``Options`` of the method's module."""

    label: str = setting(MISSING, identity=False)
    "Name in tables; without it the id."
    role: str = setting("other", identity=False)
    "What the method is in a comparison: paper, ablation, control, cross-check or other."
    sizes: dict[str, Any] | None = setting(None, identity=False)
    "Budget -> options; null: the method has one size."


@dataclass
class BudgetConfig:
    """What a run may train: the sizes of a label, or a number of parameters."""

    label: str = MISSING
    "Name of the budget."
    family: str = MISSING
    "Budget family that it belongs to: glue, qa or nlg."
    match: str = setting("label", later="label", choices=("label", "params"))
    "label: the method's sizes for the budget; params: the largest sizes within its number of parameters."
    params: int | None = setting(None, later=None, minimum=1, below=2**40)
    "With budget.match=params: the number of parameters, instead of the label's."


@dataclass
class BackboneConfig:
    """The pretrained model."""

    name: str = MISSING
    "Id of the backbone, as in records and tables."
    source: str = setting(MISSING, choices=("hub", "package", "random"))
    "Where the weights come from: the hub, an installed Python package, or random numbers."
    hub: str | None = None
    "Name on the hub."
    revision: str | None = None
    "Commit on the hub."
    package: str | None = None
    "Python package that carries the files."
    sha256: str | None = None
    "SHA-256 of model.safetensors; checked when it is loaded from a package."
    path: str | None = None
    "A local folder with the model, instead of hub or package."
    weights: str = setting("pretrained", later="pretrained", choices=("pretrained", "random"))
    "random: only for measure=cost, whose results do not depend on the weights."
    tokenizer: str = setting(MISSING, choices=("hub", "package", "bytes"))
    "Where the tokenizer comes from; bytes: one token per byte."
    architecture: dict[str, Any] = field(default_factory=dict)
    "Configuration of transformers; it ships here so that plans need no network."
    gradient_checkpointing: bool = False
    "Recompute activations in the backward pass: less memory, more time."
    lora_init: str = setting("kaiming", identity=False)
    "Default of method.init. kaiming: as in loralib and PEFT; normal: N(0, init_std^2)."


@dataclass
class DataConfig:
    """Where the data come from."""

    source: str = setting(MISSING, choices=("hub", "local", "sample"))
    "The name of the chosen file."
    dir: str | None = setting(None, identity=False)
    "With data=local: the folder with one folder per task, or with your own files."
    cache_dir: str = setting("~/.cache/adalora-repro", identity=False)
    "Folder of tokenized data."
    sample_rows: int = setting(1500, minimum=1)
    "With data=sample: rows of the train split."
    sample_validation_rows: int = setting(400, minimum=1)
    "With data=sample: rows of each validation split."
    sample_seed: int = 0
    "With data=sample: seed of the generator."
    num_proc: int | None = setting(None, identity=False, minimum=1)
    "Processes that tokenize a split; null: 1, for a large split up to 8."
    holdout: int | float | None = setting(None, later=None)
    "Rows of train, or a fraction of them, to hold out: best checkpoints and learning rates are chosen on them."
    skip_invalid: bool = setting(False, later=False)
    "Leave bad rows out, counted and reported, instead of stopping."


@dataclass
class ProtocolConfig:
    """Whose rules a run follows."""

    name: str = setting(MISSING, choices=("paper", "released"))
    "paper: what the paper says; released: what the authors' code does."


@dataclass
class TrainConfig:
    """Training."""

    epochs: float = setting(3.0, above=0)
    "Passes over the train split."
    max_steps: int | None = setting(None, minimum=1)
    "Optimizer steps; overrides train.epochs."
    batch_size: int = setting(32, minimum=1)
    "Examples of one optimizer step, whatever grad_accumulation is."
    grad_accumulation: int = setting(1, minimum=1)
    "Micro-batches per optimizer step; a CPU may use more."
    eval_steps: int | None = setting(None, minimum=1)
    "Optimizer steps from one evaluation to the next; null: one epoch."
    save_steps: int = setting(500, identity=False, minimum=1)
    "Optimizer steps from one checkpoint to the next."
    log_steps: int = setting(50, identity=False, minimum=1)
    "Optimizer steps from one line of log.jsonl to the next."
    precision: str = setting("fp32", choices=("fp32", "bf16"))
    "bf16: mixed precision, frozen weights stored in bf16; a CPU without bf16 instructions multiplies in fp32."
    padding: str = setting("longest", choices=("longest", "max_length"))
    "longest: to the longest example of the micro-batch; max_length: to task.max_length, as in the released scripts."
    group_by_length: bool = setting(False, later=True)
    "Batches of rows of similar length; false: drawn at random, as in the released scripts."
    pass_tokens: int = setting(128, later=128, minimum=1, below=2**31)
    "CPU only: fixed cost of a forward and backward pass, in tokens; it decides how a step is split into micro-batches."
    attention: str = setting("cropped", later="eager", choices=("cropped", "eager"))
    "cropped: DeBERTa with only the relative positions that occur, other models as they are; eager: transformers' code."
    compile: str = setting("none", later="none", choices=("none", "inductor", "aot_eager"))
    "Compiler of training steps; aot_eager only traces the model, to check that it can be compiled."
    num_workers: int | None = setting(None, identity=False, minimum=0)
    "Processes that prepare batches; null: 0 on a CPU, 2 with an accelerator."
    device: str = setting("auto", identity=False, choices=("auto", "cpu", "cuda"))
    "auto: a GPU that CUDA or ROCm drives, if there is one; else the CPU."


@dataclass
class OptimConfig:
    """AdamW with linear decay."""

    lr: float = setting(MISSING, above=0)
    "Learning rate at the end of warm-up."
    warmup_steps: int | None = setting(0, minimum=0)
    "Optimizer steps in which the learning rate rises from 0; null: 6% of T, for a task without task.total_steps."
    weight_decay: float = setting(0.0, minimum=0)
    "Decoupled weight decay of matrices; vectors do not decay."
    max_grad_norm: float = setting(1.0, above=0)
    "Norm to which gradients are clipped."
    beta1: float = setting(0.9, minimum=0, below=1)
    "Decay of AdamW's first moment."
    beta2: float = setting(0.999, minimum=0, below=1)
    "Decay of AdamW's second moment."
    eps: float = setting(1e-8, above=0)
    "AdamW's epsilon."


@dataclass
class EvalConfig:
    """Evaluation."""

    batch_size: int = setting(64, minimum=1)
    "Examples of one batch of an evaluation."
    max_examples: int | None = setting(None, minimum=1)
    "Evaluate on this many examples only, for a quick look; such a record enters no table unless asked for."
    untrained: bool = setting(False, identity=False)
    "Evaluate before the first step too; log.jsonl has the result at t = 0."


@dataclass
class CostConfig:
    """What ``measure=cost`` measures."""

    steps: int = setting(20, identity=False, minimum=1)
    "Steps of each method that are measured, on the same batches."
    warmup_steps: int = setting(3, identity=False, minimum=0)
    "Steps before these, not measured."
    against: str | None = setting("lora", identity=False)
    "The method measured beside the chosen one, LoRA as in the paper's Table 15; null: none."


@dataclass
class ResultsConfig:
    """Where results go."""

    dir: str = setting("results", identity=False)
    "Folder of all results."


@dataclass
class Config:
    """One run."""

    task: TaskConfig = field(default_factory=TaskConfig)
    method: dict[str, Any] = field(default_factory=dict, metadata={"keys": MethodFields})
    budget: BudgetConfig = field(default_factory=BudgetConfig)
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    data: DataConfig = field(default_factory=DataConfig)
    protocol: ProtocolConfig = field(default_factory=ProtocolConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    results: ResultsConfig = field(default_factory=ResultsConfig)
    measure: str = setting("score", identity=False, choices=("score", "cost"))
    "score: train and evaluate; cost: time and memory of some steps."
    cost: CostConfig = field(default_factory=CostConfig)
    recipe: dict[str, Any] = setting(factory=dict, identity=False)
    "AdaLoRA's settings for the task, to which other methods' files refer."
    seed: int = setting(0, minimum=0, below=2**32)
    "Seed of initial values, order of the data and dropout."
    dry_run: bool = setting(False, identity=False)
    "Print the plan and stop: no download, nothing on disk."
    force: bool = setting(False, identity=False)
    "Run again although the run is finished; the earlier record is kept under another name."
    save: str = setting("auto", identity=False, choices=("auto", "adapter", "merged", "none"))
    """The model that a finished run keeps in its folder. adapter: what was trained (low-rank methods: in the format of
    HF PEFT); merged: a checkpoint of transformers; auto: adapter, but nothing where the whole backbone was trained."""
    track: list[str] = setting(factory=list, identity=False)
    "Experiment trackers beside log.jsonl: tensorboard, wandb (offline unless WANDB_MODE is set), trackio, mlflow."
    launch: str = setting("wait", identity=False, choices=LAUNCHES)
    "With hydra/launcher=slurm: wait for the runs, or detach: submit them and return."
