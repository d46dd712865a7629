"""A disk that fills up while `ldis fit` runs: one line, the checkpoint before intact, and the run can go on."""

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from survival_support import arguments, assert_same, final, settings

from ldis_lightning.checkpoint_files import damage
from ldis_lightning.cli import main


@pytest.fixture(scope="module")
def uninterrupted(miniature_world: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], int]:
    """The final state of a run whose disk has room, and the bytes of a checkpoint."""
    out = tmp_path_factory.mktemp("uninterrupted")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(miniature_world)
        assert main(arguments(out, content(out))) == 0
    (last,) = out.rglob("last.ckpt")
    return final(out), last.stat().st_size


def content(out: Path, **changes: Any) -> dict[str, Any]:
    keep = {"save_last": True, "save_top_k": 0, "every_n_train_steps": 2, "dirpath": str(out / "kept")}
    return settings(out, keep=keep, max_steps=6, limit_val_batches=0, **changes)


@pytest.fixture
def disk(tmp_path: Path, uninterrupted: tuple[dict[str, Any], int]) -> Iterator[Path]:
    """A file system with room for one checkpoint and a half."""
    folder = tmp_path / "kept"
    folder.mkdir()
    size = f"size={uninterrupted[1] * 3 // 2}"
    mounted = shutil.which("mount") and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", size, "tmpfs", str(folder)], capture_output=True
    )
    if not mounted or mounted.returncode:
        pytest.skip("no file system can be mounted here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_run_whose_disk_fills_up(
    disk: Path,
    uninterrupted: tuple[dict[str, Any], int],
    in_miniature_world: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(arguments(tmp_path, content(tmp_path))) == 2
    last = disk / "last.ckpt"
    (said,) = re.findall(r"^error: (.*)$", capsys.readouterr().err, re.MULTILINE)
    beginning = f"the disk of {last} is full; the checkpoint before, last.ckpt, is intact; free "
    assert re.fullmatch(re.escape(beginning) + r"\d+ MB and go on with --ckpt_path last", said)
    assert [path.name for path in disk.iterdir()] == ["last.ckpt"]
    assert damage(last) is None and final(tmp_path)["global_step"] == 2
    subprocess.run(["mount", "-o", "remount,size=100m", str(disk)], check=True)
    assert main(arguments(tmp_path, content(tmp_path), "--ckpt_path", "last")) == 0
    assert_same(final(tmp_path), uninterrupted[0])


def test_a_logger_whose_disk_fills_up(
    uninterrupted: tuple[dict[str, Any], int],
    in_miniature_world: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    full = {"save_dir": str(tmp_path / "runs"), "name": "run", "step": 3}
    logger = {"class_path": "survival_support.FullLogger", "init_args": full}
    assert main(arguments(tmp_path, content(tmp_path, logger=logger))) == 2
    assert "error: the disk of metrics.csv is full; free some space" in capsys.readouterr().err
    assert damage(tmp_path / "kept/last.ckpt") is None and final(tmp_path)["global_step"] == 4
    assert main(arguments(tmp_path, content(tmp_path), "--ckpt_path", "last")) == 0
    assert_same(final(tmp_path), uninterrupted[0])
