"""One module per fine-tuning method; a YAML in ``conf/method/`` names its module and sets its options."""

from __future__ import annotations

import importlib
import pkgutil
from dataclasses import fields, is_dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any

from adalora_repro.errors import InputError, one_line, one_of
from adalora_repro.methods.equal_counts import matched
from adalora_repro.settings import check

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from adalora_repro.methods.base import BaseMethod

#: keys of a method's YAML that are not options: its name and role in tables, its sizes at the budgets
DESCRIPTION = ("label", "role", "sizes")
BY_BUDGET = "params"  # an option that the budget sets: nobody can type it


def load(cfg: DictConfig) -> BaseMethod:
    """The chosen method, its options checked against its ``Options`` dataclass.

    Raises:
        InputError: no such module, an option the method does not have, a value of the wrong type or out of range.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    module: Any = module_of(cfg.method.module)
    valid = [field.name for field in fields(module.Options) if field.name != BY_BUDGET]
    for key in cfg.method:
        if key not in valid and key not in DESCRIPTION:
            raise InputError(f"method.{key} is not an option of method '{cfg.method.name}'; valid: {', '.join(valid)}")
    given = {key: value for key, value in cfg.method.items() if key in valid and value is not None}
    if fills_parameters(module) and matched(cfg):
        given[BY_BUDGET] = cfg.budget.params
    try:
        typed = OmegaConf.merge(OmegaConf.structured(module.Options), given)
        check(module.Options, {key: typed[key] for key in given}, "method.")
        options = OmegaConf.to_object(typed)
    except OmegaConfBaseException as error:
        raise InputError(f"method.{error.full_key}: {str(error.msg).splitlines()[0]}") from None
    method: BaseMethod = module.Method(options, cfg.protocol.name)
    return method


def fills_parameters(module: ModuleType) -> bool:
    """Whether the method can choose a size for each matrix so that they fill a number of parameters (``params``)."""
    options: Any = vars(module)["Options"]
    return any(field.name == BY_BUDGET for field in fields(options))


def module_of(name: str) -> ModuleType:
    """The module of a method: one of this package, or any importable module by its full name.

    Raises:
        InputError: there is no such module, it cannot be imported, or it has no class ``Method`` and dataclass
            ``Options``.
    """
    full = name if "." in name else f"{__name__}.{name}"
    module = None
    try:
        module = importlib.import_module(full)
    except Exception as error:  # of the user's own code; or the module is there, and something that it imports is not
        if not isinstance(error, ModuleNotFoundError) or not f"{full}.".startswith(f"{error.name}."):
            problem = f"{one_line(error)}; python -c 'import {full}' shows where"
            raise InputError(f"method.module={name}: {problem}") from error
    if module is None or not hasattr(module, "Method") or not is_dataclass(getattr(module, "Options", None)):
        if "." in name:
            raise InputError(f"method.module={name}: no module with a class Method and a dataclass Options")
        raise one_of("method.module", name, modules())
    return module


def modules() -> list[str]:
    """The modules of this package that define a method."""
    names = [info.name for info in pkgutil.iter_modules(__path__)]
    return [name for name in names if hasattr(importlib.import_module(f"{__name__}.{name}"), "Method")]
