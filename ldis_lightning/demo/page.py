"""The page: what is on it, and what happens when something on it is used."""

from __future__ import annotations

import html
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import gradio as gr
import numpy as np
from numpy.typing import NDArray

from ldis_lightning.demo import drawing
from ldis_lightning.demo.layout import AWAY, Parts, lay_out
from ldis_lightning.demo.ready import Example
from ldis_lightning.demo.session import Query, Session, split
from ldis_lightning.demo.uploads import read_mask_for, read_query, read_upload
from ldis_lightning.demo.watching import Progress, segmenting, takes_steps
from ldis_lightning.errors import UserError
from ldis_lightning.pipeline import InContextSegmentationPipeline, Segmentation
from ldis_lightning.pipeline.inputs import read_picture

Changes = dict[Any, Any]
"""Components of the page -> their new values."""
Painted = NDArray[np.bool_] | None
FETCH = "() => setTimeout(() => document.querySelector('#masks-file').click(), 300)"
"""Makes the browser fetch the file that the hidden button has been given."""


class Page:
    """The page of a model.

    Args:
        pipe: the model.
        folder: for files that the browser fetches.

    Attributes:
        blocks: what Gradio launches.
    """

    def __init__(self, pipe: InContextSegmentationPipeline, folder: Path) -> None:
        self.pipe, self.folder = pipe, folder
        self.many_steps = takes_steps(pipe)
        self._visitors: WeakValueDictionary[str, Session] = WeakValueDictionary()
        self.blocks, self.parts = lay_out(pipe, self.many_steps)
        with self.blocks:
            self._connect(self.parts)

    def _connect(self, on: Parts) -> None:
        everything = on.changing()
        sampler = [on.threshold, on.steps, on.guide_query, on.guide_reference, on.seed]
        quiet: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
        slow: dict[str, Any] = {"api_visibility": "private", "show_progress": "minimal"}
        listen: Callable[..., Any] = gr.on
        listen(self.blocks.load, self.arrive, [on.session], [on.status], **quiet)
        self.blocks.unload(self.leave)
        listen(on.drop_picture.upload, self.new_picture, [on.session, on.drop_picture], everything, **slow)
        listen(on.drop_mask.upload, self.new_mask, [on.session, on.drop_mask], everything, **slow)
        listen(on.keep.click, self.keep, [on.session, on.editor], everything, **quiet)
        listen(on.discard.click, self.discard, [on.session], everything, **quiet)
        listen(on.references.select, self.choose, None, [on.chosen], **quiet)
        listen(on.remove.click, self.remove, [on.session, on.chosen], everything, **quiet)
        given = [on.session, on.editor, *sampler]
        busy = {**quiet, "concurrency_limit": 1, "concurrency_id": "model"}  # visitors wait for each other here alone
        runs = [listen(on.find.click, self.find, given, on.while_looking(), **busy)]
        new = listen(on.drop_queries.upload, self.new_queries, [on.session, on.drop_queries], everything, **quiet)
        runs.append(new.then(self.find_at_once, given, on.while_looking(), **busy))
        for button, draw in on.examples:
            loaded = listen(button.click, self.example(draw), [on.session], everything, **quiet)
            runs.append(loaded.success(self.find_ready, [on.session, *sampler], on.while_looking(), **busy))
        listen(on.stop.click, self.stopped, [on.session, on.threshold], everything, cancels=runs, **quiet)
        listen(on.clear.click, self.clear, [on.session], everything, **quiet)
        view: dict[str, Any] = {"inputs": [on.session, on.threshold], "outputs": everything, **quiet}
        listen(on.threshold.input, self.move_threshold, trigger_mode="always_last", **view)
        listen(on.threshold.release, self.redraw_movie, trigger_mode="always_last", **view)
        ready_to_fetch = listen(on.download.click, self.download, [on.session, on.threshold], [on.file], **quiet)
        ready_to_fetch.success(None, None, None, js=FETCH, api_visibility="private")

    # ---- Visitors

    def arrive(self, session: Session, request: gr.Request) -> str:
        """Remember whose session it is, to forget it when they leave."""
        if request.session_hash:
            self._visitors[request.session_hash] = session
        return "Drop a picture, or try an example."

    def leave(self, request: gr.Request) -> None:
        """Forget what a visitor showed: their tab is closed."""
        session = self._visitors.pop(request.session_hash or "", None)
        if session is not None:
            session.forget()

    # ---- What to find

    def new_picture(self, session: Session, path: str | None) -> Changes:
        """A picture to paint on."""
        if path is None:
            return {}
        try:
            session.draft = read_upload(path, read_picture)
        except UserError as error:
            return {self.parts.drop_picture: None, **self._warn(error)}
        said = "Paint over the thing to find, or drop its mask."
        return {self.parts.drop_picture: None, **self._draft(session), **self._say(said)}

    def new_mask(self, session: Session, path: str | None) -> Changes:
        """A mask of the picture that is painted on."""
        on = self.parts
        if path is None or session.draft is None:
            return {on.drop_mask: None}
        try:
            mask = read_upload(path, read_mask_for(session.draft))
        except UserError as error:
            return {on.drop_mask: None, **self._warn(error)}
        return {
            on.drop_mask: None,
            on.editor: drawing.editor_value(session.draft, mask),
            **self._say("The mask is painted in. Brush and eraser still work on it."),
        }

    def keep(self, session: Session, painted: Painted) -> Changes:
        """Make a reference of the picture and what is painted on it."""
        try:
            session.finish_draft(painted)
        except UserError as error:
            return self._warn(error)
        said = "Kept. Drop the next picture of the same thing, or pictures to look in."
        return {**self._draft(session), **self._references(session), **self._say(said)}

    def discard(self, session: Session) -> Changes:
        """Away with the picture that is painted on."""
        session.draft = None
        return self._draft(session)

    def choose(self, event: gr.SelectData) -> int:
        """The reference that was clicked on."""
        return int(event.index if isinstance(event.index, int) else 0)

    def remove(self, session: Session, chosen: int | None) -> Changes:
        """Remove the reference that was clicked on, or the last one."""
        if session.references:
            at = chosen if isinstance(chosen, int) and 0 <= chosen < len(session.references) else -1
            session.references.pop(at)
        return {self.parts.chosen: None, **self._references(session)}

    # ---- Where to look

    def new_queries(self, session: Session, paths: list[str] | None) -> Changes:
        """Pictures, or a clip."""
        problems = []
        for path in dict.fromkeys(paths or []):  # Gradio gives files of one name and content one path
            try:
                session.add_query(read_upload(path, read_query))
            except UserError as error:
                problems.append(error)
        session.problems = [str(error) for error in problems]
        said = self._warn(*problems) if problems else self._say("Now show what to find, then press Find it.")
        return {self.parts.drop_queries: None, **self._waiting(session), **said}

    def find_at_once(self, session: Session, painted: Painted, *sampler: Any) -> Iterator[Changes]:
        """After queries were dropped: segment them where there is something to look for."""
        if session.queries and not session.results and (session.references or (painted is not None and painted.any())):
            yield from self.find(session, painted, *sampler)

    def find_ready(self, session: Session, *sampler: Any) -> Iterator[Changes]:
        """After an example was loaded: the browser need not say what is painted."""
        yield from self.find(session, session.ready, *sampler)

    def clear(self, session: Session) -> Changes:
        """Forget the queries."""
        session.clear_queries()
        return {**self._waiting(session), **self._say("")}

    def example(self, draw: Callable[[], Example]) -> Callable[[Session], Changes]:
        """What a click on an example loads."""

        def load(session: Session) -> Changes:
            example = draw()
            session.forget()
            session.draft, session.ready = example.draft, example.painted
            session.references, session.queries = list(example.references), list(example.queries)
            editor = {self.parts.editor: drawing.editor_value(example.draft, example.painted)}
            return {**self._draft(session), **editor, **self._references(session), **self._waiting(session)}

        return load

    # ---- What is found

    def find(self, session: Session, painted: Painted, threshold: float, *sampler: Any) -> Iterator[Changes]:
        """Segment all queries, and show it as it goes."""
        queries, began = session.queries, time.monotonic()
        session.runs += 1
        run = session.runs
        try:
            shown = session.shown(painted)
            if not queries:
                raise UserError("Show where to look: drop pictures or a video.")
            frames = [frame for query in queries for frame in query.frames]
            yield {**self._working(True), **self._say(f"Looking in {_count(queries)} ...")}
            context = self.pipe.encode([one.picture for one in shown], [one.mask for one in shown])
            done: list[Segmentation] = []
            for progress in segmenting(self.pipe, frames, context, **self._settings(threshold, sampler)):
                done = progress.done
                if session.runs != run:  # stopped, and the page says so already
                    return
                yield {**self._found(queries, [*done, *progress.underway]), **self._say(_told(progress, frames))}
        except UserError as error:
            yield {**self._working(False), **self._warn(error)}
            return
        if session.runs != run:
            return
        if session.queries is not queries:  # others have been dropped meanwhile
            yield self._working(False)
            return
        session.results = split(done, queries)
        said = f"Looked in {_count(queries)} with {len(shown)} reference{'s' * (len(shown) > 1)}"
        said += f", {time.monotonic() - began:.1f} s. The threshold moves without looking again."
        notes = " ".join([*session.problems, said])
        session.problems = []
        movie = self._movie(session, session.results)
        yield {**self._found(queries, done), **movie, **self._working(False), **self._say(notes)}

    def _settings(self, threshold: float, sampler: Sequence[Any]) -> dict[str, Any]:
        if not self.many_steps:
            return {"threshold": float(threshold)}
        steps, query, reference, seed = sampler
        guidance = (float(query), float(reference))
        return {"threshold": float(threshold), "steps": int(steps), "guidance": guidance, "seed": int(seed or 0)}

    def stopped(self, session: Session, threshold: float) -> Changes:
        """The model was stopped: back to what there was before."""
        session.runs += 1
        shown = self.move_threshold(session, threshold) if session.results else self._waiting(session)
        return {**shown, **self._working(False), **self._say("Stopped.")}

    def move_threshold(self, session: Session, threshold: float) -> Changes:
        """The same results with another threshold. The model is not asked."""
        return (
            {self.parts.results: drawing.results_shown(session.queries, session.results_at(threshold))}
            if session.results
            else {}
        )

    def redraw_movie(self, session: Session, threshold: float) -> Changes:
        """The movie of a clip with another threshold, when the slider is let go."""
        return self._movie(session, session.results_at(threshold)) if session.results else {}

    def download(self, session: Session, threshold: float) -> str:
        """The masks as a file."""
        if not session.results:
            raise gr.Error("There are no masks yet.", print_exception=False)
        path = drawing.write_masks(session.queries, session.results_at(threshold), self.folder)
        return str(session.keep_file("masks", path))

    # ---- Changes of the page

    def _draft(self, session: Session) -> Changes:
        on, drafting = self.parts, session.draft is not None
        return {
            on.editor: drawing.editor_value(session.draft),
            on.painting: gr.update(elem_classes=[] if drafting else AWAY),
            on.showing: gr.update(visible=not drafting),
        }

    def _references(self, session: Session) -> Changes:
        on = self.parts
        return {
            on.references: drawing.references_shown(session.references),
            on.kept: gr.update(visible=bool(session.references)),
        }

    def _waiting(self, session: Session) -> Changes:
        """Queries that have not been segmented."""
        on = self.parts
        shown = drawing.queries_shown(session.queries)
        return {
            on.results: gr.update(value=shown, columns=_columns(len(shown))),
            on.movie: gr.update(value=None, visible=False),
        }

    def _found(self, queries: Sequence[Query], frames: Sequence[Segmentation]) -> Changes:
        shown = drawing.results_shown(queries, split(frames, queries))
        return {self.parts.results: gr.update(value=shown, columns=_columns(len(shown)))}

    def _movie(self, session: Session, results: Sequence[Sequence[Segmentation]]) -> Changes:
        for query, frames in zip(session.queries, results, strict=False):
            if query.fps is not None:
                path = session.keep_file("movie", drawing.write_movie(query, frames, self.folder))
                return {self.parts.movie: gr.update(value=str(path), visible=True)}
        return {self.parts.movie: gr.update(value=None, visible=False)}

    def _working(self, working: bool) -> Changes:
        return {self.parts.find: gr.update(interactive=not working), self.parts.stop: gr.update(visible=working)}

    def _say(self, text: str) -> Changes:
        return {self.parts.status: html.escape(text)}

    def _warn(self, *errors: UserError) -> Changes:
        text = " ".join(map(str, errors))
        gr.Warning(html.escape(text), duration=12)
        return self._say(text)


def _columns(count: int) -> int:
    return 1 if count < 2 else 2


def _count(queries: Sequence[Query]) -> str:
    clips = sum(query.fps is not None for query in queries)
    pictures = len(queries) - clips
    parts = [f"{pictures} picture{'s' * (pictures > 1)}"] * (pictures > 0) + ["a clip"] * (clips > 0)
    return " and ".join(parts)


def _told(progress: Progress, frames: Sequence[Any]) -> str:
    so_far = f"{len(progress.done)} of {len(frames)} done"
    return f"{so_far}; denoising, step {progress.step} of {progress.steps}" if progress.step else so_far
