"""Parsing of the commands that are not Lightning's: mistakes are one message with the nearest valid name.

Nothing here may import torch, so that `--help` answers at once.
"""

import re
from argparse import ArgumentParser, ArgumentTypeError, Namespace, RawDescriptionHelpFormatter
from collections.abc import Callable, Mapping, Sequence
from typing import NoReturn

from ldis_lightning.errors import UserError
from ldis_lightning.suggestions import did_you_mean


class Parser(ArgumentParser):
    """A parser whose errors are one line with the nearest valid option.

    Args:
        prog: the command, e.g. `ldis data pack`.
        description: what it does; lines are kept as they are.
        epilog: what `--help` says after the options.
    """

    def __init__(self, prog: str, description: str, epilog: str | None = None) -> None:
        super().__init__(
            prog=prog,
            description=description,
            epilog=epilog,
            allow_abbrev=False,
            formatter_class=RawDescriptionHelpFormatter,
        )

    def parse(self, args: Sequence[str]) -> Namespace:
        """Parse the arguments; unknown options are reported before missing ones, of which they may be misspellings.

        Raises:
            UserError: an option is unknown, missing, or has a wrong value.
        """
        for argument in args:
            option = argument.partition("=")[0]
            if re.match(r"--?[A-Za-z]", option) and option not in self._option_string_actions:
                self.error(f"unknown option `{option}`{did_you_mean(option, self._option_string_actions)}")
        return self.parse_args(args)

    def error(self, message: str) -> NoReturn:
        """Raise a UserError."""
        raise UserError(f"{message} (`{self.prog} --help` lists the options)")


def at_least(minimum: int) -> Callable[[str], int]:
    """The type of an option that takes a whole number from `minimum` on."""

    def number(text: str) -> int:
        if not re.fullmatch(r"-?[0-9]+", text) or int(text) < minimum:
            raise ArgumentTypeError(f"`{text}` is no whole number from {minimum} on")
        return int(text)

    return number


def dispatch(
    program: str, args: Sequence[str], summaries: Mapping[str, str], run: Callable[[str, list[str]], int]
) -> int:
    """Run the command that the first argument names with the others, or list the commands.

    Args:
        program: what comes before it, e.g. `ldis data`.
        args: after that.
        summaries: command -> what it does.
        run: called with the command and its arguments; gives the exit status.

    Raises:
        UserError: there is no such command.
    """
    if not args or args[0] in ("-h", "--help"):
        width = max(map(len, summaries))
        listed = "\n".join(f"  {name:<{width}}  {summary}" for name, summary in summaries.items())
        print(f"usage: {program} COMMAND [options]\n\ncommands:\n{listed}\n\n  {program} COMMAND --help   its options")
        return 0 if args else 2
    name, *rest = args
    if name not in summaries:
        hint = did_you_mean(name, summaries)
        raise UserError(f"`{program}` has no command `{name}`{hint}; the commands are {', '.join(summaries)}")
    return run(name, rest)
