"""The slot of a packer: a data set as its owners distribute it, and the samples that it holds."""

from collections import Counter
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple


class Item(NamedTuple):
    """One sample: an image, or a clip.

    `parts` has one entry a frame, which `Packer.read` turns into bytes: small, picklable, the same on every run. The
    first `Path` in a part is taken for its picture and the second for its label map: they are named in messages, and
    a change of theirs is noticed after an interruption.
    """

    key: str  # of the sample, or the clip's name
    parts: tuple[Any, ...]
    is_clip: bool = False
    source: str = ""  # where it is from, for `KEY.json`


class Survey(NamedTuple):
    """What a source holds: samples in order, class names, files that are left out by reason, and totals to compare."""

    items: list[Item]
    classes: dict[int, str]
    skipped: Counter[str]
    totals: Mapping[str, tuple[int, int]] = MappingProxyType({})  # what is counted -> (found, published)


class LeaveOut(Exception):
    """Raised by `Packer.read`: the sample (for a frame, its whole clip) is left out and counted under this reason."""


class Packer:
    """A data set as its owners distribute it. Subclass it for another one.

    `ldis data pack NAME SRC` finds the module `packing/datasets/NAME.py` by its name, with `_` for each `-`, and one of
    another package by its import path (`my_lab.farm`). The module holds the subclass, `SUMMARY` (one line for
    `--help`), `add_arguments(parser)` for options of its own and `packer(args)`, which builds it from the parsed
    arguments (`args.src` is the folder to pack).

    Public attributes must be plain values that together say how it packs: after an interruption, shards are kept only
    if these, the options and the items are the same. The instance is pickled to worker processes where they are not
    forked.

    Attributes:
        name: default name of the data set.
        unlabelled_hint: what to try if no label map shows a class, appended to the message.
    """

    name: str = ""
    unlabelled_hint: str = ""

    def survey(self) -> Survey:
        """List the samples, without decoding a picture.

        Raises:
            UserError: something is missing; the message says what, where it belongs and where its owners offer it.
        """
        raise NotImplementedError

    def read(self, part: Any) -> tuple[bytes, bytes]:
        """Bytes of a frame, in a worker process: the JPEG as it lies on the disk and the label map as PNG.

        Label maps have 8 bits, or 16 where class ids exceed 254: 0 is none, 255 ignore, else class ids.

        Raises:
            LeaveOut: the sample is to be left out.
            UserError: a file is damaged or does not fit; the message names it.
        """
        raise NotImplementedError


def sample_key(name: str) -> str:
    """The key of a sample or a clip of this name: WebDataset cuts names at the first dot."""
    return name.replace(".", "_")
