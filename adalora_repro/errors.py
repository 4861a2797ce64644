"""The one exception that means "the input is wrong", and the exit codes scripts rely on."""

EXIT_OK = 0
EXIT_FAILED = 1
EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130
EXIT_TERMINATED = 143


class InputError(Exception):
    """Something a user typed, pointed at or provided is wrong.

    The message is one line: what is wrong, where, and the valid choices or the way out. The command-line programs
    print it without a traceback and exit with code 2.
    """


def one_of(what: str, got: object, choices: object) -> InputError:
    """The error for a value outside a known set: names the value and every valid choice."""
    listed = ", ".join(str(choice) for choice in choices)  # type: ignore[attr-defined]
    return InputError(f"unknown {what} '{got}'; valid: {listed}")
