"""The folder that a data set is going to be: what may be replaced, and how finished files are put in place."""

import os
import tempfile
from pathlib import Path

from ldis_lightning.datamodules.index import HEADER
from ldis_lightning.errors import UserError


class OutFolder:
    """A data set's folder to be. The files are prepared in a hidden folder and put in place when all are finished.

    The hidden folder lies beside `path`, and the prepared files take the name `path`. Where `path` is an empty folder,
    perhaps a mounted one, the hidden folder lies in it, and the files are moved up, the index last.

    Args:
        path: the folder to make. It may exist if it is empty.
        overwrite: replace a data set of ours that is already at `path`.
        working: name of the hidden folder if it is to outlast an interruption; by default a new one.

    Raises:
        UserError: something is at `path` that may not be replaced.
    """

    def __init__(self, path: str | Path, overwrite: bool = False, working: str | None = None) -> None:
        self.path, self.overwrite, self.working = Path(os.path.abspath(path)), overwrite, working
        self.check()

    def check(self) -> None:
        """Check again that `path` may be written, as at the beginning.

        Raises:
            UserError: it may not. With `overwrite`, only a data set of ours may be replaced.
        """
        out = self.path
        try:
            entries = [entry for entry in sorted(out.iterdir()) if entry.name != self.working] if out.is_dir() else []
            if out.is_symlink() or (out.exists() and not out.is_dir()):
                raise UserError(f"{out} exists and is no folder: choose another one.")
        except OSError as error:
            raise UserError(f"{out} cannot be looked into: {error.strerror}. Choose another folder.") from error
        strangers = [entry.name for entry in entries if not _is_ours(entry)]
        if strangers or (entries and not (out / HEADER).is_file()):
            named = f" (it holds {strangers[0]})" if strangers else ""
            raise UserError(f"{out} exists and is not a data set of ours{named}: choose another folder.")
        if entries and not self.overwrite:
            raise UserError(f"{out} exists and is not empty: use --overwrite to replace it, or choose another folder.")

    def prepare(self) -> Path:
        """Make the hidden folder, or find the one called `working`.

        Raises:
            UserError: it cannot be made.
        """
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._inside = self.path.is_dir() and not (self.path / HEADER).exists()
            place = self.path if self._inside else self.path.parent
            if self.working is None:
                return Path(tempfile.mkdtemp(prefix=f".{self.path.name}.", dir=place))
            (place / self.working).mkdir(exist_ok=True)
            return place / self.working
        except OSError as error:
            raise UserError(f"{self.path} cannot be written: {error.strerror}. Choose another folder.") from error

    def publish(self, files: Path) -> None:
        """Put a folder of finished files, which lies in the hidden one, in place.

        Raises:
            UserError: something has appeared at `path` in the meantime, or it cannot be written.
        """
        try:
            self._move_in(files) if self._inside else self._rename(files)
        except OSError as error:
            raise UserError(f"{self.path} cannot be written: {error.strerror}. Choose another folder.") from error

    def _move_in(self, files: Path) -> None:
        if (self.path / HEADER).exists():
            raise UserError(f"{self.path} was filled by something else in the meantime: choose another folder.")
        for entry in sorted(files.iterdir(), key=lambda entry: entry.name == HEADER):
            entry.rename(self.path / entry.name)

    def _rename(self, files: Path) -> None:
        self.check()
        if self.path.exists():
            self.path.rename(files.with_name("replaced"))  # in the hidden folder, and so removed with it
        files.rename(self.path)


def _is_ours(entry: Path) -> bool:
    if entry.is_dir():
        return entry.name.startswith("index-")
    return entry.name == HEADER or (entry.name.startswith("shard-") and entry.suffix == ".tar")
