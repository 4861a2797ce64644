"""conf/hydra/launcher: the files compose, and say what hydra-submitit-launcher, sbatch and Ray understand."""

import re
import shlex

import pytest
from hydra import compose
from omegaconf import OmegaConf

from adalora_repro.config.catalog import resource

pytestmark = pytest.mark.usefixtures("hydra")
FOLDER = resource("conf") / "hydra" / "launcher"
TEXTS = {name: (FOLDER / f"{name}.yaml").read_text(encoding="utf-8") for name in ("slurm", "ray")}


@pytest.mark.parametrize("name", TEXTS)
def test_the_command_in_the_header_composes_with_the_types_of_the_plugin(name: str) -> None:
    (command,) = re.findall(r"^#   (.+)$", TEXTS[name], re.MULTILINE)
    words = [word for word in shlex.split(command) if "hydra" in word]
    cfg = compose("config", ["task=rte", *words], return_hydra_config=True)
    launcher = OmegaConf.to_container(cfg.hydra.launcher, resolve=False)
    typed = OmegaConf.from_dotlist([word.removeprefix("hydra.launcher.") for word in words[1:]])
    own = OmegaConf.merge(OmegaConf.create(TEXTS[name]), typed)
    del own["defaults"]
    assert {name: launcher[name] for name in own} == OmegaConf.to_container(own, resolve=False)


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_every_setting_has_a_comment(text: str) -> None:
    lines = [line for line in text.splitlines() if re.match(r" *\w+:", line) and "  # " not in line]
    assert [line.partition(":")[0] for line in lines] == ["defaults", "_target_"]
