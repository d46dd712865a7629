"""Several data sets in one stream: shares, order, resuming; and numbers of references drawn for each batch."""

import pickle
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonargparse import ArgumentError, ArgumentParser
from recorder import Recorder, datamodule, digests, trainer
from scipy.stats import chisquare
from tiny_sets import bare_index, mixed_contents, write_clips, write_images

from ldis_lightning.datamodules.episodes import EpisodeDataModule
from ldis_lightning.datamodules.index import ShardIndex
from ldis_lightning.datamodules.mixture import BLOCK, Mixing, MixturePlan, PerDataset, PerSample, part_seed
from ldis_lightning.datamodules.mixture import places_of_shares as places_of
from ldis_lightning.datamodules.pairing import WithinClip
from ldis_lightning.datamodules.plan import TrainingPlan
from ldis_lightning.datamodules.source import Episode, TrainingSource
from ldis_lightning.datamodules.stream import TrainingSteps
from ldis_lightning.datamodules.treatment import Hidden
from ldis_lightning.errors import UserError

SHARES = np.array([0.6, 0.3, 0.1])
NAMES = ["images", "more", "clips"]


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, TrainingPlan]:
    """Two sets of images, of 30 and 7, and clips of 12 frames."""
    folder = tmp_path_factory.mktemp("bare")
    indexes = [
        bare_index(folder / "images", mixed_contents(30)),
        bare_index(folder / "more", [[1]] * 4 + [[2]] * 3),
        bare_index(folder / "clips", clips=[[[1]] * 5, [[2, 3]] * 7]),
    ]
    rules: list[dict[str, Any]] = [{}, {}, {"pairing": WithinClip()}]
    return {
        name: TrainingPlan(index, TrainingSource("", **more), part_seed(0, number), batch_size=6)
        for number, (name, index, more) in enumerate(zip(NAMES, indexes, rules, strict=True))
    }


def mixture_of(parts: dict[str, TrainingPlan], shares: np.ndarray = SHARES, seed: int = 0) -> MixturePlan:
    return MixturePlan(parts, shares, seed, batch_size=6)


def stream(plan: MixturePlan, count: int) -> list[Episode]:
    return [plan.episode(position) for position in range(count)]


# ---- Shares


def test_weights_count_per_sample_or_per_data_set() -> None:
    weights, queries = np.array([0.4, 0.1, 0.5, 0.2]), np.array([10_582, 82_081, 2_079, 198_244])
    assert np.allclose(PerSample().shares(weights, queries), [4232.8, 8208.1, 1039.5, 39648.8])
    assert PerDataset().shares(weights, queries).tolist() == weights.tolist()


@settings(deadline=None)
@given(shares=st.lists(st.floats(0.02, 1), min_size=1, max_size=8))
def test_places_are_the_shares_to_less_than_one_episode(shares: list[float]) -> None:
    places = places_of([str(i) for i in range(len(shares))], np.array(shares))
    assert places.sum() == BLOCK
    assert np.abs(places - np.array(shares) / sum(shares) * BLOCK).max() < 1
    assert places_of([str(i) for i in range(len(shares))], places.astype(float)).tolist() == places.tolist()


def test_every_block_has_the_same_number_of_places(parts: dict[str, TrainingPlan]) -> None:
    plan = mixture_of(parts)
    sources = np.array([episode.source for episode in stream(plan, 3 * BLOCK)])
    for block in np.split(sources, 3):
        assert np.bincount(block).tolist() == plan.places.tolist() == [2458, 1229, 409]
        assert np.bincount(block[:400], minlength=3).min() > 10  # and not one data set after the other
    assert not np.array_equal(sources[:BLOCK], sources[BLOCK : 2 * BLOCK])


@pytest.mark.parametrize(("mixing", "weights"), [(PerSample(), (0.4, 2.0)), (PerDataset(), (3.0, 1.0)), (None, (1, 1))])
def test_the_datamodule_meets_the_shares(tmp_path: Path, mixing: Mixing | None, weights: tuple[float, float]) -> None:
    large, small = write_images(tmp_path / "large", [[1]] * 30), write_images(tmp_path / "small", [[2]] * 6)
    train = {
        "large": TrainingSource(str(large.folder), weight=weights[0]),
        "small": TrainingSource(str(small.folder), weight=weights[1]),
    }
    data = datamodule(tmp_path, train=train, mixing=mixing, evaluation={})
    data.setup("fit")
    plan = data.training_plan
    assert isinstance(plan, MixturePlan)
    found = Counter(plan.episode(position).source for position in range(BLOCK))
    share = {PerSample: 12 / 24, PerDataset: 3 / 4, type(None): 30 / 36}[type(mixing)]
    assert found[0] == round(share * BLOCK)
    assert len(plan) == 36


def test_a_rule_of_ones_own(tmp_path: Path) -> None:
    class SquareRoot(Mixing):
        def shares(self, weights: np.ndarray, queries: np.ndarray) -> np.ndarray:
            return weights * np.sqrt(queries)

    folders = [write_images(tmp_path / str(n), [[1]] * n).folder for n in (4, 16)]
    train = {f"set{i}": TrainingSource(str(folder)) for i, folder in enumerate(folders)}
    data = datamodule(tmp_path, train=train, mixing=SquareRoot(), evaluation={})
    data.setup("fit")
    assert isinstance(data.training_plan, MixturePlan)
    assert data.training_plan.places.tolist() == [1365, 2731]
    with pytest.raises(NotImplementedError, match=r"Mixing must implement shares\(weights, queries\)"):
        Mixing().shares(SHARES, SHARES)


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan"), float("inf")])
def test_a_weight_that_is_none(weight: float) -> None:
    with pytest.raises(UserError, match=r"data\.train\.more\.weight must be a positive number; leave the source out"):
        places_of(NAMES, np.array([1.0, weight, 1.0]))


def test_a_share_too_small_for_a_place() -> None:
    with pytest.raises(UserError, match=r"data\.train\.more has a share of 1\.00e-05 .*less than one episode in 4096"):
        places_of(["images", "more"], np.array([1 - 1e-5, 1e-5]))
    assert places_of(["images", "more"], np.array([1 - 0.9 / BLOCK, 0.9 / BLOCK])).tolist() == [BLOCK - 1, 1]


# ---- The stream


def test_every_data_set_goes_through_its_own_epochs(parts: dict[str, TrainingPlan]) -> None:
    """Across blocks too: its episodes, in their order, are those of its own plan, and no query comes twice an epoch."""
    episodes = stream(mixture_of(parts), 2 * BLOCK)
    for source, plan in enumerate(parts.values()):
        own = [episode for episode in episodes if episode.source == source]
        assert own == [plan.episode(turn)._replace(source=source) for turn in range(len(own))]
        for start in range(0, len(own) - len(plan) + 1, len(plan)):
            assert len({episode.query for episode in own[start : start + len(plan)]}) == len(plan)


def test_a_position_is_all_that_an_episode_depends_on(parts: dict[str, TrainingPlan]) -> None:
    plan = mixture_of(parts)
    batches = {number: plan.batch(number) for number in (0, 1, 681, 682, 683, 1500)}  # block 1 begins in batch 682
    fresh = mixture_of(parts)
    for number in (1500, 683, 1, 682, 0, 681):
        assert fresh.batch(number) == batches[number]
        assert pickle.loads(pickle.dumps(plan)).batch(number) == batches[number]
    assert mixture_of(parts, SHARES * 17).batch(682) == batches[682]  # shares are ratios
    assert mixture_of(parts, seed=1).batch(0) != batches[0]
    twice_as_large = MixturePlan(parts, SHARES, 0, batch_size=12)
    assert twice_as_large.batch(341) == batches[682] + batches[683]


def test_ranks_divide_a_batch(parts: dict[str, TrainingPlan]) -> None:
    plan = mixture_of(parts)
    for world in (1, 2, 3, 6):
        shares = [plan.batch(7, rank, world) for rank in range(world)]
        assert [episode for row in zip(*shares, strict=True) for episode in row] == plan.batch(7)


def test_equal_data_sets_do_not_draw_the_same(tmp_path: Path) -> None:
    index = bare_index(tmp_path / "set", mixed_contents(20))
    train = {name: TrainingSource(str(index.folder)) for name in ("one", "other")}
    data = datamodule(tmp_path, train=train, evaluation={})
    data.setup("fit")
    assert isinstance(data.training_plan, MixturePlan)
    one, other = ([plan.episode(i) for i in range(20)] for plan in data.training_plan.parts.values())
    assert [e.query for e in one] != [e.query for e in other]
    assert not {e.seed for e in one} & {e.seed for e in other}


def test_a_mixture_of_one_is_the_plan_of_its_seed(parts: dict[str, TrainingPlan]) -> None:
    plan = parts["images"]
    alone = MixturePlan({"images": plan}, np.array([0.3]), 0, batch_size=6)
    assert plan.seed == part_seed(0, 0)
    assert stream(alone, 100) == [plan.episode(position) for position in range(100)]
    assert alone.batch(700) == plan.batch(700)
    assert len(alone) == len(plan)


def test_the_identity_names_all_that_decides(parts: dict[str, TrainingPlan]) -> None:
    plans = [mixture_of(parts), mixture_of(parts, seed=1), mixture_of(parts, np.array([1, 1, 1]))]
    plans += [MixturePlan(parts, SHARES, 0, 12), mixture_of(dict(zip("abc", parts.values(), strict=True)))]
    identities = [plan.identity() for plan in plans]
    assert all(identities.count(identity) == 1 for identity in identities)
    assert pickle.loads(pickle.dumps(plans[0])).identity() == identities[0]
    assert identities[0]["train.clips.pairing"] == "WithinClip()"
    assert identities[0]["train.more.index"] == parts["more"].index.hash


# ---- Images and clips, through the datamodule


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("both")
    images = write_images(folder / "images", mixed_contents(10))
    clips = write_clips(folder / "clips", [[[1, 2]] * 4, [[3]] * 5, [[2]] * 3])
    return images.folder, clips.folder


def mixed(folders: tuple[Path, Path], weight: float = 1.0, rules: Any = None, **changes: Any) -> EpisodeDataModule:
    images, clips = folders
    of_clips: dict[str, Any] = {"pairing": WithinClip(), **(rules or {})}
    train = {
        "images": TrainingSource(str(images), weight=weight),
        "clips": TrainingSource(str(clips), **of_clips),
    }
    return datamodule(images, **{"train": train, "mixing": PerDataset(), **changes})


def test_images_and_clips_keep_their_own_rules(folders: tuple[Path, Path]) -> None:
    data = mixed(folders, rules={"treatment": Hidden()}, references=2)
    data.setup("fit")
    metas = [
        (meta, mask.float().mean(), image.float().std())
        for batch in data.train_dataloader()
        for meta, mask, image in zip(batch["meta"], batch["reference_mask"], batch["reference_image"], strict=True)
    ]
    assert {meta["dataset"] for meta, *_ in metas} == {"tiny", "tiny clips"}
    for meta, covered, contrast in metas:
        clips = {key.split(".")[0] for key in meta["reference_keys"]}
        if meta["dataset"] == "tiny clips":
            assert clips == {meta["clip"]}
            assert meta["query_key"] not in meta["reference_keys"]
            assert (covered, contrast) == (1, 0)  # hidden
        else:
            assert meta["clip"] == "" and all(key.startswith("i") for key in clips)
            assert covered < 1 and contrast > 1
    assert data.trained_on == {"tiny": ["cat", "cow", "dog", "hen"], "tiny clips": ["cat", "cow", "dog", "hen"]}


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_and_passes_do_not_matter(folders: tuple[Path, Path], workers: int) -> None:
    one, other = mixed(folders, batches_per_epoch=6), mixed(folders, batches_per_epoch=3, num_workers=workers)
    for data in (one, other):
        data.setup("fit")
    expected = [digests(batch) for batch in one.train_dataloader()]
    loader = other.train_dataloader()
    assert [digests(batch) for _ in range(2) for batch in loader] == expected
    other.teardown("fit")


def test_a_resumed_mixture_goes_on_where_it_stopped(folders: tuple[Path, Path], tmp_path: Path) -> None:
    whole, first, rest = Recorder(), Recorder(), Recorder()
    trainer(max_steps=8, limit_val_batches=0).fit(whole, mixed(folders))
    run = trainer(max_steps=3, limit_val_batches=0)
    run.fit(first, mixed(folders))
    run.save_checkpoint(tmp_path / "three.ckpt")
    resumed = mixed(folders, num_workers=1)
    trainer(max_steps=8, limit_val_batches=0).fit(rest, resumed, ckpt_path=str(tmp_path / "three.ckpt"))
    assert first.trained + rest.trained == whole.trained


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight": 2.0}, r"train\.images\.places was 2048 and is 2731"),
        ({"rules": {"classes": [1, 2]}}, r"train\.clips\.classes was None and is \[1, 2\]"),
        ({"rules": {"pairing": None}}, r"train\.clips\.pairing was 'WithinClip\(\)' and is 'AcrossImages\(\)'"),
        ({"seed": 3}, "seed was 0 and is 3"),
        ({"references": 2}, r"train\.clips\.references was 1 and is 2"),
        ({"references": 2, "fewest_references": 1}, "fewest_references was None and is 1"),
    ],
)
def test_another_mixture_is_refused(
    folders: tuple[Path, Path], tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    data = mixed(folders)
    run = trainer(max_steps=1, limit_val_batches=0)
    run.fit(Recorder(), data)
    run.save_checkpoint(tmp_path / "one.ckpt")
    with pytest.raises(UserError, match=message):
        again = trainer(max_steps=2, limit_val_batches=0)
        again.fit(Recorder(), mixed(folders, **change), ckpt_path=str(tmp_path / "one.ckpt"))


def test_the_same_mixture_in_other_units_is_the_same(folders: tuple[Path, Path]) -> None:
    one, other = mixed(folders), mixed(folders)
    assert isinstance(other.train, dict)
    for source in other.train.values():
        source.weight = 20.0
    for data in (one, other):
        data.setup("fit")
    assert one.state_dict() == other.state_dict()


def test_mistakes_in_a_mixture(folders: tuple[Path, Path]) -> None:
    with pytest.raises(UserError, match=r"data\.train names no data set"):
        mixed(folders, train={}).setup("fit")
    with pytest.raises(UserError, match=r"data\.train\.images\.weight must be a positive number"):
        mixed(folders, weight=0.0).setup("fit")
    with pytest.raises(UserError, match="there is no such folder"):
        mixed(folders, train={"gone": TrainingSource("nowhere")}).setup("fit")
    with pytest.raises(UserError, match=r"classes \[77\] do not exist"):
        mixed(folders, rules={"classes": [77]}).setup("fit")


def parse(**data: Any) -> EpisodeDataModule:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(EpisodeDataModule, "data")
    return parser.instantiate(parser.parse_object({"data": data})).data


def test_a_mixture_in_a_config() -> None:
    train = {"images": {"shards": "a", "weight": 0.4}, "clips": {"shards": "b", "pairing": "WithinClip"}}
    data = parse(train=train, mixing="PerDataset")
    assert isinstance(data.train, dict)
    assert [type(source) for source in data.train.values()] == [TrainingSource, TrainingSource]
    assert (data.train["images"].weight, data.train["clips"].weight) == (0.4, 1.0)
    assert isinstance(data.train["clips"].pairing, WithinClip)
    assert isinstance(data.mixing, PerDataset)
    assert isinstance(parse(train=train).mixing, PerSample)
    with pytest.raises(ArgumentError, match="wait"):
        parse(train={"images": {"shards": "a", "wait": 0.4}})


# ---- Numbers of references


@pytest.fixture(scope="module")
def five(tmp_path_factory: pytest.TempPathFactory) -> TrainingPlan:
    index: ShardIndex = bare_index(tmp_path_factory.mktemp("five") / "set", [[1]] * 12)
    return TrainingPlan(index, TrainingSource(""), 0, batch_size=6, references=5)


def steps_of(plan: TrainingPlan | MixturePlan, count: int, *place: Any) -> list[Any]:
    stream = TrainingSteps(plan, 0, *place)()
    return [next(stream) for _ in range(count)]


def numbers(steps: list[Any]) -> list[int]:
    assert all(len({len(episode.references) for episode in step.episodes}) == 1 for step in steps)
    return [len(step.episodes[0].references) for step in steps]


def test_a_random_number_of_references_is_one_for_all_ranks(five: TrainingPlan) -> None:
    alone = numbers(steps_of(five, 20, 2))
    assert len(set(alone)) > 1
    for world in (2, 3):
        for rank in range(world):
            assert numbers(steps_of(five, 20, 2, rank, world)) == alone


def test_it_is_uniform_and_its_own_for_each_batch(five: TrainingPlan) -> None:
    steps = TrainingSteps(five, 0, 2)
    drawn = [steps.references(number, 5) for number in range(4000)]
    assert set(drawn) == {2, 3, 4, 5}
    assert chisquare(list(Counter(drawn).values())).pvalue > 1e-3
    assert chisquare(list(Counter(zip(drawn[::2], drawn[1::2], strict=True)).values())).pvalue > 1e-3
    later = TrainingSteps(five, 100, 2)()
    assert len(next(later).episodes[0].references) == drawn[100]


def test_the_first_references_stay(five: TrainingPlan) -> None:
    for all_five, some in zip(steps_of(five, 20), steps_of(five, 20, 1), strict=True):
        kept = len(some.episodes[0].references)
        assert some.episodes == [e._replace(references=e.references[:kept]) for e in all_five.episodes]


def test_a_fixed_number_of_references(five: TrainingPlan) -> None:
    assert set(numbers(steps_of(five, 10))) == set(numbers(steps_of(five, 10, 5))) == {5}


def test_random_references_through_the_datamodule(folders: tuple[Path, Path]) -> None:
    data = mixed(folders, references=3, fewest_references=1, batches_per_epoch=12, evaluation={})
    data.setup("fit")
    shapes = [tuple(batch["reference_image"].shape) for batch in data.train_dataloader()]
    assert {shape[1] for shape in shapes} == {1, 2, 3}
    assert {(shape[0], *shape[2:]) for shape in shapes} == {(4, 3, 16, 16)}
    for fewest in (0, 4):
        with pytest.raises(UserError, match=rf"data\.fewest_references is {fewest}, and must be in 1 \.\. 3"):
            mixed(folders, references=3, fewest_references=fewest)


def test_substitutes_are_of_the_same_data_set(parts: dict[str, TrainingPlan]) -> None:
    plan, fresh = mixture_of(parts), mixture_of(parts)
    calls = [(position, attempt) for position in range(60) for attempt in (1, 3, 4, 9)]
    found = {call: plan.substitute(*call) for call in calls}
    assert {call: fresh.substitute(*call) for call in reversed(calls)} == found
    for (position, attempt), episode in found.items():
        damaged = plan.episode(position)
        assert episode.source == damaged.source
        assert episode.query != damaged.query
        _, turn = plan._place(position)
        assert episode[:-1] == list(parts.values())[damaged.source].substitute(turn, attempt)[:-1]
