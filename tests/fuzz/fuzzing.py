"""Coverage-guided fuzzing of the targets with atheris (libFuzzer), from a corpus that is made here.

    pip install 'ldis-lightning[fuzz]'
    python tests/fuzz/fuzz_samples.py --minutes 30

An input that breaks a promise is written to `--findings` and ends the run with a status other than 0.
"""

import argparse
import importlib
import os
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

SECONDS, WAITING = 5, 60
"""An input that takes more of a processor's time, or more time by the clock, is a finding."""
MEGABYTES = 2048
"""Memory of the process beyond which an input is a finding."""
INSTRUMENTED = ("PIL", "json", "ldis_lightning", "numpy", "tarfile")
"""Packages whose branches count as coverage."""
LATE = ("PIL.ImageFile", "PIL.JpegImagePlugin", "PIL.MpoImagePlugin", "PIL.PngImagePlugin", "PIL.TiffImagePlugin")
"""Modules that would only be imported, and so go uninstrumented, when the first picture is opened."""

Made = tuple[Callable[[bytes], str], list[bytes], Callable[[Random, bytes], bytes]]
"""A target, which tells what came of an input, the inputs to begin with, and what mutates one."""


def fuzz(description: str, make: Callable[[Path], Made]) -> None:
    """Fuzz a target for as long as the command line says.

    Args:
        description: of the target.
        make: a folder to work in -> what is to be fuzzed. It imports what is to be instrumented.
    """
    options = _options(description)
    try:
        atheris: Any = importlib.import_module("atheris")  # an extra
    except ImportError:
        sys.exit("this needs atheris: pip install 'ldis-lightning[fuzz]' (Linux, or macOS with LLVM's clang)")
    with atheris.instrument_imports(include=list(INSTRUMENTED)):
        for name in [name for name in sys.modules if name.partition(".")[0] in INSTRUMENTED]:
            del sys.modules[name]  # what is loaded already would go uninstrumented, too
        for name in (*LATE, "oracles"):
            importlib.import_module(name)
    folder = Path(tempfile.mkdtemp(prefix="ldis-fuzz-", dir=options.work))
    from oracles import Watch, small_pictures

    target, seeds, mutate = make(folder)
    corpus = options.corpus or folder / "corpus"
    corpus.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(seeds):
        (corpus / f"seed-{number:03d}").write_bytes(seed)
    options.findings.mkdir(parents=True, exist_ok=True)
    watch, outcomes = Watch(folder), Counter[str]()
    warnings.simplefilter("ignore")  # PIL has one for every odd tag

    def one_input(data: bytes) -> None:
        begin = time.process_time()
        with small_pictures():
            outcomes[target(data)] += 1
        assert time.process_time() - begin < SECONDS, "an input that takes too long"
        watch.check()
        count = sum(outcomes.values())
        if count & (count - 1) == 0 or count % 20_000 == 0:
            print(f"{count} inputs: {dict(outcomes.most_common(8))}", file=sys.stderr, flush=True)

    def mutated(data: bytes, size: int, seed: int) -> bytes:
        random = Random(seed)
        if random.random() < 0.2:
            return atheris.Mutate(data, size)
        try:
            return mutate(random, data)[:size]
        except (ArithmeticError, LookupError, TypeError, ValueError):  # what was mutated before may fit no format
            return atheris.Mutate(data, size)

    arguments = [sys.argv[0], str(corpus), f"-max_total_time={60 * options.minutes:.0f}", "-max_len=65536"]
    arguments += [f"-timeout={WAITING}", f"-rss_limit_mb={MEGABYTES}", f"-artifact_prefix={options.findings}{os.sep}"]
    atheris.Setup([*arguments, f"-seed={options.seed}", "-print_final_stats=1"], one_input, custom_mutator=mutated)
    atheris.Fuzz()


def _options(description: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--minutes", type=float, default=30, help="how long (default: 30)")
    parser.add_argument("--seed", type=int, default=1, help="of the mutations (default: 1)")
    parser.add_argument("--corpus", type=Path, help="folder to keep interesting inputs in (default: a temporary one)")
    parser.add_argument("--findings", type=Path, default=Path("fuzz-findings"), help="folder for inputs that fail")
    parser.add_argument("--work", type=Path, help="folder for temporary files, best in memory (default: the system's)")
    return parser.parse_args()
