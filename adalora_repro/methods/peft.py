r"""Any tuner of HF PEFT on the weight matrices that our methods adapt; a new one is a YAML alone.

The YAML names PEFT's config class (``tuner``) and sets its fields (``options``). ``target_modules`` are the full paths
of the chosen sites, the task head is trained as with every method, and all that PEFT freezes stays frozen.

At the start the model is the backbone: exactly where the increment starts at zero (LoRA, rsLoRA, EVA, VeRA, LoHa) or
the factor at one ((IA)³); up to rounding with OFT, with DoRA, which divides by a norm that it multiplies with, and
with PiSSA:

    W = W_res + s B A,   s B A = U_r S_r V_rᵀ   the r largest singular values of W

PiSSA trains B and A and freezes W_res, so ``inject`` changes the weight of the base layer. What follows from that:

- With ``train.precision=bf16`` W_res is rounded where other methods round W: the start differs from the backbone by as
  much as W_res does from its rounding.
- W_res is stored nowhere. A resumed run and PEFT, when it loads the kept model, compute it again from the backbone. It
  does not depend on the signs of singular vectors, but on rounding: another machine or another number of threads gives
  the same model up to rounding. Against the backbone the kept increment is s (B A - B_0 A_0), of rank 2r.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from adalora_repro.errors import InputError, did_you_mean, first_line, one_of
from adalora_repro.methods.base import LARGEST, BaseMethod, MatrixOptions, PatternOption, require_size
from adalora_repro.methods.equal_counts import given_ranks
from adalora_repro.models import export
from adalora_repro.models.sites import head_parameters
from adalora_repro.settings import setting

if TYPE_CHECKING:
    from omegaconf import DictConfig
    from transformers import PreTrainedModel

    from adalora_repro.models.sites import Site
    from adalora_repro.tasks.base import Batch

ADAPTER = "default"  # PEFT's name for the only adapter of a model
#: fields of PEFT's configs that follow from other settings
OURS = {
    "target_modules": "method.targets and method.layers",
    "layers_to_transform": "method.layers",
    "exclude_modules": "method.targets and method.layers",
    "modules_to_save": "the task's head",
    "rank_pattern": "method.rank_pattern",
    "alpha_pattern": "method.rank_pattern",
    **dict.fromkeys(("task_type", "peft_type", "base_model_name_or_path", "revision", "inference_mode"), "the run"),
}
#: initial values that PEFT would silently not take, or not find again when it loads the kept model
REFUSED = {
    "lora_ga": "takes gradients, and without them PEFT falls back on its default",
    "pissa_niter_": "changes the frozen weights by a random SVD, another one when the model is loaded; take pissa",
}


@dataclass
class Options(PatternOption, MatrixOptions):
    """What of PEFT, of which size."""

    tuner: str = ""
    "Config class of HF PEFT: LoraConfig, VeraConfig, IA3Config …"
    options: dict[str, Any] = setting(factory=dict)
    "Fields of that class; those that the sites, the size or the run set are left out."
    roles: dict[str, list[str]] = setting(factory=dict)
    """Fields of that class that list modules -> their roles; target_modules: the roles that the method adapts, where
    the backbone has them, without it all."""
    size: str | None = None
    "Field of that class that method.r sets: r, oft_block_size …; null: the method has one size."
    r: int = setting(0, minimum=1, maximum=LARGEST)
    "The size: a rank, or what method.size names (OFT: the block size); left out, the budget sets it."

    def __post_init__(self) -> None:
        super().__post_init__()
        fields = config_fields(self.tuner)
        if hasattr(tuner_class(self.tuner), "update_and_allocate"):
            raise InputError(f"method.tuner={self.tuner} prunes during training, which needs a module: peft_adalora")
        for name in (*self.options, *self.roles):
            if name in OURS and not (name == "target_modules" and name in self.roles):
                raise InputError(f"method.options.{name}: {OURS[name]} sets it")
            if name not in fields or name == self.size:
                valid = sorted(fields - OURS.keys() - {self.size})
                near = did_you_mean(name, valid)
                raise InputError(
                    f"method.options.{name}: {self.tuner} has no such option{near}; valid: {', '.join(valid)}"
                )
        init = str(self.options.get("init_lora_weights"))
        if reason := next((reason for start, reason in REFUSED.items() if init.startswith(start)), None):
            raise InputError(f"method.options.init_lora_weights={init} {reason}")
        if self.size is not None and self.size not in fields:
            raise one_of("method.size", self.size, sorted(fields))
        if self.rank_pattern is not None:
            if "rank_pattern" not in fields:
                raise InputError(f"method.rank_pattern: {self.tuner} has one size for all matrices")
            if self.r:
                raise InputError("method.r and method.rank_pattern both set the ranks; give one of them")
        elif self.size is not None:
            require_size(self, None, "r")
        elif self.r:
            raise InputError(f"method.r={self.r}: {self.tuner} has one size here")

    def matrices(self, sites: Sequence[Site]) -> list[Site]:
        own = self.roles.get("target_modules")
        return [site for site in super().matrices(sites) if own is None or site.role in own]


def library() -> ModuleType:
    """HF PEFT, imported when it is needed.

    Raises:
        InputError: it is not installed.
    """
    try:
        import peft
    except ModuleNotFoundError as error:
        if error.name != "peft":
            raise
        raise InputError("methods of HF PEFT need peft: pip install 'adalora-repro[peft]'") from None
    return peft


def config_class(tuner: str) -> Any:
    """PEFT's config class of this name.

    Raises:
        InputError: there is none, or its tuner does not work on single modules.
    """
    peft = library()
    tuners = peft.mapping.PEFT_TYPE_TO_TUNER_MAPPING
    classes = {
        config.__name__: config
        for kind, config in peft.mapping.PEFT_TYPE_TO_CONFIG_MAPPING.items()
        if hasattr(tuners.get(kind), "tuner_layer_cls") and "target_modules" in config.__dataclass_fields__
    }
    if tuner not in classes:
        raise one_of("method.tuner", tuner, sorted(classes))
    return classes[tuner]


def tuner_class(tuner: str) -> Any:
    """The class that a config class configures."""
    kinds = library().mapping
    by_class = {config: kind for kind, config in kinds.PEFT_TYPE_TO_CONFIG_MAPPING.items()}
    return kinds.PEFT_TYPE_TO_TUNER_MAPPING[by_class[config_class(tuner)]]


def config_fields(tuner: str) -> set[str]:
    """The names of a config class's fields."""
    return {field.name for field in dataclasses.fields(config_class(tuner)) if field.init}


class Method(BaseMethod):
    """``protocol`` changes nothing: PEFT's code is what it is.

    Attributes:
        wrapper: the ``PeftModel`` around the model, which keeps its own class and is called without the wrapper.
        sites: path -> site of every adapted matrix.
    """

    options: Options
    wrapper: Any = None

    def __init__(self, options: Any, protocol: str) -> None:
        super().__init__(options, protocol)
        self.sites: dict[str, Site] = {}
        self.n = 0

    # -- injection -----------------------------------------------------------------------------------------------------

    def inject(self, model: PreTrainedModel, sites: Sequence[Site]) -> None:
        """Raises InputError if PEFT refuses the options, could not load its own config, or needs weights for a plan."""
        matrices = self.options.matrices(sites)
        self.n = len(matrices)
        values = self.values(model, matrices)
        self.sites = {site.path: site for site in matrices if site.path in values["target_modules"]}
        failures: tuple[type[Exception], ...] = (TypeError, ValueError, NotImplementedError)
        if model.device.type == "meta":
            failures += (RuntimeError,)
        try:
            with warnings.catch_warnings(), model.device:
                warnings.simplefilter("ignore")
                config = config_class(self.kind)(**values)
                self.wrapper = library().PeftModel(model, config, ADAPTER)
                config.from_peft_type(**config.to_dict())  # what PEFT has filled in must be there when it is loaded
        except failures as error:
            raise InputError(f"{self.kind} of HF PEFT: {first_line(error)}") from None
        if set(self.tuner.targeted_module_names) != self.sites.keys():
            raise InputError(f"{self.kind} of HF PEFT adapts other modules than the chosen sites")
        if getattr(config, "init_lora_weights", None) == "eva" and config.eva_config.rho != 1:
            raise InputError(
                "method.options.eva_config.rho must be 1: other values change the ranks that the plan counts"
            )
        for parameter in head_parameters(model).values():
            parameter.requires_grad_(True)

    def values(self, model: PreTrainedModel, matrices: Sequence[Site]) -> dict[str, Any]:
        """The fields of PEFT's config.

        With ``rank_pattern`` every matrix has the scaling of the mean rank, as with our LoRA.
        """
        options = self.options
        modules = {
            name: [site.path for site in matrices if site.role in roles]
            for name, roles in options.roles.items()
            if name != "target_modules"
        }
        values = {**options.options, **modules, "target_modules": [site.path for site in matrices]}
        if options.rank_pattern is None:
            return values if options.size is None else values | {options.size: options.r}
        ranks = given_ranks(options.rank_pattern, [site.name for site in matrices])
        paths = {site.path: ranks[site.name] for site in matrices if ranks[site.name]}
        mean = sum(ranks.values()) / len(ranks)
        # PEFT divides alpha by r, in rsLoRA by its root
        power = 0.5 if values.get("use_rslora") else 1.0
        defaults = config_class(options.tuner).__dataclass_fields__
        alpha = next(name for name in ("lora_alpha", "alpha") if name in defaults)
        whole = values.get(alpha, defaults[alpha].default)
        return values | {
            "target_modules": list(paths),
            "r": max(paths.values()),
            "rank_pattern": paths,
            "alpha_pattern": {path: whole * (r / mean) ** power for path, r in paths.items()},
        }

    @property
    def kind(self) -> str:
        """The name of PEFT's config class."""
        return self.options.tuner

    @property
    def tuner(self) -> Any:
        return self.wrapper.base_model

    @property
    def config(self) -> Any:
        """PEFT's config of the adapter; PEFT changes it."""
        return self.tuner.peft_config[ADAPTER]

    def layers(self) -> dict[str, Any]:
        """Site name -> PEFT's layer."""
        return {site.name: self.tuner.model.get_submodule(path) for path, site in self.sites.items()}

    # -- initial values from data --------------------------------------------------------------------------------------

    def prepare(self, batches: Callable[[], Iterable[Batch]], forward: Callable[[Batch], object]) -> None:
        """EVA (``init_lora_weights: eva``): A starts as the r leading right singular vectors of the matrix's inputs.

        PEFT goes through the batches, more than once if need be, until they have converged. Padding is left out.
        """
        if getattr(self.config, "init_lora_weights", None) != "eva":
            return
        prefix = export.PREFIX

        def inputs(layer_input: tuple[Tensor, ...], batch: Batch, name: str) -> Tensor:
            site, x = self.sites[name.removeprefix(prefix)], layer_input[0]
            mask = batch["attention_mask"].bool()
            reads_labels = site.stack == "decoder" and self.tuner.model.config.is_encoder_decoder
            if reads_labels and site.role not in ("cross_k", "cross_v"):
                mask = batch["labels"] >= 0
            # DeBERTa's q and k also get the embeddings of relative positions: all of them count
            return x[mask] if x.shape[:-1] == mask.shape else x.flatten(0, -2)

        with warnings.catch_warnings(), torch.random.fork_rng():
            warnings.simplefilter("ignore")
            library().tuners.lora.eva.initialize_lora_eva_weights(
                self.wrapper,
                Batches(batches),
                forward_fn=lambda _, batch: forward(batch),
                prepare_model_inputs_fn=None,
                prepare_layer_inputs_fn=inputs,
                gather_distributed_inputs=False,
                show_progress_bar=False,
            )
        self.wrapper.train()

    # -- the record ----------------------------------------------------------------------------------------------------

    def plan(self, total_steps: int) -> dict[str, Any]:
        if self.options.rank_pattern is not None:
            return {"n": self.n, "b_T": sum(self.options.rank_pattern.values())}
        return {"n": self.n} | ({"r": self.options.r} if self.options.size == "r" else {})

    def summary(self) -> dict[str, Any]:
        if "rank_pattern" not in config_fields(self.kind):
            return {}
        ranks = {name: layer.r[ADAPTER] for name, layer in self.layers().items()}
        return {"rank_pattern": dict.fromkeys(self.options.rank_pattern or ranks, 0) | ranks}

    # -- the kept model ------------------------------------------------------------------------------------------------

    def write(self, model: PreTrainedModel, cfg: DictConfig, folder: Path) -> None:
        """PEFT's own format; the head is one of its ``modules_to_save``."""
        peft = library()
        kept, config = self.config, copy(self.config)
        self.tuner.peft_config[ADAPTER] = config  # PEFT renames in it what its AdaLoRA goes on using
        tensors = peft.get_peft_model_state_dict(self.wrapper, adapter_name=ADAPTER, save_embedding_layers=False)
        self.tuner.peft_config[ADAPTER] = kept
        tensors |= {f"{export.PREFIX}{name}": p for name, p in head_parameters(model).items() if p.requires_grad}
        export.write_tensors(tensors, folder / export.PEFT_WEIGHTS)
        config.task_type = export.TASK_TYPES.get(cfg.task.auto_model)
        config.base_model_name_or_path = export.base_name(cfg)
        config.revision = cfg.backbone.revision if cfg.backbone.path is None else None
        config.modules_to_save = export.head_modules(model) or None
        config.inference_mode = True
        config.save_pretrained(folder)

    def read(self, model: PreTrainedModel, sites: Sequence[Site], folder: Path) -> PreTrainedModel:
        peft = library()
        config = peft.PeftConfig.from_pretrained(str(folder))
        config.modules_to_save = None  # the head's own parameters have these names, and PEFT cannot unwrap every head
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                wrapper = peft.PeftModel.from_pretrained(model, str(folder), config=config)
        except (RuntimeError, ValueError) as error:
            raise InputError(f"{folder}: the backbone is another one: {first_line(error)}") from None
        with suppress(NotImplementedError):  # a tuner that stays a module
            return wrapper.merge_and_unload()
        return wrapper.base_model.model


class Batches:
    """Batches that can be gone through again and again."""

    def __init__(self, batches: Callable[[], Iterable[Batch]]) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return 1  # PEFT asks whether there are any

    def __iter__(self) -> Any:
        return iter(self.batches())
