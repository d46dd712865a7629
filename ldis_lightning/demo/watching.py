"""The model at work: what it has found so far, step by step where it takes several."""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from typing import Any

from ldis_lightning.meta_architectures import LDISn
from ldis_lightning.pipeline import Context, InContextSegmentationPipeline, Segmentation
from ldis_lightning.pipeline.inputs import Pixels

BATCH = 8
WAIT = 600.0
"""Seconds for the page to take a preview, before the model stops for it."""


@dataclass(frozen=True)
class Progress:
    """How far the model is.

    Attributes:
        done: results of the first frames.
        underway: of those after them, what the results would be by now.
        step: of the sampler, from 1 on; 0 where `underway` is empty.
        steps: how many.
    """

    done: list[Segmentation]
    underway: list[Segmentation] = field(default_factory=list)
    step: int = 0
    steps: int = 0


class _StopModel(Exception):
    """Nobody is watching any more."""


def takes_steps(pipe: InContextSegmentationPipeline) -> bool:
    """Whether a model is an LDIS-n, with steps and guidance to choose."""
    return isinstance(pipe.model, LDISn)


def segmenting(
    pipe: InContextSegmentationPipeline, frames: Sequence[Pixels], context: Context, **settings: Any
) -> Generator[Progress, None, None]:
    """Segment pictures and tell of it. Closing the iterator stops the model after its step.

    Args:
        pipe: the model.
        frames: pictures, each (H, W, 3) uint8.
        context: what to look for.
        settings: of `InContextSegmentationPipeline.__call__`.

    Raises:
        UserError: a setting is wrong.
    """
    if takes_steps(pipe) and not pipe.model.reference_fusion.separate:
        yield from _watched(pipe, frames, context, settings)
        return
    done: list[Segmentation] = []
    for result in pipe.stream(frames, context, batch_size=BATCH, **settings):
        done.append(result)
        if len(done) % BATCH == 0 or len(done) == len(frames):
            yield Progress(list(done))


def _watched(
    pipe: InContextSegmentationPipeline, frames: Sequence[Pixels], context: Context, settings: dict[str, Any]
) -> Generator[Progress, None, None]:
    """The sampler calls back, an iterator is asked: between the two is a thread."""
    told: queue.Queue[Progress | BaseException | None] = queue.Queue(maxsize=1)
    stop = threading.Event()
    done: list[Segmentation] = []

    def tell(what: Progress | BaseException | None) -> None:
        try:
            told.put(what, timeout=WAIT)
        except queue.Full as error:
            raise _StopModel from error

    def on_step(step: int, steps: int, underway: list[Segmentation]) -> None:
        if stop.is_set():
            raise _StopModel
        if step < steps:
            tell(Progress(list(done), underway, step, steps))

    def work() -> None:
        try:
            for result in pipe.stream(frames, context, batch_size=BATCH, on_step=on_step, **settings):
                done.append(result)
            tell(Progress(list(done)))
            tell(None)
        except _StopModel:
            return
        except BaseException as error:  # it belongs to the thread that asks
            tell(error)

    thread = threading.Thread(target=work, name="denoising", daemon=True)
    thread.start()
    try:
        while (what := told.get()) is not None:
            if isinstance(what, BaseException):
                raise what
            yield what
    finally:
        stop.set()
        while thread.is_alive():  # it may be waiting to hand over a preview
            _drop(told)
            thread.join(0.05)


def _drop(told: queue.Queue[Any]) -> None:
    try:
        told.get_nowait()
    except queue.Empty:
        return
