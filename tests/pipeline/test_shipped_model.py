"""The model that comes with the package, on the example that anybody gets: three lines of Python, one command."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ldis_lightning.cli import main
from ldis_lightning.pipeline import InContextSegmentationPipeline
from ldis_lightning.pipeline.source import MODELS

QUERIES = 4
LARGEST = 4e6
"""Bytes of all its files."""


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shipped") / "example"
    assert main(["example", str(folder)]) == 0
    return folder


def iou(mask: np.ndarray, folder: Path, query: int) -> float:
    truth = np.asarray(Image.open(folder / f"truth-{query}.png")) == 1
    return float((mask & truth).sum() / (mask | truth).sum())


def test_three_lines_of_python(example: Path) -> None:
    pipe = InContextSegmentationPipeline.from_pretrained("tiny")
    context = pipe.encode(example / "reference.png", example / "mask.png")
    masks = pipe([example / f"query-{number}.png" for number in range(1, QUERIES + 1)], context).masks
    scores = [iou(mask, example, number) for number, mask in enumerate(masks, 1)]
    assert min(scores) > 0.8, scores
    other = pipe.encode(example / "reference.png", np.asarray(Image.open(example / "labels.png")) == 2)
    assert iou(pipe(example / "query-1.png", other).masks[0], example, 1) < 0.1  # it looks at the reference


def test_one_command(example: Path, tmp_path: Path) -> None:
    shown = ["--reference", str(example / "reference.png"), "--mask", str(example / "mask.png")]
    assert main(["segment", str(example / "query-*.png"), *shown, "--model", "tiny", "--out", str(tmp_path)]) == 0
    for number in range(1, QUERIES + 1):
        assert iou(np.asarray(Image.open(tmp_path / f"query-{number}.png")) > 0, example, number) > 0.8


def test_it_is_small_and_says_what_it_is() -> None:
    folder = MODELS / "tiny"
    assert sum(path.stat().st_size for path in folder.rglob("*")) < LARGEST
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "configs/tiny_model.yaml" in card and "## Scores" in card and "None were given" not in card
