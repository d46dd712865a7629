"""`ldis data episodes`: draw a protocol's episodes once and write them down."""

import inspect
import re
from pathlib import Path
from typing import Any

from docstring_parser import parse

from ldis_lightning.datamodules.evaluation_set import EvaluationSource, draw_manifest
from ldis_lightning.datamodules.few_shot import FewShot
from ldis_lightning.datamodules.protocol import Protocol
from ldis_lightning.datamodules.protocols import PROTOCOLS
from ldis_lightning.datamodules.remote import open_index
from ldis_lightning.datamodules.remote.address import is_address
from ldis_lightning.errors import UserError
from ldis_lightning.suggestions import did_you_mean


def add_arguments(parser: Any, whole_number: Any) -> None:
    """The options of the command.

    Args:
        parser: an `ArgumentParser`.
        whole_number: minimum -> type of an option that takes a whole number from there on.
    """
    summaries = "\n".join(f"  {name:<14} {_summary(protocol)}" for name, protocol in PROTOCOLS.items())
    parser.epilog = f"protocols:\n{summaries}"
    parser.add_argument("folder", metavar="DIR", help="folder of the data set, or its address")
    parser.add_argument("--protocol", default="ldis", metavar="NAME", help="one of those below (default: ldis)")
    parser.add_argument("--out", metavar="FILE", help="the manifest to write (default: DIR/PROTOCOL[-FOLD].json)")
    parser.add_argument("--references", type=whole_number(1), default=1, metavar="K", help="of an episode (default: 1)")
    parser.add_argument("--seed", type=whole_number(0), default=0, metavar="N", help="of the draw (default: 0)")
    fewest = "pictures with fewer pixels of the class are left out (default: 1)"
    parser.add_argument("--min_pixels", type=whole_number(1), default=1, metavar="N", help=fewest)
    parser.add_argument("--classes", type=int, nargs="+", metavar="ID", help="only these class ids (default: all)")
    described = {entry.arg_name: entry.description for entry in parse(FewShot.__doc__ or "").params}
    for name in ("fold", "episodes", "runs"):
        parser.add_argument(f"--{name}", type=whole_number(0), metavar="N", help=f"few-shot folds: {described[name]}")


def run(arguments: Any) -> int:
    """Draw, write and say what was drawn.

    Raises:
        UserError: the protocol does not exist or does not take a setting, or the data set does not allow it.
    """
    index = open_index(arguments.folder)
    if is_address(arguments.folder) and not arguments.out:
        raise UserError("--out is needed where the data set is not a folder: name the file to write.")
    settings = {name: getattr(arguments, name) for name in ("fold", "episodes", "runs")}
    protocol = make_protocol(arguments.protocol, {k: v for k, v in settings.items() if v is not None})
    source = EvaluationSource(
        arguments.folder,
        classes=arguments.classes,
        min_pixels=arguments.min_pixels,
        seed=arguments.seed,
        protocol=protocol,
    )
    manifest = draw_manifest(index, source, arguments.references)
    fold = f"-{settings['fold']}" if settings["fold"] is not None else ""
    out = Path(arguments.out or Path(arguments.folder) / f"{arguments.protocol}{fold}.json")
    try:
        manifest.save(out)
    except OSError as error:
        raise UserError(f"--out {out} cannot be written: {error.strerror}.") from error
    queries = len({episode.query for episode in manifest.episodes})
    runs = f" in {manifest.runs} runs" if manifest.runs > 1 else ""
    print(
        f"{manifest.protocol} on {index.name}: {len(manifest)} episodes{runs}, {queries} queries, "
        f"{len({episode.class_id for episode in manifest.episodes})} classes, K = {manifest.references}\n"
        f"hash {manifest.hash}\nmanifest: {out}"
    )
    return 0


def make_protocol(name: str, settings: dict[str, Any]) -> Protocol:
    """A protocol by its name.

    Raises:
        UserError: there is none of this name, or it has no such setting.
    """
    if name not in PROTOCOLS:
        hint = did_you_mean(name, PROTOCOLS)
        raise UserError(f"--protocol: there is no protocol `{name}`{hint}; there are {', '.join(PROTOCOLS)}.")
    taken = inspect.signature(PROTOCOLS[name]).parameters
    for setting in sorted(set(settings) - set(taken)):
        raise UserError(f"--{setting}: the protocol {name} has no such setting; it has {', '.join(taken) or 'none'}.")
    return PROTOCOLS[name](**settings)


def _summary(protocol: type[Protocol]) -> str:
    """The first sentence of a protocol's documentation."""
    return re.split(r"(?<=[a-z0-9])[.;](?: |$)", " ".join((inspect.getdoc(protocol) or "").split()))[0]
