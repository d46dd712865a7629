"""Every message that docs/troubleshooting.md quotes is what its command says."""

import json
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
from cli_support import tiny
from PIL import Image
from small_models import write_model

from ldis_lightning.cli import USER_ERROR_STATUS, main
from ldis_lightning.examples import write_example
from ldis_lightning.pipeline import source as sources

PAGE = Path(__file__).resolve().parent.parent / "docs" / "troubleshooting.md"
CASE = re.compile(r"^```console\n\$ ldis (?P<command>.*)\n(?P<message>error: (?:.*\n)+?)```", re.MULTILINE)
CASES = [(case["command"], case["message"]) for case in CASE.finditer(PAGE.read_text(encoding="utf-8"))]
CHECKPOINT = "runs/quickstart/version_0/checkpoints/last.ckpt"


def provide(folder: Path) -> None:
    """Put into a folder with the synthetic world what the page's commands stumble over."""
    write_example(folder / "example", queries=1)
    Image.new("L", (256, 256)).save(folder / "black.png")
    Image.new("L", (100, 80), 255).save(folder / "small.png")
    (folder / "notes.png").write_text("shopping list")
    (folder / "masks").mkdir()
    (folder / "masks/query-1.png").touch()
    (folder / "half.ckpt").write_bytes(b"PK\x03\x04 half of a checkpoint")
    (folder / "DIR").mkdir()
    for shard in (folder / "data/synthetic/images/train").glob("*.tar"):
        shutil.copy(shard, folder / "DIR")
    shutil.copytree(folder / "data/synthetic/images/novel", folder / "old")
    header = json.loads((folder / "old/index.json").read_text())
    (folder / "old/index.json").write_text(json.dumps(header | {"version": 2}))
    for kind, size in (("JPEGImages/A/00000.jpg", (64, 48)), ("Annotations/A/00000.png", (32, 24))):
        (folder / "SRC" / kind).parent.mkdir(parents=True)
        Image.fromarray(np.ones(size[::-1], np.uint8)).save(folder / "SRC" / kind)


@pytest.fixture(scope="module")
def workplace(miniature_world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all of it, and with a checkpoint of the quickstart, trained for a step or two."""
    folder = tmp_path_factory.mktemp("troubles")
    shutil.copytree(miniature_world / "data", folder / "data")
    provide(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("sys.argv", ["ldis"])
        options = ["--trainer.logger.save_dir", str(folder / "runs"), "--trainer.logger.name", "quickstart"]
        fit = ["fit", "--config", "configs/quickstart.yaml", *tiny(folder), *options, "--score_after_fit", "false"]
        assert main(fit) == 0
    return folder


@pytest.fixture
def inside(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workplace)
    monkeypatch.setattr("sys.argv", ["ldis"])
    if not (sources.MODELS / "tiny").is_dir():
        monkeypatch.setattr(sources, "MODELS", workplace / "shipped")
        if not (workplace / "shipped").exists():
            write_model(workplace / "shipped" / "tiny")


def test_the_page_has_cases() -> None:
    blocks = PAGE.read_text(encoding="utf-8").count("```console")
    assert len(CASES) == blocks >= 15


@pytest.mark.parametrize(("command", "message"), CASES, ids=[command for command, _ in CASES])
def test_message_is_what_the_command_says(
    command: str, message: str, inside: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(shlex.split(command)) == USER_ERROR_STATUS
    said = capsys.readouterr().err.strip()
    quoted = re.escape(" ".join(message.split())).replace(re.escape("..."), ".+")  # lines are broken, lists are cut
    assert re.search(f"{quoted}$", " ".join(said.split())), said
