"""adalora-run: Hydra's main -> one run (or a multirun) -> exit code."""

from __future__ import annotations

import difflib
import logging
import os
import re
import shlex
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from typing import Any, NoReturn

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Override, RangeSweep
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from hydra.types import RunMode
from omegaconf import BooleanNode, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from adalora_repro import __version__
from adalora_repro.cli.ledger import (
    ALREADY,
    DONE,
    ENDS,
    FAILED,
    INTERRUPTED,
    PLANNED,
    REFUSED,
    SKIPPED,
    Ledger,
    Outcome,
)
from adalora_repro.config import plan as planning
from adalora_repro.config.schema import GROUPS, Config, add_folder, base_files, choices_of, resource
from adalora_repro.config.words import override_value, word
from adalora_repro.errors import EXIT_BAD_INPUT, EXIT_FAILED, EXIT_INTERRUPTED, EXIT_OK, EXIT_TERMINATED, InputError
from adalora_repro.records import lock
from adalora_repro.terminal import guarded
from adalora_repro.training.console import ALONE_S, complain, launched, tolerate_any_locale

#: errors of Hydra, its launchers and the sweeper for wrong input
WRONG_INPUT = (HydraException, OmegaConfBaseException, ValueError, ArithmeticError, OSError)


def main() -> int:
    """Console entry point; the exit codes are those of ``errors``. Of several processes the main one speaks."""
    if launched()[0] == 0:
        return _main(Ledger())
    logging.disable(logging.WARNING)
    with (
        open(os.devnull, "w", encoding="utf-8") as nowhere,
        redirect_stdout(nowhere),
        tempfile.TemporaryDirectory() as scratch,
    ):
        if {"-m", "--multirun"} & set(sys.argv):  # the main process's Hydra writes those files
            sys.argv.append(f"hydra.sweep.dir={override_value(scratch)}")
        try:
            return _main(Ledger())
        except Exception:
            time.sleep(ALONE_S)  # see ``complain``
            raise


def one_of_many(words: Sequence[str]) -> Outcome:
    """One run of a sweep in a process of its own, by its words."""
    sys.argv = ["adalora-run", *words]
    ledger = Ledger(apart=True)
    code = _main(ledger)
    return next(iter(ledger.outcomes.values()), (ENDS.get(code, INTERRUPTED), code))


@guarded()
def _main(ledger: Ledger) -> int:
    tolerate_any_locale()
    register(sys.argv[1:])
    inside = False  # what a single run raises beyond wrong input is its own failure, not Hydra's

    def job(cfg: DictConfig) -> Outcome:
        nonlocal inside
        inside = ledger.begun = True
        together = HydraConfig.get().mode == RunMode.MULTIRUN
        many = together or ledger.apart
        try:
            outcome = run(cfg, many, ledger.began)
        except (InputError, OmegaConfBaseException) as error:
            which = f" (run: {shlex.join(HydraConfig.get().overrides.task)})" if many else ""
            outcome = REFUSED, _refuse((str(error) if isinstance(error, InputError) else explain(error)) + which)
        except BrokenPipeError:
            if not many:
                raise
            _mute()  # what it had to say came after its record
            outcome = DONE, EXIT_OK
        except Exception:
            if not many:
                raise
            traceback.print_exc()  # the other runs of a sweep go on
            outcome = FAILED, EXIT_FAILED
        inside = False
        words = OmegaConf.to_container(HydraConfig.get().overrides.task)  # as typed: ${…} may lead nowhere
        assert isinstance(words, list)
        ledger.outcomes[tuple(words)] = outcome
        if outcome[1] in (EXIT_INTERRUPTED, EXIT_TERMINATED):
            raise KeyboardInterrupt  # or Hydra would begin the next job of a sweep
        if outcome[1] == EXIT_BAD_INPUT and launched()[1] > 1:
            raise SystemExit(EXIT_BAD_INPUT)  # perhaps in this process alone: the others would be in another job
        return outcome

    vars(job)["ledger"] = ledger  # for the sweeper
    try:
        if sys.argv[1:] == ["--version"]:  # Hydra would tell its own
            print(f"adalora-run {__version__}")
            return EXIT_OK
        _prepare_words()
        with _raising_hydra():
            hydra.main(version_base="1.3", config_path=str(resource("conf")), config_name="config")(job)()
    except InputError as error:
        return _refuse(str(error))
    except BrokenPipeError:  # the reader, `head` say, has seen enough
        _mute()
        return EXIT_OK
    except Exception as error:
        if inside or not (isinstance(error, WRONG_INPUT) or not ledger.begun) or os.environ.get("HYDRA_FULL_ERROR"):
            raise
        return _refuse(explain(error))
    except KeyboardInterrupt:
        return max(EXIT_INTERRUPTED, ledger.code)
    finally:
        if summary := ledger.summary():
            print(summary)
    return ledger.code


def _mute() -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _refuse(problem: str) -> int:
    complain(f"error: {problem}")
    return EXIT_BAD_INPUT


def run(cfg: DictConfig, many: bool, began: float) -> Outcome:
    """One configuration -> how it ended. A finished run is recognized before torch is imported.

    Args:
        many: among other runs one that another process trains is skipped; alone it is an error.
        began: when this command began (Unix time). A run of a sweep that failed since then in another process with the
            same command is not tried again.

    Raises:
        InputError: wrong input, found before anything is trained.
    """
    hydra_cfg = HydraConfig.get()
    if not many and "sweep" in hydra_cfg.runtime.choices:
        raise InputError("+sweep=… stands for several runs: adalora-run -m +sweep=…")
    launcher = hydra_cfg.runtime.choices["hydra/launcher"]
    if not many and launcher in choices_of("hydra/launcher"):  # else it would train here, on a login node perhaps
        raise InputError(f"hydra/launcher={launcher} submits a sweep: adalora-run -m … hydra/launcher={launcher}")
    if not many and cfg.launch == "detach":
        raise InputError("launch=detach submits a sweep: adalora-run -m … hydra/launcher=slurm launch=detach")
    # +key=value goes past Hydra's own check of names
    OmegaConf.merge(OmegaConf.structured(Config), OmegaConf.to_container(cfg))
    words = OmegaConf.to_container(hydra_cfg.overrides.task)  # as typed: ${…} is looked up where it stands
    assert isinstance(words, list)
    with file_problems():
        plan = planning.resolve(cfg, hydra_cfg.runtime.choices, words)
        beside = [planning.resolve(_beside(cfg, words), overrides=words)] if _measured_beside(cfg) else []
    if cfg.dry_run:
        print(planning.describe(planning.count(plan)))
        for other in beside:
            print(planning.describe_beside(planning.count(other), cfg.cost))
        return PLANNED, EXIT_OK
    existing = next(path for path in plan.folder.parents if os.path.exists(path))
    if not existing.is_dir():
        raise InputError(f"results.dir={cfg.results.dir}: {existing} is not a folder")
    if cfg.measure == "cost":
        plans = [planning.count(each) for each in (plan, *beside)]
        from adalora_repro.training import cost

        code = cost.execute(plans)
        return ENDS.get(code, INTERRUPTED), code
    alone = launched()[1] == 1  # several processes look together, in ``execute``: each would see another moment
    if alone and not cfg.force and (score := planning.finished(plan)):
        print(planning.already_done(plan, score))
        return ALREADY, EXIT_OK
    if alone and many and lock.held(plan.folder, sure=True):  # in doubt ``execute`` watches its lock
        return _skipped(plan)
    if alone and many and not cfg.force and planning.failed_since(plan, began):
        print(f"failed since this command began, not tried again: {plan.folder}")
        return FAILED, EXIT_FAILED
    planning.count(plan)  # fails on a wrong option before any download

    from adalora_repro.training.runner import execute

    try:
        code = execute(plan)
    except InputError:
        if alone and many and lock.held(plan.folder):  # taken since we looked
            return _skipped(plan)
        raise
    return ENDS.get(code, INTERRUPTED), code


@contextmanager
def file_problems() -> Iterator[None]:
    """Planning reads files and folders that the user named: one with an impossible name, say, is wrong input.

    Raises:
        InputError: in place of an OSError.
    """
    try:
        yield
    except OSError as error:
        raise InputError(f"{error.filename}: {error.strerror}" if error.filename else str(error)) from None


def _measured_beside(cfg: DictConfig) -> bool:
    return cfg.measure == "cost" and planning.reference(cfg) is not None


def _beside(cfg: DictConfig, words: Sequence[str]) -> DictConfig:
    """The configuration of ``cost.against``: its method and optimizer as the same words compose them, the rest of cfg.

    Words for options that this method does not have, and for recipes of the other, are left out.

    Raises:
        InputError: there is no such method.
    """
    name = cfg.cost.against
    if name not in choices_of("method"):
        raise InputError(f"cost.against: {_unknown_choice('method', name)}, or null to measure the method alone")
    options = {key for path in base_files("method", name) for key in OmegaConf.load(path).method}
    options -= {"rank_pattern"}  # the ranks of the method that is measured
    kept = []
    for text in words:
        group, _, option = text.lstrip("+~").partition("=")[0].partition(".")
        if group not in ("method", "tuned") or option in options:
            kept.append(text)
    composed = hydra.compose("config", [*kept, f"method={name}"])
    cfg = cfg.copy()
    for node in ("method", "optim"):
        OmegaConf.update(cfg, node, composed[node], merge=False)
    return cfg


def _skipped(plan: planning.Plan) -> Outcome:
    print(f"skipped: another process is training {plan.folder}")
    return SKIPPED, EXIT_OK


# -- Hydra ---------------------------------------------------------------------------------------------------------


HELP = ("--h", "-h", "-sc", "--shell")  # beginnings of words after which Hydra may list all choices


def register(words: Sequence[str] = ("sweep",)) -> None:
    """The typed schema, and every file of ``sweeps/`` as a choice of the group ``sweep`` if a word may ask."""
    store = ConfigStore.instance()
    store.store(name="base_config", node=Config)
    paths = (
        sorted(resource("sweeps").glob("*.yaml"))
        if any(word.startswith(HELP) or "sweep" in word for word in words)
        else ()
    )
    for path in paths:
        store.store(group="sweep", name=path.stem, node=OmegaConf.load(path), package="_global_")


def _prepare_words() -> None:
    """Checks what Hydra would not check in ``sys.argv``, or not report in one line, and rewrites words for Hydra.

    Hydra's parser answers an unknown option with a page of usage, and one after the settings with a cryptic error.

    Raises:
        InputError: naming the word.
        HydraException: Hydra's grammar does not accept a word.
    """
    parser = get_args_parser()

    def refuse(problem: str) -> NoReturn:
        raise InputError(problem)

    parser.error = refuse
    known, unknown = parser.parse_known_args()
    add_folder(known.config_dir)
    if known.config_path or known.config_name:
        raise InputError("--config-path, --config-name: the configuration is this program's; --config-dir adds files")
    if known.experimental_rerun:
        raise InputError("--experimental-rerun would unpickle a file; to resume a run, repeat its command")
    if unknown:
        option = next((text for text in unknown if text.startswith("-")), None)
        if option is None:
            raise InputError(f"'{unknown[0]}' comes too late: options (-m, --cfg job) must come before the settings")
        raise InputError(f"no option '{option}'; settings are written key=value (task=sst2), --help shows them")
    overrides = [_parsed(text) for text in known.overrides]
    for override in overrides:
        _check_override(override)
    if _is_dry_run(overrides):  # a dry run leaves nothing on disk, whatever else is typed
        last = max(place for place, text in enumerate(sys.argv) if text in known.overrides)
        sys.argv[last + 1 : last + 1] = ["hydra.output_subdir=null", "hydra.run.dir=."]
    if known.multirun:
        for override in overrides:
            sys.argv[sys.argv.index(override.input_line)] = _of_each_job(override)


def _parsed(text: str) -> Override:
    try:
        (override,) = OverridesParser.create().parse_overrides([text])
    except HydraException:
        raise
    except ValueError:  # Python refuses numbers of more than 4300 digits
        raise InputError(f"cannot read '{text[:40]}…': whole numbers must be below 2^63") from None
    return override


def _check_override(override: Override) -> None:
    """Refuses values that Hydra's grammar accepts but nothing can use.

    Raises:
        InputError: a list in place of a choice's name, or a whole number beyond 64 bits.
    """
    key, value = override.get_key_element().lstrip("+~"), override.value()
    values = value.list if isinstance(value, ChoiceSweep) else [value]
    names_a_file = key.partition("@")[0] in (*GROUPS, *planning.OPTIONAL) or key.startswith("hydra/")
    if names_a_file and any(isinstance(each, list | dict) for each in values):
        several = "; for several runs, use -m and a list without brackets" if key in GROUPS else ""
        raise InputError(f"{override.input_line}: {key} takes the name of one file{several}")
    for number in _whole_numbers(values):
        if abs(number) >= 2**63:
            digits = str(abs(number))
            text = f"{digits[:20]}… ({len(digits)} digits)" if len(digits) > 20 else digits
            raise InputError(f"{key}: whole numbers must be below 2^63 = 9223372036854775808, not {text}")


def _whole_numbers(value: Any) -> Iterator[int]:
    """All whole numbers in a value of Hydra's grammar, which nests."""
    if isinstance(value, bool):
        return
    if isinstance(value, int):
        yield value
    elif isinstance(value, RangeSweep):
        yield from _whole_numbers([value.start, value.stop, value.step])
    elif isinstance(value, list | dict):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _whole_numbers(each)


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
        alone = _parsed(f"{key}=choice({value})")
        if isinstance(alone.value(), ChoiceSweep) and list(alone.sweep_string_iterator()) == [
            override.get_value_element_as_str()
        ]:
            return str(alone.input_line)
    return text


def _is_dry_run(overrides: Sequence[Override]) -> bool:
    typed = [override.value() for override in overrides if override.get_key_element().lstrip("+") == "dry_run"]
    try:
        return bool(typed) and bool(BooleanNode(typed[-1]))
    except OmegaConfBaseException:  # Hydra reports it
        return False


@contextmanager
def _raising_hydra() -> Iterator[None]:
    """Hydra prints errors over many lines and exits with 1, unless it is told to raise them: told here, for us."""
    before = os.environ.get("HYDRA_FULL_ERROR")
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["HYDRA_FULL_ERROR"]
        else:
            os.environ["HYDRA_FULL_ERROR"] = before


def explain(error: Exception, typed: Sequence[str] | None = None) -> str:
    """One line for an error of composing: what, where, the valid choices. Never raises.

    Args:
        typed: the words that were composed, if they differ from the command line.
    """
    try:
        text = _explained(error, sys.argv[1:] if typed is None else typed)
    except Exception:  # whatever a library put into its error
        text = ""
    try:
        text = text or str(error)
    except Exception:
        text = ""
    line = "; ".join(line.strip() for line in text.splitlines() if line.strip())
    if line and isinstance(error, WRONG_INPUT):
        return line
    return f"cannot compose a configuration: {type(error).__name__}{': ' if line else ''}{line}"


def _explained(error: Exception, typed: Sequence[str]) -> str:
    text = str(error)
    if isinstance(error, OSError) and not isinstance(error, HydraException):
        if error.filename is None:
            return text
        return f"cannot write {error.filename}: {error.strerror}; results.dir says where results go"
    if isinstance(error, OverrideParseException):
        return _unreadable(error.override, text.splitlines()[0])
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, choice = error.missing_cfg_file.rpartition("/")
        if group:
            return _unknown_choice(group, choice, error.options)
    if "Config group override must be" in text:  # budget=0.5, method=null
        for group, _, choice in (text.partition("=") for text in typed):
            if group in GROUPS and choice not in choices_of(group):
                return _unknown_choice(group, choice)
    if error.__cause__ is not None and type(error).__name__ == "ConfigCompositionException":
        text += f"\n{error.__cause__}"
    if match := re.search(r"full_key: ([\w.]+)", text):
        lines = [line for line in text.splitlines() if line and not line.startswith("Error merging")]
        return f"{match[1]}: {lines[0]}" if "not in" not in text else _unknown_setting(match[1], typed)
    if match := re.search(r"Could not override '([\w.@/]+)'", text):
        return _unknown_setting(match[1], typed)
    return re.sub(r"See https?://\S+.*", "", text)


def _unreadable(text: str, why: str) -> str:
    """For a word that Hydra's grammar does not take: letters beyond ASCII, brackets and blanks have to be in quotes."""
    key, equals, value = text.partition("=")
    hint = f"; put text with such characters in quotes: {word(key, value)}" if equals and value else ""
    return f"cannot read '{text}': {why.rpartition('Exception: ')[2]}{hint}"


def _unknown_choice(group: str, choice: str, options: Sequence[str] | None = None) -> str:
    """``options``: Hydra's list, which includes files of installed packages."""
    return f"unknown {group} '{choice}'; valid: {', '.join(sorted({*choices_of(group), *(options or ())})) or 'none'}"


def _unknown_setting(key: str, typed: Sequence[str]) -> str:
    """Names the settings beside the misspelt one; those of a method are in its YAML."""
    node: Any = OmegaConf.structured(Config)
    parent, _, name = key.rpartition(".")
    group = parent.partition(".")[0]
    try:
        node = OmegaConf.select(node, parent) if parent else node
    except OmegaConfBaseException:
        node = None
    valid = [str(name) for name in node] if isinstance(node, DictConfig) else []
    if not parent:
        valid += [group for group in GROUPS if group not in valid]
    of = ""
    if group in GROUPS and not valid:  # an open node: each file of the group has its own options
        chosen = [text.partition("=")[2] for text in typed if text.startswith(f"{group}=")]
        choice = chosen[-1] if chosen else "adalora" if group == "method" else ""
        of = f" for {group}={choice}" if choice else ""
        files = [OmegaConf.load(path) for path in base_files(group, choice)]
        nodes = [OmegaConf.select(file, parent) or OmegaConf.select(file, parent.partition(".")[2]) for file in files]
        valid = list(dict.fromkeys(str(name) for node in nodes for name in node or () if name != "defaults"))
    if parent == "hydra.launcher":
        path = resource("conf") / "hydra" / "launcher" / "slurm.yaml"
        valid = [str(name) for name in OmegaConf.load(path) if name != "_target_"]
    close = difflib.get_close_matches(name, valid, n=1) if name not in valid else []
    hint = f" (did you mean {parent + '.' if parent else ''}{close[0]}?)" if close else ""
    names = ", ".join(f"{parent}.{name}" if parent else name for name in valid)
    return f"no setting '{key}'{of}{hint}; valid: {names or 'none'}"


if __name__ == "__main__":
    sys.exit(main())
