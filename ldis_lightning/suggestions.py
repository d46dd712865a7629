"""Names in messages: the nearest valid one, and the first of many."""

import difflib
from collections.abc import Iterable


def did_you_mean(word: str, candidates: Iterable[str]) -> str:
    """`"; did you mean `X`?"` for the candidate nearest to `word`, or "" where none is near. Case does not count."""
    by_folded = {candidate.casefold(): candidate for candidate in candidates}
    near = difflib.get_close_matches(word.casefold(), by_folded, n=1, cutoff=0.6)
    return f"; did you mean `{by_folded[near[0]]}`?" if near else ""


def some(names: Iterable[str], shown: int = 3) -> str:
    """The first names, and how many more there are: `a, b, c and 7 more`."""
    names = list(names)
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more
