"""The one exception for a user's mistakes."""


class UserError(Exception):
    """Something the user can mend: a wrong path, key, file or flag.

    The message names the file, key or flag and says what to do. The command line prints it as `error: message` without
    a traceback and exits with status 2.
    """


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its class where it has none: libraries' messages can be pages long."""
    return next(iter(str(error).splitlines()), type(error).__name__)


def printable(text: str) -> str:
    """A text that UTF-8 has bytes for. Names of files that are not in UTF-8 hold characters that it has none for."""
    return text.encode(errors="backslashreplace").decode()
