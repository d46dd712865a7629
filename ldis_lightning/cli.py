"""The `ldis` command: finds the command that is asked for and imports only what that one needs.

Importing Lightning takes seconds, so nothing here may import torch: `ldis --help` answers at once. `sys.argv` is only
read, never changed, because the processes of a distributed run are launched from it.
"""

import errno
import gc
import importlib
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType

from ldis_lightning import __version__
from ldis_lightning.errors import UserError
from ldis_lightning.suggestions import did_you_mean

USER_ERROR_STATUS = 2
INTERRUPTED_STATUS = 130  # 128 + SIGINT, as shells have it
PREEMPTED_STATUS = 75  # EX_TEMPFAIL of sysexits.h: nothing is wrong, try again


class Stopped(SystemExit):
    """Training was asked to end, and has saved a checkpoint.

    Args:
        line: what to say about it, if anything.
        status: of the process.
    """

    code: int

    def __init__(self, line: str, status: int) -> None:
        super().__init__(status)
        self.line = line


@dataclass(frozen=True)
class Command:
    """The module whose `main(args)` runs a command, what `ldis --help` says of it, and arguments that go in front."""

    module: str
    summary: str
    prefix: tuple[str, ...] = ()


COMMANDS = {
    "fit": Command("ldis_lightning.lightning_cli", "train the model of a config", ("fit",)),
    "validate": Command("ldis_lightning.lightning_cli", "score a checkpoint on the validation episodes", ("validate",)),
    "test": Command("ldis_lightning.lightning_cli", "score a checkpoint on all evaluation episodes", ("test",)),
    "predict": Command(
        "ldis_lightning.lightning_cli", "segment the evaluation episodes with a checkpoint", ("predict",)
    ),
    "convert": Command("ldis_lightning.conversion.command", "write a checkpoint or the authors' weights as a folder"),
    "segment": Command("ldis_lightning.segment_command", "segment pictures and videos by example"),
    "demo": Command("ldis_lightning.demo.command", "open a page in the browser to try a model with"),
    "example": Command("ldis_lightning.examples", "draw pictures to try `segment` with"),
    "data": Command("ldis_lightning.datamodules.commands", "make, pack, index and look at data sets"),
    "bench": Command("ldis_lightning.bench_command", "measure how fast a part is, against a baseline"),
    "results": Command("ldis_lightning.results_command", "print result rows beside published ones"),
    "sweep": Command("ldis_lightning.sweeps.command", "run every point of an ablation and print its table"),
    "report": Command("ldis_lightning.sweeps.report_command", "table, plots and pictures of a folder of finished runs"),
}


def main(args: Sequence[str] | None = None) -> int:
    """Run `ldis` with `args` (default: `sys.argv[1:]`) and return its exit status.

    A user's mistake is one line on stderr and status 2, Ctrl-C one line and status 130, training that a signal has
    stopped one line and status 75. Anything else is a bug and keeps its traceback. `LDIS_TRACEBACK=1` shows the
    traceback of mistakes too.
    """
    os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")  # Lightning's own calls, nothing a user can mend
    try:
        return _run(list(sys.argv[1:] if args is None else args))
    except KeyboardInterrupt:
        return _report("interrupted", INTERRUPTED_STATUS)
    except Stopped as stop:
        return _report(stop.line, stop.code)
    except SystemExit as stop:
        if isinstance(stop.__context__, KeyboardInterrupt):  # the Trainer turns Ctrl-C into exit(1)
            return _report("interrupted", INTERRUPTED_STATUS)
        return _status(stop)
    except Exception as error:
        message = user_message(error)
        if message is None or os.environ.get("LDIS_TRACEBACK"):
            raise
        return _report(f"error: {message}", USER_ERROR_STATUS)


def user_message(error: BaseException) -> str | None:
    """The message of a user's mistake, or None if `error` is something else.

    Errors of data workers and of spawned ranks arrive with the traceback of their process inside the message; it is cut
    off. A full disk is nobody's bug.
    """
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        where = f"the disk of {error.filename}" if error.filename else "a disk"
        return f"{where} is full; free some space and run the command again"
    text = str(error)
    marker = f"{UserError.__module__}.{UserError.__qualname__}: "
    if marker in text:
        return text.rsplit(marker, 1)[1].strip()
    return text if isinstance(error, UserError) else None


def _run(args: list[str]) -> int:
    if not args or args[0] in ("-h", "--help"):
        print(_help())
        return 0 if args else USER_ERROR_STATUS
    if args[0] == "--version":
        print(f"ldis {__version__}")
        return 0
    name, *rest = args
    if name not in COMMANDS:
        raise UserError(
            f"there is no command `{name}`{did_you_mean(name, COMMANDS)}; the commands are {', '.join(COMMANDS)}"
        )
    command = COMMANDS[name]
    return _imported(command.module).main([*command.prefix, *rest]) or 0


def _imported(module: str) -> ModuleType:
    """Import without looking for garbage: the millions of objects that importing makes all stay, and to look at them
    again and again is a seventh of the time."""
    gc.disable()
    try:
        return importlib.import_module(module)
    finally:
        gc.enable()


def _help() -> str:
    width = max(map(len, COMMANDS))
    commands = "\n".join(f"  {name:<{width}}  {command.summary}" for name, command in COMMANDS.items())
    return (
        "usage: ldis COMMAND [options]\n\nIn-context segmentation with latent diffusion models.\n\n"
        f"commands:\n{commands}\n\n"
        "  ldis COMMAND --help   the options of a command\n"
        "  ldis --version        the version\n\n"
        "Start with:  ldis fit --config configs/quickstart.yaml"
    )


def _report(line: str, status: int) -> int:
    print(line, file=sys.stderr)
    return status


def _status(stop: SystemExit) -> int:
    if stop.code is None or isinstance(stop.code, int):
        return stop.code or 0
    return _report(str(stop.code), 1)  # what the interpreter does with sys.exit("message")
