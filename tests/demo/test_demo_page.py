"""The page in a real browser, as people use it: with the mouse, with wrong files, and two at once."""

import os
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import pytest
from browser import CHROMIUM
from chromium import Chromium, Visitor, open_chromium
from PIL import Image
from small_models import mask, picture, write_model

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
pytest.importorskip("gradio", reason="the extra `demo` is not installed")


@dataclass
class Served:
    """A page that is served, and how often its model was asked."""

    address: str
    asked: list[int]
    files: Path


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What visitors upload: good and bad."""
    folder = tmp_path_factory.mktemp("uploads")
    for number in range(4):
        Image.fromarray(picture(96, 128, number)).save(folder / f"photo-{number}.png")
    Image.fromarray(mask(96, 128)).save(folder / "mask.png")
    Image.fromarray(mask(50, 50)).save(folder / "other-size.png")
    Image.fromarray(np.zeros((96, 128), np.uint8)).save(folder / "empty.png")
    Image.new("RGB", (8000, 6250), (90, 120, 60)).save(folder / "huge.png", compress_level=1)
    Image.new("RGB", (8000, 6250), (60, 120, 90)).save(folder / "huger.png", compress_level=1)
    (folder / "notes.png").write_text("this is no picture")
    (folder / "broken.mp4").write_bytes(b"\0\0\0\x18ftypmp42\0\0\0\0" + os.urandom(2000))
    return folder


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, files: Path) -> Iterator[Served]:
    """The page of a small model of random weights."""
    from ldis_lightning.demo.command import build, launch, prepare_gradio

    folder = tmp_path_factory.mktemp("gradio")
    patch = pytest.MonkeyPatch()
    for name in ("GRADIO_TEMP_DIR", "GRADIO_ANALYTICS_ENABLED", "HF_HUB_DISABLE_TELEMETRY"):
        patch.setenv(name, "")  # so that undo() restores what there was
    prepare_gradio(str(folder))
    page = build(str(write_model(tmp_path_factory.mktemp("model") / "one")), "cpu", folder)
    asked: list[int] = []
    stream = page.pipe.stream

    def counted(*arguments: Any, **settings: Any) -> Any:
        asked.append(len(asked))
        return stream(*arguments, **settings)

    page.pipe.stream = counted
    address = launch(page, "127.0.0.1", 0)
    yield Served(address, asked, files)
    page.blocks.close(verbose=False)
    patch.undo()


@pytest.fixture(scope="module")
def chromium() -> Iterator[Chromium]:
    with open_chromium() as browser:
        yield browser


def paint(visitor: Visitor) -> None:
    """A thick stroke through the middle of the picture."""
    x, y = visitor.center("document.querySelector('#editor canvas')")
    visitor.drag([(x - 60 + 10 * step, y - 30 + 5 * step) for step in range(13)])
    visitor.drag([(x - 60 + 10 * step, y + 30 - 5 * step) for step in range(13)])


def captions(visitor: Visitor) -> str:
    return visitor.value("[...document.querySelectorAll('#results .caption-label')].map(e => e.innerText).join('; ')")


def threshold_to(visitor: Visitor, share: float) -> None:
    """Drag the slider to a share of its width."""
    slider = "document.querySelector('#threshold input[type=range]')"
    x, y = visitor.center(slider)
    half = visitor.value(f"{slider}.getBoundingClientRect().width / 2")
    visitor.drag([(x, y), (x + half * (share - 0.5), y), (x + 2 * half * (share - 0.5), y)])


def names_in(archive: Path) -> set[str]:
    with zipfile.ZipFile(archive) as opened:
        return set(opened.namelist())


def test_two_visitors(served: Served, chromium: Chromium, tmp_path: Path) -> None:
    first, second = chromium.visitor(served.address), chromium.visitor(served.address, width=390)
    first.upload("drop-picture", served.files / "photo-0.png")
    first.says("Paint over the thing")
    second.upload("drop-picture", served.files / "photo-3.png")
    second.says("Paint over the thing")
    first.calm()
    paint(first)
    first.upload("drop-queries", served.files / "photo-1.png", served.files / "photo-2.png")
    first.says("Looked in 2 pictures with 1 reference")  # it begins by itself
    second.upload("drop-mask", served.files / "mask.png")
    second.says("The mask is painted in")
    second.upload("drop-queries", served.files / "photo-0.png")
    second.says("Looked in 1 picture with 1 reference")
    assert "photo-1" in captions(first) and "photo-2" in captions(first)
    assert "photo-0" in captions(second) and "photo-1" not in captions(second)

    asked = len(served.asked)
    threshold_to(first, 0.0)
    first.until("document.querySelector('#results').innerText.includes('photo-1: 100%')")
    everything = first.download(tmp_path / "left", "Download masks")
    assert names_in(everything) == {"photo-1.png", "photo-2.png"}
    with zipfile.ZipFile(everything) as archive, archive.open("photo-1.png") as file:
        found = np.asarray(Image.open(file))
    assert found.shape == (96, 128) and (found == 255).all()
    threshold_to(first, 1.0)
    first.until("document.querySelector('#results').innerText.includes('photo-1: 0%')")
    assert "photo-0: 100%" not in captions(second)  # the other visitor's slider did not move
    alone = second.download(tmp_path / "right", "Download masks")
    assert alone.name == "photo-0.png" and set(np.unique(np.asarray(Image.open(alone)))) <= {0, 255}
    assert len(served.asked) == asked  # the threshold and the downloads do not ask the model

    for visitor in (first, second):
        assert not [url for url in visitor.requests if not url.startswith((served.address, f"blob:{served.address}"))]
        assert visitor.problems == []
        assert visitor.value("document.documentElement.scrollWidth <= innerWidth")
        visitor.close()


def test_bad_files(served: Served, chromium: Chromium) -> None:
    visitor = chromium.visitor(served.address)
    visitor.click("Find it")
    visitor.says("Show what to find first")
    visitor.upload("drop-picture", served.files / "notes.png")
    visitor.says("notes.png is no picture")
    visitor.upload("drop-picture", served.files / "photo-0.png")
    visitor.says("Paint over the thing")
    visitor.upload("drop-queries", served.files / "broken.mp4", served.files / "photo-1.png")
    visitor.says("broken.mp4 is no picture", "no video that can be read")
    visitor.click("Find it")
    visitor.says("Nothing is painted on the picture")
    visitor.upload("drop-mask", served.files / "empty.png")
    visitor.says("empty.png has no foreground")
    visitor.upload("drop-mask", served.files / "other-size.png")
    visitor.says("other-size.png is 50 x 50 pixels", "128 x 96")
    visitor.upload("drop-mask", served.files / "notes.png")
    visitor.says("notes.png is no picture")
    visitor.upload("drop-mask", served.files / "mask.png")
    visitor.says("The mask is painted in")
    visitor.upload("drop-queries", served.files / "huge.png")  # 50 megapixels
    visitor.says("Looked in 2 pictures with 1 reference")
    assert "huge" in captions(visitor) and "photo-1" in captions(visitor)
    visitor.upload("drop-queries", served.files / "huger.png")
    visitor.says("huger was left out", "67 megapixels")
    visitor.click("Add another")
    visitor.says("Kept")
    visitor.click("Clear")
    visitor.upload("drop-queries", served.files / "photo-2.png")
    visitor.says("Looked in 1 picture with 1 reference")  # after all that
    assert visitor.problems == []
    visitor.close()


def test_server_gives_away_nothing(served: Served, chromium: Chromium) -> None:
    async def ask(path: str, **headers: str) -> tuple[int, str]:
        async with aiohttp.ClientSession() as session, session.get(served.address + path, headers=headers) as answer:
            return answer.status, answer.headers.get("Content-Security-Policy", "")

    status, policy = chromium.run(ask("/"))
    assert status == 200 and "default-src 'self'" in policy
    assert chromium.run(ask("/", Host="elsewhere.example"))[0] == 400
    for path in ("/etc/passwd", str(served.files / "photo-0.png"), str(Path(__file__))):
        assert chromium.run(ask(f"/gradio_api/file={path}"))[0] in (403, 404)
