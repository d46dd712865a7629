"""Whether a model was trained on the classes that it is tested on, by the names of both."""

import re
from collections.abc import Iterable, Mapping

STRICT = "strict"
IN_DOMAIN = "in-domain"
MIXED = "mixed"
UNKNOWN = "unknown"

SYNONYMS = {  # VOC's names, as `normalised`, -> COCO's; "dining table" and "potted plant" differ by the space alone
    "aeroplane": "airplane",
    "motorbike": "motorcycle",
    "sofa": "couch",
    "tvmonitor": "tv",
}

_UNNAMED = re.compile(r"(class|object|label|category|instance|id)?[\W_]*\d*", re.IGNORECASE)


def domain(trained_on: Mapping[str, Iterable[str]] | None, dataset: str, classes: Iterable[str]) -> str:
    """The stamp of a result.

    Two classes are the same if their names are, apart from case, punctuation and the synonyms of VOC and COCO. A class
    without a name of its own ("object 1", "class 3") is compared within its data set only. Elsewhere nobody can tell
    what it is, so that it may stand in the way of "strict" and never makes a class count as trained on.

    Args:
        trained_on: names of the classes of training by data set; None where that was not declared.
        dataset: name of the data set of the evaluation.
        classes: names of the classes that are scored.

    Returns:
        `"strict"` (none of them was trained on), `"in-domain"` (all), `"mixed n/m"` (n of the m), or `"unknown"`.
    """
    scored = set(classes)
    if trained_on is None or not scored:
        return UNKNOWN
    trained = {_identity(data, name) for data, names in trained_on.items() for name in names}
    tested = {_identity(dataset, name) for name in scored}
    shared = tested & trained
    if shared:
        return IN_DOMAIN if shared == tested else f"{MIXED} {len(shared)}/{len(tested)}"
    return UNKNOWN if _cannot_tell(tested, trained) or _cannot_tell(trained, tested) else STRICT


def is_unnamed(name: str) -> bool:
    """Whether a name is a number with or without a general word: `"class 3"`, `"object_1"`, `"7"`, `""`."""
    return _UNNAMED.fullmatch(name.strip()) is not None


def normalised(name: str) -> str:
    """A name without case, spaces and punctuation, and in COCO's word where VOC has another."""
    letters = "".join(character for character in name.casefold() if character.isalnum())
    return SYNONYMS.get(letters, letters)


def _identity(dataset: str, name: str) -> tuple[str, str]:
    """Equal for equal classes: (data set, name) of an unnamed class, ("", name) of any other."""
    return (dataset if is_unnamed(name) else "", normalised(name))


def _cannot_tell(some: Iterable[tuple[str, str]], others: Iterable[tuple[str, str]]) -> bool:
    """Whether an unnamed class of `some` could be one of `others`, which lie in another data set or have names."""
    others = set(others)
    return any(dataset and any(other != dataset for other, _ in others) for dataset, _ in some)
