"""`ldis bench reuse`: many queries against one context, against as many calls that each encode it anew."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from ldis_lightning.benchmarks.report import print_rows, raced
from ldis_lightning.benchmarks.settings import Settings, parser, settings
from ldis_lightning.benchmarks.turns import Work
from ldis_lightning.command_line import at_least

if TYPE_CHECKING:
    from ldis_lightning.pipeline import InContextSegmentationPipeline

WARMUP = 1


def main(args: Sequence[str]) -> int:
    """Run the benchmark and print its table.

    Raises:
        UserError: the arguments are wrong.
    """
    options = parser(
        "ldis bench reuse",
        "Queries of a pipeline (LDIS-1, arrays in, masks out) against one context that is encoded once. The baseline\n"
        "encodes the references before every query. Random weights and inputs.",
    )
    options.add_argument("--references", type=at_least(1), default=1, metavar="K", help="references (default: 1)")
    options.add_argument("--queries", type=at_least(2), default=100, metavar="Q", help="queries (default: 100)")
    options.add_argument("--batch_size", type=at_least(2), default=8, metavar="N", help="of the last row (default: 8)")
    parsed = options.parse(list(args))
    common = settings(parsed)
    work = (parsed.references, parsed.queries)
    rows = []
    for label, batch_size in (("encoded once", 1), (f"encoded once, {parsed.batch_size} at a time", parsed.batch_size)):
        builds = (partial(anew, *work), partial(once, *work, batch_size))
        rows.append(raced(label, common, builds, parsed, WARMUP, parsed.queries))
    print_rows(f"{parsed.queries} queries with {parsed.references} references", common, rows)
    return 0


def anew(references: int, queries: int, common: Settings) -> Work:
    """The references are encoded before every query, and nothing is compiled."""
    pipe, shown, masks, asked = _prepared(references, queries, replace(common, compile=False))

    def turn(number: int) -> None:
        for _ in range(common.calls):
            for query in asked:
                pipe(query, pipe.encode(shown, masks))

    return Work(turn)


def once(references: int, queries: int, batch_size: int, common: Settings) -> Work:
    """The references are encoded once a call of the work."""
    pipe, shown, masks, asked = _prepared(references, queries, common)

    def turn(number: int) -> None:
        for _ in range(common.calls):
            pipe(asked, pipe.encode(shown, masks), batch_size=batch_size)

    return Work(turn)


def _prepared(
    references: int, queries: int, common: Settings
) -> tuple[InContextSegmentationPipeline, list[Any], list[Any], list[Any]]:
    """A pipeline, references with their masks, and queries, as arrays."""
    import torch

    from ldis_lightning.benchmarks import parts
    from ldis_lightning.pipeline import InContextSegmentationPipeline

    scale = parts.SCALES[common.scale]
    batch = parts.episodes(scale, "cpu", 1, references, queries)
    shown = [_array(image) for image in batch["reference_image"][0]]
    masks = [mask.numpy() == 1 for mask in batch["reference_mask"][0]]
    asked = [_array(image) for image in batch["query_image"]]
    pipe = InContextSegmentationPipeline(parts.ldis1(scale, common.device), asked[0].shape[0])
    if common.precision == "bf16-mixed":
        pipe.to(torch.bfloat16)
    return pipe.compile() if common.compile else pipe, shown, masks, asked


def _array(image: Any) -> Any:
    """(3, H, W) in [-1, 1] -> (H, W, 3) uint8."""
    return ((image + 1) * 127.5).round().clamp(0, 255).byte().permute(1, 2, 0).contiguous().cpu().numpy()
