"""Videos: frame by frame, from files, folders and generators, in memory that does not grow."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from small_models import mask, one_step, picture

from ldis_lightning.callbacks.movies import Mp4
from ldis_lightning.errors import UserError
from ldis_lightning.pipeline import video
from ldis_lightning.pipeline.video import VideoFile, frames_of


def clip(path: Path, frames: int = 6) -> Path:
    movie = Mp4(path, (32, 48), fps=10.0)
    for number in range(frames):
        movie.add(np.full((32, 48, 3), 20 * number % 256, np.uint8))
    movie.finish()
    return path


def test_frames_of_a_file(tmp_path: Path) -> None:
    opened = VideoFile(clip(tmp_path / "a.mp4"))
    frames = list(opened)
    assert opened.fps == 10 and [frame.shape for frame in frames] == [(32, 48, 3)] * 6
    assert np.abs([frame.mean() - 20 * number for number, frame in enumerate(frames)]).max() < 6
    assert len(list(opened)) == 6  # again


def test_a_video_is_segmented_as_its_frames_are(tmp_path: Path) -> None:
    pipe = one_step()
    context = pipe.encode(picture(), mask())
    path = clip(tmp_path / "a.mp4")
    results = list(pipe.video(path, context, batch_size=4))
    alone = pipe(list(VideoFile(path)), context).logits
    assert len(results) == 6
    for result, logits in zip(results, alone, strict=True):
        np.testing.assert_allclose(result.logits, logits, atol=5e-5)
        assert result.picture.shape == (32, 48, 3)


def test_frames_before_one_that_does_not_decode_are_segmented() -> None:
    pipe = one_step()

    def frames() -> Any:
        for number in range(5):
            yield picture(20, 20, number)
        raise UserError("a.mp4 does not decode after frame 5")

    results = pipe.video(frames(), pipe.encode(picture(), mask()), batch_size=4)
    assert len([next(results) for _ in range(5)]) == 5
    with pytest.raises(UserError, match="after frame 5"):
        next(results)


def test_frames_of_one_buffer_have_masks_of_their_own() -> None:
    pipe = one_step()
    context = pipe.encode(picture(), mask())
    buffer = np.empty((20, 20, 3), np.uint8)

    def frames() -> Any:
        for number in range(3):
            buffer[:] = picture(20, 20, number)
            yield buffer

    for number, result in enumerate(pipe.video(frames(), context, batch_size=3)):
        np.testing.assert_array_equal(result.picture, picture(20, 20, number))


def test_no_more_frames_are_read_than_are_computed_at_once() -> None:
    pipe = one_step()
    context = pipe.encode(picture(), mask())
    read = []

    def frames() -> Any:
        for number in range(1000):
            read.append(number)
            yield picture(20, 20, number)

    results = pipe.video(frames(), context, batch_size=3)
    assert not read
    next(results)
    assert len(read) <= 4
    for _ in range(5):
        next(results)
    assert len(read) <= 10
    results.close()


def test_a_folder_is_read_in_the_order_of_its_numbers(tmp_path: Path) -> None:
    for number in (10, 2, 1):
        Image.fromarray(np.full((8, 8, 3), number, np.uint8)).save(tmp_path / f"f{number}.png")
    (tmp_path / "notes.txt").touch()
    (tmp_path / ".hidden.png").touch()
    assert [Path(str(path)).name for path in frames_of(tmp_path)] == ["f1.png", "f2.png", "f10.png"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no pictures"):
        frames_of(tmp_path / "empty")


def test_videos_that_do_not_decode(tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("no video")
    with pytest.raises(UserError, match=r"text\.mp4 is no video that can be read"):
        VideoFile(tmp_path / "text.mp4")
    with pytest.raises(UserError, match="does not exist"):
        VideoFile(tmp_path / "none.mp4")
    whole = clip(tmp_path / "a.mp4", 30).read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: 2 * len(whole) // 3])
    with pytest.raises(UserError, match=r"cut\.mp4"):
        list(VideoFile(tmp_path / "cut.mp4"))


def test_a_playlist_opens_no_other_file(tmp_path: Path) -> None:
    clip(tmp_path / "secret.mp4")
    (tmp_path / "list.mp4").write_text("#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nsecret.mp4\n#EXT-X-ENDLIST\n")
    (tmp_path / "concat.mp4").write_text("ffconcat version 1.0\nfile secret.mp4\n")
    for name in ("list.mp4", "concat.mp4"):
        with pytest.raises(UserError, match="is no video that can be read"):
            list(VideoFile(tmp_path / name))


def test_frames_that_are_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = clip(tmp_path / "a.mp4")
    monkeypatch.setattr(video, "MAX_PIXELS", 1000)
    with pytest.raises(UserError, match="frames of 48 x 32 pixels, more than 1000"):
        VideoFile(path)


@pytest.mark.parametrize(("rotation", "corner"), [(0, (0, 0)), (90, (-1, 0)), (180, (-1, -1)), (-90, (0, -1))])
def test_a_telephones_frames_stand_upright(rotation: int, corner: tuple[int, int], tmp_path: Path) -> None:
    shown = np.zeros((4, 6, 3), np.uint8)
    shown[0, 0] = 255
    frame = SimpleNamespace(width=6, height=4, rotation=rotation, to_ndarray=lambda format: shown)
    found = VideoFile(clip(tmp_path / "a.mp4"))._pixels(frame)
    assert found[corner].tolist() == [255, 255, 255]  # turned counterclockwise by as much
