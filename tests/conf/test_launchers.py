"""conf/hydra/launcher: every file composes, and says what hydra-submitit-launcher and sbatch understand."""

from __future__ import annotations

import re
import shlex

import pytest
from hydra import compose
from omegaconf import OmegaConf

from adalora_repro.config.catalog import resource

pytestmark = [
    pytest.mark.usefixtures("hydra"),
    pytest.mark.filterwarnings(r"ignore:\s*.hydra/launcher/submitit_slurm. is validated"),  # as run.py does
]
FOLDER = resource("conf") / "hydra" / "launcher"
NAMES = sorted(path.stem for path in FOLDER.glob("*.yaml"))


def composed(*words: str) -> dict[str, object]:
    cfg = compose("config", ["task=rte", *words], return_hydra_config=True)
    return OmegaConf.to_container(cfg, resolve=False)["hydra"]["launcher"]  # type: ignore[index,call-overload]


def test_both_names_are_the_same_settings() -> None:
    assert NAMES == ["slurm", "submitit_slurm"]
    short, long = (composed(f"hydra/launcher={name}") for name in NAMES)
    assert short == long
    assert short["_target_"] == "hydra_plugins.adalora_launcher.ArrayLauncher"
    assert str(short["submitit_folder"]).startswith("${hydra.sweep.dir}/")


def test_every_setting_is_the_plugin_s_and_has_a_comment() -> None:
    config = pytest.importorskip("hydra_plugins.hydra_submitit_launcher.config")
    own = OmegaConf.load(FOLDER / "submitit_slurm.yaml")
    typed = OmegaConf.merge(OmegaConf.structured(config.SlurmQueueConf), own)
    assert typed.array_parallelism == own.array_parallelism
    lines = (FOLDER / "submitit_slurm.yaml").read_text(encoding="utf-8").splitlines()
    bare = [line for line in lines if re.match(r" *\w+:", line) and "  # " not in line]
    assert [line.partition(":")[0] for line in bare] == ["_target_"]


def test_timeouts_are_expected() -> None:
    settings = composed("hydra/launcher=slurm")
    assert settings["max_num_timeout"] >= 10  # type: ignore[operator]
    assert settings["additional_parameters"] == {"requeue": True}


@pytest.mark.parametrize("name", NAMES)
def test_the_command_in_the_header_composes(name: str) -> None:
    (command,) = re.findall(r"^#   (.+)$", (FOLDER / f"{name}.yaml").read_text(encoding="utf-8"), re.MULTILINE)
    words = shlex.split(command)
    settings = [word for word in words if word.startswith("hydra.launcher.")]
    if words[0] == "make":
        assert "LAUNCHER=slurm" in words
        settings = words[-1].removeprefix("ARGS=").split()
    assert composed("hydra/launcher=slurm", *settings)["partition"] == "gpu"
