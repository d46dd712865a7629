"""Packs a tree of labelled frames, `JPEGImages/<clip>/<frame>.jpg` and `Annotations/<clip>/<frame>.png`.

DAVIS and many other video sets have this layout.
"""

import re
from argparse import ArgumentParser, Namespace
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from tqdm import tqdm

from ldis_lightning.datamodules import shards
from ldis_lightning.datamodules.index import ShardIndex
from ldis_lightning.datamodules.shards import ShardWriter
from ldis_lightning.errors import UserError
from ldis_lightning.suggestions import did_you_mean

SUMMARY = "a tree JPEGImages/<clip>/<frame>.jpg and Annotations/<clip>/<frame>.png, as DAVIS has it"
MOST_PROBLEMS = 5  # as many are listed in one message


class Frame(NamedTuple):
    """A picture and its label map."""

    image: Path
    mask: Path


class Survey(NamedTuple):
    """What a tree holds: the frames of every clip in order, and how many files are left out, by reason."""

    clips: dict[str, list[Frame]]
    skipped: Counter[str]


class Packed(NamedTuple):
    """A data set as packed, and how many files of its source were left out, by reason."""

    index: ShardIndex
    skipped: Counter[str]


def pack_clips(
    src: str | Path,
    out: str | Path,
    as_images: bool = False,
    clips: Sequence[str] | None = None,
    classes: dict[int, str] | None = None,
    *,
    name: str | None = None,
    binary: bool = False,
    skip_unlabelled: bool = False,
    overwrite: bool = False,
    progress: bool = False,
) -> Packed:
    """Pack a tree of labelled frames. The whole tree is checked first; JPEG bytes are copied as they are.

    Args:
        src: the folder of `JPEGImages` and `Annotations`.
        out: the folder to make.
        as_images: pack every frame as an image of its own, `<clip>/<frame>`, instead of clips.
        clips: names of the clips to pack; by default all.
        classes: class id -> name; by default `class N`.
        name: name of the data set; by default that of `src`.
        binary: every label but 0 becomes class 1, for sets whose masks are 0 and 255. Masks are then encoded anew.
        skip_unlabelled: leave out frames without an annotation instead of refusing the tree.
        overwrite: replace a data set of ours that is already at `out`.
        progress: show a progress bar.

    Raises:
        UserError: the tree does not fit or `out` cannot be written.
    """
    src, out = Path(src), Path(out)
    shards.check_out(out, overwrite)
    survey = survey_tree(src, clips, skip_unlabelled)
    frames = [frame for clip in survey.clips.values() for frame in clip]
    _refuse(_problems(tqdm(frames, desc="check", unit=" frames", disable=not progress)), src)
    with (
        ShardWriter(out, name or src.resolve().name, classes or {}, overwrite=overwrite) as writer,
        tqdm(total=len(frames), desc="pack", unit=" frames", disable=not progress) as bar,
    ):
        for clip, members in survey.clips.items():
            add = _add_images if as_images else _add_clip
            add(writer, clip, members, binary)
            bar.update(len(members))
        if not writer.labelled_frames:
            hint = "" if binary else " If 255 marks the thing to segment, use --binary."
            raise UserError(f"no mask of {src} shows a class: they hold only 0 (none) and 255 (ignore).{hint}")
    return Packed(ShardIndex.open(out), survey.skipped)


def survey_tree(src: Path, clips: Sequence[str] | None = None, skip_unlabelled: bool = False) -> Survey:
    """List the clips of a tree and pair their frames with annotations, by name alone.

    Raises:
        UserError: a folder or a clip is missing, or a frame has no annotation.
    """
    images, masks = src / "JPEGImages", src / "Annotations"
    for folder in (src, images, masks):
        if not folder.is_dir():
            raise UserError(
                f"{folder}: there is no such folder. A tree to pack holds JPEGImages/<clip>/<frame>.jpg "
                "and Annotations/<clip>/<frame>.png."
            )
    found = sorted((entry.name for entry in images.iterdir() if entry.is_dir()), key=_natural)
    survey = Survey({}, Counter())
    unlabelled: list[str] = []
    for clip in _chosen(clips, found, images):
        frames = _paired(images / clip, masks / clip, survey.skipped)
        missing = {frame for frame in frames if not frame.mask.is_file()}
        unlabelled += [f"{frame.image} has no annotation {frame.mask}" for frame in frames if frame in missing]
        survey.skipped["frames without an annotation"] += len(missing)
        if kept := [frame for frame in frames if frame not in missing]:
            survey.clips[clip] = kept
    if not skip_unlabelled:
        _refuse(unlabelled, src, "\nUse --skip_unlabelled to leave such frames out.")
    if not survey.clips:
        raise UserError(f"{images} holds no <clip>/<frame>.jpg with an annotation, so there is nothing to pack.")
    return survey


def _chosen(clips: Sequence[str] | None, found: list[str], images: Path) -> list[str]:
    for clip in clips or ():
        if clip not in found:
            listed = f"; there are {', '.join(found[:12])}{', ...' if len(found) > 12 else ''}" if found else ""
            raise UserError(f"{images} holds no clip `{clip}`{did_you_mean(clip, found) or listed}")
    return found if clips is None else sorted(set(clips), key=_natural)


def _paired(images: Path, masks: Path, skipped: Counter[str]) -> list[Frame]:
    files = sorted(images.iterdir(), key=lambda path: _natural(path.name))
    if files and all(path.is_dir() for path in files):
        raise UserError(
            f"{images} holds folders where frames were expected: the layout is JPEGImages/<clip>/<frame>.jpg."
        )
    pictures = [path for path in files if path.suffix.lower() in (".jpg", ".jpeg")]
    skipped["files in JPEGImages that are no .jpg"] += len(files) - len(pictures)
    stems = {path.stem for path in pictures}
    if len(stems) < len(pictures):
        raise UserError(f"{images} holds frames of the same name, .jpg and .jpeg: remove one of each.")
    annotations = masks.iterdir() if masks.is_dir() else ()
    skipped["annotations without an image"] += sum(path.stem not in stems for path in annotations)
    return [Frame(path, masks / f"{path.stem}.png") for path in pictures]


def _natural(name: str) -> list[tuple[int, str]]:
    """Sorts `frame_10` after `frame_9`."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]


def _problems(frames: Iterable[Frame]) -> Iterator[str]:
    """What is wrong with the frames. Their pictures and masks are decoded."""
    for frame in frames:
        try:
            jpg, png = frame.image.read_bytes(), frame.mask.read_bytes()
            size = shards.jpeg_size(jpg, str(frame.image))
            _check_whole(jpg, frame.image)
            labels = shards.read_label_map(png, str(frame.mask))
            shards.check_same_size(size, labels.shape, str(frame.image))
        except UserError as error:
            yield str(error)
        except OSError as error:
            yield f"{error.filename} cannot be read: {error.strerror}."


def _check_whole(jpg: bytes, path: Path) -> None:
    try:
        with Image.open(BytesIO(jpg), formats=["JPEG"]) as image:
            image.draft("RGB", (image.width // 8, image.height // 8))  # a small picture is enough to find a cut file
            image.load()
    except shards.UNREADABLE as error:
        raise UserError(f"{path} is a damaged JPEG ({error}).") from error


def _refuse(problems: Iterable[str], src: Path, advice: str = "") -> None:
    problems = list(problems)
    if not problems:
        return
    listed = "".join(f"\n  {problem}" for problem in problems[:MOST_PROBLEMS])
    more = f"\n  and {len(problems) - MOST_PROBLEMS} more." if len(problems) > MOST_PROBLEMS else ""
    raise UserError(f"{src} was not packed, because of {len(problems)} of its frames:{listed}{more}{advice}")


def _add_clip(writer: ShardWriter, clip: str, frames: list[Frame], binary: bool) -> None:
    writer.add_clip(_key(clip), [_read(frame, binary) for frame in frames], source=clip)


def _add_images(writer: ShardWriter, clip: str, frames: list[Frame], binary: bool) -> None:
    for frame in frames:
        writer.add_image(f"{_key(clip)}/{_key(frame.image.stem)}", *_read(frame, binary), source=clip)


def _key(name: str) -> str:
    return name.replace(".", "_")  # WebDataset cuts names at the first dot


def _read(frame: Frame, binary: bool) -> tuple[bytes, bytes]:
    png = frame.mask.read_bytes()
    return frame.image.read_bytes(), _binary(png, frame.mask) if binary else png


def _binary(png: bytes, path: Path) -> bytes:
    labels = shards.read_label_map(png, str(path)) != 0
    stream = BytesIO()
    Image.fromarray(labels.astype(np.uint8)).save(stream, "PNG")
    return stream.getvalue()


def add_arguments(parser: ArgumentParser) -> None:
    """The options of `ldis data pack clips` beside those of every packer."""
    form = parser.add_argument("--as", dest="form", choices=("images", "clips"), default="clips")
    form.help = "pack whole clips, or every frame as an image of its own (default: clips)"
    parser.add_argument("--clips", nargs="+", metavar="CLIP", help="pack these clips only (default: all)")
    parser.add_argument("--binary", action="store_true", help="make every label but 0 class 1, for masks of 0 and 255")
    parser.add_argument(
        "--skip_unlabelled", action="store_true", help="leave out frames without an annotation instead of refusing"
    )


def run(args: Namespace, classes: dict[int, str]) -> Packed:
    """Run `ldis data pack clips` with its parsed arguments."""
    return pack_clips(
        args.src,
        args.out,
        args.form == "images",
        args.clips,
        classes,
        name=args.name,
        binary=args.binary,
        skip_unlabelled=args.skip_unlabelled,
        overwrite=args.overwrite,
        progress=True,
    )
