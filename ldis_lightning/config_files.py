"""Finds the files that `--config` names: as given, else among the configs that come with the package.

In any of them `${here}` stands for the folder that the file lies in, so that a config can name what lies beside it and
both can be moved together.

A config names classes that are imported and run: take it from whom you would take code. What is refused here can harm
nobody on purpose alone: a file that makes YAML build Python objects, or that unpacks into more than it is.
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

import ldis_lightning
from ldis_lightning.errors import UserError, first_line
from ldis_lightning.suggestions import did_you_mean

CONFIG_FLAGS = ("--config", "-c")
HERE = "${here}"
MOST_BYTES = 2**17
MOST_VALUES = 2**17
"""Of a config, with every `*alias` replaced by what it stands for."""
DEEPEST = 50
"""Levels of lists and mappings in each other."""
NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
LONGEST_NUMBER = 1000
SHOWN = 200
"""Characters of a name that a message shows."""


def packaged_configs() -> dict[str, Path]:
    """The configs that come with the package by the name `--config` takes, e.g. `configs/data/clips.yaml`."""
    roots = [Path(entry) for entry in ldis_lightning.__path__]
    return {
        path.relative_to(root).as_posix(): path for root in roots for path in sorted((root / "configs").rglob("*.yaml"))
    }


def find_config(name: str) -> Path:
    """The file that `name` stands for: a path from here, else a packaged config, with or without `configs/` and
    `.yaml`.

    Raises:
        UserError: there is no such file; the message lists what there is.
    """
    if _is_file(Path(name)):
        return Path(name)
    packaged = packaged_configs()
    for candidate in (name, f"configs/{name}", f"{name}.yaml", f"configs/{name}.yaml"):
        if candidate in packaged:
            return packaged[candidate]
    if os.path.isdir(name):
        raise UserError(f"config `{name}` is a folder; name a YAML file in it")
    name = name if len(name) <= SHOWN else f"{name[:SHOWN]}..."
    known = f"the packaged configs are {', '.join(packaged)}" if packaged else "no configs come with this installation"
    raise UserError(f"config `{name}` does not exist{did_you_mean(name, packaged)}; {known}")


def resolve_configs(args: Sequence[str]) -> tuple[list[str], list[Path]]:
    """Replace what follows every `--config` by the file it stands for, and put the configs that it extends before it.

    `extends: OTHER.yaml` in a config names a file beside it (or as `find_config` has it) of which it changes some keys.

    Returns:
        The arguments with paths of existing files, or the content of those with a `${here}`, and the files that were
        named, without the extended ones.

    Raises:
        UserError: a config does not exist or is no YAML mapping, or a flag has nothing after it.
    """
    resolved: list[str] = []
    named: list[Path] = []
    remaining = iter(args)
    for arg in remaining:
        flag, equals, value = arg.partition("=")
        if flag == "--extends":
            raise UserError("`extends` belongs into a config file; on the command line, give `--config` several times")
        if flag not in CONFIG_FLAGS:
            resolved.append(arg)
            continue
        name = value if equals else next(remaining, "")
        if not name:
            raise UserError(f"`{flag}` needs the path of a YAML file after it")
        named.append(find_config(name))
        for path in with_parents(named[-1]):
            resolved += [flag, _path_or_content(path)]
    return resolved, named


def _path_or_content(path: Path) -> str:
    """What the parser is given of a config: its path, or where that would lose `${here}`, its content."""
    content = read_mapping(path)
    return json.dumps(content, default=str) if HERE in path.read_text(encoding="utf-8") else str(path)


def with_parents(path: Path) -> list[Path]:
    """A config after the one that it extends, and so on, the eldest first.

    Raises:
        UserError: one of them does not exist, is no YAML mapping, or extends itself.
    """
    chain, seen = [path], {path.resolve()}
    while parent := read_mapping(chain[0]).get("extends"):
        if not isinstance(parent, str) or not parent.isprintable():
            raise UserError(f"config `{chain[0]}`: `extends` must name one file, not {str(parent)[:100]!r}")
        beside = chain[0].parent / parent
        chain.insert(0, beside if _is_file(beside) else find_config(parent))
        if chain[0].resolve() in seen:  # however its path is spelt
            raise UserError(f"config `{chain[0]}` extends itself: {' -> '.join(map(str, reversed(chain)))}")
        seen.add(chain[0].resolve())
    return chain


def read_mapping(path: Path) -> dict[str, Any]:
    """The content of a config file, with its folder in the place of every `${here}`.

    Raises:
        UserError: it is no YAML mapping, or beyond the bounds of this module; the message names the file and the line.
    """
    try:
        content = parse_yaml(_read_text(path))
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise UserError(f"config `{path}` is not valid YAML: {error.problem}{line}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"config `{path}` is not a text file of YAML") from error
    except OSError as error:
        raise UserError(f"config `{path}` cannot be read: {error.strerror}") from error
    except ValueError as error:  # a number or a date that cannot be, or one of our own bounds
        raise UserError(f"config `{path}` cannot be read: {first_line(error)}") from error
    if not isinstance(content, dict):
        what = "is empty" if content is None else "holds something else"
        raise UserError(f"config `{path}` must hold `key: value` lines, but it {what}")
    return with_folder(content, path.parent.absolute())  # not resolved: files of the hub's cache are links


def parse_yaml(text: str) -> Any:
    """The values of a YAML document: plain ones, and no more of them than `MOST_VALUES`.

    Raises:
        yaml.YAMLError: it is no YAML, or asks for objects of Python.
        ValueError: it is beyond the bounds of this module, or holds a number or a date that cannot be.
    """
    loader = yaml.SafeLoader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        if _extent(node, {}, 0).values > MOST_VALUES:  # before anything is built: `<<` copies what it names
            raise ValueError(f"its aliases stand for more than {MOST_VALUES} values")
        return loader.construct_document(node)
    except RecursionError as error:
        raise ValueError(f"it is nested more than {DEEPEST} levels deep") from error
    finally:
        loader.dispose()


class _Extent(NamedTuple):
    """Of a node, with every alias in it written out."""

    values: int
    levels: int


def _extent(node: yaml.Node, known: dict[int, _Extent], depth: int) -> _Extent:
    """How much a node stands for; `known` are those of nodes by their `id`.

    Raises:
        ValueError: it, or its place, is nested too deeply.
    """
    if isinstance(node, yaml.ScalarNode):
        if node.tag in NUMBERS and len(node.value) > LONGEST_NUMBER:  # read in a time that grows with its square
            raise ValueError(f"it holds a number of {len(node.value)} characters")
        return _Extent(1, 0)
    if id(node) not in known and depth <= DEEPEST:  # an alias of what it lies in comes down here again and again
        parts = node.value if isinstance(node, yaml.SequenceNode) else [part for pair in node.value for part in pair]
        extents = [_extent(part, known, depth + 1) for part in parts]
        levels = 1 + max((extent.levels for extent in extents), default=0)
        known[id(node)] = _Extent(1 + sum(extent.values for extent in extents), levels)
    extent = known.get(id(node))
    if extent is None or extent.levels > DEEPEST:
        raise ValueError(f"it is nested more than {DEEPEST} levels deep")
    return extent


def _read_text(path: Path) -> str:
    with path.open("rb") as file:
        data = file.read(MOST_BYTES + 1)
    if len(data) > MOST_BYTES:
        raise ValueError(f"it has more than {MOST_BYTES} bytes")
    return data.decode()


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # such as a name that is too long
        return False


def with_folder(content: Any, folder: Path) -> Any:
    """What a config holds, with `folder` in the place of every `${here}` in its values."""
    if isinstance(content, dict):
        return {key: with_folder(value, folder) for key, value in content.items()}
    if isinstance(content, list):
        return [with_folder(value, folder) for value in content]
    return content.replace(HERE, str(folder)) if isinstance(content, str) else content
