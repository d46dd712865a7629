"""What the tests of the command line share: a config overlay that makes any shipped config run in seconds."""

import json
from pathlib import Path
from typing import Any

import yaml
from conftest import MINIATURE
from lightning.pytorch import Callback

from ldis_lightning.config_files import find_config, with_parents

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
        "num_workers": 0,
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


def tiny_paper_scale(config: str, tmp_path: Path) -> list[str]:
    """Further options for a shipped config at paper scale: the sizes of what `provide_weights_and_data` writes."""
    if not any("AlphaCLIP" in path.read_text(encoding="utf-8") for path in with_parents(find_config(config))):
        return []
    from stable_diffusion import ALPHA_CLIP

    overlay: dict[str, Any] = {"model_args": ALPHA_CLIP}
    for key in ("encoder", "instruction", "model"):
        overlay = {key: {"init_args": overlay}}
    overlay["data"] = {"image_size": 64}
    return ["--config", write_config(tmp_path / "paper_scale.yaml", overlay)]


def provide_weights_and_data(folder: Path) -> None:
    """Put miniatures where the shipped configs look for weights and for packed data sets, if they are not there yet.

    Args:
        folder: with a synthetic world in `data/synthetic`, which stands for all the data sets.
    """
    from stable_diffusion import write_alpha_clip, write_stable_diffusion
    from tiny import denoiser, seeded

    if (folder / "weights").exists():
        return
    write_stable_diffusion(folder / "stable-diffusion-v1-5" / "stable-diffusion-v1-5")
    write_alpha_clip(folder / "weights" / "clip_l14_grit20m_fultune_2xe.pth")
    with seeded():  # as `ldis convert` leaves a quickstart's: 16 latent channels, tokens of width 64
        denoiser().build(16, 64).save_pretrained(folder / "weights" / "quickstart" / "unet")
    for name, kind in {"pascal": "images", "coco2014": "images", "davis16": "clips", "vspw": "clips"}.items():
        (folder / "data" / name).mkdir()
        for split, part in {"train": "train", "val": "novel"}.items():
            (folder / "data" / name / split).symlink_to(folder / "data" / "synthetic" / kind / part)


def read_results(folder: Path) -> dict[str, float]:
    """The metrics of the one run below `folder`."""
    (path,) = folder.rglob("results.json")
    return json.loads(path.read_text(encoding="utf-8"))["metrics"]


class PressCtrlC(Callback):
    """Interrupts training at its first batch."""

    def on_train_batch_start(self, *args: Any) -> None:
        raise KeyboardInterrupt
