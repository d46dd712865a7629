"""`--launcher` and the options of launchers: which class is built, and with what."""

import importlib
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from jsonargparse import ArgumentParser

from ldis_lightning.errors import UserError
from ldis_lightning.parse_errors import explain
from ldis_lightning.suggestions import did_you_mean
from ldis_lightning.sweeps.launchers.launcher import Launcher

SHIPPED = {
    "local": "ldis_lightning.sweeps.launchers.local.Local",
    "slurm": "ldis_lightning.sweeps.launchers.slurm.Slurm",
}
"""The launchers that come with the package, by the names that `--launcher` takes."""


def split(arguments: Sequence[str], name: str) -> tuple[list[str], list[str]]:
    """Tell the options of a launcher from those of `ldis fit`.

    Args:
        arguments: of `ldis sweep`, without its own options.
        name: what `--launcher` says.

    Returns:
        `--slurm.KEY VALUE` of the launcher `slurm`, and `--launcher.KEY VALUE` of any, as `--KEY=VALUE`; the others.

    Raises:
        UserError: an option has no value, or is of a launcher that was not asked for.
    """
    own: list[str] = []
    others: list[str] = []
    remaining = iter(arguments)
    for argument in remaining:
        prefix, dot, rest = argument.partition(".")
        if not dot or prefix not in ("--launcher", *(f"--{shipped}" for shipped in SHIPPED)):
            others.append(argument)
            continue
        if prefix not in ("--launcher", f"--{name}"):
            raise UserError(f"`{argument.partition('=')[0]}` needs `--launcher {prefix.removeprefix('--')}`")
        key, equals, value = rest.partition("=")
        value = value if equals else next(remaining, None)
        if value is None:
            raise UserError(f"`{argument}` needs a value after it")
        own.append(f"--{key}={value}")
    return own, others


def build(name: str, options: Sequence[str], given: Mapping[str, Any]) -> Launcher:
    """The launcher of a name or class path.

    Args:
        name: `local`, `slurm` or the path of a subclass of `Launcher`.
        options: as `split` returns them; checked against the class's annotations.
        given: further arguments; those that the class does not take must be None.

    Raises:
        UserError: there is no such class, or it does not take such options.
    """
    kind = find(name)
    taken = inspect.signature(kind).parameters
    for key, value in given.items():
        if value is not None and key not in taken:
            raise UserError(f"the launcher `{name}` has no option `--{key}`")
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(kind)
    try:
        arguments = parser.parse_args(list(options))
    except Exception as error:  # jsonargparse's own, or argparse's
        text = explain(str(error), [action.dest for action in parser._actions])
        raise UserError(f"options of the launcher `{name}`: {text}") from error
    return kind(**{**arguments.as_dict(), **{key: value for key, value in given.items() if value is not None}})


def find(name: str) -> type[Launcher]:
    """The class of a launcher.

    Raises:
        UserError: there is none of that name.
    """
    path = SHIPPED.get(name, name)
    module, _, attribute = path.rpartition(".")
    if not module:
        hint = did_you_mean(name, SHIPPED) or f"; there are {', '.join(SHIPPED)}"
        raise UserError(f"there is no launcher `{name}`{hint}, or give the path of a class, my.module.Class")
    try:
        kind = getattr(importlib.import_module(module), attribute, None)
    except ImportError as error:
        raise UserError(f"the launcher `{name}` cannot be imported: {error}") from error
    if not (isinstance(kind, type) and issubclass(kind, Launcher)):
        raise UserError(f"`{path}` is no subclass of ldis_lightning.sweeps.launchers.Launcher")
    return kind
