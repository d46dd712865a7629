"""Few-shot folds: their classes, their draws, their runs."""

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from protocol_sets import COCO_IDS, assert_uniform, classed, classes_of, drawn, like_coco, like_pascal
from tiny_sets import bare_index

from ldis_lightning.datamodules.index import ShardIndex
from ldis_lightning.datamodules.protocols import (
    BAMCOCO,
    BAMPASCAL,
    FewShot,
    HSNetCOCO,
    HSNetPASCAL,
    PFENetCOCO,
    PFENetPASCAL,
    Protocol,
)
from ldis_lightning.errors import UserError
from ldis_lightning.evaluation.measures import RegionIoU


@pytest.fixture(scope="module")
def coco(tmp_path_factory: pytest.TempPathFactory) -> ShardIndex:
    return like_coco(tmp_path_factory.mktemp("coco") / "set")


@pytest.fixture(scope="module")
def pascal(tmp_path_factory: pytest.TempPathFactory) -> ShardIndex:
    return like_pascal(tmp_path_factory.mktemp("pascal") / "set")


@pytest.mark.parametrize("fold", range(4))
@pytest.mark.parametrize(
    ("build", "ids", "expected"),
    [
        (HSNetCOCO, COCO_IDS, lambda f: [f + 4 * v for v in range(20)]),
        (BAMCOCO, COCO_IDS, lambda f: [f + 4 * v for v in range(20)]),
        (PFENetCOCO, COCO_IDS, lambda f: list(range(20 * f, 20 * f + 20))),
        (lambda fold: PFENetCOCO(fold, interleaved=True), COCO_IDS, lambda f: [f + 4 * v for v in range(20)]),
        (HSNetPASCAL, range(1, 21), lambda f: [5 * f, 5 * f + 1, 5 * f + 2, 5 * f + 3, 5 * f + 4]),
        (BAMPASCAL, range(1, 21), lambda f: [5 * f, 5 * f + 1, 5 * f + 2, 5 * f + 3, 5 * f + 4]),
        (PFENetPASCAL, range(1, 21), lambda f: [5 * f, 5 * f + 1, 5 * f + 2, 5 * f + 3, 5 * f + 4]),
    ],
)
def test_classes_of_folds(
    build: Callable[[int], Protocol], ids: Sequence[int], expected: Callable[[int], list[int]], fold: int
) -> None:
    """`expected` are positions in the list of classes, 0-based."""
    assert build(fold).classes(classed(ids)) == [ids[position] for position in expected(fold)]


@pytest.mark.parametrize("build", [HSNetCOCO, PFENetCOCO])
def test_episodes_ask_for_the_folds_classes_alone(coco: ShardIndex, build: type[FewShot]) -> None:
    seen: set[int] = set()
    for fold in range(4):
        manifest = drawn(coco, build(fold, episodes=300))
        asked = {episode.class_id for episode in manifest.episodes}
        assert asked == set(manifest.classes) == set(build(fold).classes(coco.classes))  # 300 draws miss none of 20
        assert not asked & seen
        seen |= asked
        for episode in manifest.episodes:
            assert episode.class_id == episode.reference_class
            assert all(episode.class_id in classes_of(coco, row) for row in (episode.query, *episode.references))
            assert episode.query not in episode.references
    assert seen == set(COCO_IDS)


@pytest.mark.parametrize(
    ("protocol", "episodes", "runs", "size"),
    [
        (HSNetCOCO(), 1000, 1, 400),
        (HSNetPASCAL(), 1000, 1, 400),
        (BAMCOCO(), 5000, 5, 400),
        (BAMPASCAL(), 5000, 5, 400),
        (PFENetCOCO(), 20_000, 1, None),
        (PFENetPASCAL(), 5000, 1, None),
    ],
)
def test_counts_runs_and_sizes(
    coco: ShardIndex, pascal: ShardIndex, protocol: FewShot, episodes: int, runs: int, size: int | None
) -> None:
    manifest = drawn(coco if "coco" in protocol.name else pascal, protocol)
    assert (len(manifest), manifest.runs, manifest.score_size) == (episodes, runs, size)
    assert (len(manifest.table()), manifest.table().runs) == (episodes, runs)
    assert len({episode.seed for episode in manifest.episodes}) == episodes
    assert isinstance(protocol.measure, RegionIoU)


def test_predictions_may_be_scored_at_the_original_size(coco: ShardIndex) -> None:
    assert drawn(coco, HSNetCOCO(episodes=3, score_size=None)).score_size is None


def test_the_class_is_drawn_first_then_the_query_then_the_reference(tmp_path: Path) -> None:
    """Two classes of 5 and 40 images: each is asked for equally often, whatever its size."""
    index = bare_index(tmp_path / "set", [[1]] * 5 + [[2]] * 40)
    episodes = drawn(index, FewShot(folds=2, interleaved=False, episodes=20_000), k=2).episodes
    assert_uniform(Counter(e.class_id for e in episodes), 2)
    assert_uniform(Counter(e.query for e in episodes if e.class_id == 1), 5)
    assert_uniform(Counter(e.query for e in episodes if e.class_id == 2), 40)
    assert_uniform(Counter((e.query, e.references[0]) for e in episodes if e.class_id == 1), 5 * 4)
    assert_uniform(Counter((e.query, e.references) for e in episodes if e.class_id == 1), 5 * 4 * 3)
    assert_uniform(Counter(e.references[0] for e in episodes if e.class_id == 2), 40)


def test_pascals_list_is_gone_through_and_again_from_its_start(pascal: ShardIndex) -> None:
    manifest = drawn(pascal, HSNetPASCAL(2))
    pairs = [(row, c) for row in range(len(pascal)) for c in classes_of(pascal, row) if c in manifest.classes]
    assert 10 < len(pairs) < 500  # it has to begin again, more than once
    asked = [(episode.query, episode.class_id) for episode in manifest.episodes]
    assert asked == [pairs[i % len(pairs)] for i in range(1000)]
    rounds = [[e.references for e in manifest.episodes[start:][: len(pairs)]] for start in (0, len(pairs))]
    assert rounds[0] != rounds[1]  # with other references


def test_bams_runs_are_equal_draws_of_which_the_first_is_hsnets(coco: ShardIndex) -> None:
    bam = drawn(coco, BAMCOCO(1, episodes=50), seed=7).episodes
    for run in range(5):
        assert bam[50 * run : 50 * run + 50] == drawn(coco, HSNetCOCO(1, episodes=50), seed=7 + run).episodes
    assert len({tuple(e.query for e in bam[50 * run : 50 * run + 50]) for run in range(5)}) == 5


def test_bams_runs_of_pascal_differ_in_their_queries(pascal: ShardIndex) -> None:
    episodes = drawn(pascal, BAMPASCAL(0, episodes=20, runs=2)).episodes
    assert [e.query for e in episodes[:20]] != [e.query for e in episodes[20:]]


# ---- Caps and mistakes


@pytest.mark.parametrize("protocol", [HSNetCOCO(), HSNetPASCAL(), PFENetCOCO()], ids=lambda p: p.name)
def test_a_cap_on_drawn_episodes_takes_the_first(protocol: Protocol, coco: ShardIndex) -> None:
    part = drawn(coco, protocol, episodes=30).episodes
    assert part == drawn(coco, protocol, episodes=1000).episodes[:30]
    assert len(drawn(coco, HSNetCOCO(episodes=25), episodes=30)) == 25


def test_a_cap_counts_the_episodes_of_each_run(coco: ShardIndex) -> None:
    whole, part = drawn(coco, BAMCOCO(episodes=50)), drawn(coco, BAMCOCO(episodes=50), episodes=20)
    assert part.episodes == [e for run in range(5) for e in whole.episodes[50 * run : 50 * run + 20]]
    assert part.table().runs == 5


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"fold": 4}, r"hsnet-coco: fold must be in 0 \.\. 3, got 4"),
        ({"fold": -1}, r"fold must be in 0 \.\. 3, got -1"),
        ({"episodes": 0}, "episodes must be 1 or more, got 0"),
        ({"score_size": 0}, "score_size must be 1 or more, got 0"),
    ],
)
def test_settings_out_of_range(settings: dict[str, int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        HSNetCOCO(**settings)


def test_runs_and_folds_out_of_range() -> None:
    with pytest.raises(UserError, match="bam-coco: runs must be 1 or more, got 0"):
        BAMCOCO(runs=0)
    with pytest.raises(UserError, match="few-shot: folds must be 1 or more, got 0"):
        FewShot(folds=0)


def test_classes_that_cannot_be_divided(pascal: ShardIndex) -> None:
    with pytest.raises(UserError, match="hsnet-coco: 6 classes cannot be divided into 4 equal folds"):
        HSNetCOCO().classes(classed(range(6)))
    drawn(pascal, HSNetCOCO(episodes=2))  # 20 classes can
