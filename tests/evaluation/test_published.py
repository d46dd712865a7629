import pytest

from ldis_lightning.evaluation.published import BENCHMARKS, PUBLISHED, SOURCES, Published

BY_NAME = {benchmark.title: benchmark for benchmark in BENCHMARKS}

# The project's list of published results, typed a second time: "benchmark K domain source: method score, ...".
LIST = """
COCO-20i 1 in-domain paper: Painter 32.8, SegGPT 56.1, SINE 64.5, DiffewS 71.3, SANSA 76.4
COCO-20i 5 in-domain paper: Painter 32.6, SegGPT 67.9, SINE 66.1, DiffewS 72.2, SANSA 77.1
COCO-20i 1 in-domain reported: LDIS-1 60.3
COCO-20i 1 training-free paper: PerSAM 23.0, Matcher 52.7, GF-SAM 58.7
COCO-20i 5 training-free paper: Matcher 60.7, GF-SAM 66.8
COCO-20i 1 strict paper: HSNet 41.2, BAM 46.2, DCAMA 50.9, DiffewS 51.2, SANSA 60.2
COCO-20i 1 unknown reported: RePRI 34.1, FPTrans 47.0
COCO-20i 1 training-free reported: PerSAM 22.3
PASCAL-5i 1 unknown paper: SegGPT 83.2, SINE 85.4, DiffewS 88.3
PASCAL-5i 1 training-free paper: Matcher 67.9
PASCAL-5i 5 unknown paper: SegGPT 89.8, SINE 86.2, DiffewS 87.8
PASCAL-5i 5 training-free paper: Matcher 75.6
FSS-1000 1 unknown paper: SegGPT 85.6, DiffewS 87.8, SegIC 88.4
FSS-1000 1 training-free paper: Matcher 87.0
DAVIS-16 1 unknown paper: SegGPT 83.7, SINE 82.3
DAVIS-16 1 training-free paper: Matcher 86.1
PASCAL 1 in-domain reported: LDIS-n 76.7, LDIS-1 85.3
PASCAL 1 unknown reported: PFENet 76.4, SegGPT 75.6, Prompt Diffusion 9.0
PASCAL 1 training-free reported: PerSAM 47.6
COCO 1 in-domain reported: LDIS-n 52.6, LDIS-1 62.6
COCO 1 unknown reported: PFENet 49.4, SegGPT 50.7, Prompt Diffusion 5.9
COCO 1 training-free reported: PerSAM 25.5
DAVIS-16 1 in-domain reported: LDIS-n 64.7, LDIS-1 67.8
DAVIS-16 1 unknown reported: SegGPT 80.5
DAVIS-16 1 training-free reported: PerSAM 68.7
COCO 1 in-domain reported: LDIS, ablation of K 49.7
COCO 3 in-domain reported: LDIS, ablation of K 55.3
COCO 5 in-domain reported: LDIS, ablation of K 56.2
COCO 10 in-domain reported: LDIS, ablation of K 56.7
COCO 20 in-domain reported: LDIS, ablation of K 55.7
"""


def listed() -> list[tuple[str, int, str, str, str, float]]:
    entries = []
    for line in LIST.strip().splitlines():
        head, _, tail = line.partition(": ")
        benchmark, references, domain, mark = head.split()
        methods = [tail] if tail.startswith("LDIS,") else tail.split(", ")
        pairs = [method.rsplit(" ", 1) for method in methods]
        entries += [(benchmark, int(references), domain, mark, method, float(score)) for method, score in pairs]
    return entries


def facts(entry: Published) -> tuple[str, int, str, str, str, float]:
    return entry.benchmark.title, entry.references, entry.domain, entry.source.mark, entry.method, entry.score


def test_the_data_are_the_list() -> None:
    assert sorted(map(facts, PUBLISHED)) == sorted(listed())
    assert len(PUBLISHED) == 60


def test_folds_have_the_printed_mean() -> None:
    folded = {entry.method: entry for entry in PUBLISHED if entry.folds}
    assert {method: entry.folds for method, entry in folded.items()} == {
        "HSNet": (37.2, 44.1, 42.4, 41.3),
        "BAM": (43.4, 50.6, 47.5, 43.4),
        "DCAMA": (49.5, 52.7, 52.8, 48.7),
        "DiffewS": (47.7, 56.4, 51.9, 48.7),
        "SANSA": (57.7, 61.7, 62.8, 58.5),
    }
    for entry in folded.values():
        assert abs(sum(entry.folds) / 4 - entry.score) <= 0.0501


def test_every_source_says_where_it_is() -> None:
    assert {entry.source for entry in PUBLISHED} == set(SOURCES)
    assert all("arXiv" in source.text for source in SOURCES)
    assert [source.mark for source in SOURCES if source.reported] == ["reported"]


@pytest.mark.parametrize(
    ("dataset", "protocol", "measure", "settings", "expected"),
    [
        ("coco2014", "ldis", "miou", {}, "COCO"),
        ("pascal", "ldis", "miou", {}, "PASCAL"),
        ("PASCAL-val", "ldis", "miou", {}, "PASCAL"),
        ("synthetic", "ldis", "miou", {}, None),
        ("coco2014", "absence", "fpr", {}, None),
        ("coco2014", "ldis", "fpr", {}, None),
        ("coco2014", "hsnet-coco", "miou", {"fold": 0, "interleaved": True}, "COCO-20i"),
        ("coco2014", "bam-coco", "miou", {"fold": 0, "interleaved": True}, "COCO-20i"),
        ("coco2014", "pfenet-coco", "miou", {"fold": 0, "interleaved": True}, "COCO-20i"),
        ("coco2014", "pfenet-coco", "miou", {"fold": 0, "interleaved": False}, None),  # other classes
        ("pascal", "hsnet-pascal", "miou", {"fold": 0, "interleaved": False}, "PASCAL-5i"),
        ("fss1000", "fss1000", "miou", {}, "FSS-1000"),
        ("davis16", "davis", "j_and_f", {}, "DAVIS-16"),
        ("davis2017", "davis", "j_and_f", {}, None),
        ("vspw", "vspw", "miou", {}, None),
    ],
)
def test_rows_find_their_benchmark(
    dataset: str, protocol: str, measure: str, settings: dict[str, object], expected: str | None
) -> None:
    found = [b.title for b in BENCHMARKS if b.matches(dataset, protocol, measure, settings)]
    assert found == ([] if expected is None else [expected])


def test_our_protocols_are_named_right() -> None:
    from ldis_lightning.datamodules.protocols import PROTOCOLS

    assert {name for benchmark in BENCHMARKS for name in benchmark.protocols} <= set(PROTOCOLS)
