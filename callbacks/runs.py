"""What callbacks ask of a trainer."""

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
