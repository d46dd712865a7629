"""What the tests of the command line share: a config overlay that makes any shipped config run in seconds."""

import json
from pathlib import Path
from typing import Any

import yaml
from conftest import MINIATURE
from lightning.pytorch import Callback

OVERLAY = {
    "trainer": {
        "accelerator": "cpu",
        "devices": 1,
        "max_steps": 1,
        "val_check_interval": 1,
        "limit_val_batches": 2,
        "limit_test_batches": 2,
        "enable_progress_bar": False,
    },
    "data": {
        "batch_size": 2,
        "eval_batch_size": 2,
        "prepare": {"class_path": "SyntheticWorld", "init_args": {"root": "data/synthetic", **MINIATURE}},
    },
}


def write_config(path: Path, content: object) -> str:
    """Write a config and return what `--config` takes."""
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return str(path)


def tiny(tmp_path: Path) -> list[str]:
    """Options that make a shipped config tiny and let it write into `tmp_path`."""
    logger = {"class_path": "TensorBoardLogger", "init_args": {"save_dir": str(tmp_path / "runs"), "name": "test"}}
    overlay = {**OVERLAY, "trainer": {**OVERLAY["trainer"], "logger": logger}}
    return ["--config", write_config(tmp_path / "tiny.yaml", overlay)]


def read_results(folder: Path) -> dict[str, float]:
    """The metrics of the one run below `folder`."""
    (path,) = folder.rglob("results.json")
    return json.loads(path.read_text(encoding="utf-8"))["metrics"]


class PressCtrlC(Callback):
    """Interrupts training at its first batch."""

    def on_train_batch_start(self, *args: Any) -> None:
        raise KeyboardInterrupt
