"""The synthetic world: pictures and clips of coloured, textured things, with exact label maps.

A concept is a combination of a shape family, a texture and a hue. A picture shows several things of different concepts
that occlude each other on a textured background, so that nothing but the reference says which of them is meant. This
file draws; `synthetic.py` writes what it draws as shards.
"""

from __future__ import annotations

import colorsys
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]


def _polygon(corners: int) -> Callable[[Floats, Floats], Floats]:
    """Level function of a regular polygon: the largest of the distances to its sides, 1 at the corners' circle."""

    def level(x: Floats, y: Floats) -> Floats:
        sector = 2 * np.pi / corners
        angle = (np.arctan2(y, x) + sector / 2) % sector - sector / 2
        return np.hypot(x, y) * np.cos(angle) / np.float32(np.cos(sector / 2))

    return level


def _star(x: Floats, y: Floats) -> Floats:
    return np.hypot(x, y) / (0.72 + 0.28 * np.cos(5 * np.arctan2(y, x)))


def _cross(x: Floats, y: Floats) -> Floats:
    x, y = np.abs(x), np.abs(y)
    return np.maximum(np.maximum(x, y), np.minimum(x, y) / 0.36) / 0.95


def _bar(x: Floats, y: Floats) -> Floats:
    return np.maximum(np.abs(x), np.abs(y) / 0.42)


# Level functions in a thing's own coordinates: below 1 inside, 1 on the outline.
SHAPES: dict[str, Callable[[Floats, Floats], Floats]] = {
    "disk": lambda x, y: np.hypot(x, y),
    "triangle": _polygon(3),
    "square": _polygon(4),
    "star": _star,
    "cross": _cross,
    "bar": _bar,
}

# Textures in a thing's own coordinates, in pixels: 1 where the thing has its bright colour, 0 where its dark one.
TEXTURES: dict[str, Callable[[Floats, Floats], Floats]] = {
    "plain": lambda x, y: np.ones_like(x),
    "striped": lambda x, y: (np.sin(x * (2 * np.pi / 6.0)) > 0).astype(np.float32),
    "checked": lambda x, y: (np.sin(x * (2 * np.pi / 9.0)) * np.sin(y * (2 * np.pi / 9.0)) > 0).astype(np.float32),
    "dotted": lambda x, y: (np.cos(x * (2 * np.pi / 7.0)) + np.cos(y * (2 * np.pi / 7.0)) < 0.6).astype(np.float32),
}

HUES: dict[str, float] = {
    "red": 0.0,
    "orange": 0.085,
    "yellow": 0.16,
    "green": 0.33,
    "cyan": 0.5,
    "blue": 0.61,
    "purple": 0.76,
    "pink": 0.89,
}


_SHAPES, _TEXTURES, _HUES = list(SHAPES.values()), list(TEXTURES.values()), list(HUES.values())


@dataclass(frozen=True)
class Concept:
    """One combination of shape, texture and hue, as indices into `SHAPES`, `TEXTURES` and `HUES`."""

    shape: int
    texture: int
    hue: int

    @property
    def class_id(self) -> int:
        """1 .. 192, so that it fits an 8-bit label map."""
        return 1 + (self.shape * len(TEXTURES) + self.texture) * len(HUES) + self.hue

    @property
    def name(self) -> str:
        return f"{list(TEXTURES)[self.texture]} {list(HUES)[self.hue]} {list(SHAPES)[self.shape]}"

    @property
    def novel(self) -> bool:
        """Every fourth combination is kept from training; each shape, texture, hue and pair of them is still seen."""
        return (self.shape + self.texture + self.hue) % 4 == 0


CONCEPTS = [Concept(s, t, h) for s in range(len(SHAPES)) for t in range(len(TEXTURES)) for h in range(len(HUES))]


@dataclass(frozen=True)
class Thing:
    """One thing in a scene. Lengths in pixels, angles in radians; `dark` and `bright` are RGB in [0, 1]."""

    concept: Concept
    x: float
    y: float
    radius: float
    angle: float
    aspect: float
    bright: tuple[float, float, float]
    dark: tuple[float, float, float]


@dataclass(frozen=True)
class Scene:
    """A background and things in painting order: a later thing hides an earlier one."""

    background: Floats  # (H, W, 3) in [0, 1]
    things: tuple[Thing, ...]


def draw_background(rng: np.random.Generator, size: int) -> Floats:
    """A muted colour gradient under smooth random waves and pixel noise: (size, size, 3) float32 in [0, 1]."""
    y, x = np.mgrid[0:size, 0:size].astype(np.float32) / size
    corners = rng.uniform(0.2, 0.8) + rng.uniform(-0.15, 0.15, (2, 2, 3))
    picture = (
        corners[0, 0] * ((1 - y) * (1 - x))[..., None]
        + corners[0, 1] * ((1 - y) * x)[..., None]
        + corners[1, 0] * (y * (1 - x))[..., None]
        + corners[1, 1] * (y * x)[..., None]
    )
    for _ in range(2):
        frequency, phase = rng.uniform(-6, 6, 2), rng.uniform(0, 2 * np.pi)
        picture += (
            rng.uniform(0.02, 0.07) * np.sin(2 * np.pi * (frequency[0] * x + frequency[1] * y) + phase)[..., None]
        )
    picture += rng.normal(0, 0.015, picture.shape)
    return picture.clip(0, 1).astype(np.float32)


def draw_thing(rng: np.random.Generator, concept: Concept, size: int) -> Thing:
    """A thing of the concept with random place, size, turn and a slightly varied colour."""
    hue = _HUES[concept.hue] + rng.uniform(-0.02, 0.02)
    saturation, value = rng.uniform(0.75, 1.0), rng.uniform(0.8, 1.0)
    return Thing(
        concept=concept,
        x=rng.uniform(0.12, 0.88) * size,
        y=rng.uniform(0.12, 0.88) * size,
        radius=rng.uniform(0.18, 0.28) * size,
        angle=rng.uniform(0, 2 * np.pi),
        aspect=rng.uniform(0.85, 1.15),
        bright=colorsys.hsv_to_rgb(hue % 1, saturation, value),
        dark=colorsys.hsv_to_rgb(hue % 1, saturation, value * 0.35),
    )


def draw_scene(rng: np.random.Generator, concepts: list[Concept], size: int, things: tuple[int, int]) -> Scene:
    """A scene of `things[0]` to `things[1]` things, all of different concepts out of `concepts`.

    A thing is placed where it covers at most a third of any other, in up to twenty tries; so things occlude each other
    but seldom vanish.
    """
    chosen = rng.choice(len(concepts), int(rng.integers(things[0], things[1] + 1)), replace=False)
    placed: list[Thing] = []
    for concept in (concepts[i] for i in chosen):
        for _ in range(20):
            thing = draw_thing(rng, concept, size)
            if all(np.hypot(thing.x - o.x, thing.y - o.y) > 0.75 * (thing.radius + o.radius) for o in placed):
                placed.append(thing)
                break
    return Scene(draw_background(rng, size), tuple(placed))


def render(scene: Scene) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Paint a scene.

    Returns:
        Picture (H, W, 3) uint8 RGB and label map (H, W) uint8 (0 background, else `Concept.class_id`). The picture's
        outlines are smoothed over one pixel; the label map is the exact inside.
    """
    picture = scene.background.copy()  # (H, W, 3)
    height, width = picture.shape[:2]
    labels = np.zeros((height, width), np.uint8)
    for thing in scene.things:
        reach = 1.5 * thing.radius + 1  # nothing of a thing lies further from its centre
        top, bottom = (int(np.clip(thing.y + side, 0, height)) for side in (-reach, reach + 1))
        left, right = (int(np.clip(thing.x + side, 0, width)) for side in (-reach, reach + 1))
        if top == bottom or left == right:
            continue  # it has left the picture
        window = np.s_[top:bottom, left:right]
        rows, columns = np.mgrid[window].astype(np.float32) + 0.5
        cos, sin = np.float32(np.cos(thing.angle)), np.float32(np.sin(thing.angle))
        dx, dy = columns - np.float32(thing.x), rows - np.float32(thing.y)
        x = (cos * dx + sin * dy) * np.float32(thing.aspect)  # the thing's own coordinates, in pixels
        y = (cos * dy - sin * dx) / np.float32(thing.aspect)
        level = _SHAPES[thing.concept.shape](x / thing.radius, y / thing.radius)
        cover = np.clip(0.5 - (level - 1) * thing.radius, 0, 1)[..., None]  # (h, w, 1)
        shade = _TEXTURES[thing.concept.texture](x, y)[..., None]
        colour = shade * np.asarray(thing.bright, np.float32) + (1 - shade) * np.asarray(thing.dark, np.float32)
        picture[window] = picture[window] * (1 - cover) + colour * cover
        labels[window][level < 1] = thing.concept.class_id
    return (picture * 255).round().astype(np.uint8), labels


def move_scene(rng: np.random.Generator, scene: Scene, frames: int) -> list[Scene]:
    """Set a scene in motion: each thing drifts, turns, grows or shrinks and breathes; some leave the picture."""
    size = scene.background.shape[0]
    drift = rng.normal(0, 0.022 * size, (len(scene.things), 2))
    turn = rng.normal(0, 0.06, len(scene.things))
    growth = rng.normal(0, 0.012, len(scene.things))
    breath, phase = rng.uniform(0, 0.15, len(scene.things)), rng.uniform(0, 2 * np.pi, len(scene.things))

    def at(time: int, i: int, thing: Thing) -> Thing:
        return replace(
            thing,
            x=thing.x + drift[i, 0] * time,
            y=thing.y + drift[i, 1] * time,
            angle=thing.angle + turn[i] * time,
            radius=thing.radius * float(np.exp(growth[i] * time)),
            aspect=thing.aspect * float(np.exp(breath[i] * np.sin(phase[i] + 0.5 * time))),
        )

    return [
        replace(scene, things=tuple(at(time, i, thing) for i, thing in enumerate(scene.things)))
        for time in range(frames)
    ]
