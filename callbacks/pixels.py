"""What every picture here is made with: pixels of a tensor, colours, text."""

import functools

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageFont
from torch import Tensor

Color = tuple[int, int, int]
Pixels = NDArray[np.uint8]  # (H, W, 3)
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

PAGE: Color = (255, 255, 255)
INK: Color = (28, 32, 38)
FAINT: Color = (112, 118, 126)


def image_pixels(image: Tensor) -> Pixels:
    """(3, H, W) float in [-1, 1] -> (H, W, 3) uint8 on the host."""
    return ((image.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).cpu().numpy()


def grey(picture: Pixels) -> Pixels:
    """(H, W, 3) without its colours."""
    return np.asarray(Image.fromarray(picture).convert("L").convert("RGB"))


def blend(picture: Pixels, color: Color, amount: float) -> Pixels:
    """`picture` moved towards `color` by `amount` in [0, 1]."""
    return (picture * (1 - amount) + np.array(color) * amount).astype(np.uint8)


@functools.cache
def font(size: int) -> Font:
    """Pillow's own font: no font need be installed."""
    return ImageFont.load_default(size)


def shortened(text: str, shape: Font, width: int) -> str:
    """`text`, cut with an ellipsis where it is wider than `width` pixels."""
    if shape.getlength(text) <= width:
        return text
    while text and shape.getlength(text + "...") > width:
        text = text[:-1]
    return text + "..."


def wrapped(text: str, shape: Font, width: int, most: int = 5) -> str:
    """`text` in lines of <= `width` pixels, broken after a space, underscore, hyphen or slash, else within the word."""
    lines = [""]
    for character in text:
        if shape.getlength(lines[-1] + character) > width:
            cut = max(lines[-1].rfind(mark) for mark in " _-/") + 1 or len(lines[-1])
            lines[-1:] = [lines[-1][:cut], lines[-1][cut:]]
        lines[-1] += character
    if len(lines) > most:
        lines[most - 1 :] = [lines[most - 1] + "..."]
    return "\n".join(line.strip() for line in lines)
