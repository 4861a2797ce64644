"""Configurations and plans of adalora-run, for benchmarks and tests of the runner itself."""

from __future__ import annotations

from collections.abc import Sequence

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from adalora_repro.cli.run import register
from adalora_repro.config.catalog import resource
from adalora_repro.config.plan import Plan
from adalora_repro.config.resolve import count, resolve


def composed(words: Sequence[str]) -> DictConfig:
    """The configuration of ``adalora-run`` with these words."""
    register()
    with initialize_config_dir(str(resource("conf").absolute()), version_base="1.3"):
        return compose("config", list(words))


def planned(words: Sequence[str]) -> Plan:
    """The plan of ``adalora-run`` with these words."""
    return count(resolve(composed(words), overrides=words))
