"""The list of episodes of an evaluation set, drawn once: what a result row refers to by its hash."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ldis_lightning.datamodules.source import Episode, even_subset
from ldis_lightning.errors import UserError
from ldis_lightning.evaluation.measures import EpisodeTable

FORMAT = "ldis_lightning manifest"
VERSION = 1
MOST_SCORE_SIZE = 2**13
"""Side of the largest square at which predictions are scored: pictures have no more pixels."""
_COLUMNS = ("query", "references", "class_id", "seed", "reference_class")


@dataclass(frozen=True)
class Manifest:
    """The episodes of an evaluation set, in order, and where they came from. Nothing about them depends on ranks,
    workers or batch sizes.

    Args:
        protocol: name of the protocol that drew them.
        settings: its settings, plain values.
        rules: the rules of the source (`EpisodeSource` without its folder), plain values.
        dataset: name of the data set.
        index_hash: hash of its index.
        references: K, references of an episode.
        treatment: what is done to the references, e.g. `Intact()`.
        classes: id -> name of the classes asked for.
        episodes: the episodes.
        clip: for each episode the number of its query's clip in the data set, -1 for an image.
        score_size: side of the square at which predictions are scored, in pixels; None for the original size.
        runs: the episodes are so many equal draws, one after the other.
    """

    protocol: str
    settings: dict[str, Any]
    rules: dict[str, Any]
    dataset: str
    index_hash: str
    references: int
    treatment: str
    classes: dict[int, str]
    episodes: list[Episode]
    clip: list[int]
    score_size: int | None = None
    runs: int = 1

    def __len__(self) -> int:
        """Number of episodes."""
        return len(self.episodes)

    @cached_property
    def hash(self) -> str:
        """SHA-256 of everything in the manifest, in hexadecimal digits."""
        return hashlib.sha256(json.dumps(self._content(), sort_keys=True, separators=(",", ":")).encode()).hexdigest()

    def table(self) -> EpisodeTable:
        """What measures need to know of the episodes."""
        class_id = np.array([episode.class_id for episode in self.episodes], np.int64)
        return EpisodeTable(class_id, np.array(self.clip, np.int64), self.runs)

    def subset(self, queries: int | None) -> "Manifest":
        """An even, seeded subset of at most so many queries, each with all of its episodes in a row. None: all."""
        starts = [i for i in range(len(self)) if i == 0 or self.episodes[i].query != self.episodes[i - 1].query]
        if queries is None or queries >= len(starts):
            return self
        ends = [*starts[1:], len(self)]
        chosen = even_subset(len(starts), queries, self.rules["seed"]).tolist()
        kept = [i for n in chosen for i in range(starts[n], ends[n])]
        part = {"episodes": [self.episodes[i] for i in kept], "clip": [self.clip[i] for i in kept], "runs": 1}
        return replace(self, **part)

    def save(self, path: Path) -> None:
        """Write it as JSON, with its hash."""
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.tmp")
        temporary.write_text(json.dumps({**self._content(), "hash": self.hash}) + "\n", encoding="utf-8")
        temporary.replace(path)

    @classmethod
    def load(cls, path: Path) -> "Manifest":
        """Read what `save` wrote.

        Raises:
            UserError: there is no such file, it is none of ours, newer than this version, or changed since.
        """
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise UserError(f"the manifest {path} cannot be read: {error.strerror}.") from error
        except (ValueError, RecursionError) as error:
            raise UserError(f"the manifest {path} is damaged ({error}): draw it again.") from error
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise UserError(f"{path} is no manifest; `ldis data episodes` writes them.")
        if content.get("version") != VERSION:
            raise UserError(f"{path} has manifest format {content.get('version')}, this version reads {VERSION}.")
        try:
            _check_kinds(content)
            manifest = _from_content(content)
            matches = manifest.hash == content["hash"]
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise UserError(f"the manifest {path} is damaged ({error!r}): draw it again.") from error
        if not matches:
            raise UserError(f"{path} is not what was drawn (its hash differs): it was edited. Draw it again.")
        return manifest

    def _content(self) -> dict[str, Any]:
        fields = asdict(replace(self, episodes=[]))
        columns = {name: [getattr(episode, name) for episode in self.episodes] for name in _COLUMNS}
        clip = self.clip if any(number >= 0 for number in self.clip) else None
        classes = {str(number): name for number, name in sorted(self.classes.items())}
        return {"format": FORMAT, "version": VERSION, **fields, "classes": classes, "clip": clip, "episodes": columns}


def _check_kinds(content: dict[str, Any]) -> None:
    """Check that everything in a file is of the kind that `Manifest.save` writes.

    Raises:
        ValueError: it is not; the message names it.
        KeyError: it is missing.
    """
    columns, clip, size = content["episodes"], content["clip"], content["score_size"]
    count = len(columns["query"])
    for name in _COLUMNS:
        values = columns[name]
        lists = values if name == "references" else [values]
        if not all(isinstance(each, list) and each and all(map(_is_count, each)) for each in lists):
            raise ValueError(f"`{name}` holds something else than whole numbers")
    kinds = {"protocol": str, "dataset": str, "index_hash": str, "treatment": str}
    kinds |= {"settings": dict, "rules": dict, "classes": dict}
    for name, kind in kinds.items():
        if not isinstance(content[name], kind):
            raise ValueError(f"`{name}` is no {kind.__name__}")
    if not all(isinstance(name, str) for name in content["classes"].values()):
        raise ValueError("`classes` holds something else than names")
    if clip is not None and (not isinstance(clip, list) or len(clip) != count):
        raise ValueError("`clip` does not fit the episodes")
    if size is not None and not (_is_count(size) and 0 < size <= MOST_SCORE_SIZE):
        raise ValueError(f"`score_size` is not 1 to {MOST_SCORE_SIZE}")
    runs = content["runs"]
    if not _is_count(content["references"]) or not _is_count(runs) or runs < 1 or count % runs:
        raise ValueError("`references` or `runs` does not fit the episodes")


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _from_content(content: dict[str, Any]) -> Manifest:
    columns: Sequence[Sequence[Any]] = [content["episodes"][name] for name in _COLUMNS]
    episodes = [
        Episode(query, tuple(references), class_id, seed, shown)
        for query, references, class_id, seed, shown in zip(*columns, strict=True)
    ]
    fields = {name: value for name, value in content.items() if name not in ("format", "version", "hash")}
    fields["episodes"], fields["classes"] = episodes, {int(number): name for number, name in content["classes"].items()}
    fields["clip"] = content["clip"] or [-1] * len(episodes)
    return Manifest(**fields)
