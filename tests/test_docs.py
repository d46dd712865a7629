"""Every `ldis` command in the documentation runs, in the order of its page, on a small copy of what it speaks of."""

import re
import shlex
import shutil
import sys
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from unittest.mock import create_autospec

import numpy as np
import pytest
from cli_support import provide_weights_and_data, tiny, tiny_paper_scale
from in_process import InProcess, sweep_with
from owners_trees import write_benchmark_trees
from PIL import Image
from small_models import write_model

from ldis_lightning.cli import main
from ldis_lightning.datamodules.world import CONCEPTS, draw_scene, render
from ldis_lightning.pipeline import InContextSegmentationPipeline
from ldis_lightning.pipeline import source as sources
from ldis_lightning.sweeps.estimate import ModelCost

ROOT = Path(__file__).resolve().parent.parent
PAGES = [
    "README.md",
    "CONTRIBUTING.md",
    *(str(path.relative_to(ROOT)) for path in sorted((ROOT / "docs").rglob("*.md"))),
]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
PAPER_SCALE = re.compile(r"configs/(ldis1|ldisn|ablation_fine_tuning|scale/sd15)\.yaml")
SNIPPETS = ("docs/extend.md", "docs/inference.md", "docs/start.md")
"""Pages whose Python runs too, after their commands and from top to bottom."""
FILE = re.compile(r"# ([\w/]+\.(?:py|yaml))\n")  # first line of a block that shows a file


def blocks(page: str, language: str) -> list[str]:
    text = (ROOT / page).read_text(encoding="utf-8")
    return [body for found, body in BLOCK.findall(text) if found == language]


def commands(page: str) -> list[list[str]]:
    lines = [part.strip() for body in blocks(page, "bash") for line in body.splitlines() for part in line.split("&&")]
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("ldis ")]


def write_photos(folder: Path) -> None:
    """The same six pictures thrice: label maps of 1 and 2 in `photos` and `more_photos`, a mask a class in `farm`."""
    for name in ("photos/images", "photos/masks", "farm"):
        (folder / name).mkdir(parents=True)
    for number in range(6):
        picture, labels = render(draw_scene(np.random.default_rng(number), CONCEPTS[:2], 160, (2, 2)))
        assert set(np.unique(labels)) == {0, 1, 2}
        for name in ("photos/images", "farm"):
            Image.fromarray(picture).save(folder / name / f"{number}.jpg")
        Image.fromarray(labels).save(folder / "photos/masks" / f"{number}.png")
        for class_id, name in ((1, "cow"), (2, "hen")):
            Image.fromarray((labels == class_id).astype(np.uint8) * 255).save(folder / "farm" / f"{number}.{name}.png")


@pytest.fixture
def workspace(tmp_path: Path, miniature_world: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with the synthetic world, clips A to E in `SRC`, pictures with masks in `photos` and `farm`, and a
    WebDataset without our index in `DIR`."""
    shutil.copytree(miniature_world / "data", tmp_path / "data")
    for number, clip in enumerate("ABCDE"):
        for kind in ("JPEGImages", "Annotations"):
            (tmp_path / "SRC" / kind / clip).mkdir(parents=True)
        for frame in range(3):
            scene = draw_scene(np.random.default_rng([number, frame]), CONCEPTS[:5], 160, (4, 4))
            picture, labels = render(scene)
            Image.fromarray(picture).save(tmp_path / "SRC" / "JPEGImages" / clip / f"{frame:05d}.jpg")
            Image.fromarray(labels).save(tmp_path / "SRC" / "Annotations" / clip / f"{frame:05d}.png")
    write_photos(tmp_path)
    shutil.copytree(tmp_path / "photos", tmp_path / "more_photos")
    (tmp_path / "DIR").mkdir()
    for shard in (miniature_world / "data/synthetic/images/train").glob("*.tar"):
        shutil.copy(shard, tmp_path / "DIR")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("sys.argv", ["ldis"])
    monkeypatch.setattr("ldis_lightning.demo.command.wait", lambda ended: None)  # for someone to press Ctrl-C
    if not (sources.MODELS / "tiny").is_dir():
        monkeypatch.setattr(sources, "MODELS", tmp_path / "shipped")
        write_model(tmp_path / "shipped" / "tiny")
    yield tmp_path
    for name in [name for name, module in sys.modules.items() if lies_in(module, tmp_path)]:
        del sys.modules[name]  # another page may show a module of the same name


def lies_in(module: ModuleType, folder: Path) -> bool:
    spec = getattr(module, "__spec__", None)
    places = [spec.origin, *(spec.submodule_search_locations or ())] if isinstance(spec, ModuleSpec) else []
    return any(str(place).startswith(str(folder)) for place in places)


SWEEPS = "docs/sweeps.md"
"""The page whose sweeps are run; those of other pages, which are the same ones or in tests/sweeps, are dry runs."""


def small(command: list[str], workspace: Path, page: str) -> list[str]:
    """The same command on as little as possible."""
    if command[:2] == ["data", "pack"] and command[2] != "clips":
        return [*command, "--allow_partial"]
    if command[0] in ("data", "results", "convert", "report", "segment", "example", "demo") or command[:2] == [
        "bench",
        "pack",
    ]:
        return command
    if command[:2] == ["bench", "reuse"]:
        command = [*command, "--queries", "4"]
    if command[0] == "bench":
        return [*command, "--scale", "tiny", "--turns", "1"]
    options = tiny(workspace)
    for config in (command[i + 1] for i, word in enumerate(command) if word == "--config"):
        options += tiny_paper_scale(config, workspace)
    if any(name.startswith("configs/data/") or name == "own.yaml" for name in command):
        options += ["--data.prepare", "null"]
    if command[0] == "sweep" and "--dry_run" not in command:
        options += ["--sweep.seeds", "[0]"] if page == SWEEPS else ["--dry_run"]
    return [*command, *options]


def provide_checkpoint(path: Path, workspace: Path) -> None:
    """A tiny quickstart's checkpoint at `path`, and the run's config in the folder above, as training leaves them."""
    if not path.exists():
        options = ["--trainer.logger.save_dir", str(workspace / "earlier"), "--score_after_fit", "false"]
        assert main(["fit", "--config", "configs/quickstart.yaml", *tiny(workspace), *options]) == 0
        (checkpoint,) = (workspace / "earlier").rglob("last.ckpt")
        path.parent.mkdir(parents=True)
        shutil.copy(checkpoint, path)
        shutil.copy(checkpoint.parent.parent / "config.yaml", path.parent.parent)


@pytest.mark.timeout(900)  # a page may hold a whole sweep
@pytest.mark.parametrize("page", [page for page in PAGES if commands(page)])
def test_documented_commands_run(page: str, workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if page != SWEEPS:  # what takes most of the time of a dry run, and has tests of its own
        monkeypatch.setattr("ldis_lightning.sweeps.estimate.model_cost", lambda *_: ModelCost())
    sweep_with(InProcess(), monkeypatch)  # tests/sweeps has sweeps whose runs are processes
    export = create_autospec(InContextSegmentationPipeline.export_onnx)  # tests/pipeline exports one for a minute
    monkeypatch.setattr(InContextSegmentationPipeline, "export_onnx", export)
    for language in ("python", "yaml"):
        for body in blocks(page, language):
            if named := FILE.match(body):
                path = workspace / named[1]
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(body, encoding="utf-8")
    for command in sorted(commands(page), key=lambda command: command[:2] != ["data", "pack"]):  # what others need
        if command[:3] == ["data", "pack", "pascal"] and not (workspace / "VOCdevkit").exists():
            write_benchmark_trees(workspace)
        if "--ckpt_path" in command:
            provide_checkpoint(workspace / command[command.index("--ckpt_path") + 1], workspace)
        if command[0] == "convert" and command[1].endswith(".ckpt"):
            provide_checkpoint(workspace / command[1], workspace)
        if any(PAPER_SCALE.search(word) for word in command):
            provide_weights_and_data(workspace)
        if command[0] == "convert" and "--out" in command:
            shutil.rmtree(workspace / command[command.index("--out") + 1], ignore_errors=True)  # a stand-in's
        if command[:2] == ["data", "synth"]:
            shutil.rmtree(workspace / "data/synthetic")
            command += [
                "--train_images",
                "24",
                "--test_images",
                "12",
                "--train_clips",
                "2",
                "--test_clips",
                "2",
                "--frames",
                "3",
            ]
        if command[:2] == ["data", "pack"] and (workspace / command[command.index("--out") + 1]).exists():
            continue  # an earlier line of the page has packed it
        assert main(small(command, workspace, page)) == 0, command
    names: dict[str, object] = {}
    for body in blocks(page, "python") if page in SNIPPETS else ():
        if not FILE.match(body):
            exec(compile(body, page, "exec"), names)
