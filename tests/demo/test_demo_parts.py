"""What is behind the page, without a browser."""

import asyncio
import os
import signal
import subprocess
import sys
import tempfile
import threading
import urllib.request
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from small_models import many_steps, mask, one_step, picture, write_model

from ldis_lightning import cli
from ldis_lightning.callbacks.movies import Mp4
from ldis_lightning.demo import command, drawing, ready, uploads
from ldis_lightning.demo.session import MOST_QUERIES, MOST_REFERENCES, Query, Session, drafted, split
from ldis_lightning.demo.watching import segmenting
from ldis_lightning.errors import UserError
from ldis_lightning.pipeline import video


def session_of(*names: str) -> Session:
    session = Session(draft=picture())
    for name in names:
        session.add_query(Query(name, [picture(seed=len(name))]))
    return session


def test_painted_mask_takes_the_size_of_its_picture() -> None:
    painted = np.zeros((400, 300), bool)
    painted[100:200, 100:200] = True
    reference = drafted(picture(40, 30), painted)
    assert np.array_equal(reference.mask, mask(40, 30) // 255)
    with pytest.raises(UserError, match="Nothing is painted"):
        drafted(picture(), np.zeros((40, 30), bool))
    thin = np.zeros((4000, 3000), bool)
    thin[3, 3] = True
    with pytest.raises(UserError, match="too thin"):
        drafted(picture(40, 30), thin)


def test_session_is_bounded() -> None:
    session = session_of()
    for number in range(MOST_QUERIES):
        session.add_query(Query(f"q{number}", [picture(4, 4)]))
    with pytest.raises(UserError, match="are the most"):
        session.add_query(Query("one more", [picture(4, 4)]))
    session.clear_queries()
    wide: Any = np.broadcast_to(np.zeros((1, 1, 3), np.uint8), (8000, 6250, 3))
    session.add_query(Query("wide", [wide]))
    with pytest.raises(UserError, match="wider was left out"):
        session.add_query(Query("wider", [wide]))
    for _ in range(MOST_REFERENCES):
        session.draft = picture()
        session.finish_draft(mask() > 0)
    session.draft = picture()
    with pytest.raises(UserError, match="references are the most"):
        session.finish_draft(mask() > 0)
    session.draft = None
    with pytest.raises(UserError, match="no picture to add"):
        session.finish_draft(mask() > 0)
    assert len(session.shown(None)) == MOST_REFERENCES
    session.forget()
    with pytest.raises(UserError, match="Show what to find first"):
        session.shown(None)


def test_new_clip_takes_the_place_of_the_clip_before() -> None:
    session = session_of("a")
    for name in ("first", "second"):
        session.add_query(Query(name, [picture()] * 3, fps=5.0))
    assert [query.name for query in session.queries] == ["a", "second"]


def test_uploads_are_read_by_content_and_deleted(tmp_path: Path) -> None:
    path = tmp_path / "clip.png"  # whose name lies
    movie = Mp4(tmp_path / "clip.mp4", (960, 1280), fps=10.0)
    for seed in range(3):
        movie.add(picture(960, 1280, seed))
    movie.finish()
    (tmp_path / "clip.mp4").rename(path)
    query = uploads.read_upload(path, uploads.read_query)
    assert (len(query.frames), query.frames[0].shape, query.fps) == (3, (480, 640, 3), 10.0)
    assert not path.exists()
    path.write_text("#EXTM3U\nhttp://127.0.0.1/x.ts")  # a playlist would make FFmpeg open other files
    with pytest.raises(UserError, match=r"^clip.png is no picture .* and clip.png is no video"):
        uploads.read_upload(path, uploads.read_query)
    assert not path.exists()
    with pytest.raises(UserError, match=r"^clip\.png did not arrive: try again"):
        uploads.read_upload(path, uploads.read_query)


def test_videos_without_pictures_say_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    movie = Mp4(tmp_path / "clip.mp4", (48, 64), fps=10.0)
    movie.add(picture(48, 64))
    movie.finish()
    monkeypatch.setattr(video, "MAX_PIXELS", 1000)
    with pytest.raises(UserError, match=r"^clip\.mp4 is no picture .* frames of 64 x 48 pixels, more than 1000"):
        uploads.read_upload(tmp_path / "clip.mp4", uploads.read_query)


def test_long_clips_are_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploads, "MOST_FRAMES", 2)
    movie = Mp4(tmp_path / "clip.mp4", (48, 64), fps=10.0)
    for seed in range(4):
        movie.add(picture(48, 64, seed))
    movie.finish()
    assert len(uploads.read_query(str(tmp_path / "clip.mp4")).frames) == 2


def test_painted_layers() -> None:
    value = drawing.editor_value(picture(40, 30), mask(40, 30) > 0)
    assert value is not None
    (layer,) = value["layers"]  # pyright: ignore[reportGeneralTypeIssues]
    painted = uploads.painted_layers([_png(layer)])
    assert painted is not None and np.array_equal(drafted(picture(40, 30), painted).mask, mask(40, 30) // 255)
    assert uploads.painted_layers([]) is None
    with pytest.raises(UserError, match="the painting cannot be read as PNG"):
        uploads.painted_layers([b"GIF89a"])
    with pytest.raises(UserError, match="did not arrive whole"):
        uploads.painted_layers([_png(layer)[:90]])


def _png(array: Any) -> bytes:
    from io import BytesIO

    stream = BytesIO()
    Image.fromarray(array).save(stream, "PNG")
    return stream.getvalue()


def test_threshold_moves_without_the_model() -> None:
    pipe, session = one_step(), session_of("a", "b")
    context = pipe.encode(picture(), mask())
    frames = [frame for query in session.queries for frame in query.frames]
    (progress,) = segmenting(pipe, frames, context)
    session.results = split(progress.done, session.queries)
    direct = pipe(frames, context, threshold=0.1).labels
    moved = session.results_at(0.1)
    assert all(np.array_equal(one[0].labels, other) for one, other in zip(moved, direct, strict=True))
    assert (session.results_at(-50)[0][0].labels == 1).all()


def test_denoising_is_told_step_by_step_and_ends_as_without_watching() -> None:
    pipe = many_steps()
    context = pipe.encode(picture(), mask())
    told = list(segmenting(pipe, [picture(seed=1)], context, steps=3))
    assert [(one.step, one.steps, len(one.underway), len(one.done)) for one in told] == [
        (1, 3, 1, 0),
        (2, 3, 1, 0),
        (0, 0, 0, 1),
    ]
    alone = pipe([picture(seed=1)], context, steps=3).logits[0]
    assert np.array_equal(told[-1].done[0].logits, alone)


def test_nobody_watching_stops_the_model() -> None:
    pipe = many_steps()
    watched = segmenting(pipe, [picture(seed=1)], pipe.encode(picture(), mask()), steps=50)
    next(watched)
    watched.close()
    assert "denoising" not in {thread.name for thread in threading.enumerate()}


def test_what_was_stopped_shows_nothing_more(tmp_path: Path) -> None:
    pytest.importorskip("gradio", reason="the extra `demo` is not installed")
    from ldis_lightning.demo.page import Page

    page, session = Page(many_steps(), tmp_path), session_of("query")
    run = page.find(session, mask() > 0, 0.0, 50, 1.5, 7.0, 0)
    next(run)  # that it looks
    next(run)  # the first step
    assert "Stopped." in str(page.stopped(session, 0.0).values())
    assert list(run) == []
    del run
    assert "denoising" not in {thread.name for thread in threading.enumerate()}
    assert not session.results


def test_errors_of_the_model_arrive() -> None:
    pipe = many_steps()
    with pytest.raises(UserError, match="steps"):
        list(segmenting(pipe, [picture()], pipe.encode(picture(), mask()), steps=0))


def test_masks_as_files(tmp_path: Path) -> None:
    pipe, session = one_step(), session_of("../a", "../a")
    session.add_query(Query("clip", [picture(seed=2), picture(seed=3)], fps=5.0))
    context = pipe.encode(picture(), mask())
    (progress,) = segmenting(pipe, [frame for query in session.queries for frame in query.frames], context)
    results = split(progress.done, session.queries)
    path = drawing.write_masks(session.queries, results, tmp_path)
    with zipfile.ZipFile(path) as archive:
        assert archive.namelist() == ["___a.png", "___a_.png", "clip/00000.png", "clip/00001.png"]
        with archive.open("clip/00001.png") as file:
            assert np.array_equal(np.asarray(Image.open(file)), results[2][1].labels * 255)
    single = drawing.write_masks(session.queries[:1], results[:1], tmp_path)
    assert single.name == "___a.png" and single.parent.parent == tmp_path
    movie = drawing.write_movie(session.queries[2], results[2], tmp_path)
    assert len(uploads.read_query(str(movie)).frames) == 2
    shown = drawing.results_shown(session.queries, results)
    assert [caption.split(":")[0] for _, caption in shown] == ["../a", "../a", "clip, frame 0", "clip, frame 1"]


def test_files_for_the_browser_do_not_pile_up(tmp_path: Path) -> None:
    session = session_of()
    for kind in ("masks", "movie", "masks"):
        path = drawing.new_folder(tmp_path) / "file"
        path.touch()
        assert session.keep_file(kind, path) == path
        assert path.is_file()
    assert len(list(tmp_path.iterdir())) == 2
    session.forget()
    assert not list(tmp_path.iterdir())


def test_examples() -> None:
    example = ready.pictures()
    assert example.painted.shape == example.draft.shape[:2] and len(example.queries) == ready.QUERIES
    assert len(ready.several().references) == 1
    (clip,) = ready.clip().queries
    assert clip.fps == 12.0 and len(clip.frames) == 24


def test_addresses() -> None:
    pytest.importorskip("starlette", reason="the extra `demo` is not installed")
    from ldis_lightning.demo.guard import LoopbackNamesOnly, is_loopback, middleware, without_port

    assert [is_loopback(host) for host in ("127.0.0.1", "::1", "localhost", "0.0.0.0", "box.lan")] == [
        *(True, True, True, False, False)
    ]
    assert [without_port(host) for host in ("[::1]:80", "127.0.0.2:7860", "Localhost", "[::1", None)] == [
        *("::1", "127.0.0.2", "localhost", "::1", "")
    ]
    assert [len(middleware(host)) for host in ("127.0.0.2", "::1", "localhost", "0.0.0.0")] == [2, 2, 2, 1]
    import socket

    answers: list[Any] = []

    async def page(*arguments: Any) -> None:
        answers.append("the page")

    async def send(message: Any) -> None:
        answers.append(message.get("status"))

    for host in (b"[::1]:7860", b"elsewhere.example"):
        asyncio.run(LoopbackNamesOnly(page)({"type": "http", "headers": [(b"host", host)]}, None, send))
    assert answers[:2] == ["the page", 400]
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(UserError, match="--port"):
            command.free_port("127.0.0.1", taken.getsockname()[1])
    with pytest.raises(UserError, match="there is no such address"):
        command.free_port("no.such.host.invalid", 0)


def test_without_gradio(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    for name in ("GRADIO_TEMP_DIR", "GRADIO_ANALYTICS_ENABLED", "HF_HUB_DISABLE_TELEMETRY"):
        monkeypatch.setenv(name, "")
    assert cli.main(["demo"]) == 2
    assert capsys.readouterr().err == "error: ldis demo: gradio is missing: run `pip install 'ldis-lightning[demo]'`.\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_can_be_interrupted_while_it_loads(
    number: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*args: Any) -> None:
        signal.raise_signal(number)
        pytest.fail("it goes on loading")

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(command, "prepare_gradio", lambda folder: None)
    monkeypatch.setattr(command, "build", load)
    before = signal.getsignal(number)
    assert cli.main(["demo"]) == cli.INTERRUPTED_STATUS
    assert not list(tmp_path.iterdir()) and signal.getsignal(number) is before


def test_command_ends_and_leaves_nothing(tmp_path: Path) -> None:
    pytest.importorskip("gradio", reason="the extra `demo` is not installed")
    model = write_model(tmp_path / "model")
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    words = [sys.executable, "-m", "ldis_lightning", "demo", "--model", str(model), "--port", "0", "--host", "0.0.0.0"]
    with subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | {"TMPDIR": str(temporary)}
    ) as process:
        try:
            assert process.stdout is not None and process.stderr is not None
            line = process.stdout.readline()
            address = line.split()[0].replace("0.0.0.0", "127.0.0.1")
            with urllib.request.urlopen(address, timeout=60) as answer:
                assert b"Find it by example" in answer.read()
            assert any(temporary.iterdir())
        finally:
            process.send_signal(signal.SIGTERM)
            _, said = process.communicate(timeout=60)
    assert process.returncode == 0, said
    assert "everyone who reaches this machine" in said
    assert list(temporary.iterdir()) == []
