"""Which checkpoint and which code a score came from."""

import hashlib
import os
import subprocess
from pathlib import Path

from tqdm import tqdm

from ldis_lightning import __version__

_CHUNK = 1 << 20
_SHOW_FROM = 1 << 30
"""Bytes from which hashing takes long enough for a progress bar."""


def checkpoint_sha256(path: Path) -> str:
    """SHA-256 of a checkpoint in hexadecimal digits, read in pieces.

    That of a directory is taken over the lines `<hash of the file>  <path in the directory>` of all its files in the
    order of their paths, as `sha256sum` prints them.
    """
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    total = sum(file.stat().st_size for file in files)
    settings = {"total": total, "unit": "B", "unit_scale": True, "leave": False, "disable": total < _SHOW_FROM}
    with tqdm(desc="hashing the checkpoint", **settings) as progress:
        hashes = [_sha256(file, progress) for file in files]
    if path.is_file():
        return hashes[0]
    names = [file.relative_to(path).as_posix() for file in files]
    lines = "".join(
        f"{digest}  {name}\n" for digest, name in sorted(zip(hashes, names, strict=True), key=lambda x: x[1])
    )
    return hashlib.sha256(lines.encode()).hexdigest()


def _sha256(file: Path, progress: tqdm) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while piece := stream.read(_CHUNK):
            digest.update(piece)
            progress.update(len(piece))
    return digest.hexdigest()


def code_version(package: Path | None = None) -> dict[str, str | None]:
    """`{"version": ..., "commit": ...}` of this package.

    The commit is that of the git checkout that the package is a part of, with " dirty" behind it where tracked files
    were changed since; None for an installed package, even inside someone else's checkout.

    Args:
        package: folder of the package; None for this one.
    """
    folder = package or Path(__file__).parents[1]
    tracked = _git(folder, "ls-files", "--error-unmatch", "__init__.py") is not None
    described = (
        _git(folder, "describe", "--always", "--dirty= dirty", "--abbrev=40", "--exclude=*") if tracked else None
    )
    return {"version": __version__, "commit": described}


def _git(folder: Path, *arguments: str) -> str | None:
    """What git prints, or None where it fails or is not installed."""
    command = ["git", "--no-optional-locks", "-C", str(folder), *arguments]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    try:
        run = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return run.stdout.strip()
