"""`--ckpt_path last`: which checkpoint that is, what becomes of damaged ones, and where the run goes on."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from jsonargparse import Namespace
from survival_support import arguments, assert_same, final, settings, steps_logged
from test_checkpoint_files import checkpoint

from ldis_lightning import sharded_files
from ldis_lightning.checkpoint_files import write_whole
from ldis_lightning.cli import main
from ldis_lightning.resume import find_last, moved, resolve


def logger(folder: Path, version: Any = None, name: str = "run", kind: str = "TensorBoardLogger") -> Namespace:
    args = Namespace(save_dir=str(folder), name=name, version=version)
    return Namespace(class_path=f"lightning.pytorch.loggers.{kind}", init_args=args)


def trainer(folder: Path, **options: Any) -> Namespace:
    return Namespace(**{"logger": logger(folder), "default_root_dir": str(folder), "callbacks": None, **options})


def put(path: Path, age: int, **changes: Any) -> Path:
    """A whole checkpoint that was written so many seconds ago."""
    write_whole({**checkpoint(), **changes}, path)
    return aged(path, age)


def aged(path: Path, age: int) -> Path:
    os.utime(path, (1e9 - age, 1e9 - age))
    return path


def test_the_newest_of_all_runs(tmp_path: Path) -> None:
    put(tmp_path / "run/version_2/checkpoints/last.ckpt", age=3)
    newest = put(tmp_path / "run/version_10/checkpoints/epoch=0-step=3.ckpt", age=1)
    put(tmp_path / "run/version_10/checkpoints/last.ckpt", age=2)
    put(tmp_path / "run/slurm_7/checkpoints/last.ckpt", age=0)  # has a name of its own
    put(tmp_path / "other/version_0/checkpoints/last.ckpt", age=0)  # of another config
    found = find_last(trainer(tmp_path), to_train=True)
    assert (found.checkpoint, found.version, found.damaged) == (newest, 10, {})


@pytest.mark.parametrize(("version", "folder"), [("slurm_7", "run/slurm_7"), (3, "run/version_3"), ("", "run")])
def test_a_version_of_its_own(version: Any, folder: str, tmp_path: Path) -> None:
    put(tmp_path / "run/version_9/checkpoints/last.ckpt", age=0)
    own = put(tmp_path / folder / "checkpoints/last.ckpt", age=5)
    found = find_last(trainer(tmp_path, logger=logger(tmp_path, version)), to_train=True)
    assert (found.checkpoint, found.version) == (own, None)


@pytest.mark.parametrize(
    ("option", "folder", "version"),
    [
        (False, "checkpoints", None),
        (None, "lightning_logs/version_4/checkpoints", 4),
        (True, "lightning_logs/version_4/checkpoints", 4),
        ([], "checkpoints", None),
    ],
)
def test_other_loggers(option: Any, folder: str, version: int | None, tmp_path: Path) -> None:
    own = put(tmp_path / folder / "last.ckpt", age=0)
    found = find_last(trainer(tmp_path, logger=option), to_train=True)
    assert (found.checkpoint, found.version) == (own, version)


def test_a_folder_that_the_config_names(tmp_path: Path) -> None:
    (tmp_path / "run/version_1").mkdir(parents=True)
    put(tmp_path / "run/version_0/checkpoints/last.ckpt", age=2)
    own = put(tmp_path / "kept/last.ckpt", age=1)
    keep = Namespace(class_path="ModelCheckpoint", init_args=Namespace(dirpath=str(tmp_path / "kept")))
    found = find_last(trainer(tmp_path, callbacks=[keep]), to_train=True)
    assert (found.checkpoint, found.version) == (own, 1)


def test_what_is_not_whole_is_passed_over(tmp_path: Path) -> None:
    folder = tmp_path / "run/version_0/checkpoints"
    whole = put(folder / "epoch=0-step=3.ckpt", age=9)
    put(folder / ".last.ckpt.partial", age=0)
    put(folder / "last.ckpt.damaged", age=0)
    put(folder / "notes.txt", age=0)
    damaged = put(folder / "last.ckpt", age=1)
    os.truncate(damaged, 900)
    aged(damaged, 1)
    (folder / "epoch=0-step=6.ckpt").mkdir()
    before = sorted(folder.iterdir())
    found = find_last(trainer(tmp_path), to_train=True)
    assert found.checkpoint == whole
    assert found.damaged.keys() == {damaged, folder / "epoch=0-step=6.ckpt"}
    assert sorted(folder.iterdir()) == before  # to search changes nothing


def test_the_former_folder_of_a_sharded_one(tmp_path: Path) -> None:
    former = tmp_path / "run/version_0/checkpoints/.last.ckpt.previous"
    former.parent.mkdir(parents=True)
    sharded_files.write({"state_dict": {"a": torch.ones(2)}}, {"loops": {}}, former)
    assert find_last(trainer(tmp_path), to_train=True).checkpoint == former


def test_weights_alone_are_nothing_to_go_on_training_from(tmp_path: Path) -> None:
    folder = tmp_path / "run/version_0/checkpoints"
    whole = put(folder / "last.ckpt", age=2)
    write_whole({"state_dict": {}}, folder / "best.ckpt")
    assert find_last(trainer(tmp_path), to_train=True).checkpoint == whole
    assert find_last(trainer(tmp_path), to_train=False).checkpoint == folder / "best.ckpt"


def test_a_checkpoint_that_vanishes_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "run/version_0/checkpoints"
    whole = put(folder / "epoch=0-step=3.ckpt", age=9)
    gone = put(folder / "last.ckpt", age=1)

    def vanish(path: Path) -> str | None:
        path.unlink() if path == gone else None
        return None if path.exists() else "missing"

    monkeypatch.setattr("ldis_lightning.resume.damage", vanish)
    found = find_last(trainer(tmp_path), to_train=True)
    assert (found.checkpoint, found.damaged) == (whole, {})


def test_nothing_to_go_on_from(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run/version_0").mkdir(parents=True)
    assert resolve(trainer(tmp_path), to_train=True).checkpoint is None
    places = tmp_path / "run/version_0/checkpoints"
    line = f"--ckpt_path last: there is no whole checkpoint in {places}; a new run starts\n"
    assert capsys.readouterr().err == line


def test_the_state_of_a_moved_model_checkpoint() -> None:
    state = {"dirpath": "/a", "best_model_path": "/a/x.ckpt", "last_model_path": "", "best_k_models": {"/a/x.ckpt": 1}}
    assert moved(state, "b/c") == {
        "dirpath": "b/c",
        "best_model_path": "b/c/x.ckpt",
        "kth_best_model_path": "",
        "last_model_path": "",
        "best_k_models": {"b/c/x.ckpt": 1},
    }


# ---- Through the command line


def sweep_run(out: Path, **changes: Any) -> dict[str, Any]:
    """As `ldis sweep` configures a run: the folder is the log folder."""
    kind = {"class_path": "TensorBoardLogger", "init_args": {"save_dir": str(out), "name": "", "version": ""}}
    return settings(out, logger=kind, default_root_dir=str(out), limit_val_batches=0, **changes)


def test_a_run_of_a_sweep_goes_on(in_miniature_world: Path, tmp_path: Path) -> None:
    keep = {"save_last": True, "save_top_k": 1, "every_n_train_steps": 2}
    half, whole = tmp_path / "half", tmp_path / "whole"
    assert main(arguments(whole, sweep_run(whole, keep=keep, max_steps=6))) == 0
    first = sweep_run(half, keep=keep, max_steps=6)
    fail = {"class_path": "survival_support.Fail", "init_args": {"hook": "on_before_optimizer_step", "step": 3}}
    first["trainer"]["callbacks"].append(fail)
    with pytest.raises(ZeroDivisionError):
        main(arguments(half, first, "--ckpt_path", "last"))
    newest = half / "checkpoints/last.ckpt"
    os.truncate(newest, 5000)  # the other one, of the same step, is whole
    assert main(arguments(half, sweep_run(half, keep=keep, max_steps=6), "--ckpt_path", "last")) == 0
    assert_same(final(half), final(whole))
    names = {path.name for path in (half / "checkpoints").iterdir()}
    assert names == {"last.ckpt", "last.ckpt.damaged", "epoch=0-step=6.ckpt"}  # nothing of before has piled up
    saved = yaml.safe_load((half / "config.yaml").read_text())
    assert saved["ckpt_path"] == "last"


def test_scoring_the_last_checkpoint(
    in_miniature_world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`test` only reads: a damaged checkpoint stays where it is, and without any there is nothing to score."""
    out, args = (
        tmp_path,
        arguments(tmp_path, settings(tmp_path, max_steps=2, limit_val_batches=0), "--ckpt_path", "last"),
    )
    assert main(["test", *args[1:]]) == 2
    assert "there is no whole checkpoint in the folder of any run (--ckpt_path last)" in capsys.readouterr().err
    assert main(args) == 0
    assert steps_logged(out) == [0, 1]
    (whole,) = out.rglob("last.ckpt")
    (whole.parent / "newer.ckpt").write_bytes(b"cut short")
    assert main(["test", *args[1:], "--trainer.limit_test_batches", "1"]) == 0
    said = capsys.readouterr().err
    assert "newer.ckpt is damaged (it is cut short, or no checkpoint)\n" in said
    assert f"--ckpt_path last: {whole}\n" in said
    assert (whole.parent / "newer.ckpt").exists()
