"""Hydra's command line: words that it would not understand, and its errors as one line each."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import pairwise
from typing import NoReturn

# The one private module of Hydra: it has no public parser of its command line, and a second one would differ from it.
from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Override
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from adalora_repro.cli.arguments import require_one_config_dir
from adalora_repro.config.catalog import GROUPS, add_folder, base_files, choices_of, read, resource
from adalora_repro.config.checks import OPTIONAL
from adalora_repro.config.schema import Config
from adalora_repro.config.words import word
from adalora_repro.errors import InputError, did_you_mean, nearest
from adalora_repro.settings import settings_of

#: errors of Hydra, its launchers and the sweeper for wrong input
WRONG_INPUT = (HydraException, OmegaConfBaseException, ValueError, ArithmeticError, OSError)
NO_LIST = "Invalid value assigned: str is not a ListConfig, list or tuple."  # OmegaConf's


# -- words before Hydra reads them ---------------------------------------------------------------------------------


def prepare_words() -> None:
    """Refuses words of ``sys.argv`` that Hydra would not report, or not in one line, and rewrites words for Hydra.

    Raises:
        InputError: names the word.
        HydraException: Hydra's grammar does not accept a word.
    """
    parser = get_args_parser()

    def refuse(problem: str) -> NoReturn:
        raise InputError(problem)

    parser.error = refuse
    args, unknown = parser.parse_known_args()
    require_one_config_dir(sys.argv)
    add_folder(args.config_dir)
    if args.experimental_rerun:
        raise InputError("--experimental-rerun would unpickle a file; to resume a run, repeat its command")
    if unknown:
        raise InputError(
            f"cannot read '{unknown[0]}': options come first (-m, --cfg job; --help shows them), then settings as "
            "key=value (task=sst2)"
        )
    for override in checked(args.overrides, bool(args.multirun)):
        if args.multirun:
            sys.argv[sys.argv.index(override.input_line)] = _of_each_job(override)


def checked(words: Sequence[str], multirun: bool) -> list[Override]:
    """Settings as Hydra reads them.

    Raises:
        InputError: a word that Hydra would not report, or not in one line.
        HydraException: Hydra's grammar does not accept a word.
    """
    check_equals_signs(words)
    overrides = OverridesParser.create().parse_overrides(list(words))
    for override in overrides:
        _check_override(override, multirun)
    return overrides


def check_equals_signs(words: Sequence[str]) -> None:
    """Raises InputError for a word that is no ``key=value``: ``task mnli``, or ``mnli`` alone."""
    for text, following in pairwise([*words, "VALUE"]):
        if "=" in text or text.startswith("~"):
            continue
        hint = "task=sst2 for example; quotes keep a value with blanks together"
        if text in GROUPS or text in settings_of(Config):
            hint = f"write {text}={'VALUE' if '=' in following else following}"
        elif choices := [f"{group}={choice}" for group in GROUPS if (choice := nearest(text, choices_of(group)))]:
            hint = f"did you mean {choices[0]}?"
        raise InputError(f"'{text}': settings are written key=value; {hint}")


def _check_override(override: Override, multirun: bool) -> None:
    """Refuses values that Hydra's grammar accepts but nothing can use.

    Raises:
        InputError: a setting removed, a list instead of a choice's name, several values for one run, or a folder that
            Hydra would make for nothing.
    """
    text, key, value = override.input_line, override.get_key_element().lstrip("+~"), override.value()
    if override.is_delete() and not key.startswith(("hydra", *OPTIONAL)):
        raise InputError(f"'{text}': a setting cannot be removed; give it another value")
    if key == "sweep" and (not multirun or not override.is_add()):
        raise InputError(f"{text} makes several runs: adalora-run -m +sweep={text.partition('=')[2]}")
    if key == "hydra.run.dir":
        raise InputError(f"{text}: the folder of a run lies in results.dir")
    values = value.list if isinstance(value, ChoiceSweep) else [value]
    if key.partition("@")[0] in (*GROUPS, *OPTIONAL) and any(isinstance(each, list | dict) for each in values):
        raise InputError(f"{text}: {key} takes one file's name; for several runs use -m and a list without brackets")
    if override.is_sweep_override() and not multirun and not key.startswith("hydra"):
        raise InputError(f"{text[:80]} makes several runs: add -m (adalora-run -m {text[:80]})")


def _of_each_job(override: Override) -> str:
    """A word of a sweep as Hydra should read it: an option of a choice (method.r) must reach only the single runs.

    Hydra also composes one configuration for the whole sweep, with groups at their defaults where several choices are
    typed, and the default may not have the option. There Hydra skips sweeps, even over a single value.
    """
    text, group = override.input_line, override.get_key_element().lstrip("+")
    key, _, value = text.partition("=")
    if group.partition(".")[0] not in GROUPS or "." not in group or not value or override.is_sweep_override():
        return text
    with suppress(HydraException):
        (alone,) = OverridesParser.create().parse_overrides([f"{key}=choice({value})"])
        if list(alone.sweep_string_iterator()) == [override.get_value_element_as_str()]:
            return str(alone.input_line)
    return text


# -- errors of Hydra -> one line -----------------------------------------------------------------------------------


@contextmanager
def raising_hydra() -> Iterator[None]:
    """Hydra prints errors over many lines and exits with 1, unless HYDRA_FULL_ERROR lets them through."""
    before = os.environ.get("HYDRA_FULL_ERROR")
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["HYDRA_FULL_ERROR"]
        else:
            os.environ["HYDRA_FULL_ERROR"] = before


@contextmanager
def plan_errors(typed: Sequence[str] | None = None) -> Iterator[None]:
    """A file or folder with an impossible name, an unknown setting, and ``${…}`` that leads nowhere are wrong input.

    Args:
        typed: as ``explain`` takes it.

    Raises:
        InputError: instead of an OSError or an error of OmegaConf.
    """
    try:
        yield
    except OSError as error:
        raise InputError(f"{error.filename}: {error.strerror}" if error.filename else str(error)) from None
    except OmegaConfBaseException as error:
        raise InputError(explain(error, typed)) from None


def explain(error: Exception, typed: Sequence[str] | None = None) -> str:
    """One line for an error of composing: what, where, the valid choices.

    Args:
        typed: the words that were composed, if they differ from the command line.
    """
    try:
        text = _explained(error, sys.argv[1:] if typed is None else typed)
    except (InputError, OSError):  # a file of --config-dir that cannot be read, for one
        text = str(error)
    line = "; ".join(line.strip() for line in text.splitlines() if line.strip())
    return line if isinstance(error, WRONG_INPUT) else f"cannot build the configuration: {type(error).__name__}: {line}"


def _explained(error: Exception, typed: Sequence[str]) -> str:
    text = str(error)
    if isinstance(error, OSError) and not isinstance(error, HydraException) and error.filename:
        return f"cannot write {error.filename}: {error.strerror}; results.dir chooses the folder"
    if isinstance(error, OverrideParseException):  # letters beyond ASCII, brackets and blanks have to be in quotes
        key, equals, value = error.override.partition("=")
        hint = f"; put text with such characters in quotes: {word(key, value)}" if equals and value else ""
        if re.search(r"\s[\w.]+=", value):  # "$WORDS" of a script
            hint = "; each setting is a word of its own"
        return f"cannot read '{error.override}': {text.splitlines()[0].rpartition('Exception: ')[2]}{hint}"
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, choice = error.missing_cfg_file.rpartition("/")
        if group.partition("/")[0] in GROUPS and group not in OPTIONAL:  # a name with a slash, of the hub
            group, _, choice = error.missing_cfg_file.partition("/")
        if group:
            return unknown_choice(group, choice, error.options)
    if "Config group override must be" in text:  # budget=0.5, method=null
        for group, _, choice in (text.partition("=") for text in typed):
            if group in GROUPS and choice not in choices_of(group):
                return unknown_choice(group, choice)
    if error.__cause__ is not None and type(error).__name__ == "ConfigCompositionException":
        text += f"\n{error.__cause__}"
    if match := re.search(r"full_key: ([\w.]+)", text):
        lines = [line for line in text.splitlines() if line and not line.startswith("Error merging")]
        problem = " ".join(lines[: 1 + lines[0].endswith("while composing config:")])  # the file, then the value
        problem = problem.replace(NO_LIST, f"a list is written {match[1]}=[…]")
        return f"{match[1]}: {problem}" if "not in" not in text else unknown_setting(match[1], typed)
    if match := re.search(r"Could not override '([\w.@/]+)'", text):
        return unknown_setting(match[1], typed)
    return re.sub(r"See https?://\S+.*", "", text)


def unknown_choice(group: str, choice: str, options: Sequence[str] | None = None) -> str:
    """The line for a choice that a group does not have.

    Args:
        options: Hydra's list, which includes files of installed packages.
    """
    valid = sorted({*choices_of(group), *(name for name in options or () if not name.endswith("_types"))})
    hint = did_you_mean(choice, valid)
    number = re.fullmatch(r"(\d{4,}|\d+(?:\.\d+)?(?=[kM]))([kM]?)", choice)
    if group == "budget" and number:
        params = round(float(number[1]) * {"k": 1e3, "M": 1e6}.get(number[2], 1))
        hint = f" (for this number of parameters: budget.match=params budget.params={params})"
    if group == "backbone" and "/" in choice:
        hubs = {name: OmegaConf.select(OmegaConf.load(base_files(group, name)[0]), "hub") for name in valid}
        same = [name for name, hub in hubs.items() if hub == choice]
        named = f"on the hub this is backbone={same[0]}; " if same else ""
        hint = f" ({named}a model of your own: backbone=auto backbone.hub={choice}, or backbone.path=DIR)"
    return f"unknown {group} '{choice}'{hint}; valid: {', '.join(valid) or 'none'}"


def unknown_setting(key: str, typed: Sequence[str]) -> str:
    """The line for a setting that does not exist: the nearest one, and those beside it."""
    parent, _, name = key.rpartition(".")
    group, of = parent.partition(".")[0], ""
    paths = [path for path in settings_of(Config) if not path.startswith("method.")]
    paths += [group for group in GROUPS if group not in paths] + _options_of("method", typed)
    beside = [path for path in paths if path.rpartition(".")[0] == parent]
    if parent == "hydra.launcher":
        chosen = ["slurm", *(text.partition("=")[2] for text in typed if text.startswith("hydra/launcher="))][-1]
        options = dict.fromkeys(str(name) for file in base_files("hydra/launcher", chosen) for name in read(file))
        beside = [f"{parent}.{name}" for name in options if name not in ("defaults", "_target_")]
    elif group in GROUPS and (group == "method" or not beside):  # an open node: each file has its own options
        beside, of = _options_of(parent, typed), f" for {group}={_choice(group, typed)}"
    same_name = [] if parent else [path for path in paths if path.endswith(f".{name}")]
    hint = did_you_mean(name, [path.rpartition(".")[2] for path in beside], f"{parent}." if parent else "")
    if same_name:
        hint = f" (did you mean {' or '.join(same_name)}?)"
    return f"no setting '{key}'{of}{hint}; valid: {', '.join(beside) or 'none'}"


def _choice(group: str, typed: Sequence[str]) -> str:
    """The file of a group that these words choose, or the default one."""
    chosen = [text.partition("=")[2] for text in typed if text.startswith(f"{group}=")]
    defaults = OmegaConf.load(resource("conf") / "config.yaml").defaults
    return [*(str(entry[group]) for entry in defaults if group in entry), *chosen][-1]


def _options_of(parent: str, typed: Sequence[str]) -> list[str]:
    """The settings below ``parent`` in the chosen file of its group and in those it builds on."""
    group, _, below = parent.partition(".")
    files = [OmegaConf.load(path) for path in base_files(group, _choice(group, typed))]
    nodes = [OmegaConf.select(file, parent) or OmegaConf.select(file, below) or {} for file in files]
    names = dict.fromkeys(str(name) for node in nodes for name in node if name != "defaults")
    return [f"{parent}.{name}" for name in names]
