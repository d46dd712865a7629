"""`ldis segment`: masks of what a reference shows, in pictures, folders and videos."""

from __future__ import annotations

import argparse
import glob
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ldis_lightning.command_line import Parser, at_least
from ldis_lightning.datamodules.commands import class_names
from ldis_lightning.errors import UserError, printable

if TYPE_CHECKING:
    from ldis_lightning.pipeline import Context, InContextSegmentationPipeline
    from ldis_lightning.segment_files import OutFiles

DESCRIPTION = """Find what references show in other pictures and videos, and write it down as masks.

  one concept:   ldis segment photos --reference a.jpg --mask a.png --model tiny --out masks
  several:       ... --name cat --reference a.jpg --mask a.png --name dog --reference b.jpg --mask b.png
  or in one map: ... --reference a.jpg --mask labels.png --labels 1=cat,2=dog"""

FORMATS = ("binary", "indexed", "rle")


def main(args: Sequence[str]) -> int:
    """Run `ldis segment`.

    Returns:
        0; 1 where a query could not be read: the others are written.

    Raises:
        UserError: the arguments are wrong, a reference cannot be used, or there would be nothing to write.
    """
    options = _parser().parse(list(args))
    concepts = grouped(options.shown or [])
    pictures, videos = find_queries(options.queries)
    labels = class_names(options.labels, "--labels")
    if labels and (len(concepts) > 1 or concepts[0][0]):
        raise UserError("--labels: label maps name their concepts themselves: leave --name out.")
    count = len(labels) if labels else len(concepts)
    several = count > 1 or bool(labels) or bool(concepts[0][0])
    from ldis_lightning.segment_files import OutFiles

    style = options.format or ("indexed" if several else "binary")
    names = list(labels.values()) if labels else [name for name, _, _ in concepts]
    files = OutFiles(Path(options.out), [*pictures, *videos], names, style, options.overlay)
    references = [Path(name).expanduser() for _, *of_concept in concepts for names in of_concept for name in names]
    files.check(options.overwrite, references)
    from ldis_lightning.pipeline import InContextSegmentationPipeline

    pipe = InContextSegmentationPipeline.from_pretrained(options.model, trust_classes=options.trust_classes)
    pipe.to(options.device or best_device())
    return _run(pipe, _encode(pipe, concepts, labels), pictures, videos, files, options)


def _run(
    pipe: InContextSegmentationPipeline,
    context: Context,
    pictures: Sequence[Path],
    videos: Sequence[Path],
    files: OutFiles,
    options: argparse.Namespace,
) -> int:
    from tqdm import tqdm

    from ldis_lightning.segment_files import CannotWrite

    settings = {name: getattr(options, name) for name in ("batch_size", "tile", "threshold", "seed", "steps")}
    settings["guidance"] = tuple(options.guidance) if options.guidance else None
    failed: list[str] = []
    with tqdm(total=len(pictures), desc="pictures", unit="", disable=None if pictures else True) as bar:

        def skip(source: Any, error: UserError) -> None:
            failed.append(str(error))
            bar.update()

        for result in pipe.stream(pictures, context, on_error=skip, **settings):
            files.write_picture(result.source, result)
            bar.update()
    for video in videos:
        try:
            frames = tqdm(pipe.video(video, context, **settings), video.name, unit=" frames", disable=None)
            files.write_video(video, frames)
        except CannotWrite:
            raise
        except UserError as error:
            failed.append(str(error))
    files.finish()
    print(printable(files.summary()))
    if failed:
        print(f"{len(failed)} of {len(pictures) + len(videos)} queries could not be read:")
        print(printable("\n".join(f"  {reason}" for reason in failed)))
    return 1 if failed else 0


def grouped(shown: Sequence[tuple[str, str]]) -> list[tuple[str, list[str], list[str]]]:
    """Name, references and masks of each concept.

    Args:
        shown: the options `name`, `reference` and `mask` with their values, in the order of the command line: what
            follows a name belongs to it.

    Raises:
        UserError: a concept has not as many masks as references, or no name where others have one.
    """
    concepts: list[tuple[str, list[str], list[str]]] = []  # name, references, masks
    for kind, value in shown:
        if kind == "name":
            if any(name == value for name, _, _ in concepts) or not value:
                raise UserError(f"--name {value}: name every concept once, before its --reference and --mask.")
            concepts.append((value, [], []))
            continue
        if not concepts:
            concepts.append(("", [], []))
        _, references, masks = concepts[-1]
        (references if kind == "reference" else masks).append(value)
    if not concepts:
        raise UserError("--reference and --mask are missing: name a picture of the concept, and its mask.")
    if len(concepts) > 1 and not concepts[0][0]:
        raise UserError("--name: where several concepts are named, the first one needs a name too.")
    for name, references, masks in concepts:
        if not references or len(references) != len(masks):
            of = f" of {name}" if name else ""
            raise UserError(
                f"{len(references)} --reference and {len(masks)} --mask{of}: give a mask for each reference."
            )
    return concepts


def find_queries(names: Sequence[str]) -> tuple[list[Path], list[Path]]:
    """The pictures and the videos that files, folders and patterns such as `'photos/*.jpg'` stand for, each once.

    Raises:
        UserError: one of them stands for nothing.
    """
    from ldis_lightning.pipeline.inputs import SUFFIXES
    from ldis_lightning.pipeline.video import VIDEO_SUFFIXES, natural

    found: dict[str, Path] = {}  # absolute path -> as it was named first
    for name in names:
        path = Path(name).expanduser()
        if path.is_dir():
            of_folder = [p for p in path.iterdir() if p.suffix.lower() in SUFFIXES + VIDEO_SUFFIXES]
            matches = sorted((p for p in of_folder if not p.name.startswith(".")), key=lambda p: natural(p.name))
        elif path.exists():
            matches = [path]
        else:
            matches = [p for p in sorted(map(Path, glob.glob(str(path), recursive=True))) if p.is_file()]
        if not matches:
            raise UserError(f"`{name}` is no file and no folder with pictures or videos, and fits the name of none.")
        for match in matches:
            found.setdefault(os.path.abspath(match), match)
    pictures = [path for path in found.values() if path.suffix.lower() not in VIDEO_SUFFIXES]
    return pictures, [path for path in found.values() if path.suffix.lower() in VIDEO_SUFFIXES]


def _encode(
    pipe: InContextSegmentationPipeline, concepts: Sequence[tuple[str, list[str], list[str]]], labels: dict[int, str]
) -> Context:
    name, references, masks = concepts[0]
    if labels:
        return pipe.encode(references, masks, names=labels)
    if not name:
        return pipe.encode(references, masks)
    return pipe.encode({name: (references, masks) for name, references, masks in concepts})


def best_device() -> str:
    """`cuda` or `mps` where torch finds one, else `cpu`."""
    import torch

    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


class _InOrder(argparse.Action):
    """Keeps what was given in the order of the command line."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: Any = None) -> None:
        kind = str(option_string).removeprefix("--")
        setattr(namespace, self.dest, [*(getattr(namespace, self.dest) or []), (kind, values)])


def _parser() -> Parser:
    parser = Parser("ldis segment", DESCRIPTION)
    parser.add_argument("queries", nargs="+", metavar="QUERY", help="picture, video, folder, or a pattern in quotes")
    shown = {"action": _InOrder, "dest": "shown"}
    parser.add_argument("--reference", metavar="IMG", help="picture of the concept; may be repeated", **shown)
    parser.add_argument("--mask", metavar="PNG", help="mask of the reference: white, or 1, is the concept", **shown)
    parser.add_argument("--name", metavar="CONCEPT", help="begins a concept: the references after it are its", **shown)
    parser.add_argument(
        "--labels", default="", metavar="NAMES", help='masks are label maps of concepts, such as "1=cat,2=dog"'
    )
    parser.add_argument("--model", required=True, help="folder of `ldis convert`, `tiny`, or a hub id")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder for the masks")
    parser.add_argument(
        "--format",
        choices=FORMATS,
        help="binary: PNG of 0 and 255, one a concept; indexed: PNG whose pixels are the concepts' numbers; rle: "
        "COCO's JSON (default: binary, of several concepts indexed)",
    )
    parser.add_argument("--overlay", action="store_true", help="also draw the masks over pictures (jpg), videos (mp4)")
    parser.add_argument("--overwrite", action="store_true", help="replace files that are there")
    parser.add_argument("--threshold", type=float, default=0.0, metavar="T", help="of the logits (default: 0)")
    parser.add_argument("--batch_size", type=at_least(1), default=8, metavar="N", help="masks at once (default: 8)")
    parser.add_argument("--tile", type=at_least(16), metavar="N", help="cut larger pictures into tiles of N pixels")
    parser.add_argument("--device", metavar="D", help="cpu, cuda or mps (default: the fastest that there is)")
    parser.add_argument("--seed", type=at_least(0), default=0, metavar="N", help="of LDIS-n's noise (default: 0)")
    parser.add_argument("--steps", type=at_least(1), metavar="N", help="of LDIS-n's sampler (default: the model's)")
    parser.add_argument("--guidance", type=float, nargs=2, metavar=("Q", "TAU"), help="LDIS-n's (default: the model's)")
    parser.add_argument(
        "--trust_classes", action="store_true", help="let the model's config name code and files of its own"
    )
    return parser
