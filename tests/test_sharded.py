"""Fully sharded training: it follows one process; its checkpoints resume on other ranks, export, and run no code."""

import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from cluster_support import STEPS, assert_same, fit, fixed_logits
from torch.distributed import checkpoint as dcp

from ldis_lightning import sharded_files
from ldis_lightning.cli import main
from ldis_lightning.errors import UserError

CONFIGS = ["quickstart", "cluster/fsdp"]
HALF = STEPS // 2
PARENT = "epoch=1-step=10.ckpt"
CALLBACKS = [
    {"class_path": "ModelCheckpoint", "init_args": {"save_top_k": -1, "save_last": True, "every_n_train_steps": HALF}}
]


@pytest.fixture(scope="module")
def sharded(miniature_world: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[int, float]]:
    """The checkpoints' folder of a run on two ranks, with `logits.pt` above it, and its losses."""
    out = tmp_path_factory.mktemp("sharded") / "two"
    keep = {"class_path": "cluster_support.KeepLogits", "init_args": {"path": str(out / "logits.pt")}}
    found = fit(miniature_world, out, CONFIGS, devices=2, callbacks=[*CALLBACKS, keep], enable_checkpointing=True)
    (last,) = out.rglob("last.ckpt")
    return last.parent, found


@pytest.mark.timeout(520)
def test_two_sharded_ranks_follow_one_process(
    sharded: tuple[Path, dict[int, float]], quickstart_alone: dict[int, float]
) -> None:
    assert_same(sharded[1], quickstart_alone)


@pytest.mark.timeout(520)
@pytest.mark.parametrize("ranks", [1, 2])
def test_resuming_on_any_number_of_ranks(
    ranks: int, sharded: tuple[Path, dict[int, float]], miniature_world: Path, tmp_path: Path
) -> None:
    checkpoint = str(sharded[0] / PARENT)
    found = fit(miniature_world, tmp_path / "resumed", CONFIGS, "--ckpt_path", checkpoint, devices=ranks)
    assert_same(found, sharded[1], range(HALF, STEPS))


@pytest.mark.timeout(300)
def test_the_exported_model_answers_as_the_trained_one(sharded: tuple[Path, dict[int, float]], tmp_path: Path) -> None:
    from ldis_lightning.conversion.folder import load_folder

    folder, _ = sharded
    assert len(list((folder / "last.ckpt").glob("*.distcp"))) == 2
    assert main(["convert", str(folder / "last.ckpt"), "--out", str(tmp_path / "model")]) == 0
    (saved,) = folder.parents[2].rglob("logits.pt")
    expected = torch.load(saved, weights_only=True)
    torch.testing.assert_close(fixed_logits(load_folder(tmp_path / "model")), expected, atol=1e-5, rtol=1e-5)


# ---- The files


def state() -> dict[str, Any]:
    weights = {"unet.weight": torch.arange(6.0).view(2, 3), "unet.half": torch.ones(4, dtype=torch.bfloat16)}
    return {"state_dict": weights, "optimizer_0": {"param_groups": [{"lr": 0.5, "betas": (0.9, 0.99)}]}}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    sharded_files.write(state(), {"epoch": 3}, tmp_path / "last.ckpt")
    return tmp_path / "last.ckpt"


def test_what_is_written_can_be_read(folder: Path) -> None:
    weights = sharded_files.read_weights(folder)
    assert weights.keys() == state()["state_dict"].keys()
    for name, tensor in state()["state_dict"].items():
        torch.testing.assert_close(weights[name], tensor)
    assert sharded_files.read_rest(folder) == {"epoch": 3}
    other = {"optimizer_0": {"param_groups": [{"lr": 0.0, "betas": (0.0, 0.0)}]}}
    sharded_files.read_into(other, folder)
    assert other["optimizer_0"] == state()["optimizer_0"]


def test_a_newer_checkpoint_leaves_nothing_of_the_older(folder: Path) -> None:
    (folder / "__7_0.distcp").write_bytes(b"of a rank that is no more")
    partial = sharded_files.partial_name(folder)
    sharded_files.write(state(), {"epoch": 4}, partial)
    assert sharded_files.read_rest(folder) == {"epoch": 3}  # whole until the new one is
    sharded_files.put_in_place(partial, folder)
    assert sharded_files.read_rest(folder) == {"epoch": 4}
    assert {path.name for path in folder.iterdir()} == {".metadata", "__0_0.distcp", "meta.pt"}
    assert list(folder.parent.iterdir()) == [folder]


@pytest.mark.parametrize("lost", [".metadata", "__0_0.distcp"])
def test_a_checkpoint_that_is_not_whole(lost: str, folder: Path) -> None:
    (folder / lost).unlink()
    with pytest.raises(UserError, match=f"the sharded checkpoint {folder} cannot be read: .*{lost}"):
        sharded_files.read_weights(folder)


def test_a_checkpoint_of_another_model(folder: Path) -> None:
    for name, tensor in (("unet.other", torch.zeros(2)), ("unet.weight", torch.zeros(2))):
        with pytest.raises(UserError, match=f"cannot be read: .*{name}"):
            sharded_files.read_into({"state_dict": {name: tensor}}, folder)


class Hostile:
    """Would create a folder where it is unpickled without care."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def test_code_in_a_checkpoint_is_not_run(folder: Path, tmp_path: Path) -> None:
    trap = tmp_path / "executed"
    hostile = tmp_path / "hostile"
    dcp.save({"state_dict": {"entry": Hostile(trap)}}, checkpoint_id=hostile)
    with pytest.raises(UserError, match="cannot be read"):
        sharded_files.read_into({"state_dict": {"entry": 0}}, hostile)
    (folder / ".metadata").write_bytes(pickle.dumps(Hostile(trap)))
    with pytest.raises(UserError, match=r"names posix\.mkdir, which no checkpoint of ours does"):
        sharded_files.read_weights(folder)
    torch.save(Hostile(trap), folder / "meta.pt")
    with pytest.raises(UserError, match="cannot be read"):
        sharded_files.read_rest(folder)
    assert not trap.exists()
