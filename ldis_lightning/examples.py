"""`ldis example`: pictures to try a model with, drawn from the synthetic world.

They show two concepts that the synthetic training data never show: pictures of several things, of which a reference and
its mask point one out.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ldis_lightning.command_line import Parser, at_least
from ldis_lightning.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ldis_lightning.datamodules.world import Concept, Scene

SIDE = 64
"""Pixels that a scene is drawn with: what the model `tiny` was trained on."""
SCALE = 4
"""Times as many that a file has."""
LEAST_PIXELS = 120  # of a concept in a scene
FRAMES = 24


def main(args: Sequence[str]) -> int:
    """Run `ldis example`.

    Raises:
        UserError: the arguments are wrong, or the folder cannot be written.
    """
    parser = Parser("ldis example", "Draw pictures to try `ldis segment` with: a reference, its mask, queries, a clip.")
    parser.add_argument("folder", metavar="DIR", help="folder to make")
    parser.add_argument("--queries", type=at_least(1), default=4, metavar="N", help="how many (default: 4)")
    parser.add_argument("--seed", type=at_least(0), default=0, metavar="N", help="of the drawing (default: 0)")
    parsed = parser.parse(list(args))
    first, second = write_example(parsed.folder, parsed.queries, parsed.seed)
    folder, quoted = Path(parsed.folder), shlex.quote(str(Path(parsed.folder)))
    print(
        f"{folder}: reference.png, mask.png ({first}), labels.png (1 {first}, 2 {second}), "
        f"query-1.png to query-{parsed.queries}.png, clip.mp4\n"
        f"try: ldis segment {quoted}/query-*.png --reference {quoted}/reference.png --mask {quoted}/mask.png "
        "--model tiny --out masks --overlay"
    )
    return 0


def write_example(folder: str | Path, queries: int = 4, seed: int = 0) -> tuple[str, str]:
    """Draw a reference with the mask of one concept (`mask.png`) and the label map of two (`labels.png`), queries
    (`query-1.png`, ..., with their true label maps `truth-1.png`, ...) and a clip (`clip.mp4`).

    Args:
        folder: made where it is missing. Files of these names are replaced.
        queries: how many.
        seed: of the drawing.

    Returns:
        The names of the two concepts; the first is that of the mask.

    Raises:
        UserError: the folder cannot be written.
    """
    import numpy as np

    from ldis_lightning.datamodules.world import render

    folder = Path(folder)
    concepts = _concepts(seed)
    scenes = _scenes(concepts, seed)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("reference", *(f"query-{number}" for number in range(1, queries + 1))):
            picture, labels = render(next(scenes))
            coded = np.zeros_like(labels)
            for number, concept in enumerate(concepts, start=1):
                coded[labels == concept.class_id] = number
            _save(picture, folder / f"{name}.png", smooth=True)
            truth = "labels" if name == "reference" else name.replace("query", "truth")
            _save(coded, folder / f"{truth}.png")
            if name == "reference":
                _save((coded == 1).astype(np.uint8) * 255, folder / "mask.png")
        _write_clip(next(scenes), seed, folder / "clip.mp4")
    except OSError as error:
        raise UserError(f"{folder} cannot be written: {error.strerror or error}.") from error
    return concepts[0].name, concepts[1].name


def _concepts(seed: int) -> list[Concept]:
    """Two novel concepts that have neither shape nor hue in common."""
    import numpy as np

    from ldis_lightning.datamodules.world import CONCEPTS

    novel = [concept for concept in CONCEPTS if concept.novel]
    first = novel[int(np.random.default_rng([seed, 0]).integers(len(novel)))]
    others = [concept for concept in novel if concept.shape != first.shape and concept.hue != first.hue]
    return [first, others[int(np.random.default_rng([seed, 1]).integers(len(others)))]]


def _scenes(concepts: list[Concept], seed: int) -> Iterator[Scene]:
    """Scenes of several things in which both concepts are well seen."""
    import numpy as np

    from ldis_lightning.datamodules.world import CONCEPTS, draw_scene, render

    rng = np.random.default_rng([seed, 2])
    hues = {concept.hue for concept in concepts}  # things of one colour are what a small model confuses
    others = [concept for concept in CONCEPTS if concept.novel and concept.hue not in hues]
    while True:
        crowd = [*concepts, *(others[i] for i in rng.choice(len(others), 2, replace=False))]
        scene = draw_scene(rng, crowd, SIDE, (3, 4))
        labels = render(scene)[1]
        if all((labels == concept.class_id).sum() >= LEAST_PIXELS for concept in concepts):
            yield scene


def _save(array: NDArray[np.uint8], path: Path, smooth: bool = False) -> None:
    from PIL import Image

    image = Image.fromarray(array)
    how = Image.Resampling.BICUBIC if smooth else Image.Resampling.NEAREST
    image.resize((image.width * SCALE, image.height * SCALE), how).save(path)


def _write_clip(scene: Scene, seed: int, path: Path) -> None:
    import numpy as np
    from PIL import Image

    from ldis_lightning.callbacks.movies import Mp4
    from ldis_lightning.datamodules.world import move_scene, render

    movie = Mp4(path, (SIDE * SCALE, SIDE * SCALE), fps=12.0)
    try:
        for moved in move_scene(np.random.default_rng([seed, 3]), scene, FRAMES):
            image = Image.fromarray(render(moved)[0])
            movie.add(np.asarray(image.resize((SIDE * SCALE, SIDE * SCALE), Image.Resampling.BICUBIC)))
        movie.finish()
    except BaseException:
        movie.discard()
        raise
