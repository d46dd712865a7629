"""`ldis data`: make, pack, index, check and look at data sets.

`--help` answers at once: modules that take long to import are imported by the command that needs them.
"""

import inspect
import re
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ldis_lightning.command_line import Parser, at_least, dispatch
from ldis_lightning.errors import UserError

if TYPE_CHECKING:
    from ldis_lightning.datamodules.index import ShardIndex

HELP = ("-h", "--help")
MOST_CLASSES = 20  # as many are listed


def main(args: Sequence[str]) -> int:
    """Run `ldis data` with its arguments and return the exit status.

    Raises:
        UserError: a mistake in the arguments or in the data they name.
    """
    return dispatch("ldis data", list(args), {name: summary for name, (summary, _) in COMMANDS.items()}, _run)


def _run(name: str, args: list[str]) -> int:
    return COMMANDS[name][1](args)


def class_names(text: str, option: str = "--class_names") -> dict[int, str]:
    """Parse an option: `1=sky,2=building`, or the path of a YAML or JSON file `{1: sky, 2: building}`.

    Args:
        text: its value.
        option: its name, for messages.

    Raises:
        UserError: it is neither.
    """
    if text and ("=" not in text or Path(text).is_file()):
        return _class_names_in_file(Path(text), option)
    names: dict[int, str] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        number, equals, name = part.partition("=")
        if not equals or not number.strip().isdecimal():
            raise UserError(f"{option}: `{part}` is not of the form 1=sky. Names with commas belong in a file.")
        if int(number) in names:
            raise UserError(f"{option}: class {int(number)} is named twice.")
        names[int(number)] = name.strip()
    return names


def _class_names_in_file(path: Path, option: str) -> dict[int, str]:
    import yaml

    if not path.is_file():
        raise UserError(f"{option}: there is no file {path}. Give a file, or the names themselves as 1=sky,2=building.")
    try:
        names = yaml.safe_load(path.read_text(encoding="utf-8"))  # JSON is YAML too
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(f"{path} cannot be read as YAML or JSON: {' '.join(str(error).split())}.") from error
    if not isinstance(names, dict):
        raise UserError(f"{path} must hold a mapping of class ids to names, such as {{1: sky, 2: building}}.")
    for number, name in names.items():
        if not str(number).isdecimal() or not isinstance(name, str):
            raise UserError(f"{path}: `{number}: {name}` is not a class id and a name. Put quotes around the name.")
    return {int(number): name for number, name in names.items()}


def _synth(args: list[str]) -> int:
    from docstring_parser import parse

    from ldis_lightning.datamodules.synthetic import SyntheticWorld

    described = {entry.arg_name: entry.description for entry in parse(SyntheticWorld.__doc__ or "").params}
    parser = Parser("ldis data synth", "Write the synthetic world: pictures and clips of shapes, to train and test on.")
    parser.add_argument("--out", required=True, metavar="DIR", help=described["root"])
    for name, parameter in inspect.signature(SyntheticWorld).parameters.items():
        if name != "root":
            _add_number(parser, name, parameter.default, described.get(name) or "")
    settings: dict[str, Any] = vars(parser.parse(args))
    out = settings.pop("out")
    settings = {name: tuple(value) if isinstance(value, list) else value for name, value in settings.items()}
    SyntheticWorld(root=out, **settings).prepare()
    print(
        f"the synthetic world is in {out}; look at a part of it with: ldis data show {Path(out) / 'images' / 'train'}"
    )
    return 0


def _add_number(parser: Parser, name: str, default: Any, description: str) -> None:
    """An option for a parameter whose default is a whole number or a tuple of them."""
    values = default if isinstance(default, tuple) else (default,)
    shown = " ".join(map(str, values))
    form: dict[str, Any] = {"nargs": len(values)} if isinstance(default, tuple) else {}
    text = f"{description.rstrip('.')} (default: {shown})"
    parser.add_argument(f"--{name}", type=at_least(0), default=default, metavar="N", help=text, **form)


def _pack(args: list[str]) -> int:
    if args and re.fullmatch(r"\w+(\.\w+)+", args[0]):
        return _pack_source(args[0], _own_packer(args[0]), args[1:])
    stems = sorted(path.stem for path in (Path(__file__).parent / "packing" / "datasets").glob("[a-z]*.py"))
    sources = {stem.replace("_", "-"): stem for stem in stems}
    asked = [name for name in sources if args and args[0] == name] or sources  # one module, or all for their summaries
    modules = {name: import_module(f"ldis_lightning.datamodules.packing.datasets.{sources[name]}") for name in asked}
    summaries = {name: module.SUMMARY for name, module in modules.items()}
    return dispatch("ldis data pack", args, summaries, lambda name, rest: _pack_source(name, modules[name], rest))


def _own_packer(name: str) -> Any:
    """The module of a packer outside this package, by its import path."""
    try:
        module = import_module(name)
    except ImportError as error:
        raise UserError(
            f"`{name}` cannot be imported ({error}): install the package that it is in, or name the folder of that in "
            "PYTHONPATH."
        ) from error
    if missing := [part for part in ("SUMMARY", "add_arguments", "packer") if not hasattr(module, part)]:
        raise UserError(f"`{name}` is no packer: it has no {', '.join(missing)}. docs/extend.md shows a whole one.")
    return module


def _pack_source(name: str, module: Any, args: list[str]) -> int:
    """Run the packer of a module, see `packer.Packer`."""
    parser = Parser(f"ldis data pack {name}", f"Pack {module.SUMMARY}.")
    parser.add_argument("src", metavar="SRC", help="folder of the data as they are")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder to make, for shards and index")
    module.add_arguments(parser)
    _add_packing_options(parser)
    namespace = parser.parse(args)
    from ldis_lightning.datamodules.packing.engine import pack

    packer = module.packer(namespace)
    options = ("workers", "resize", "overwrite", "allow_partial", "skip_damaged")
    index, skipped = pack(
        packer,
        namespace.out,
        name=namespace.name or packer.name or Path(namespace.src).resolve().name,
        classes=class_names(namespace.class_names),
        progress=True,
        **{option: getattr(namespace, option) for option in options},
    )
    print(_description(index))
    for reason, count in skipped.items():
        if count:
            print(f"  left out: {count} {reason}")
    print(f"look at it with: ldis data show {namespace.out}")
    return 0


def _add_packing_options(parser: Parser) -> None:
    """The options of every packer."""
    _add_names(parser, "that of the benchmark, or SRC's", "those of the benchmark, or class N")
    parser.add_argument("--workers", type=at_least(1), metavar="N", help="processes to use (default: all cores)")
    parser.add_argument(
        "--resize",
        type=at_least(1),
        metavar="PIXELS",
        help="scale larger pictures down to this short side, encoding them anew (default: bytes stay as they are)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace a data set that is already at --out")
    parser.add_argument(
        "--allow_partial", action="store_true", help="pack what is there even if it is not as much as was published"
    )
    parser.add_argument(
        "--skip_damaged", action="store_true", help="leave out damaged files instead of refusing the whole source"
    )


def _add_names(parser: Parser, whose: str, classes: str = "class N") -> None:
    parser.add_argument("--name", help=f"name of the data set (default: {whose})")
    parser.add_argument(
        "--class_names",
        default="",
        metavar="NAMES",
        help=f'such as "1=sky,2=building", or a YAML or JSON file {{1: sky, 2: building}} (default: {classes})',
    )


def _index(args: list[str]) -> int:
    parser = Parser(
        "ldis data index", "Index the WebDataset shards (*.tar of jpg and png) of a folder, where they lie."
    )
    parser.add_argument("folder", metavar="DIR", help="folder of the shards")
    _add_names(parser, "the folder's")
    namespace = parser.parse(args)
    from ldis_lightning.datamodules.foreign import index_folder

    classes = class_names(namespace.class_names)
    print(_description(index_folder(namespace.folder, namespace.name, classes, progress=True)))
    return 0


def _verify(args: list[str]) -> int:
    parser = Parser("ldis data verify", "Read a whole data set and compare it with the SHA-256 sums in its index.")
    parser.add_argument("folder", metavar="DIR", help="folder of the data set, or its address")
    namespace = parser.parse(args)
    from ldis_lightning.datamodules.remote import open_index

    index = open_index(namespace.folder)
    index.verify()
    print(f"{namespace.folder} is what its index says: {len(index)} frames, hash {index.hash}")
    return 0


def _show(args: list[str]) -> int:
    parser = Parser("ldis data show", "Describe a data set and draw a contact sheet of its episodes.")
    parser.add_argument("folder", metavar="DIR", help="folder of the data set, or its address")
    parser.add_argument("--out", default="sheet.png", metavar="FILE", help="the picture to write (default: sheet.png)")
    parser.add_argument("--episodes", type=at_least(1), default=8, metavar="N", help="how many to draw (default: 8)")
    parser.add_argument(
        "--references", type=at_least(1), default=1, metavar="K", help="references of each (default: 1)"
    )
    parser.add_argument("--classes", type=int, nargs="+", metavar="ID", help="only these class ids (default: all)")
    parser.add_argument("--seed", type=at_least(0), default=0, metavar="N", help="of the draw (default: 0)")
    namespace = parser.parse(args)
    from ldis_lightning.datamodules.contact_sheet import contact_sheet
    from ldis_lightning.datamodules.remote import open_index

    print(_description(open_index(namespace.folder)))
    arguments = (namespace.episodes, namespace.references, namespace.seed, namespace.classes)
    sheet = contact_sheet(namespace.folder, *arguments)
    try:
        sheet.save(namespace.out)
    except (OSError, ValueError) as error:
        raise UserError(f"--out {namespace.out} cannot be written ({error}). Give a file such as sheet.png.") from error
    print(f"contact sheet: {namespace.out}")
    return 0


def _stats(args: list[str]) -> int:
    parser = Parser("ldis data stats", "Count the classes, picture sizes and clip lengths of a data set and draw them.")
    parser.add_argument("folder", metavar="DIR", help="folder of the data set, or its address")
    parser.add_argument("--out", default="stats.png", metavar="FILE", help="the picture to write (default: stats.png)")
    namespace = parser.parse(args)
    from ldis_lightning.datamodules.remote import open_index
    from ldis_lightning.datamodules.stats import as_text, draw, stats_of

    stats = stats_of(open_index(namespace.folder))
    print(as_text(stats))
    draw(stats, namespace.out)
    print(f"picture: {namespace.out}")
    return 0


def _description(index: "ShardIndex") -> str:
    """Size of a data set and a line a class, for people."""
    clips = f" of {index.clips} clips" if index.clips else ""
    shards = f"{len(index.shards)} shard{'s' if len(index.shards) > 1 else ''}"
    megabytes = sum(shard.size for shard in index.shards) / 1e6
    lines = [f"{index.name}: {len(index)} frames{clips}, {len(index.classes)} classes, {shards} of {megabytes:.1f} MB"]
    frames = {class_id: len(index.rows_of_class(class_id)) for class_id in sorted(index.classes)}
    shown = list(frames)
    if len(shown) > MOST_CLASSES:
        shown = sorted(shown, key=lambda class_id: frames[class_id], reverse=True)[:MOST_CLASSES]
    width = max((len(index.classes[class_id]) for class_id in shown), default=0)
    total = index.size.prod(axis=1, dtype="int64").sum()
    for class_id in shown:
        share = index.pixels(class_id).sum() / total
        lines.append(
            f"  {class_id:>3}  {index.classes[class_id]:<{width}}  {frames[class_id]:>9} frames  {share:7.2%} of pixels"
        )
    if hidden := len(frames) - len(shown):
        lines.append(f"  and {hidden} classes in fewer frames, {list(frames.values()).count(0)} of them in none")
    return "\n".join(lines)


def _episodes(args: list[str]) -> int:
    parser = Parser("ldis data episodes", "Draw the episodes of a protocol once and write them down: a manifest.")
    from ldis_lightning.datamodules import draw_command

    draw_command.add_arguments(parser, at_least)
    return draw_command.run(parser.parse(args))


COMMANDS: dict[str, tuple[str, Callable[[list[str]], int]]] = {
    "synth": ("write the synthetic world: pictures and clips to train and test on without downloads", _synth),
    "pack": ("pack a labelled data set into shards", _pack),
    "index": ("index WebDataset shards that are there already", _index),
    "episodes": ("draw a protocol's episodes and write them to a manifest", _episodes),
    "show": ("describe a data set and draw a contact sheet of its episodes", _show),
    "stats": ("count classes, picture sizes and clip lengths, and draw them", _stats),
    "verify": ("compare a data set with the SHA-256 sums in its index", _verify),
}
