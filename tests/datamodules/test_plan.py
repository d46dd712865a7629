import hashlib
import pickle
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_sets import CLASSES, bare_index, mixed_contents, write_clips, write_images

from ldis_lightning.datamodules.draws import choose
from ldis_lightning.datamodules.evaluation_set import EvaluationSource, draw_manifest
from ldis_lightning.datamodules.index import ShardIndex
from ldis_lightning.datamodules.mixture import MixturePlan, part_seed
from ldis_lightning.datamodules.pairing import FirstFrame, Itself, Pairing, WithinClip
from ldis_lightning.datamodules.plan import NEAR_SUBSTITUTES, PLAN_VERSION, TrainingPlan
from ldis_lightning.datamodules.pools import Catalogue
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


def all_plans(folder: Path, pairing: Pairing | None, references: int, window_shards: int) -> list[TrainingPlan]:
    index = write_clips(folder, [[[1], [1, 2], [2]], [[3], [1], [3]], [[2], [2], [2], [2]], [[1, 3], [3, 1], [2, 1]]])
    rules = {"references": references, "window_shards": window_shards, "pairing": pairing}
    return [plan_of(index, **rules) for _ in range(2)]


@pytest.mark.parametrize("pairing", [None, WithinClip(), FirstFrame()])
@pytest.mark.parametrize(("references", "window_shards"), [(1, 1), (2, 2), (1, 16)])
def test_substitutes_follow_the_rules(
    tmp_path: Path, pairing: Pairing | None, references: int, window_shards: int
) -> None:
    plan, fresh = all_plans(tmp_path / "set", pairing, references, window_shards)
    calls = [(position, attempt) for position in range(2 * len(plan)) for attempt in range(1, 7)]
    found = {call: plan.substitute(*call) for call in calls}
    assert {call: fresh.substitute(*call) for call in reversed(calls)} == found, "a pure function of its arguments"
    assert pickle.loads(pickle.dumps(plan)).substitute(3, 2) == found[3, 2]
    queries = {episode.query for episode in epoch_of(plan, 0)}
    for (position, attempt), episode in found.items():
        damaged = plan.episode(position)
        assert episode.query in queries
        assert episode.query != damaged.query or attempt <= NEAR_SUBSTITUTES
        assert episode.class_id in classes_of(plan.index, episode.query)
        frame = plan.catalogue.frame(episode.query)
        allowed = plan.catalogue.pairing.candidates(frame, plan.catalogue.members(episode.class_id))
        assert set(episode.references) <= set(allowed.tolist())
        assert len(episode.references) == references
    seeds = {episode.seed for episode in found.values()} | {plan.episode(p).seed for p in range(2 * len(plan))}
    assert len(seeds) == len(found) + 2 * len(plan)


def test_substitutes_come_from_the_window_first_and_differ(images: ShardIndex) -> None:
    plan = plan_of(images, window_shards=3)
    epoch = epoch_of(plan, 0)
    shards = {e.query // 4 for e in epoch[:11]}  # of the first window; LONELY's shard has three queries
    far = 0
    for position in range(11):
        near = [plan.substitute(position, attempt).query for attempt in (1, 2, 3)]
        assert len({*near, epoch[position].query, *epoch[position].references}) == 5
        assert {query // 4 for query in near} <= shards
        beyond = [plan.substitute(position, attempt).query for attempt in range(4, 12)]
        assert len({*beyond, epoch[position].query}) == 9
        far += len({query // 4 for query in beyond} - shards)
    assert far > 11, "from the whole epoch"


def test_classes_of_substitutes_are_drawn_uniformly(tmp_path: Path) -> None:
    index = write_images(tmp_path / "set", [[1, 2, 3]] * 8)
    plan = plan_of(index)
    drawn = [plan.substitute(position, 1) for position in range(800)]
    assert all(abs(count - 800 / 3) < 60 for count in Counter(e.class_id for e in drawn).values())
    assert all(abs(count - 100) < 45 for count in Counter(e.query for e in drawn).values())


def test_a_substitute_where_there_is_no_other_query(tmp_path: Path) -> None:
    plan = plan_of(write_images(tmp_path / "set", [[1], [1]]), episodes=1)
    assert {plan.substitute(0, attempt).query for attempt in range(1, 9)} == {plan.episode(0).query}
    with pytest.raises(ValueError, match="attempt is 0"):
        plan.substitute(0, 0)


def test_drawing_substitutes_leaves_the_stream_as_it_is(images: ShardIndex) -> None:
    plan, fresh = plan_of(images, window_shards=2), plan_of(images, window_shards=2)
    for position in range(100):
        assert plan.episode(position) == fresh.episode(position)
        plan.substitute((position * 37) % 100, 1 + position % 5)


def test_classes_of_a_query_are_those_it_is_asked_for(images: ShardIndex) -> None:
    catalogue = plan_of(images, min_pixels=32).catalogue
    pool = catalogue.pool()
    assert pool.queries.tolist() == catalogue.queries().tolist()
    for number, row in enumerate(pool.queries.tolist()):
        asked = pool.class_id[pool.class_offset[number] : pool.class_offset[number + 1]]
        assert asked.tolist() == catalogue.classes_of_query(row).tolist()


def test_rows_without_a_class_are_never_drawn(tmp_path: Path) -> None:
    index = write_images(tmp_path / "set", [[], [1], [], [], [1], [1, 2], []])  # also the first and the last
    plan = plan_of(index)
    assert sorted(e.query for e in epoch_of(plan, 0)) == [1, 4, 5]
    assert plan.catalogue.queries_per_shard().tolist() == [1, 2]
    assert len(plan.catalogue.pool().members[2]) == 1
    assert len(plan.catalogue.pool().members[4]) == 0


@settings(deadline=None, max_examples=40)
@given(
    contents=st.lists(st.lists(st.integers(1, 4), max_size=3, unique=True), min_size=2, max_size=30),
    per_shard=st.integers(1, 7),
    min_pixels=st.sampled_from([1, 15]),
    classes=st.sampled_from([None, [2], [1, 4]]),
    shards=st.sets(st.integers(0, 5)),
)
def test_a_pool_holds_what_its_shards_show(
    tmp_path_factory: pytest.TempPathFactory,
    contents: list[list[int]],
    per_shard: int,
    min_pixels: int,
    classes: list[int] | None,
    shards: set[int],
) -> None:
    index = bare_index(tmp_path_factory.mktemp("set") / "set", contents, per_shard=per_shard)
    source = EpisodeSource("", classes=classes, min_pixels=min_pixels, pairing=Itself())
    catalogue = Catalogue(index, source)
    chosen = sorted(shard for shard in shards if shard < len(index.shards))
    rows = [row for row in range(len(contents)) if row // per_shard in chosen]
    shown = {
        row: sorted(
            c for place, c in enumerate(contents[row], 1) if 10 * place >= min_pixels and c in (classes or CLASSES)
        )
        for row in range(len(contents))
    }
    if not any(shown.values()):
        with pytest.raises(UserError, match="no image can be a query"):
            catalogue.pool()
        return
    pool = catalogue.pool(np.array(chosen[::-1], np.int64))
    assert pool.queries.tolist() == [row for row in rows if shown[row]]
    assert pool.class_id.tolist() == [c for row in rows for c in shown[row]]
    assert np.diff(pool.class_offset).tolist() == [len(shown[row]) for row in rows if shown[row]]
    for class_id in CLASSES:
        assert pool.members[class_id].rows.tolist() == [row for row in rows if class_id in shown[row]]


IMAGES = [sorted({1 + i % 7, 1 + i * i % 5, 3 + i % 3} - {i % 4}) for i in range(300)]
CLIPS = [[sorted({1 + c % 7, 1 + c * f % 5}) for f in range(1 + c % 5)] for c in range(60)]


def test_seeds_give_the_episodes_of_plan_version_1(tmp_path: Path) -> None:
    """If this fails, runs could not be repeated: raise PLAN_VERSION, and say in the changelog why."""
    names = {number: f"class {number}" for number in range(1, 9)}
    images = bare_index(tmp_path / "images", IMAGES, classes=names)
    clips = bare_index(tmp_path / "clips", IMAGES[:50], CLIPS, names)
    few = TrainingPlan(images, EpisodeSource("", episodes=100), part_seed(7, 0), 8, references=3)
    swapped = TrainingPlan(clips, EpisodeSource("", treatment=Swapped()), part_seed(7, 1), 8, references=3)
    plans = [
        TrainingPlan(images, EpisodeSource("", min_pixels=20), 5, 8, references=2),
        TrainingPlan(clips, EpisodeSource("", pairing=WithinClip(), classes=[1, 2, 3, 4]), 6, 8),
        MixturePlan({"images": few, "clips": swapped}, np.array([1.0, 2.0]), 7, 8),
    ]
    assert [digest(plan.episode(position) for position in range(1000)) for plan in plans] == [
        "f1144e2f39ff33aa",
        "ad6f37a4e287c17f",
        "528995fbdfbbf53d",
    ]
    assert PLAN_VERSION == 1


def digest(episodes: Iterable[Episode]) -> str:
    numbers = [(e.query, *e.references, e.class_id, e.seed, e.reference_class, e.source) for e in episodes]
    return hashlib.sha256(repr(numbers).encode()).hexdigest()[:16]
