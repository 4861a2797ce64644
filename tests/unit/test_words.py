"""Words of a printed command: the shell and then Hydra read them back as the values that they stand for."""

import shlex
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hypothesis import example, given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from adalora_repro.config.words import word

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
