"""One module per fine-tuning method; a YAML in ``conf/method/`` names its module and sets its options."""

from __future__ import annotations

import importlib
import pkgutil
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from adalora_repro.errors import InputError, one_of
from adalora_repro.methods.equal_counts import matched

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from adalora_repro.methods.base import BaseMethod


def load(cfg: DictConfig) -> BaseMethod:
    """The chosen method, its options checked against its ``Options`` dataclass.

    Raises:
        InputError: no such module, an option the method does not have, a value of the wrong type or out of range.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    name = cfg.method.module
    modules = [m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_")]
    modules = [name for name in modules if name not in ("base", "equal_counts")]
    if name not in modules:
        raise one_of("method.module", name, modules)
    module: Any = importlib.import_module(f"{__name__}.{name}")
    known = [f.name for f in fields(module.Options) if f.name != "params"]  # which the budget sets
    for key in cfg.method:
        if key not in known and key not in ("label", "role", "sizes"):
            raise InputError(f"method.{key} is not an option of method '{cfg.method.name}'; valid: {', '.join(known)}")
    given = {key: value for key, value in cfg.method.items() if key in known and value is not None}
    if matched(cfg):
        if len(known) == len(fields(module.Options)):
            raise InputError(f"budget.match=params: method '{cfg.method.name}' has no size for a number of parameters")
        given["params"] = cfg.budget.params
    try:
        options = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(module.Options), given))
    except OmegaConfBaseException as error:
        raise InputError(f"method.{error.full_key}: {str(error.msg).splitlines()[0]}") from None
    method: BaseMethod = module.Method(options, cfg.protocol.name)
    return method
