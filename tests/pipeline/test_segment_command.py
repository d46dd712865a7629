"""`ldis segment` and `ldis example`: what is written, what is refused, and what a broken file costs."""

import errno
import json
import os
import shlex
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO
from small_models import mask, picture, write_model

from ldis_lightning import segment_command, segment_files
from ldis_lightning.callbacks.movies import Mp4
from ldis_lightning.cli import main
from ldis_lightning.errors import UserError
from ldis_lightning.examples import write_example
from ldis_lightning.pipeline import InContextSegmentationPipeline
from ldis_lightning.segment_command import find_queries, grouped


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, a reference with its mask, pictures and a clip."""
    place = tmp_path_factory.mktemp("segment")
    write_model(place / "model")
    Image.fromarray(picture()).save(place / "reference.png")
    Image.fromarray(mask()).save(place / "mask.png")
    labels = mask() // 255
    labels[-8:] = 2
    Image.fromarray(labels).save(place / "labels.png")
    (place / "photos").mkdir()
    for number in range(4):
        Image.fromarray(picture(30 + number, 40, number)).save(place / f"photos/p{number}.png")
    movie = Mp4(place / "clip.mp4", (32, 48), fps=10.0)
    for number in range(3):
        movie.add(picture(32, 48, number))
    movie.finish()
    return place


@pytest.fixture
def inside(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The test runs in a folder with all of it."""
    for path in place.iterdir():
        (tmp_path / path.name).symlink_to(path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*more: str) -> int:
    return main(["segment", *more, "--model", "model", "--device", "cpu"])


ONE = ("--reference", "reference.png", "--mask", "mask.png")


def test_pictures_and_a_clip(inside: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("photos", "clip.mp4", *ONE, "--out", "out", "--overlay") == 0
    pipe = InContextSegmentationPipeline.from_pretrained("model")
    context = pipe.encode("reference.png", "mask.png")
    for number in range(4):
        expected = pipe(f"photos/p{number}.png", context)
        found = np.asarray(Image.open(inside / f"out/p{number}.png"))
        assert found.shape == (30 + number, 40) and set(np.unique(found)) <= {0, 255}
        clear = np.abs(expected.logits[0]) > 1e-4
        np.testing.assert_array_equal(found[clear] > 0, expected.masks[0][clear])
        assert Image.open(inside / f"out/p{number}.overlay.jpg").size == (40, 30 + number)
    assert sorted(path.name for path in (inside / "out/clip").iterdir()) == ["00000.png", "00001.png", "00002.png"]
    assert (inside / "out/clip.overlay.mp4").stat().st_size > 0
    assert "out: 12 files (binary) of 4 pictures and 1 whole video (3 frames)" in capsys.readouterr().out


def test_one_corrupt_picture_of_many(inside: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (inside / "many").mkdir()
    for number in range(200):
        Image.fromarray(picture(16, 16, number % 7)).save(inside / f"many/{number}.png")
    (inside / "many/77.png").write_bytes((inside / "many/77.png").read_bytes()[:60])
    assert run("many", *ONE, "--out", "out", "--batch_size", "32") == 1
    assert len(list((inside / "out").iterdir())) == 199 and not (inside / "out/77.png").exists()
    printed = capsys.readouterr().out
    assert "1 of 200 queries could not be read" in printed and "many/77.png" in printed


def test_one_corrupt_video_of_many(inside: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (inside / "text.mp4").write_text("no video")
    assert run("photos/p0.png", "text.mp4", "clip.mp4", *ONE, "--out", "out", "--format", "rle") == 1
    assert "1 of 3 queries could not be read:\n  text.mp4 is no video" in capsys.readouterr().out
    assert len(COCO(inside / "out/masks.json").imgs) == 4  # a picture and three frames


def test_several_concepts(inside: Path) -> None:
    two = ("--name", "cat", *ONE, "--name", "dog", *ONE, *ONE)
    assert run("photos/p0.png", *two, "--out", "indexed") == 0
    labels = Image.open(inside / "indexed/p0.png")
    assert labels.mode == "P" and np.asarray(labels).max() <= 2
    assert run("photos/p0.png", *two, "--out", "binary", "--format", "binary") == 0
    assert {path.name for path in (inside / "binary").iterdir()} == {"p0.cat.png", "p0.dog.png"}
    for number, name in enumerate(("cat", "dog"), start=1):
        of_concept = np.asarray(Image.open(inside / f"binary/p0.{name}.png"))
        np.testing.assert_array_equal(of_concept == 255, np.asarray(labels) == number)


def test_label_maps_and_rle(inside: Path) -> None:
    maps = ("--reference", "reference.png", "--mask", "labels.png", "--labels", "1=cat,2=dog")
    assert run("photos/*.png", "clip.mp4", *maps, "--out", "coco", "--format", "rle") == 0
    assert run("photos/*.png", "clip.mp4", *maps, "--out", "indexed") == 0
    assert {path.name for path in (inside / "coco").iterdir()} == {"masks.json"}
    coco = COCO(inside / "coco/masks.json")
    assert [category["name"] for category in coco.loadCats(coco.getCatIds())] == ["cat", "dog"]
    images: Any = coco.loadImgs(coco.getImgIds())
    assert len(images) == 7 and images[-1]["frame"] == 2
    for image in images:
        name = "clip/00000" if "frame" in image else Path(image["file_name"]).stem
        labels = np.asarray(Image.open(inside / f"indexed/{name}.png"))
        found = np.zeros_like(labels)
        if image.get("frame", 0) == 0:
            for annotation in coco.loadAnns(coco.getAnnIds(imgIds=image["id"])):
                found[coco.annToMask(annotation) == 1] = annotation["category_id"]
            np.testing.assert_array_equal(found, labels)


def test_nothing_is_replaced_silently(inside: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("photos", *ONE, "--out", "out") == 0
    before = (inside / "out/p1.png").stat().st_mtime_ns
    assert run("photos/p1.png", *ONE, "--out", "out") == 2
    assert "out/p1.png would be replaced: add --overwrite" in capsys.readouterr().err
    assert (inside / "out/p1.png").stat().st_mtime_ns == before
    assert run("photos/p1.png", *ONE, "--out", "out", "--overwrite") == 0
    assert (inside / "out/p1.png").stat().st_mtime_ns > before


def test_what_is_read_is_never_replaced(inside: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (inside / "clip").mkdir()
    for name in ("p.png", "clip/00007.png"):
        Image.fromarray(picture()).save(inside / name)
    before = [(inside / name).read_bytes() for name in ("p.png", "clip/00007.png", "mask.png")]
    for arguments in (
        ("p.png", *ONE),
        ("photos/p0.png", "clip.mp4", "--reference", "clip/00007.png", "--mask", "mask.png"),
    ):
        assert run(*arguments, "--out", ".", "--overwrite") == 2
        assert f"{'p.png' if arguments[0] == 'p.png' else 'clip/00007.png'} is read and would be replaced" in (
            capsys.readouterr().err
        )
    (inside / "other").mkdir()
    Image.fromarray(picture()).save(inside / "other/mask.png")
    assert run("other/mask.png", *ONE, "--out", ".", "--overwrite") == 2
    assert "mask.png is read and would be replaced: choose another --out" in capsys.readouterr().err
    assert [(inside / name).read_bytes() for name in ("p.png", "clip/00007.png", "mask.png")] == before


def test_a_shorter_video_leaves_no_frames_of_the_longer_one(inside: Path) -> None:
    (inside / "out/clip").mkdir(parents=True)
    for name in ("00001.png", "00003.png", "00004.cat.png", "mine.png"):
        (inside / "out/clip" / name).touch()
    assert run("clip.mp4", *ONE, "--out", "out", "--overwrite") == 0
    assert {path.name for path in (inside / "out/clip").iterdir()} == {
        *("00000.png", "00001.png", "00002.png", "mine.png")
    }


@pytest.mark.skipif(sys.platform != "linux", reason="names of files are UTF-8 elsewhere")
def test_names_that_are_not_utf_8(inside: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = [os.fsdecode(name) for name in (b"a\xff.png", b"b\xff.png", b"c\xff.mp4")]
    Image.fromarray(picture()).save(inside / names[0])
    (inside / names[1]).write_text("no picture")
    (inside / names[2]).write_text("no video")
    assert run(*names, *ONE, "--out", "out", "--format", "rle", "--overlay") == 1
    assert r"a\udcff.png" not in (printed := capsys.readouterr().out) and r"b\udcff.png is no picture" in printed
    (image,) = json.loads((inside / "out/masks.json").read_text(encoding="utf-8"))["images"]
    assert image["file_name"] == names[0]
    assert len(list((inside / "out").glob("a_-*.overlay.jpg"))) == 1


@pytest.mark.parametrize("out", ["/proc/masks", "reference.png/masks", "x" * 300])
def test_a_folder_that_cannot_be_written(out: str, inside: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("clip.mp4", *ONE, "--out", out, "--format", "rle") == 2
    assert f"{out} cannot be written" in capsys.readouterr().err


def test_a_folder_that_can_no_longer_be_written(
    inside: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*args: Any) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Mp4, "_open", refuse)
    assert run("clip.mp4", *ONE, "--out", "out", "--format", "rle", "--overlay") == 2
    assert "clip.overlay.mp4 cannot be written (Read-only file system)" in capsys.readouterr().err
    monkeypatch.setattr(segment_files, "write_atomically", refuse)
    for queries in ("photos", "clip.mp4"):
        assert run(queries, *ONE, "--out", "out") == 2
        assert "cannot be written (Read-only file system): choose another --out" in capsys.readouterr().err


def test_a_movie_without_an_encoder(
    inside: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Mp4, "ENCODERS", ("none",))
    assert run("clip.mp4", *ONE, "--out", "out", "--overlay") == 2
    assert "no encoder for an mp4 here: leave --overlay out" in capsys.readouterr().err


def test_names_are_unique_and_safe(inside: Path) -> None:
    for folder in ("a", "b"):
        (inside / folder).mkdir()
        Image.fromarray(picture(16, 16)).save(inside / folder / "same.png")
    Image.fromarray(picture(16, 16)).save(inside / "b/SAME.png")
    Image.fromarray(picture(16, 16)).save(inside / "b/..odd name.png")
    assert run("a", "b", "b/..odd name.png", *ONE, "--out", "out") == 0
    names = [path.name for path in (inside / "out").iterdir()]
    written = 3 if (inside / "b/same.png").samefile(inside / "b/SAME.png") else 4
    assert len({name.casefold() for name in names}) == len(names) == written
    assert "same.png" in names and not any(name.startswith(".") or " " in name for name in names)


def test_ctrl_c_leaves_whole_files(inside: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = InContextSegmentationPipeline.stream

    def interrupted(self: Any, *args: Any, **settings: Any) -> Any:
        for number, result in enumerate(stream(self, *args, **settings)):
            if number == 2:
                raise KeyboardInterrupt
            yield result

    monkeypatch.setattr(InContextSegmentationPipeline, "stream", interrupted)
    assert run("photos", *ONE, "--out", "out", "--overlay") == 130
    assert run("clip.mp4", *ONE, "--out", "film", "--overlay") == 130
    for folder, count in (("out", 4), ("film/clip", 2)):
        files = [path for path in (inside / folder).iterdir() if path.is_file()]
        assert len(files) == count
        for path in files:
            Image.open(path).load()
    assert not list((inside / "film").glob("*.mp4")) and not list((inside / "film").glob(".*"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none.png", *ONE, "--out", "o"], "`none.png` is no file and no folder with pictures"),
        (["photos", "--out", "o"], "--reference and --mask are missing"),
        (["photos", "--reference", "reference.png", "--out", "o"], "1 --reference and 0 --mask"),
        (["photos", *ONE, "--out", "reference.png"], "--out reference.png is a file"),
        (["photos", *ONE, "--out", "o", "--treshold", "1"], "unknown option `--treshold`; did you mean `--threshold`"),
        (["photos", *ONE, "--name", "cat", *ONE, "--out", "o"], "the first one needs a name too"),
        (["photos", "--name", "cat", *ONE, "--labels", "1=a", "--out", "o"], "leave --name out"),
        (["photos", *ONE, "--labels", "cat", "--out", "o"], "--labels: there is no file cat"),
        (["photos", "--reference", "reference.png", "--mask", "clip.mp4", "--out", "o"], "clip.mp4 is no picture"),
        (["photos", *ONE, "--out", "o", "--steps", "3"], "steps: this model is an LDIS-1"),
    ],
)
def test_mistakes(arguments: list[str], message: str, inside: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*arguments) == 2
    assert message in capsys.readouterr().err
    assert not (inside / "o").exists()


def test_a_query_that_is_named_twice_is_one(inside: Path) -> None:
    names = ["photos/p0.png", "./photos/p0.png", str(inside / "photos/p0.png"), "photos/p*.png", "clip.mp4"]
    pictures, videos = find_queries(names)
    assert pictures == [Path(f"photos/p{number}.png") for number in range(4)] and videos == [Path("clip.mp4")]


def test_references_belong_to_the_name_before_them() -> None:
    order = [("name", "cat"), ("reference", "a"), ("mask", "b"), ("name", "dog"), ("mask", "d"), ("reference", "c")]
    assert grouped(order) == [("cat", ["a"], ["b"]), ("dog", ["c"], ["d"])]
    with pytest.raises(UserError, match="name every concept once"):
        grouped([*order, ("name", "cat")])


def test_help_needs_no_torch(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        segment_command.main(["--help"])
    assert "--reference" in capsys.readouterr().out


def test_the_line_to_try_is_one_for_a_shell(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "my pictures"
    assert main(["example", str(folder), "--queries", "1"]) == 0
    line = capsys.readouterr().out.splitlines()[1].removeprefix("try: ")
    assert f"{folder}/reference.png" in shlex.split(line) and f"'{folder}'/query-*.png" in line


def test_examples(tmp_path: Path) -> None:
    first, second = write_example(tmp_path / "a", queries=2)
    write_example(tmp_path / "b", queries=2)
    names = {path.name for path in (tmp_path / "a").iterdir()}
    assert names == {
        *("reference.png", "mask.png", "labels.png", "clip.mp4"),
        *("query-1.png", "query-2.png", "truth-1.png", "truth-2.png"),
    }
    for name in names - {"clip.mp4"}:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    labels, marked = (np.asarray(Image.open(tmp_path / "a" / f"{name}.png")) for name in ("labels", "mask"))
    assert set(np.unique(labels)) == {0, 1, 2} and first != second
    np.testing.assert_array_equal(marked == 255, labels == 1)
