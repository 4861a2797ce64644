"""Words of a printed command: the shell and then Hydra read them back as the values that they stand for."""

import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hypothesis import example, given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from adalora_repro.config.words import word
from adalora_repro.reports.spec import Scope, command

PARSER = OverridesParser.create()
SPECIAL = st.sampled_from([*",'\"\\ ${}[]()=:~+-.|*?!#&;<>`\té½01eEaAnulltrfi_%@\n", "${", "\\$", "null", "true"])
#: no process takes a NUL; "???" means "missing" to OmegaConf, which has no way to write the text itself
TEXTS = st.lists(SPECIAL | st.characters(codec="utf-8", exclude_characters="\0"), max_size=10).map("".join)
TEXTS = TEXTS.filter(lambda text: text != "???")


def parsed(words: str) -> Override:
    """What the shell makes of the text and Hydra's grammar of that; the shell's grammar is the standard library's."""
    (override,) = PARSER.parse_overrides(shlex.split(words))
    return override


def composed(override: Override) -> Any:
    """The value that the configuration has after Hydra has set it."""
    cfg = OmegaConf.create({"key": "before"})
    OmegaConf.update(cfg, override.key_or_group, override.value())
    return cfg.key


@given(TEXTS)
@example("a,b")
@example("null")
@example("1_0")
@example("\\${a}\\")
@example("~/x")
def test_text_is_read_back_as_that_text(text: str) -> None:
    override = parsed(word("key", text))
    assert not override.is_sweep_override()
    assert (composed(override), type(composed(override))) == (text, str)
    (again,) = PARSER.parse_overrides([f"key={override.get_value_element_as_str()}"])  # a sweep writes it for its jobs
    assert composed(again) == text


@given(st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False))
def test_other_values_keep_their_type(value: Any) -> None:
    assert (composed(parsed(word("key", value))), type(composed(parsed(word("key", value))))) == (value, type(value))


@pytest.mark.parametrize("name", ["a,b", "it's", 'a "b"', "${HOME}", "x y", "é", "[a]", "-m", "12"])
def test_a_report_s_command_goes_through_a_real_shell(name: str) -> None:
    line = command(["sst2"], ["lora"], ["0.3M"], Scope("minilm", "sample", results=Path(name)))
    printed = (
        subprocess.run(
            ["sh", "-c", f'adalora() {{ printf "%s\\0" "$@"; }}; {line.replace("adalora-run", "adalora")}'],
            capture_output=True,
            check=True,
        )
        .stdout.decode()
        .split("\0")[:-1]
    )
    (override,) = (each for each in PARSER.parse_overrides(printed) if each.key_or_group == "results.dir")
    assert not override.is_sweep_override()
    cfg = OmegaConf.create({"results": {"dir": ""}})
    OmegaConf.update(cfg, override.key_or_group, override.value())
    assert cfg.results.dir == name
