"""What both callbacks ask of a trainer, and how they write files."""

import os
from collections.abc import Callable
from pathlib import Path

from lightning.pytorch import Trainer


def run_folder(trainer: Trainer) -> Path:
    """The folder of this run: its first logger's, or the default root where there is none.

    Call it on every rank: Lightning broadcasts the answer, so a call on rank 0 alone waits for ever.
    """
    return Path(trainer.log_dir or trainer.default_root_dir)


def set_name(trainer: Trainer, dataloader_idx: int) -> str:
    """Name of the evaluation set behind a val or test dataloader, e.g. `"novel"`; `"0"` where it has no name."""
    names = getattr(getattr(trainer, "datamodule", None), "evaluation_names", [])
    return names[dataloader_idx] if dataloader_idx < len(names) else str(dataloader_idx)


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """`write` a temporary file beside `path`, then rename it: a reader sees the old file or the whole new one.

    The temporary file ends like `path`, since image writers go by the ending. Missing folders are made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{os.getpid()}-{path.name}")
    try:
        write(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
