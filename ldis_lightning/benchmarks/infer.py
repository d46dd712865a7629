"""`ldis bench infer`: inference with K references against the released script's way, by turns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from ldis_lightning.benchmarks.report import print_rows, raced
from ldis_lightning.benchmarks.settings import Settings, count_flops, parser, settings
from ldis_lightning.benchmarks.turns import Work
from ldis_lightning.command_line import at_least

if TYPE_CHECKING:
    from torch import Tensor

    from ldis_lightning.meta_architectures import InContextSegmenter

WARMUP = 1


def main(args: Sequence[str]) -> int:
    """Run the benchmark and print its tables.

    Raises:
        UserError: the arguments are wrong.
    """
    options = parser(
        "ldis bench infer",
        "Queries segmented with K references, the released script's way and ours, by turns, each in a process of its\n"
        "own: LDIS-1 with one query and with several of one context, LDIS-n with one. Random weights and inputs.",
    )
    options.add_argument("--references", type=at_least(1), default=20, metavar="K", help="references (default: 20)")
    options.add_argument(
        "--queries", type=at_least(2), default=10, metavar="Q", help="queries of the second row (default: 10)"
    )
    options.add_argument("--steps", type=at_least(1), default=20, metavar="N", help="LDIS-n's steps (default: 20)")
    parsed = options.parse(list(args))
    from tqdm import tqdm

    common = settings(parsed)
    models = (
        ("LDIS-1, 1 query", OneStep(), 1),
        (f"LDIS-1, {parsed.queries} queries", OneStep(), parsed.queries),
        (f"LDIS-n, {parsed.steps} steps, 1 query", ManySteps(parsed.steps), 1),
    )
    rows = []
    for label, model, queries in tqdm(models, "rows", leave=False, disable=None):
        work = (model, parsed.references, queries)
        builds = (partial(baseline_inference, *work), partial(our_inference, *work))
        rows.append(raced(label, common, builds, parsed, WARMUP, queries))
    print_rows(f"Inference with {parsed.references} references", common, rows)
    return 0


class OneStep:
    """LDIS-1: how it is made, and how the baseline computes it."""

    def module(self, common: Settings, **options: Any) -> InContextSegmenter:
        """Ours."""
        from ldis_lightning.benchmarks import parts

        return parts.ldis1(parts.SCALES[common.scale], common.device, **options)

    def baseline(self, common: Settings, networks: Any) -> Callable[[Any], Tensor]:
        """From a context with its queries to their logits (Q, H, W)."""
        from ldis_lightning.benchmarks.baseline import ldis1_logits

        return partial(ldis1_logits, networks)


@dataclass(frozen=True)
class ManySteps:
    """LDIS-n with so many steps; as `OneStep`."""

    steps: int

    def module(self, common: Settings, **options: Any) -> InContextSegmenter:
        """Ours."""
        from ldis_lightning.benchmarks import parts

        return parts.ldisn(parts.SCALES[common.scale], common.device, self.steps, **options)

    def baseline(self, common: Settings, networks: Any) -> Callable[[Any], Tensor]:
        """From a context with its queries to their logits (Q, H, W)."""
        from diffusers import DDPMScheduler

        from ldis_lightning.benchmarks import parts
        from ldis_lightning.benchmarks.baseline import ldisn_logits, null_tokens

        scheduler = DDPMScheduler(clip_sample=False, **parts.NOISE_SCHEDULE)
        with common.autocast():
            null = null_tokens(networks.encoder, common.device)
        return partial(ldisn_logits, networks, null, scheduler, self.steps, parts.GAMMA)


def baseline_inference(model: OneStep | ManySteps, references: int, queries: int, common: Settings) -> Work:
    """Inference as the released script does it: see `ldis_lightning.benchmarks.baseline`."""
    from ldis_lightning.benchmarks import baseline

    module = model.module(common).eval()
    flops = count_flops(module, common, lambda: ours_of(module, _context(common, references, queries)))
    segment = model.baseline(common, baseline.Networks.of(module, common.frozen_dtype()))
    return _inference(common, segment, _context(common, references, queries), flops)


def our_inference(model: OneStep | ManySteps, references: int, queries: int, common: Settings) -> Work:
    """Inference with our model, whose references are encoded once."""
    module = model.module(common, execution=common.execution()).eval()
    context = _context(common, references, queries)
    flops = count_flops(module, common, lambda: ours_of(module, context))
    common.set_up(module)
    return _inference(common, partial(ours_of, module), context, flops)


def ours_of(module: InContextSegmenter, context: Any) -> Tensor:
    """Logits of the queries of a context, as frames of a clip are segmented: (Q, H, W)."""
    import torch

    with torch.inference_mode():
        module.forget()
        return module.clip_logits(context)[:, 0]


def _context(common: Settings, references: int, queries: int) -> Any:
    """A `ClipBatch` of one concept, as far as inference reads it."""
    from ldis_lightning.benchmarks import parts

    batch = parts.episodes(parts.SCALES[common.scale], common.device, 1, references, queries)
    return batch | {"context": "benchmark", "seed": batch["seed"][:, None], "class_id": batch["class_id"][:1]}


def _inference(common: Settings, segment: Callable[[Any], Tensor], context: Any, flops: int | None) -> Work:
    def turn(number: int) -> None:
        for _ in range(common.calls):
            with common.autocast():
                segment(context)

    return Work(turn, None if flops is None else flops * common.calls)
