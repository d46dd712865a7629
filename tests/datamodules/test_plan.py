import pickle
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_sets import mixed_contents, write_clips, write_images

from ldis_lightning.datamodules.draws import choose
from ldis_lightning.datamodules.evaluation_set import EvaluationSource, draw_manifest
from ldis_lightning.datamodules.index import ShardIndex
from ldis_lightning.datamodules.pairing import FirstFrame, WithinClip
from ldis_lightning.datamodules.plan import TrainingPlan
from ldis_lightning.datamodules.source import Episode, EpisodeSource, even_subset
from ldis_lightning.datamodules.treatment import Swapped
from ldis_lightning.errors import UserError

LONELY = 37  # the only image of class 4 in the fixture below


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> ShardIndex:
    contents = [[c for c in ids if c != 4] or [1] for ids in mixed_contents(40)]
    contents[LONELY] = [4]
    return write_images(tmp_path_factory.mktemp("images") / "set", contents)


def plan_of(index: ShardIndex, seed: int = 0, batch_size: int = 4, **settings) -> TrainingPlan:
    plan_settings = {name: settings.pop(name) for name in ("references", "window_shards") if name in settings}
    return TrainingPlan(index, EpisodeSource(str(index.folder), **settings), seed, batch_size, **plan_settings)


def classes_of(index: ShardIndex, row: int) -> list[int]:
    return index.classes_of_row(row)[0].tolist()


def epoch_of(plan: TrainingPlan, number: int) -> list[Episode]:
    return [plan.episode(position) for position in range(number * len(plan), (number + 1) * len(plan))]


@pytest.mark.parametrize("window_shards", [1, 3, 100])
def test_every_eligible_query_once_an_epoch(images: ShardIndex, window_shards: int) -> None:
    plan = plan_of(images, window_shards=window_shards)
    expected = [row for row in range(40) if row != LONELY]
    orders = [[episode.query for episode in epoch_of(plan, number)] for number in range(3)]
    assert all(sorted(order) == expected for order in orders)
    assert orders[0] != orders[1] != orders[2]


@pytest.mark.parametrize("references", [1, 3])
def test_references_are_other_images_of_the_class(images: ShardIndex, references: int) -> None:
    for episode in epoch_of(plan_of(images, references=references, window_shards=2), 0):
        assert episode.class_id == episode.reference_class
        assert episode.class_id in classes_of(images, episode.query)
        assert len(set(episode.references)) == references
        assert episode.query not in episode.references
        assert all(episode.class_id in classes_of(images, row) for row in episode.references)


def test_references_come_from_the_window_where_it_holds_enough(tmp_path: Path) -> None:
    index = write_images(tmp_path / "set", [[1]] * 40)  # ten shards
    episodes = epoch_of(plan_of(index, window_shards=3), 0)
    for window in (episodes[:12], episodes[12:24], episodes[24:36], episodes[36:]):
        shards = {e.query // 4 for e in window}
        assert len(shards) == len(window) // 4
        assert {row // 4 for e in window for row in e.references} <= shards


def test_references_come_from_the_whole_class_where_the_window_is_too_small(tmp_path: Path) -> None:
    index = write_images(tmp_path / "set", [[1], [2], [3], [4]] * 3)  # each shard of four holds each class once
    for episode in epoch_of(plan_of(index, window_shards=1, references=2), 0):
        assert sorted({episode.query % 4, *(row % 4 for row in episode.references)}) == [episode.class_id - 1]


def test_a_batch_depends_on_nothing_but_its_number(images: ShardIndex) -> None:
    plan = plan_of(images, batch_size=6)
    batches = [plan.batch(number) for number in range(20)]  # three epochs, with batches across their borders
    fresh = plan_of(images, batch_size=6)
    assert [fresh.batch(number) for number in reversed(range(20))] == batches[::-1]
    assert pickle.loads(pickle.dumps(plan)).batch(13) == batches[13]
    assert plan_of(images, batch_size=3).batch(27) == batches[13][3:]  # positions count, not batches


def test_ranks_divide_a_batch(images: ShardIndex) -> None:
    plan = plan_of(images, batch_size=6)
    parts = [plan.batch(5, rank, 3) for rank in range(3)]
    assert [episode for row in zip(*parts, strict=True) for episode in row] == plan.batch(5)


def test_seeds_change_everything(images: ShardIndex) -> None:
    one, other = epoch_of(plan_of(images, seed=1), 0), epoch_of(plan_of(images, seed=2), 0)
    assert [e.query for e in one] != [e.query for e in other]
    seeds = [e.seed for e in one + other + epoch_of(plan_of(images, seed=1), 1)]
    assert len(set(seeds)) == len(seeds)
    assert min(seeds) >= 0


def test_more_references_keep_the_first_ones(images: ShardIndex) -> None:
    one = draw_manifest(images, EvaluationSource(str(images.folder)), references=1)
    three = draw_manifest(images, EvaluationSource(str(images.folder)), references=3)
    assert [e.references[:1] for e in three.episodes] == [e.references for e in one.episodes]
    assert [e.seed for e in three.episodes] == [e.seed for e in one.episodes]


def test_classes_are_drawn_uniformly_whatever_their_size(tmp_path: Path) -> None:
    index = write_images(tmp_path / "set", [[1, 2, 3]] * 8)  # class 3 covers three times as much as class 1
    drawn = Counter(episode.class_id for number in range(100) for episode in epoch_of(plan_of(index), number))
    assert all(abs(drawn[class_id] - 800 / 3) < 60 for class_id in (1, 2, 3))


def test_references_are_drawn_uniformly(tmp_path: Path) -> None:
    index = write_images(tmp_path / "set", [[1]] * 5)
    plan = plan_of(index)
    drawn = Counter(e.references[0] for n in range(400) for e in epoch_of(plan, n) if e.query == 0)
    assert sorted(drawn) == [1, 2, 3, 4]
    assert all(abs(count - 100) < 40 for count in drawn.values())


def test_small_class_repeats_its_references_in_order(tmp_path: Path) -> None:
    index = write_images(tmp_path / "set", [[1], [1], [1]])
    for episode in epoch_of(plan_of(index, references=5), 0):
        first, second, *rest = episode.references
        assert {episode.query, first, second} == {0, 1, 2}
        assert rest == [first, second, first]


def test_classes_and_min_pixels_restrict_queries_and_references(tmp_path: Path) -> None:
    index = write_images(tmp_path / "set", [[1, 2], [2, 1], [1, 2], [2, 3], [3, 2]])
    assert {e.class_id for e in epoch_of(plan_of(index, classes=[3]), 0)} == {3}
    plan = plan_of(index, classes=[2], min_pixels=32)  # two columns of 16 pixels, so only where 2 comes second
    assert {row for e in epoch_of(plan, 0) for row in (e.query, *e.references)} == {0, 2, 4}


def test_a_window_of_clips(tmp_path: Path) -> None:
    index = write_clips(tmp_path / "set", [[[1], [1, 2], [2]], [[3], [1], [3]], [[2], [2], [2], [2]]])
    for episode in epoch_of(plan_of(index, pairing=WithinClip(), references=2, window_shards=1), 0):
        assert {int(index.clip[row]) for row in episode.references} == {int(index.clip[episode.query])}
    prompts = {(e.query, *e.references) for e in draw_manifest(index, EvaluationSource("", FirstFrame())).episodes}
    assert prompts <= {(1, 0), (2, 1), (5, 3), (7, 6), (8, 6), (9, 6)}
    assert len(prompts) == 6


def test_training_on_few_queries_keeps_all_references(images: ShardIndex) -> None:
    plan = plan_of(images, episodes=3)
    assert len(plan) == 3
    episodes = [e for number in range(40) for e in epoch_of(plan, number)]
    assert len({e.query for e in episodes}) == 3
    assert len({e.references[0] for e in episodes}) > 10


def test_nothing_to_draw_is_a_user_error(tmp_path: Path) -> None:
    index = write_images(tmp_path / "set", [[1], [2], [2]])
    with pytest.raises(UserError, match=r"no image can be a query.*WithinClip"):
        plan_of(index, pairing=WithinClip())
    with pytest.raises(UserError, match=r"classes \[9\] do not exist; it has 1 \(cat\)"):
        plan_of(index, classes=[1, 9])
    with pytest.raises(UserError, match="no reference of another class"):
        draw_manifest(index, EvaluationSource("set", treatment=Swapped(), classes=[2]))


def test_evaluation_takes_every_image_once(images: ShardIndex) -> None:
    plan = draw_manifest(images, EvaluationSource("set", seed=3))
    assert [e.query for e in plan.episodes] == [row for row in range(40) if row != LONELY]
    assert all(e.class_id in classes_of(images, row) for e in plan.episodes for row in (e.query, *e.references))


def test_evaluation_hash_names_the_list(images: ShardIndex) -> None:
    def hash_of(**settings) -> str:
        return draw_manifest(images, EvaluationSource("set", **settings)).hash

    assert hash_of() == hash_of()
    assert (
        len({hash_of(), hash_of(seed=1), hash_of(episodes=5), hash_of(classes=[1]), hash_of(treatment=Swapped())}) == 5
    )


def test_swapped_changes_the_references_alone(images: ShardIndex) -> None:
    intact = draw_manifest(images, EvaluationSource("set")).episodes
    swapped = draw_manifest(images, EvaluationSource("set", treatment=Swapped())).episodes
    for one, other in zip(intact, swapped, strict=True):
        assert (one.query, one.class_id, one.seed) == (other.query, other.class_id, other.seed)
        assert other.reference_class != other.class_id
        assert all(other.reference_class in classes_of(images, row) for row in other.references)
        assert other.query not in other.references


def test_cap_and_subset_are_even_parts_of_the_list(images: ShardIndex) -> None:
    whole = draw_manifest(images, EvaluationSource("set"))
    capped = draw_manifest(images, EvaluationSource("set", episodes=13))
    assert capped.episodes == whole.subset(13).episodes
    places = [whole.episodes.index(episode) for episode in capped.episodes]
    assert set(np.diff(places)) == {3}  # 39 episodes
    assert whole.subset(None).episodes == whole.subset(100).episodes == whole.episodes


@settings(deadline=None)
@given(count=st.integers(1, 1000), wanted=st.integers(1, 1000), seed=st.integers(0, 2**40))
def test_even_subset_has_different_places_in_range(count: int, wanted: int, seed: int) -> None:
    places = even_subset(count, wanted, seed)
    assert len(np.unique(places)) == len(places) == min(count, wanted)
    assert places.min() >= 0
    assert places.max() < count


@settings(deadline=None)
@given(
    count=st.integers(1, 20),
    draws=st.lists(st.floats(0, 1, exclude_max=True), min_size=1, max_size=30),
)
def test_choose_takes_all_before_it_repeats(count: int, draws: list[float]) -> None:
    chosen = choose(np.arange(count) + 7, np.array(draws))
    assert len(chosen) == len(draws)
    assert len(set(chosen)) == min(count, len(draws))
    assert all(chosen[k] == chosen[k - count] for k in range(count, len(draws)))
