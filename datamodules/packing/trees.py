"""What packers share: finding a tree, saying what is missing from it and where to get it, and numbering its classes."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from ldis_lightning.episode import IGNORE_INDEX
from ldis_lightning.errors import UserError
from ldis_lightning.imaging.pictures import MAX_CLASS_ID

MOST_LISTED = 5  # so many missing files are named


def find_root(src: Path, below: Sequence[str], marker: str, tree: str) -> Path:
    """The folder of a distribution: `src` itself or one of the folders below it, the first that holds `marker`.

    Args:
        src: what the user gave.
        below: relative paths under which the folder may lie; "" for `src` itself.
        marker: relative path of a file or folder that tells it; may hold wildcards.
        tree: what the tree should look like and where to get it, for the message.

    Raises:
        UserError: there is none.
    """
    for path in (src / folder for folder in ("", *below)):
        if next(path.glob(marker), None) is not None:
            return path
    what = f"there is no {marker} in it" if src.is_dir() else "there is no such folder"
    raise UserError(f"{src}: {what}. It should be\n{tree}")


def check_present(files: Iterable[Path], tree: str) -> None:
    """Check that all files are there, by listing each folder once.

    Raises:
        UserError: some are missing; the message names the first and says how many there are.
    """
    wanted: dict[Path, list[str]] = {}
    for file in files:
        wanted.setdefault(file.parent, []).append(file.name)
    missing: list[Path] = []
    for folder, names in wanted.items():
        present = _names(folder)
        missing += [folder / name for name in names if name not in present]
    if missing:
        listed = "".join(f"\n  {path}" for path in missing[:MOST_LISTED])
        more = f"\n  and {len(missing) - MOST_LISTED} more" if len(missing) > MOST_LISTED else ""
        count = "a file is" if len(missing) == 1 else f"{len(missing)} files are"
        raise UserError(f"{count} missing:{listed}{more}\nThere should be\n{tree}")


def read_lines(file: Path, tree: str) -> list[str]:
    """The lines of a text file that are neither blank nor begin with #.

    Raises:
        UserError: the file is missing or no text.
    """
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
        return [line for line in lines if line.strip() and not line.startswith("#")]
    except FileNotFoundError as error:
        raise UserError(f"{file} is missing. The tree should be\n{tree}") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read ({error}): unpack it again.") from error


def read_list(file: Path, tree: str) -> list[str]:
    """The first word of every line of a text file that is neither blank nor begins with #.

    Raises:
        UserError: the file is missing or no text, or a word could not be a file's name.
    """
    names = [line.split()[0] for line in read_lines(file, tree)]
    for name in names:
        if Path(name).name != name or name == ".." or not name.isprintable():
            raise UserError(f"{file} holds {name!r}, which is no name of a file: unpack it again.")
    return names


def number_classes(names: Sequence[str]) -> dict[int, str]:
    """Class id -> name: 1, 2, ... in this order, without 255.

    Raises:
        UserError: there are more than a label map holds.
    """
    numbers = [number for number in range(1, len(names) + 2) if number != IGNORE_INDEX][: len(names)]
    if numbers and numbers[-1] > MAX_CLASS_ID:
        raise UserError(f"there are {len(names)} classes, and a label map holds {MAX_CLASS_ID - 1} at most.")
    return dict(zip(numbers, names, strict=True))


def _names(folder: Path) -> set[str]:
    try:
        with os.scandir(folder) as entries:
            return {entry.name for entry in entries}
    except (FileNotFoundError, NotADirectoryError):
        return set()
    except OSError as error:
        raise UserError(f"{folder} cannot be looked into: {error.strerror}.") from error
