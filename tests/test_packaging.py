"""The root folders `datamodules`, `callbacks` and `configs` are part of the package, wherever it is imported from."""

import importlib.util
import json
import multiprocessing
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import ldis_lightning

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("datamodules", "callbacks")
SHOW_ORIGINS = """
import importlib.util, json
from ldis_lightning.config_files import packaged_configs
origins = [importlib.util.find_spec(f"ldis_lightning.{name}").origin for name in ("datamodules", "callbacks")]
print(json.dumps(origins + [str(packaged_configs()["configs/quickstart.yaml"])]))
"""


def python(*args: str, cwd: Path, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    if path is not None:
        environment["PYTHONPATH"] = str(path)
    return subprocess.run(
        [sys.executable, *args], cwd=cwd, env=environment, capture_output=True, text=True, timeout=280, check=False
    )


def origin(name: str) -> str | None:
    spec = importlib.util.find_spec(name)
    return spec.origin if spec else None


@pytest.mark.parametrize("folder", ["checkout", "elsewhere"])
def test_a_bare_checkout_is_importable(folder: str, tmp_path: Path) -> None:
    cwd, path = (ROOT, None) if folder == "checkout" else (tmp_path, ROOT)
    done = python("-c", SHOW_ORIGINS, cwd=cwd, path=path)
    assert done.returncode == 0, done.stderr
    assert [Path(place).resolve() for place in json.loads(done.stdout)] == [
        ROOT / "datamodules/__init__.py",
        ROOT / "callbacks/__init__.py",
        ROOT / "configs/quickstart.yaml",
    ]


def test_a_spawned_process_finds_them() -> None:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        for folder in FOLDERS:
            assert pool.apply(origin, (f"ldis_lightning.{folder}",)) == str(ROOT / folder / "__init__.py")


@pytest.mark.parametrize("folder", FOLDERS)
def test_the_folder_has_no_second_name(folder: str) -> None:
    done = python("-c", f"import {folder}", cwd=ROOT)
    assert done.returncode != 0
    assert "ImportError" in done.stderr and f"import ldis_lightning.{folder} instead" in done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, unpacked: what an installer puts into site-packages."""
    folder = tmp_path_factory.mktemp("wheel")
    built = python("-m", "hatchling", "build", "-t", "wheel", "-d", str(folder / "dist"), cwd=ROOT)
    assert built.returncode == 0, built.stderr
    (path,) = (folder / "dist").glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def test_the_wheel_adds_one_top_level_name(wheel: Path) -> None:
    names = {path.name for path in wheel.iterdir()}
    assert names == {"ldis_lightning", f"ldis_lightning-{ldis_lightning.__version__}.dist-info"}


def test_the_wheel_works_from_elsewhere(wheel: Path, tmp_path: Path) -> None:
    done = python("-c", SHOW_ORIGINS, cwd=tmp_path, path=wheel)
    assert done.returncode == 0, done.stderr
    inside = wheel / "ldis_lightning"
    assert json.loads(done.stdout) == [
        str(inside / "datamodules/__init__.py"),
        str(inside / "callbacks/__init__.py"),
        str(inside / "configs/quickstart.yaml"),
    ]
    shown = python("-m", "ldis_lightning", "--help", cwd=tmp_path, path=wheel)
    assert shown.returncode == 0 and "usage: ldis" in shown.stdout


def test_the_wheel_has_every_file_of_the_package(wheel: Path) -> None:
    for folder in ("ldis_lightning", "datamodules", "callbacks", "configs"):
        inside = "" if folder == "ldis_lightning" else folder
        for path in (ROOT / folder).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                assert (wheel / "ldis_lightning" / inside / path.relative_to(ROOT / folder)).is_file(), path


def test_the_wheel_has_the_command(wheel: Path) -> None:
    (entry_points,) = wheel.rglob("entry_points.txt")
    assert "ldis = ldis_lightning.cli:main" in entry_points.read_text(encoding="utf-8")
