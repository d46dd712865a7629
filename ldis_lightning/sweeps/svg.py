"""matplotlib figures as SVG inside a page: text stays text, and colours are the page's, light or dark."""

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

PIXEL = 1 / 72  # inches: a point of matplotlib becomes a pixel of the page
INK, FAINT, LINE, PAGE = "#fe01d0", "#fe01d1", "#fe01d2", "#fe01d3"
COLORS = tuple(f"#fe02{number:02x}" for number in range(8))
"""Stand-ins that matplotlib draws with; the page's style sheet says what they are."""
_VARIABLES = {
    **{INK: "var(--ink)", FAINT: "var(--faint)", LINE: "var(--line)", PAGE: "var(--page)"},
    **{color: f"var(--c{number})" for number, color in enumerate(COLORS)},
}
STYLE: Any = {
    **{"svg.fonttype": "none", "svg.hashsalt": "sweep", "text.parse_math": False, "axes.unicode_minus": True},
    **{"font.size": 12, "font.family": "DejaVu Sans", "text.color": INK, "axes.labelcolor": INK},
    **{"axes.edgecolor": LINE, "axes.titlesize": 12, "axes.titleweight": "bold", "axes.titlecolor": INK},
    **{"axes.spines.top": False, "axes.spines.right": False, "axes.linewidth": 1.0, "axes.axisbelow": True},
    **{"axes.grid": True, "grid.color": LINE, "grid.linewidth": 0.7, "xtick.color": FAINT, "ytick.color": FAINT},
    **{"xtick.labelcolor": INK, "ytick.labelcolor": INK, "xtick.labelsize": 11.5, "ytick.labelsize": 11.5},
}


@contextmanager
def page_style() -> Iterator[None]:
    """Inside, matplotlib draws for the page. Labels are text, never formulas: `$` means nothing."""
    import matplotlib as mpl

    with mpl.rc_context(STYLE):
        yield


def to_svg(figure: Any, prefix: str) -> str:
    """The figure as an `<svg>` element whose ids begin with `prefix`, so that several share a page.

    Call it inside `page_style`. matplotlib escapes the text.
    """
    stream = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(stream, format="svg", transparent=True, metadata=nothing)
    text = stream.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", text, flags=re.S)  # its style is for `*`
    text = re.sub(r' (width|height)="[\d.]+pt"', "", text, count=2)
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{prefix}-", text)
    return re.sub(r'style="[^"]*"', _restyle, text).strip()


def _restyle(match: re.Match[str]) -> str:
    style = re.sub(r"#fe0[12][0-9a-f]{2}", lambda color: _VARIABLES.get(color[0], color[0]), match[0])
    return re.sub(r"font-family: [^;\"]*", "font-family: var(--sans)", style)
