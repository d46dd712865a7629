"""The synthetic world as real shards: pictures and clips of train concepts, and of novel ones."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from ldis_lightning.datamodules.foreign import index_folder
from ldis_lightning.datamodules.index import HEADER, is_outdated
from ldis_lightning.datamodules.prepare import DataPreparation
from ldis_lightning.datamodules.shards import ShardWriter
from ldis_lightning.datamodules.world import CONCEPTS, Concept, draw_scene, move_scene, render
from ldis_lightning.errors import UserError

VERSION = 1
"""Grows when the same arguments give other pictures."""

CLASSES = {concept.class_id: concept.name for concept in CONCEPTS}
SEEN = [concept for concept in CONCEPTS if not concept.novel]
NOVEL = [concept for concept in CONCEPTS if concept.novel]


class SyntheticWorld(DataPreparation):
    """Writes the synthetic world into a folder, unless it is there already.

    The data sets, each with its index: `images/train` and `clips/train` of train concepts, `images/seen` and
    `clips/seen` of the same concepts in other pictures, `images/novel` and `clips/novel` of concepts that appear in no
    other set. The same arguments give the same bytes.

    Args:
        root: folder to write to.
        train_images: pictures in `images/train`.
        test_images: pictures in each of `images/seen` and `images/novel`.
        train_clips: clips in `clips/train`.
        test_clips: clips in each of `clips/seen` and `clips/novel`.
        frames: frames of a clip.
        size: side of a picture in pixels.
        things: fewest and most things in a picture, all of different concepts.
        seed: of all that is drawn.
    """

    def __init__(
        self,
        root: str,
        train_images: int = 5000,
        test_images: int = 500,
        train_clips: int = 100,
        test_clips: int = 20,
        frames: int = 12,
        size: int = 64,
        things: tuple[int, int] = (3, 4),
        seed: int = 0,
    ) -> None:
        self.root = Path(root)
        self.images = {"train": train_images, "seen": test_images, "novel": test_images}
        self.clips = {"train": train_clips, "seen": test_clips, "novel": test_clips}
        self.frames = frames
        self.size = size
        self.things = things
        self.seed = seed

    def prepare(self) -> None:
        """Write the data sets that are missing; what was finished before an interruption is kept.

        Of several processes that want the same folder at once, one draws and the others wait for it.

        Raises:
            UserError: the folder holds a world of other arguments.
        """
        self.root.mkdir(parents=True, exist_ok=True)
        with _alone(self.root):
            self._claim_root()
            for number, (split, count) in enumerate(self.images.items()):
                self._write(f"images/{split}", count, number, self._add_image)
            for number, (split, count) in enumerate(self.clips.items()):
                self._write(f"clips/{split}", count, 3 + number, self._add_clip)

    def _claim_root(self) -> None:
        """Record the arguments in `world.json`, or compare them with those recorded there."""
        own = {"version": VERSION, "images": self.images, "clips": self.clips, "frames": self.frames, "size": self.size}
        own |= {"things": list(self.things), "seed": self.seed}
        path = self.root / "world.json"
        if path.is_file():
            recorded = json.loads(path.read_text())
            if recorded != own:
                differing = ", ".join(key for key in own if recorded.get(key) != own[key])
                raise UserError(
                    f"{path}: this folder holds a synthetic world made with other settings ({differing}). "
                    "Delete it or name another folder."
                )
            return
        if any(self.root.iterdir()):
            raise UserError(f"{self.root}: is not empty and no synthetic world. Name another folder.")
        temporary = path.with_suffix(f".{os.getpid()}")
        temporary.write_text(json.dumps(own, indent=2) + "\n")
        temporary.replace(path)

    def _write(self, name: str, count: int, number: int, add: Callable[..., None]) -> None:
        out = self.root / name
        if (out / HEADER).is_file():
            if is_outdated(out):
                print(f"{out}: its index is of an earlier version and is made again; the pictures stay")
                index_folder(out)
            return
        if count == 0:
            return
        concepts = NOVEL if name.endswith("novel") else SEEN
        with ShardWriter(out, f"synthetic/{name}", {c.class_id: c.name for c in concepts}) as writer:
            for i in tqdm(range(count), desc=f"drawing {name}", unit="clip" if "clips" in name else "picture"):
                add(writer, np.random.default_rng([self.seed, number, i]), concepts, f"{i:06d}")

    def _add_image(self, writer: ShardWriter, rng: np.random.Generator, concepts: list[Concept], key: str) -> None:
        writer.add_image(key, *_encode(*render(draw_scene(rng, concepts, self.size, self.things))))

    def _add_clip(self, writer: ShardWriter, rng: np.random.Generator, concepts: list[Concept], key: str) -> None:
        scene = draw_scene(rng, concepts, self.size, self.things)
        writer.add_clip(key, [_encode(*render(moved)) for moved in move_scene(rng, scene, self.frames)])


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One process at a time, as far as the file system has locks; the lock is on the folder itself and ends with us."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"{folder}: another process draws it; waiting for that", flush=True)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except OSError:
            pass  # no locks there
        yield
    finally:
        os.close(descriptor)


def _encode(picture: NDArray[np.uint8], labels: NDArray[np.uint8]) -> tuple[bytes, bytes]:
    """Picture (H, W, 3) and label map (H, W) -> JPEG and PNG."""
    jpg, png = BytesIO(), BytesIO()
    Image.fromarray(picture).save(jpg, "JPEG", quality=95, subsampling=0)
    Image.fromarray(labels).save(png, "PNG")
    return jpg.getvalue(), png.getvalue()
