"""Result rows and published ones, side by side where they may stand side by side.

Rows are grouped by data set, protocol, number of references and measure, and within a group by domain. What must not be
compared is set apart: controls, and sets that were scored in part. Rows of a group whose episodes differ say so.
"""

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from string import ascii_uppercase
from typing import Any

from ldis_lightning.evaluation.domains import IN_DOMAIN, MIXED, STRICT, UNKNOWN
from ldis_lightning.evaluation.published import BENCHMARKS, PUBLISHED, TRAINING_FREE, Benchmark, Published
from ldis_lightning.evaluation.rows import SCORE_NAMES, ResultRow

CONTROL = "control"
INCOMPLETE = "incomplete"
BLOCKS = (STRICT, MIXED, IN_DOMAIN, TRAINING_FREE, UNKNOWN, CONTROL, INCOMPLETE)
"""The blocks of a group, in the order in which they are shown."""


@dataclass(frozen=True)
class Line:
    """A line of a table. Scores and intervals are in percent.

    Attributes:
        block: one of `BLOCKS`.
        domain: the stamp, with the numbers of classes where it is mixed.
        method: the published method's name, or that of our meta-architecture.
        score: the headline, or the mean of all folds; NaN where folds are missing.
        interval: its 95% interval; None where there is none.
        folds: score by fold, where the protocol has folds.
        details: components and settings that set our model apart from the others of its class in the group.
        notes: what a reader has to know.
        rows: our rows behind the line; none for a published one.
    """

    block: str
    domain: str
    method: str
    score: float
    interval: tuple[float, float] | None = None
    folds: Mapping[int, float] | None = None
    details: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    rows: tuple[ResultRow, ...] = ()

    @property
    def ours(self) -> bool:
        """Not published."""
        return bool(self.rows)

    @property
    def comparable(self) -> bool:
        """Neither a control nor scored in part."""
        return self.block not in (CONTROL, INCOMPLETE)


@dataclass(frozen=True)
class Group:
    """What may be compared: the lines of one benchmark, in the order of `BLOCKS` and of their scores.

    Attributes:
        title: the benchmark's name.
        dataset, protocol: of our rows; "" where all lines are published ones.
        references: K.
        measure: what the scores are called.
        folds: all folds, where lines have folds.
        episodes: what letters in the notes stand for: rows with different letters were scored on different episodes
            and must not be compared.
    """

    title: str
    dataset: str
    protocol: str
    references: int
    measure: str
    lines: tuple[Line, ...]
    folds: tuple[int, ...] = ()
    episodes: Mapping[str, str] = field(default_factory=dict)

    @property
    def has_ours(self) -> bool:
        """Not all lines are published ones."""
        return any(line.ours for line in self.lines)


def compare(rows: Iterable[ResultRow], published: bool | None = None) -> list[Group]:
    """Group our rows with the published ones.

    Args:
        rows: ours.
        published: True for all published rows, False for none, None for those of benchmarks that we have rows of.
    """
    groups: dict[tuple[str, str, int, str, Benchmark | None], list[ResultRow]] = defaultdict(list)
    for row in latest(rows):
        groups[row.dataset, row.protocol, row.references, row.measure, benchmark_of(row)].append(row)
    known = [] if published is False else PUBLISHED
    made = []
    for key in sorted(groups, key=lambda key: (key[1] != "ldis", *key[:4])):
        *_, references, _, benchmark = key
        beside = [entry for entry in known if entry.benchmark is benchmark and entry.references == references]
        made.append(_group(groups[key], benchmark, beside))
    shown = {(benchmark, references) for *_, references, _, benchmark in groups}
    rest = [entry for entry in PUBLISHED if (entry.benchmark, entry.references) not in shown]
    return made + (published_groups(rest) if published else [])


def published_groups(entries: Sequence[Published]) -> list[Group]:
    """Groups of published rows alone."""
    keys = [(b, k) for b in BENCHMARKS for k in sorted({e.references for e in entries if e.benchmark is b})]
    return [_group([], b, [e for e in entries if e.benchmark is b and e.references == k]) for b, k in keys]


def latest(rows: Iterable[ResultRow]) -> list[ResultRow]:
    """Rows without those that a later one repeats in everything but the time, the code and the file."""
    kept: dict[str, ResultRow] = {}
    for row in sorted(rows, key=lambda row: row.time):
        kept[replace(row, time="", code={}, path=None).to_json()] = row
    return list(kept.values())


def benchmark_of(row: ResultRow) -> Benchmark | None:
    """The published benchmark that a row belongs to."""
    return next((b for b in BENCHMARKS if b.matches(row.dataset, row.protocol, row.measure, row.settings)), None)


def _group(rows: Sequence[ResultRow], benchmark: Benchmark | None, published: Sequence[Published]) -> Group:
    letters, meaning = episode_letters(rows)
    shared = shared_parts(rows)
    lines = [*map(_published_line, published), *(_line(part, shared, letters) for part in _together(rows))]
    best_first = 1 if rows and not rows[0].higher_is_better else -1
    lines.sort(key=lambda line: (BLOCKS.index(line.block), math.isnan(line.score), best_first * line.score))
    measure = rows[0].measure if rows else published[0].benchmark.measure
    return Group(
        title=benchmark.title if benchmark else rows[0].dataset,
        dataset=rows[0].dataset if rows else "",
        protocol=rows[0].protocol if rows else "",
        references=rows[0].references if rows else published[0].references,
        measure=SCORE_NAMES.get(measure, measure),
        lines=tuple(lines),
        folds=tuple(sorted({fold for line in lines for fold in line.folds or ()})),
        episodes=meaning,
    )


def _published_line(entry: Published) -> Line:
    folds = dict(enumerate(entry.folds)) or None
    return Line(entry.domain, entry.domain, entry.method, entry.score, folds=folds, notes=(entry.source.mark,))


# ---- Our lines


def _together(rows: Sequence[ResultRow]) -> list[list[ResultRow]]:
    """Rows that make one line: the folds of one checkpoint, or of the checkpoints that are strict on one fold each."""
    alike: dict[Any, list[ResultRow]] = defaultdict(list)
    for row in rows:
        alike[_likeness(row)].append(row)
    parts = []
    for same in alike.values():
        by_checkpoint: dict[Any, list[ResultRow]] = defaultdict(list)
        for row in same:
            by_checkpoint[identity(row)].append(row)
        one_line = same[0].domain == STRICT and _different_folds(same)
        for some in [same] if one_line else by_checkpoint.values():
            parts += [some] if _different_folds(some) else [[row] for row in some]
    return parts


def _likeness(row: ResultRow) -> tuple[object, ...]:
    """Equal for rows that may differ in their fold and their checkpoint alone."""
    return (_block(row), row.model, row.reference_fusion, repr(_facts(row)), row.control, row.complete)


def identity(row: ResultRow) -> tuple[object, ...]:
    """What tells the models of two rows apart: its checkpoint (else its run) and how it is built."""
    return (row.checkpoint_sha256 or row.path, row.model)


def _different_folds(rows: Sequence[ResultRow]) -> bool:
    folds = [row.fold for row in rows]
    return None not in folds and len(set(folds)) == len(folds)


def _block(row: ResultRow) -> str:
    if not row.complete:
        return INCOMPLETE
    return CONTROL if row.control else row.domain.split()[0]


def _line(rows: list[ResultRow], shared: Mapping[str, set[str]], letters: Mapping[int, str]) -> Line:
    """The line of some rows; `shared` and `letters` are those of their group."""
    first, (name, *parts) = rows[0], _parts(rows[0].model)
    details = [part for part in parts if part not in shared[name]]
    score, interval, folds = first.value, first.interval, None
    if first.fold is not None:
        folds = {row.fold: 100 * row.value for row in rows if row.fold is not None}
        complete = len(folds) == first.settings.get("folds", len(folds))
        score, interval = mean_of_folds(rows) if complete else (math.nan, None)
    return Line(
        block=_block(first),
        domain=first.domain if len({row.domain for row in rows}) == 1 else MIXED,
        method=name,
        details=tuple(details),
        score=100 * score,
        interval=interval and (100 * interval[0], 100 * interval[1]),
        folds=folds,
        notes=tuple(note for note in _notes(rows, letters) if note not in details),
        rows=tuple(rows),
    )


def mean_of_folds(rows: Sequence[ResultRow]) -> tuple[float, tuple[float, float] | None]:
    """Mean of the scores of independent folds, with its interval; None where one has none.

    The distances of the mean from the ends of its interval are sqrt(sum d^2) / n, where d are those of the n scores
    from the ends of theirs (Zou and Donner, Statistics in Medicine 27, 2008).
    """
    scores = [row.value for row in rows]
    mean = sum(scores) / len(scores)
    intervals = [row.interval for row in rows if row.interval is not None]
    if len(intervals) < len(rows):
        return mean, None
    low, high = (
        math.hypot(*(score - ends[side] for score, ends in zip(scores, intervals, strict=True))) / len(rows)
        for side in (0, 1)
    )
    return mean, (mean - low, mean + high)


def shared_parts(rows: Iterable[ResultRow]) -> dict[str, set[str]]:
    """By the class of a model: the components and settings that all models of that class have."""
    shared: dict[str, set[str]] = {}
    for name, *parts in map(_parts, dict.fromkeys(row.model for row in rows)):
        shared[name] = shared[name].intersection(parts) if name in shared else set(parts)
    return shared


def _parts(model: str) -> list[str]:
    """`LDISn(Vanilla, A(B(gamma=0.2), steps=5))` -> LDISn, Vanilla, A, B, gamma=0.2, steps=5."""
    return [part for part in re.split(r"[(),]\s*", model) if part]


def _notes(rows: Sequence[ResultRow], letters: Mapping[int, str]) -> list[str]:
    """What the reader of a line has to know; `letters` by the id of a row."""
    row, notes = rows[0], []
    if not row.complete:
        notes.append(f"{row.episodes} of {row.expected} episodes")
    if row.control:
        notes.append(row.control)
    if row.control or not row.complete:
        notes.append(row.domain)
    if row.reference_fusion and row.references > 1:
        notes.append(row.reference_fusion)
    if deviations := [100 * row.runs["std"] for row in rows if row.runs]:
        ends = dict.fromkeys(f"{sd:.1f}" for sd in (min(deviations), max(deviations)))
        notes.append(f"{row.runs['count']:.0f} runs, sd {' to '.join(ends)}" if row.runs else "")
    if not row.control and row.complete and row.fold is None:
        others = {SCORE_NAMES.get(name, name): score for name, score in row.scores.items() if name != row.measure}
        others |= {} if row.ceiling is None else {"ceiling": row.ceiling}
        notes += [f"{name} {100 * score:.1f}" for name, score in others.items() if not math.isnan(score)]
    return notes + [f"episodes {letter}" for letter in sorted({letters[id(row)] for row in rows if id(row) in letters})]


# ---- Whether rows of one group were scored on the same episodes


def episode_letters(rows: Sequence[ResultRow]) -> tuple[dict[int, str], dict[str, str]]:
    """Letters for rows that ought to have the same episodes and have not.

    Those ought to that agree in fold and control. Episodes that were drawn alike have the same letter in all folds.

    Returns:
        The letter by the id of a row, and what each letter stands for. Both are empty where all is well.
    """
    alike: dict[Any, list[ResultRow]] = defaultdict(list)
    for row in rows:
        alike[row.fold, row.control].append(row)
    variants: dict[Any, list[ResultRow]] = defaultdict(list)
    for same in alike.values():
        hashes = list(dict.fromkeys(row.manifest_hash for row in same))
        drawn = {row.manifest_hash: (repr(_facts(row)), row.index_hash) for row in same}
        for row in same if len(hashes) > 1 else ():
            before = hashes[: hashes.index(row.manifest_hash)]
            again = sum(drawn[other] == drawn[row.manifest_hash] for other in before)  # alike, and yet not the same
            variants[*drawn[row.manifest_hash], again].append(row)
    letters = dict(zip(variants, _alphabet(), strict=False))
    examples = [some[0] for some in variants.values()]
    return (
        {id(row): letters[variant] for variant, some in variants.items() for row in some},
        {letters[variant]: _drawn_how(some, examples) for variant, some in variants.items()},
    )


def _alphabet() -> Iterator[str]:
    """A, B, ..., Z, A1, B1, ..."""
    return (f"{letter}{lap or ''}" for lap in count() for letter in ascii_uppercase)


def _facts(row: ResultRow) -> dict[str, Any]:
    """What the episodes were drawn by, apart from the fold, which is a choice of classes, and the treatment."""
    facts = {**row.rules, **row.settings}
    apart = ("treatment",) if row.fold is None else ("treatment", "fold", "classes")
    return {name: value for name, value in sorted(facts.items()) if name not in apart}


def _drawn_how(rows: Sequence[ResultRow], others: Sequence[ResultRow]) -> str:
    """What sets the episodes of some rows apart."""
    facts = _facts(rows[0])
    said = [f"{k}={v}" for k, v in facts.items() if any(_facts(other).get(k, v) != v for other in others)]
    for name, field_name in (("set", "set"), ("index", "index_hash")):
        if len({getattr(row, field_name) for row in others}) > 1:
            said += sorted({f"{name} {getattr(row, field_name)[:32]}" for row in rows})
    return ", ".join([*said, *sorted({f"manifest {row.manifest_hash[:8]}" for row in rows})])
