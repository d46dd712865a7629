"""Result rows: what one line of `results.jsonl` says, and reading such files.

A row is one evaluation set scored by one model. It holds all that is needed to judge whether two scores may be
compared: the episodes' hash, how many of them were scored, what was done to the references, which classes were trained
on, the checkpoint and the code.
"""

import inspect
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from ldis_lightning.errors import UserError
from ldis_lightning.evaluation.domains import IN_DOMAIN, MIXED, STRICT, UNKNOWN

FILE_NAME = "results.jsonl"
SCORE_NAMES = {"miou": "mIoU", "fb_iou": "FB-IoU", "j_and_f": "J&F", "j": "J", "f": "F", "fpr": "FPR"}
"""What tables call the scores of our measures; others go by their own names."""
INTACT, ITSELF = "Intact", "Itself"
"""The treatment that leaves references as they are, and the pairing that makes the query its own reference."""


@dataclass(frozen=True)
class ResultRow:
    """One evaluation set scored by one model. Scores are fractions; NaN where nothing was scored.

    Attributes:
        set: name of the evaluation set in the config.
        dataset, index_hash: name and hash of the data set.
        protocol, settings: name and settings of the protocol, as the manifest has them.
        manifest_hash: of the list of episodes.
        references: K.
        treatment: what was done to the references, e.g. `Intact()`.
        episodes, expected: episodes scored, and episodes in the manifest.
        measure: name of the headline.
        score: its value.
        domain: `"strict"`, `"in-domain"`, `"mixed n/m"` or `"unknown"`: see `evaluation.domains`.
        model: description of the model: see `describe`.
        time: when the row was written, UTC, ISO 8601.
        rules: the rules by which queries and references were chosen, as the manifest has them.
        reference_fusion: how several references are combined, where the model says so.
        higher_is_better: of the headline.
        interval: 95% bootstrap interval of the headline, [low, high]; None where none was computed.
        scores, intervals: the same of every score of the measure, by name.
        runs: where the episodes are several draws, `{"count", "mean", "std"}` of the headline over them.
        checkpoint: file name of the checkpoint; None for weights that came from memory.
        checkpoint_sha256: of the file, or of all files of a directory.
        ceiling: the headline of the true masks after the autoencoder's round trip, where `Ceiling` took part.
        code: `{"version": of this package, "commit": of its git checkout, with " dirty" behind it, or None}`.
        path: the file that the row was read from; not part of the row itself.
    """

    set: str
    dataset: str
    index_hash: str
    protocol: str
    settings: Mapping[str, Any]
    manifest_hash: str
    references: int
    treatment: str
    episodes: int
    expected: int
    measure: str
    score: float
    domain: str
    model: str
    time: str
    rules: Mapping[str, Any] = field(default_factory=dict)
    reference_fusion: str | None = None
    higher_is_better: bool = True
    interval: tuple[float, float] | None = None
    scores: Mapping[str, float] = field(default_factory=dict)
    intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    runs: Mapping[str, float] | None = None
    checkpoint: str | None = None
    checkpoint_sha256: str | None = None
    ceiling: float | None = None
    code: Mapping[str, str | None] = field(default_factory=dict)
    path: Path | None = None

    @property
    def complete(self) -> bool:
        """Every episode of the manifest was scored."""
        return self.episodes == self.expected

    @property
    def value(self) -> float:
        """The headline as it is compared: the mean over runs where the protocol asks for several."""
        return self.runs["mean"] if self.runs else self.score

    @property
    def fold(self) -> int | None:
        """Number of the fold, where the protocol has folds."""
        fold = self.settings.get("fold")
        return fold if isinstance(fold, int) else None

    @property
    def control(self) -> str:
        """What was done to the references to see how much they matter, e.g. `"Swapped"`; "" for a result proper."""
        treatment, pairing = (str(name).removesuffix("()") for name in (self.treatment, self.rules.get("pairing")))
        return ", ".join(([] if treatment == INTACT else [treatment]) + ([pairing] if pairing == ITSELF else []))

    def to_json(self) -> str:
        """One line, without the line break. What is no finite number becomes null."""
        content = {key: value for key, value in asdict(self).items() if key != "path"}
        return json.dumps(_finite(content), ensure_ascii=False, allow_nan=False)

    @classmethod
    def from_json(cls, text: str | bytes) -> "ResultRow":
        """Read what `to_json` wrote. Keys of later versions are left out.

        Raises:
            ValueError: the text is no JSON object, lacks a key, or has a value of the wrong kind.
        """
        content = json.loads(text)
        if not isinstance(content, dict):
            raise ValueError(f"it is a {type(content).__name__}")
        if missing := [name for name in _NEEDED if name not in content]:
            raise ValueError(f"it lacks {', '.join(missing)}")
        return cls(**{name: read(content[name], name) for name, read in _READERS.items() if name in content})


def read_rows(paths: Iterable[Path]) -> list[ResultRow]:
    """The rows of some files and of every `results.jsonl` below some folders, file by file, in the order written.

    Raises:
        UserError: a path does not exist, or a line is no result row.
    """
    files = {file.resolve(): file for path in paths for file in _files(path)}
    return [row for file in files.values() for row in _read_file(file)]


def _files(path: Path) -> list[Path]:
    if path.is_dir():
        return sorted(path.rglob(FILE_NAME))
    if not path.is_file():
        raise UserError(f"`{path}` does not exist; name a {FILE_NAME} of `ldis test`, or a folder to search for them")
    return [path]


def _read_file(path: Path) -> list[ResultRow]:
    rows = []
    for number, line in enumerate(path.read_bytes().split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            row = ResultRow.from_json(line)
        except (ValueError, RecursionError) as error:  # of UTF-8 and JSON too
            what = "no JSON" if isinstance(error, json.JSONDecodeError | UnicodeDecodeError) else "no result row"
            raise UserError(f"{path}, line {number} is {what} ({error}): mend or delete the line") from error
        rows.append(replace(row, path=path))
    return rows


def describe(component: object) -> str:
    """Class names of a component and of those that it was made of, with the settings that are not defaults.

    `LDISn(Augmented(gamma=0.2), DualGuidance, steps=50)`. What a component was made of is read from its attributes that
    are named like the arguments of its class; what it does not keep, functions and long texts are left out.
    """
    kept = {**vars(component), **vars(component).get("_modules", {})} if hasattr(component, "__dict__") else {}
    parts = []
    for name, argument in inspect.signature(type(component).__init__).parameters.items():
        value = kept.get(name)
        if isinstance(value, bool | int | float | str):
            if value != argument.default and len(str(value)) <= 40:
                parts.append(f"{name}={value}")
        else:
            parts += [describe(item) for item in _components(value)]
    return type(component).__name__ + (f"({', '.join(parts)})" if parts else "")


def _components(value: object) -> list[object]:
    """The components in the value of an attribute: itself, those of a list (torch has its own kind), or none."""
    if isinstance(value, list | tuple) or type(value).__name__ == "ModuleList":
        return [component for item in value for component in _components(item)]  # pyright: ignore[reportGeneralTypeIssues]
    plain = ("builtins", "collections", "functools", "numpy", "pathlib", "torch")
    return [] if inspect.isroutine(value) or type(value).__module__.partition(".")[0] in plain else [value]


def _finite(value: Any) -> Any:
    """NaN and infinities as None, at any depth: JSON has no word for them."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(entry) for key, entry in value.items()}
    return [_finite(entry) for entry in value] if isinstance(value, list | tuple) else value


# ---- Values of a line: each reader takes one and what to call it, and raises a ValueError where it is of another kind.


def _of(kind: Any) -> Callable[[Any, str], Any]:
    def read(value: Any, name: str) -> Any:
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise ValueError(f"`{name}` is {value!r}")
        return value

    return read


def _number(value: Any, name: str) -> float:
    return math.nan if value is None else float(_of(int | float)(value, name))


def _interval(value: Any, name: str) -> tuple[float, float]:
    if len(_of(list)(value, name)) != 2:
        raise ValueError(f"`{name}` is {value!r}")
    return _number(value[0], name), _number(value[1], name)


def _text(value: Any, name: str) -> str:
    if not _of(str)(value, name):
        raise ValueError(f"`{name}` is empty")
    return value


def _domain(value: Any, name: str) -> str:
    if not re.fullmatch(rf"{STRICT}|{IN_DOMAIN}|{UNKNOWN}|{MIXED} \d+/\d+", _text(value, name)):
        raise ValueError(f"`{name}` is {value!r}")
    return value


def _each(read: Callable[[Any, str], Any], *needed: str) -> Callable[[Any, str], dict[str, Any]]:
    def read_each(value: Any, name: str) -> dict[str, Any]:
        if missing := [key for key in needed if key not in _of(dict)(value, name)]:
            raise ValueError(f"`{name}` lacks {', '.join(missing)}")
        return {key: read(entry, f"{name}.{key}") for key, entry in _of(dict)(value, name).items()}

    return read_each


def _optional(read: Callable[[Any, str], Any]) -> Callable[[Any, str], Any]:
    return lambda value, name: None if value is None else read(value, name)


_NEEDED = tuple(f.name for f in fields(ResultRow) if f.default is MISSING and f.default_factory is MISSING)
_READERS: dict[str, Callable[[Any, str], Any]] = {
    **dict.fromkeys(("set", "dataset", "index_hash", "protocol", "manifest_hash", "treatment"), _text),
    **dict.fromkeys(("measure", "model", "time"), _text),
    "domain": _domain,
    **dict.fromkeys(("reference_fusion", "checkpoint", "checkpoint_sha256"), _optional(_of(str))),
    **dict.fromkeys(("references", "episodes", "expected"), _of(int)),
    **dict.fromkeys(("settings", "rules"), _of(dict)),
    "code": _each(_optional(_of(str))),
    "higher_is_better": _of(bool),
    "score": _number,
    "scores": _each(_number),
    "interval": _optional(_interval),
    "intervals": _each(_interval),
    "ceiling": _optional(_number),
    "runs": _optional(_each(_number, "count", "mean", "std")),
}
