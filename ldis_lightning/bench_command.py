"""`ldis bench`: how fast a part is, as a ratio to a named baseline measured in the same run."""

import importlib
from collections.abc import Sequence

from ldis_lightning.errors import UserError
from ldis_lightning.suggestions import did_you_mean

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
    if not args or args[0] in ("-h", "--help"):
        listed = "\n".join(f"  {name:<6} {summary}" for name, (_, summary) in BENCHMARKS.items())
        print(f"usage: ldis bench NAME [options]\n\nbenchmarks:\n{listed}\n\n  ldis bench NAME --help   its options")
        return 0 if args else 2
    name, *rest = args
    if name not in BENCHMARKS:
        hint = did_you_mean(name, BENCHMARKS)
        raise UserError(f"there is no benchmark `{name}`{hint}; there are {', '.join(BENCHMARKS)}")
    return importlib.import_module(BENCHMARKS[name][0]).main(rest)
