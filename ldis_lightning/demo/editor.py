"""The picture that is painted on."""

from __future__ import annotations

from abc import ABCMeta
from typing import Any

import gradio as gr
import numpy as np
from gradio.components.base import server
from gradio.components.image_editor import AcceptBlobs
from numpy.typing import NDArray

from ldis_lightning.demo.uploads import bytes_of_layer, painted_layers
from ldis_lightning.errors import UserError

MOST_WAITING = 16
"""Paintings of a visitor that have arrived and have not been asked for."""


class _Plain(type(gr.ImageEditor)):
    """Gradio's own metaclass writes a .pyi file beside the source of every new component."""

    def __new__(cls, name: str, bases: tuple[type, ...], attributes: dict[str, Any]) -> Any:
        return ABCMeta.__new__(cls, name, bases, attributes)


class MaskEditor(gr.ImageEditor, metaclass=_Plain):
    """An image editor whose value is what is painted: (h, w) bool, or None.

    Gradio's own opens pictures of any format and size that a browser, or something in its place, sends. And no picture
    is uploaded here: a large one would be too much for the canvas.
    """

    is_template = True  # the browser draws it as the class that it is made of

    @server
    def accept_blobs(self, data: AcceptBlobs) -> None:
        """Take a part of a painting. Without a bound, paintings that nobody asks for would stay for ever."""
        super().accept_blobs(data)
        while len(self.blob_storage) > MOST_WAITING:
            del self.blob_storage[next(iter(self.blob_storage))]

    def preprocess(self, payload: Any) -> NDArray[np.bool_] | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """What is painted, from what the browser sends."""
        if payload is None:
            return None
        parts = self.blob_storage.pop(payload.id, None) if payload.id is not None else payload
        layers = [] if parts is None else [layer for layer in parts.layers if layer is not None]
        try:
            return painted_layers([bytes_of_layer(layer) for layer in layers])
        except UserError as error:
            raise gr.Error(str(error), print_exception=False) from error
