"""Plans of runs by their words. Files are composed once; single values are set afterwards, which takes a tenth of the
time. Needs the fixture ``hydra``."""

import copy
import functools

from hydra import compose
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from adalora_repro.config import resolve as planning
from adalora_repro.config.catalog import GROUPS
from adalora_repro.config.plan import Plan

OF_HYDRA = ("~", "hydra", "+sweep", "+tuned", "tuned")


@functools.cache
def _of_files(*words: str) -> DictConfig:
    return compose("config", list(words))


def composed(*words: str) -> DictConfig:
    """The configuration of these words."""
    files = [word for word in words if word.partition("=")[0] in GROUPS or word.startswith(OF_HYDRA)]
    cfg = copy.deepcopy(_of_files(*files))
    for word in OverridesParser.create().parse_overrides([word for word in words if word not in files]):
        OmegaConf.update(cfg, word.key_or_group, word.value(), force_add=word.is_add())
    return cfg


def resolved(*words: str) -> Plan:
    """The plan of these words, without counts."""
    return planning.resolve(composed(*words), overrides=words)


def counted(*words: str) -> Plan:
    """The plan of these words, with counts."""
    return planning.count(resolved(*words))
