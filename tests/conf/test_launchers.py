"""conf/hydra/launcher: the file composes, and says what hydra-submitit-launcher and sbatch understand."""

from __future__ import annotations

import re
import shlex

import pytest
from hydra import compose
from omegaconf import OmegaConf

from adalora_repro.config.catalog import resource

pytestmark = pytest.mark.usefixtures("hydra")
TEXT = (resource("conf") / "hydra" / "launcher" / "slurm.yaml").read_text(encoding="utf-8")


def test_the_command_in_the_header_composes_with_the_types_of_the_plugin() -> None:
    (command,) = re.findall(r"^#   (.+)$", TEXT, re.MULTILINE)
    words = [word for word in shlex.split(command) if "hydra" in word]
    cfg = compose("config", ["task=rte", *words], return_hydra_config=True)
    launcher = OmegaConf.to_container(cfg.hydra.launcher, resolve=False)
    assert launcher["_target_"] == "hydra_plugins.adalora_launcher.ArrayLauncher"  # type: ignore[index,call-overload]
    own = OmegaConf.create(TEXT)
    own.partition = "gpu"
    del own["defaults"]
    assert {name: launcher[name] for name in own} == OmegaConf.to_container(own, resolve=False)  # type: ignore[index,call-overload]
    assert own.max_num_timeout >= 10  # at a time limit a run goes on
    assert own.additional_parameters.requeue


def test_every_setting_has_a_comment() -> None:
    lines = [line for line in TEXT.splitlines() if re.match(r" *\w+:", line) and "  # " not in line]
    assert [line.partition(":")[0] for line in lines] == ["defaults", "_target_"]
