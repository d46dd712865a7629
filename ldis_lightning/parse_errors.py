"""Cuts the parser's many-line errors down to what is wrong, where, and the nearest valid name.

jsonargparse reports a mistake deep in a config as an indented tree, with a branch for each alternative of each type on
the way:

    Parser key "model":
      Problem with given class_path 'ldis_lightning.meta_architectures.LDIS1':
        Parser key "instruction":
          Option 'pre_maks' is not accepted

The leaf says what is wrong, the keys above it say where, and the class above it what would have been right.
"""

import importlib
import inspect
import re
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ldis_lightning.suggestions import did_you_mean

KEY = re.compile(r'Parser key "(.+)":')
OWNER = re.compile(r"Problem with given class_path '(.+)':")
UNRECOGNISED = re.compile(r"unrecognized arguments: (.+)")
UNKNOWN_KEY = re.compile(r"(?:Subcommand '\w+' does not accept option|Option) '(.+?)'(?: is not accepted)?$")
NO_CLASS = re.compile(r"Expected a dot import path string: (.+)")
WRONG_CLASS = re.compile(r"Import path (\S+) does not correspond to a subclass of (\w+)")
NO_MODULE = re.compile(r"No module named '(.+)'")
REQUIRED = re.compile(r"the following arguments are required: (.+)")
WRONG_VALUE = re.compile(r"Expected (?:an? )?(.+?)(?:\. Got value: (.*))?$")
GIVEN = re.compile(r"Given value: (.*)")

Configs = Mapping[Path, str]
"""Text of each config file in the order of reading, read beforehand: jsonargparse changes folders while it parses."""


@dataclass(frozen=True)
class Line:
    """A line of the parser's message with the keys and the class that it lies under."""

    text: str
    keys: tuple[str, ...]
    owner: str | None  # class path

    @property
    def key(self) -> str:
        return ".".join(self.keys)


def explain(message: str, known_keys: Iterable[str], configs: Configs | None = None) -> str:
    """One short message for an error of the parser.

    Args:
        message: what jsonargparse says.
        known_keys: the parser's keys, dotted, e.g. `trainer.max_steps`.
        configs: what the config files hold that were read; the message names the line with the wrong word.
    """
    configs = configs or {}
    lines = list(_lines(message))
    for line in lines:
        if match := UNRECOGNISED.fullmatch(line.text):
            return _unknown_flag(match[1], known_keys)
        if match := REQUIRED.fullmatch(line.text):
            return _missing(line, match[1])
        if (match := NO_MODULE.fullmatch(line.text)) and line.owner and line.keys:
            remedy = "install the package that it is in, or name the folder of that in PYTHONPATH"
            place = _place(line.owner, configs)
            return f"{line.key}: `{line.owner}`{place} cannot be imported: there is no module `{match[1]}`; {remedy}"
    unknown = [(line, match[1]) for line in lines if (match := UNKNOWN_KEY.fullmatch(line.text))]
    if unknown:  # under a class, a dotted name is what another type of a union would have taken
        line, name = min(unknown, key=lambda found: found[0].owner is not None and "." in found[1])
        return _unknown_key(line, name, known_keys, configs)
    for line in lines:
        if match := NO_CLASS.fullmatch(line.text):
            return _no_class(line, match[1], _expected_class(line, lines), configs)
        if match := WRONG_CLASS.fullmatch(line.text):
            return f"{line.key}: {match[1]} is not a {match[2]}{_place(match[1], configs)}"
    for line in lines:
        if (match := WRONG_VALUE.fullmatch(line.text)) and line.keys:
            return _wrong_value(line, match, lines, configs)
    return _shortened(lines)


def _lines(message: str) -> Iterator[Line]:
    """The lines of a message, each with what it lies under by its indentation."""
    above: list[tuple[int, str, str]] = []  # (indentation, "key" or "owner", name)
    for raw in message.splitlines():
        text = raw.strip().removeprefix("- ")
        indentation = len(raw) - len(raw.lstrip())
        if not text:
            continue
        while above and above[-1][0] >= indentation:
            above.pop()
        keys = tuple(name for _, kind, name in above if kind == "key")
        owners = [name for _, kind, name in above if kind == "owner"]
        yield Line(text, keys, owners[-1] if owners else None)
        for kind, pattern in (("key", KEY), ("owner", OWNER)):
            if match := pattern.fullmatch(text):
                above.append((indentation, kind, match[1]))


def _unknown_flag(arguments: str, known_keys: Iterable[str]) -> str:
    word = arguments.split()[0].partition("=")[0]
    if not word.startswith("--"):
        return f"unknown argument `{word}`"
    wrong, hint = _nearest_key(word.removeprefix("--"), known_keys)
    return f"unknown option `--{wrong}`{hint.replace('mean `', 'mean `--')}"


def _unknown_key(line: Line, name: str, known_keys: Iterable[str], configs: Configs) -> str:
    if line.owner is None:
        wrong, hint = _nearest_key(name, known_keys)
        return f"unknown key `{wrong}`{_place(wrong.rsplit('.', 1)[-1], configs)}{hint}"
    taken = parameters(line.owner)
    hint = did_you_mean(name, taken) or (f"; it takes {', '.join(taken)}" if taken else "; it takes none")
    owner = line.owner.rsplit(".", 1)[-1]
    return f"{line.key}: {owner} has no parameter `{name}`{_place(name, configs)}{hint}"


def _nearest_key(key: str, known_keys: Iterable[str]) -> tuple[str, str]:
    """The wrong part of a dotted key (up to the first name that is not known) and the hint for it."""
    known = sorted(known_keys)
    prefixes = {".".join(key.split(".")[:depth]) for key in known for depth in range(1, key.count(".") + 2)}
    parts = key.split(".")
    depth = next((d for d in range(1, len(parts) + 1) if ".".join(parts[:d]) not in prefixes), len(parts))
    wrong, parent = ".".join(parts[:depth]), ".".join(parts[: depth - 1])
    siblings = [prefix for prefix in prefixes if prefix.rpartition(".")[0] == parent]
    hint = did_you_mean(wrong, siblings)
    if not hint:  # right name, wrong place: `max_steps` for `trainer.max_steps`
        hint = next((f"; did you mean `{key}`?" for key in known if key.rpartition(".")[2] == parts[-1]), "")
    return wrong, hint


def _missing(line: Line, arguments: str) -> str:
    if line.keys:
        return f"{line.key}: `{arguments}` is missing"
    keys = [key.strip().partition(".")[2] or key.strip() for key in arguments.split(",")]
    remedy = f"give a config, e.g. `--config configs/quickstart.yaml`, or set it with `--{keys[0]}`"
    return f"missing: {', '.join(keys)}; {remedy}"


def _no_class(line: Line, name: str, expected: type | None, configs: Configs) -> str:
    if expected is None:
        return f"{line.key}: there is no class `{name}`{_place(name, configs)}"
    classes = [kind for kind in _subclasses(expected) if not inspect.isabstract(kind)]
    known = sorted({kind.__name__ for kind in classes})
    shown = sorted({kind.__name__ for kind in classes if kind.__module__.startswith("ldis_lightning")}) or known
    listing = f"; there are {', '.join(shown)}" if 0 < len(shown) <= 12 else ""
    hint = did_you_mean(name, known) or listing
    return f"{line.key}: there is no {expected.__name__} called `{name}`{_place(name, configs)}{hint}"


def _wrong_value(line: Line, match: re.Match[str], lines: Sequence[Line], configs: Configs) -> str:
    alternatives = [
        found[1] for other in lines if other.keys == line.keys and (found := WRONG_VALUE.fullmatch(other.text))
    ]
    values = [found[1] for other in lines if other.keys == line.keys and (found := GIVEN.fullmatch(other.text))]
    value = match[2] if match[2] is not None else (values[0] if values else "")
    expected = " or ".join(dict.fromkeys(map(_readable, alternatives)))
    shown = value if len(value) <= 60 else f"{value[:60]}..."
    return f"{line.key}: expected {expected}, got `{shown}`{_place(value, configs)}"


def _readable(type_text: str) -> str:
    """`<class 'int'>` as `int`, `typing.Literal['a', 'b']` as `one of 'a', 'b'`."""
    text = re.sub(r"<class '(?:[\w.]*\.)?(\w+)'>", r"\1", type_text)
    text = re.sub(r"typing\.Literal\[(.*)\]", r"one of \1", text)
    return text.replace("NoneType", "null")


def _shortened(lines: Sequence[Line]) -> str:
    """What is left of a message that is not understood: its first leaf, after its key."""
    leaves = [line for line in lines if not line.text.endswith(":") and "Union subtypes" not in line.text]
    if not leaves:
        return " ".join(line.text for line in lines)
    deepest = max(len(leaf.keys) for leaf in leaves)
    texts = [leaf for leaf in leaves if len(leaf.keys) == deepest]
    prefix = f"{texts[0].key}: " if texts[0].keys else ""
    return prefix + " ".join(leaf.text for leaf in texts[:3])


def _place(word: str, configs: Configs) -> str:
    """` (FILE, line N)` for the last config that holds the word: the later ones of stacked configs win."""
    if not word:
        return ""
    pattern = re.compile(rf"(?<![\w.]){re.escape(word)}(?![\w.])")
    for path, content in reversed(list(configs.items())):
        for number, text in enumerate(content.splitlines(), start=1):
            if pattern.search(text.partition("#")[0]):
                return f" ({path}, line {number})"
    return ""


def _expected_class(line: Line, lines: Sequence[Line]) -> type | None:
    """The class whose subclasses a key takes: from the owner's annotation, else from what the message lists."""
    if line.owner is not None and line.keys:
        annotation = _annotations(import_object(line.owner)).get(line.keys[-1])
        classes = [kind for kind in _classes_in(annotation) if kind is not type(None)]
        if classes:
            return classes[0]
    for other in lines:
        if other.keys == line.keys and other.text.startswith("Subtypes: "):
            for path in re.findall(r"(?:<class '|\[)([\w.]+\.\w+)", other.text):
                if isinstance(kind := import_object(path), type):
                    return kind
    return None


def _classes_in(annotation: object) -> Iterator[type]:
    """The classes in an annotation such as `list[PreMask] | None`."""
    arguments = typing.get_args(annotation)
    if isinstance(annotation, type) and not arguments:
        yield annotation
    for argument in arguments:
        yield from _classes_in(argument)


def import_object(class_path: str) -> object:
    """The object at an import path that the parser has already imported, or None."""
    module, _, name = class_path.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name, None)
    except (ImportError, ValueError):
        return None


def _constructors(kind: object) -> Iterator[typing.Any]:
    """What takes a class's parameters: its `__init__` and, while these pass `**kwargs` on, those of its bases."""
    for base in getattr(kind, "__mro__", ()):
        if "__init__" in vars(base) and base is not object:
            yield base.__init__
            parameters = inspect.signature(base.__init__).parameters.values()
            if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
                return
    if inspect.isfunction(kind):
        yield kind


def parameters(class_path: str) -> list[str]:
    """The names of the parameters of the class at an import path."""
    names: dict[str, None] = {}
    for constructor in _constructors(import_object(class_path)):
        for name, parameter in inspect.signature(constructor).parameters.items():
            if name != "self" and parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
                names[name] = None
    return list(names)


def _annotations(kind: object) -> dict[str, object]:
    hints: dict[str, object] = {}
    for constructor in _constructors(kind):
        try:
            hints = typing.get_type_hints(constructor) | hints
        except (NameError, TypeError):
            continue  # an annotation that exists for the type checker only
    return hints


def _subclasses(kind: type) -> Iterator[type]:
    for subclass in kind.__subclasses__():
        yield subclass
        yield from _subclasses(subclass)
