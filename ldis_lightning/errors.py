"""The one exception for a user's mistakes."""


class UserError(Exception):
    """Something the user can mend: a wrong path, key, file or flag.

    The message names the file, key or flag and says what to do. The command line prints it as `error: message` without
    a traceback and exits with status 2.
    """
