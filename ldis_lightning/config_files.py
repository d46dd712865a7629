"""Finds the files that `--config` names: as given, else among the configs that come with the package.

In any of them `${here}` stands for the folder that the file lies in, so that a config can name what lies beside it and
both can be moved together.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

import ldis_lightning
from ldis_lightning.errors import UserError
from ldis_lightning.suggestions import did_you_mean

CONFIG_FLAGS = ("--config", "-c")
HERE = "${here}"


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
    if Path(name).is_file():
        return Path(name)
    packaged = packaged_configs()
    for candidate in (name, f"configs/{name}", f"{name}.yaml", f"configs/{name}.yaml"):
        if candidate in packaged:
            return packaged[candidate]
    if Path(name).is_dir():
        raise UserError(f"config `{name}` is a folder; name a YAML file in it")
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
    chain = [path]
    while parent := read_mapping(chain[0]).get("extends"):
        if not isinstance(parent, str):
            raise UserError(f"config `{chain[0]}`: `extends` must name one file, not {parent!r}")
        beside = chain[0].parent / parent
        chain.insert(0, beside if beside.is_file() else find_config(parent))
        if chain[0] in chain[1:]:
            raise UserError(f"config `{chain[0]}` extends itself: {' -> '.join(map(str, reversed(chain)))}")
    return chain


def read_mapping(path: Path) -> dict[str, Any]:
    """The content of a config file, with its folder in the place of every `${here}`.

    Raises:
        UserError: it is no YAML mapping; the message names the file and the line.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise UserError(f"config `{path}` is not valid YAML: {error.problem}{line}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"config `{path}` is not a text file of YAML") from error
    if not isinstance(content, dict):
        what = "is empty" if content is None else "holds something else"
        raise UserError(f"config `{path}` must hold `key: value` lines, but it {what}")
    return with_folder(content, path.parent.absolute())  # not resolved: files of the hub's cache are links


def with_folder(content: Any, folder: Path) -> Any:
    """What a config holds, with `folder` in the place of every `${here}` in its values."""
    if isinstance(content, dict):
        return {key: with_folder(value, folder) for key, value in content.items()}
    if isinstance(content, list):
        return [with_folder(value, folder) for value in content]
    return content.replace(HERE, str(folder)) if isinstance(content, str) else content
