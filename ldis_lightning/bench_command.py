"""`ldis bench`: how fast a part is, as a ratio to a named baseline measured in the same run."""

import importlib
from collections.abc import Sequence

from ldis_lightning.command_line import dispatch

BENCHMARKS = {
    "step": ("ldis_lightning.benchmarks.step", "a training step, against the released script's way"),
    "infer": ("ldis_lightning.benchmarks.infer", "inference with K references, against the released script's way"),
    "reuse": ("ldis_lightning.benchmarks.reuse", "many queries against one context, against encoding it anew"),
    "data": ("ldis_lightning.datamodules.stream_benchmark", "loading, against decoding alone and two usual loaders"),
    "index": ("ldis_lightning.datamodules.index_benchmark", "opening and planning data sets of millions of samples"),
    "pack": ("ldis_lightning.datamodules.packing.benchmark", "packing a tree, against copying and hashing its files"),
}
"""Name -> module whose `main(args)` runs the benchmark, and what it measures."""


def main(args: Sequence[str]) -> int:
    """Run `ldis bench` with its arguments and return the exit status.

    Raises:
        UserError: there is no such benchmark, or it does not take the arguments.
    """
    summaries = {name: summary for name, (_, summary) in BENCHMARKS.items()}
    return dispatch(
        "ldis bench", args, summaries, lambda name, rest: importlib.import_module(BENCHMARKS[name][0]).main(rest)
    )
