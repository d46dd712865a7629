"""Published results, to be printed beside ours: percentages as they were printed, each with its source.

Published rows of one benchmark need not share a protocol: papers differ in backbone, picture size and episodes, and
their episodes were not released. They say where a method stands; they are no match to the last point.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from ldis_lightning.evaluation.domains import IN_DOMAIN, STRICT, UNKNOWN

TRAINING_FREE = "training-free"


@dataclass(frozen=True)
class Source:
    """Where numbers come from: a mark for table cells and what it stands for."""

    mark: str
    text: str
    reported: bool = False
    """The numbers reached us through a summary, not from the paper itself."""


TABLES = Source(
    "paper",
    "published, as in the tables of DiffewS (arXiv 2410.02369), SINE (2410.04842) and SANSA (2505.21795); "
    "on other episodes than ours",
)
LDIS = Source(
    "reported",
    "published, for the paper of LDIS (arXiv 2403.09616), by a summary of it: compare trends, do not tune to them",
    reported=True,
)
SOURCES = (TABLES, LDIS)


@dataclass(frozen=True)
class Benchmark:
    """What published rows share, and which of our rows belong beside them.

    Attributes:
        title: what people call it.
        protocols: names of our protocols that score it.
        dataset: what the name of our data set contains, without case; "" where the protocol says enough.
        measure: name of the headline score.
        settings: values that the protocol's settings must have where they have the key.
    """

    title: str
    protocols: tuple[str, ...]
    dataset: str = ""
    measure: str = "miou"
    settings: tuple[tuple[str, object], ...] = ()

    def matches(self, dataset: str, protocol: str, measure: str, settings: Mapping[str, object]) -> bool:
        """Whether a row of ours belongs here."""
        fits = all(settings.get(key, value) == value for key, value in self.settings)
        return fits and protocol in self.protocols and self.dataset in dataset.casefold() and measure == self.measure


COCO_20I = Benchmark(
    "COCO-20i",
    ("hsnet-coco", "bam-coco", "pfenet-coco"),
    settings=(("interleaved", True),),  # PFENet's contiguous folds are other classes
)
PASCAL_5I = Benchmark("PASCAL-5i", ("hsnet-pascal", "bam-pascal", "pfenet-pascal"))
FSS_1000 = Benchmark("FSS-1000", ("fss1000",))
DAVIS_16 = Benchmark("DAVIS-16", ("davis",), dataset="16", measure="j_and_f")
PASCAL = Benchmark("PASCAL", ("ldis",), dataset="pascal")
COCO = Benchmark("COCO", ("ldis",), dataset="coco")
BENCHMARKS = (PASCAL, COCO, DAVIS_16, FSS_1000, COCO_20I, PASCAL_5I)


@dataclass(frozen=True)
class Published:
    """One published number.

    Attributes:
        references: K, references of an episode.
        score: of the benchmark's measure, in percent.
        domain: `"strict"`, `"in-domain"`, `"training-free"`, or `"unknown"` where our source does not say.
        folds: the folds of which `score` is the mean, in percent; empty where only the mean is given.
    """

    benchmark: Benchmark
    references: int
    domain: str
    method: str
    score: float
    source: Source
    folds: tuple[float, ...] = ()


def _rows(
    benchmark: Benchmark, references: int, domain: str, source: Source, scores: Mapping[str, float]
) -> tuple[Published, ...]:
    return tuple(Published(benchmark, references, domain, method, score, source) for method, score in scores.items())


def _folds(method: str, folds: tuple[float, ...], mean: float) -> Published:
    return Published(COCO_20I, 1, STRICT, method, mean, TABLES, folds)


PUBLISHED: tuple[Published, ...] = (
    # COCO-20i, all classes seen in training
    *_rows(COCO_20I, 1, IN_DOMAIN, TABLES, {"Painter": 32.8, "SegGPT": 56.1, "SINE": 64.5}),
    *_rows(COCO_20I, 1, IN_DOMAIN, TABLES, {"DiffewS": 71.3, "SANSA": 76.4}),
    *_rows(COCO_20I, 1, IN_DOMAIN, LDIS, {"LDIS-1": 60.3}),
    *_rows(COCO_20I, 5, IN_DOMAIN, TABLES, {"Painter": 32.6, "SegGPT": 67.9, "SINE": 66.1}),
    *_rows(COCO_20I, 5, IN_DOMAIN, TABLES, {"DiffewS": 72.2, "SANSA": 77.1}),
    *_rows(COCO_20I, 1, TRAINING_FREE, TABLES, {"PerSAM": 23.0, "Matcher": 52.7, "GF-SAM": 58.7}),
    *_rows(COCO_20I, 5, TRAINING_FREE, TABLES, {"Matcher": 60.7, "GF-SAM": 66.8}),
    # COCO-20i, a fold's classes not seen in training
    _folds("HSNet", (37.2, 44.1, 42.4, 41.3), 41.2),
    _folds("BAM", (43.4, 50.6, 47.5, 43.4), 46.2),
    _folds("DCAMA", (49.5, 52.7, 52.8, 48.7), 50.9),
    _folds("DiffewS", (47.7, 56.4, 51.9, 48.7), 51.2),
    _folds("SANSA", (57.7, 61.7, 62.8, 58.5), 60.2),
    # COCO-20i in the LDIS paper; its BAM, 46.2, is the strict row above
    *_rows(COCO_20I, 1, UNKNOWN, LDIS, {"RePRI": 34.1, "FPTrans": 47.0}),
    *_rows(COCO_20I, 1, TRAINING_FREE, LDIS, {"PerSAM": 22.3}),
    # PASCAL-5i, FSS-1000 and DAVIS-16
    *_rows(PASCAL_5I, 1, UNKNOWN, TABLES, {"SegGPT": 83.2, "SINE": 85.4, "DiffewS": 88.3}),
    *_rows(PASCAL_5I, 5, UNKNOWN, TABLES, {"SegGPT": 89.8, "SINE": 86.2, "DiffewS": 87.8}),
    *_rows(PASCAL_5I, 1, TRAINING_FREE, TABLES, {"Matcher": 67.9}),
    *_rows(PASCAL_5I, 5, TRAINING_FREE, TABLES, {"Matcher": 75.6}),
    *_rows(FSS_1000, 1, UNKNOWN, TABLES, {"SegGPT": 85.6, "DiffewS": 87.8, "SegIC": 88.4}),
    *_rows(FSS_1000, 1, TRAINING_FREE, TABLES, {"Matcher": 87.0}),
    *_rows(DAVIS_16, 1, UNKNOWN, TABLES, {"SegGPT": 83.7, "SINE": 82.3}),
    *_rows(DAVIS_16, 1, TRAINING_FREE, TABLES, {"Matcher": 86.1}),
    # The LDIS paper's own benchmark: one model, and every class is in train and in val
    *_rows(PASCAL, 1, IN_DOMAIN, LDIS, {"LDIS-n": 76.7, "LDIS-1": 85.3}),
    *_rows(PASCAL, 1, UNKNOWN, LDIS, {"PFENet": 76.4, "SegGPT": 75.6, "Prompt Diffusion": 9.0}),
    *_rows(PASCAL, 1, TRAINING_FREE, LDIS, {"PerSAM": 47.6}),
    *_rows(COCO, 1, IN_DOMAIN, LDIS, {"LDIS-n": 52.6, "LDIS-1": 62.6}),
    *_rows(COCO, 1, UNKNOWN, LDIS, {"PFENet": 49.4, "SegGPT": 50.7, "Prompt Diffusion": 5.9}),
    *_rows(COCO, 1, TRAINING_FREE, LDIS, {"PerSAM": 25.5}),
    *_rows(DAVIS_16, 1, IN_DOMAIN, LDIS, {"LDIS-n": 64.7, "LDIS-1": 67.8}),
    *_rows(DAVIS_16, 1, UNKNOWN, LDIS, {"SegGPT": 80.5}),
    *_rows(DAVIS_16, 1, TRAINING_FREE, LDIS, {"PerSAM": 68.7}),
    # Its ablation of the number of prompts; the variant is not stated
    *_rows(COCO, 1, IN_DOMAIN, LDIS, {"LDIS, ablation of K": 49.7}),
    *_rows(COCO, 3, IN_DOMAIN, LDIS, {"LDIS, ablation of K": 55.3}),
    *_rows(COCO, 5, IN_DOMAIN, LDIS, {"LDIS, ablation of K": 56.2}),
    *_rows(COCO, 10, IN_DOMAIN, LDIS, {"LDIS, ablation of K": 56.7}),
    *_rows(COCO, 20, IN_DOMAIN, LDIS, {"LDIS, ablation of K": 55.7}),
)
