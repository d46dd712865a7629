import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ldis_lightning.callbacks.movies import Gif, Movie, Mp4
from ldis_lightning.callbacks.overlay import COLORS
from ldis_lightning.errors import UserError

SHAPE = (32, 48)


def write(movie: Movie, levels: list[int]) -> None:
    """One plain frame a grey level."""
    for level in levels:
        movie.add(np.full((*SHAPE, 3), level, np.uint8))


def gif_frames(path: Path) -> list[tuple[int, int]]:
    """(grey level, duration in ms) of each frame."""
    with Image.open(path, formats=["GIF"]) as picture:
        found = []
        for number in range(picture.n_frames):  # pyright: ignore[reportAttributeAccessIssue]
            picture.seek(number)
            found.append((int(np.asarray(picture.convert("RGB")).mean()), picture.info["duration"]))
        return found


def mp4_colors(path: Path) -> list[np.ndarray]:
    """Mean colour of each frame by BT.709, as the file is tagged; PyAV's older versions read it as BT.601."""
    av = pytest.importorskip("av")
    with av.open(str(path)) as container:
        assert container.streams.video[0].codec_context.colorspace == 1
        planes = [frame.to_ndarray(format="yuv420p") for frame in container.decode(video=0)]  # (1.5 H, W)
    colors = []
    for plane in planes:
        height = len(plane) * 2 // 3
        luma = (plane[:height].mean() - 16) / 219
        blue, red = ((part.mean() - 128) / 224 for part in np.split(plane[height:], 2))
        green = luma - 0.1873 * blue - 0.4681 * red
        colors.append(255 * np.array([luma + 1.5748 * red, green, luma + 1.8556 * blue]))
    return colors


@pytest.mark.parametrize("kind", [Gif, Mp4])
def test_the_file_appears_when_it_is_finished(kind: type[Movie], tmp_path: Path) -> None:
    path = tmp_path / "new" / f"clip{kind.ending}"
    path.parent.mkdir()
    path.write_bytes(b"old")
    movie = kind(path, SHAPE, fps=10)
    write(movie, [0, 100])
    assert path.read_bytes() == b"old"
    movie.finish()
    assert path.stat().st_size > 100
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("kind", [Gif, Mp4])
@pytest.mark.parametrize("levels", [[], [0, 100]])
def test_a_discarded_movie_leaves_nothing(kind: type[Movie], levels: list[int], tmp_path: Path) -> None:
    movie = kind(tmp_path / f"clip{kind.ending}", SHAPE, fps=10)
    write(movie, levels)
    movie.discard()
    assert list(tmp_path.iterdir()) == []


def test_gif_holds_the_frames_in_order(tmp_path: Path) -> None:
    movie = Gif(tmp_path / "clip.gif", SHAPE, fps=10)
    write(movie, [10, 80, 160, 10])
    movie.finish()
    assert gif_frames(tmp_path / "clip.gif") == [(10, 100), (80, 100), (160, 100), (10, 100)]


def test_gif_of_a_long_clip_keeps_evenly_spaced_frames_and_its_pace(tmp_path: Path) -> None:
    class Short(Gif):
        MOST_FRAMES = 4

    movie = Short(tmp_path / "clip.gif", SHAPE, fps=10)
    write(movie, [10 * i for i in range(17)])
    movie.finish()
    assert gif_frames(tmp_path / "clip.gif") == [(0, 800), (80, 800), (160, 800)]


@pytest.mark.parametrize(("count", "kept"), [(1, 1), (4, 4), (5, 3), (8, 4), (9, 3), (16, 4)])
def test_gif_never_exceeds_its_frames(count: int, kept: int, tmp_path: Path) -> None:
    class Short(Gif):
        MOST_FRAMES = 4

    movie = Short(tmp_path / "clip.gif", SHAPE, fps=10)
    write(movie, [5 * i for i in range(count)])
    movie.finish()
    assert len(gif_frames(tmp_path / "clip.gif")) == kept


def test_gif_shows_the_concepts_colours_whatever_the_picture(tmp_path: Path) -> None:
    frame = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    frame[0, : len(COLORS)] = COLORS
    movie = Gif(tmp_path / "clip.gif", (64, 64), fps=10)
    movie.add(frame)
    movie.finish()
    with Image.open(tmp_path / "clip.gif", formats=["GIF"]) as picture:
        shown = np.asarray(picture.convert("RGB"))
    assert np.abs(shown[0, : len(COLORS)].astype(int) - COLORS).max() <= 8


@pytest.mark.parametrize("encoders", [Mp4.ENCODERS, ("no such encoder", "mpeg4")])
def test_mp4_holds_the_frames_in_their_colours(
    encoders: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    av = pytest.importorskip("av")
    monkeypatch.setattr(Mp4, "ENCODERS", encoders)
    movie = Mp4(tmp_path / "clip.mp4", SHAPE, fps=12.5)
    for color in COLORS[:6]:
        movie.add(np.full((*SHAPE, 3), color, np.uint8))
    movie.finish()
    assert np.abs(np.array(mp4_colors(tmp_path / "clip.mp4")) - COLORS[:6]).max() < 12
    with av.open(str(tmp_path / "clip.mp4")) as container:
        video = container.streams.video[0]
        assert (video.codec_context.height, video.codec_context.width) == SHAPE
        assert float(video.average_rate) == 12.5


def test_without_pyav_the_message_names_the_gif(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(UserError, match="`movie: gif`"):
        Mp4(tmp_path / "clip.mp4", SHAPE, fps=10)
    assert list(tmp_path.iterdir()) == []


def test_without_an_encoder_the_message_names_the_gif(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("av")
    monkeypatch.setattr(Mp4, "ENCODERS", ("no such encoder",))
    with pytest.raises(UserError, match="`movie: gif`"):
        Mp4(tmp_path / "clip.mp4", SHAPE, fps=10)
    assert list(tmp_path.iterdir()) == []
