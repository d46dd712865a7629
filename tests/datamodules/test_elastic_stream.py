"""Worlds of 1, 2 and 4 ranks draw identical global batches, whoever reads them, from wherever, whatever is damaged.

Ranks are simulated one after the other: each is a datamodule that is told its place.
"""

from pathlib import Path
from typing import Any

import pytest
from recorder import datamodule, digests
from rotten import ruin
from tiny_sets import mixed_contents, write_clips, write_images

from ldis_lightning.datamodules.damage import Quarantine
from ldis_lightning.datamodules.episodes import EpisodeDataModule
from ldis_lightning.datamodules.pairing import WithinClip
from ldis_lightning.datamodules.source import TrainingSource

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")

BATCHES, SIZE = 9, 8
"""Global batches, and episodes of each: more than an epoch of either data set."""

Drawn = list[list[tuple[list[str], str]]]  # batches of episodes: keys of its pictures, and a hash of all its tensors


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> dict[str, TrainingSource]:
    return write_mixture(tmp_path_factory.mktemp("sound"))


@pytest.fixture(scope="module")
def rotten(tmp_path_factory: pytest.TempPathFactory) -> dict[str, TrainingSource]:
    """The same with a damaged tenth."""
    return write_mixture(tmp_path_factory.mktemp("rotten"), ruined=0.1)


def write_mixture(folder: Path, ruined: float = 0) -> dict[str, TrainingSource]:
    """Images and clips, in shards of a few samples."""
    images = write_images(folder / "images", mixed_contents(40))
    clips = write_clips(folder / "clips", [[[1, 2]] * 6, [[3, 1]] * 5, [[2]] * 6, [[4]] * 4])
    for seed, index in enumerate((images, clips)):
        ruin(index, ruined, seed)
    return {
        "images": TrainingSource(str(images.folder)),
        "clips": TrainingSource(str(clips.folder), pairing=WithinClip(), weight=2.0),
    }


def drawn(
    train: dict[str, TrainingSource], patch: pytest.MonkeyPatch, world: int = 1, start: int = 0, **settings: Any
) -> Drawn:
    """Global batches `start` to `BATCHES`, put together from those of all ranks."""
    of_ranks: list[Drawn] = []
    for rank in range(world):
        patch.setattr(EpisodeDataModule, "_rank_and_world", lambda _, rank=rank: (rank, world))
        data = datamodule(
            Path(), train=train, evaluation={}, batch_size=SIZE, batches_per_epoch=BATCHES - start, references=3,
            fewest_references=1, window_shards=3, damage=Quarantine(100), **settings,
        )  # fmt: skip
        data.setup("fit")
        if start:
            data.load_state_dict({**data.state_dict(), "batches": start})
        batches: Any = data.train_dataloader()
        of_ranks.append([episodes_of(batch) for batch in batches])
        data.teardown("fit")
    return [[shares[i % world][i // world] for i in range(SIZE)] for shares in zip(*of_ranks, strict=True)]


def episodes_of(batch: Any) -> list[tuple[list[str], str]]:
    keys = [[meta["query_key"], *meta["reference_keys"]] for meta in batch["meta"]]
    return list(zip(keys, digests(batch), strict=True))


@pytest.fixture(scope="module")
def expected(
    sound: dict[str, TrainingSource], rotten: dict[str, TrainingSource]
) -> dict[str, tuple[dict[str, TrainingSource], Drawn]]:
    """What one rank without workers draws."""
    with pytest.MonkeyPatch.context() as patch:
        return {name: (train, drawn(train, patch)) for name, train in (("sound", sound), ("rotten", rotten))}


def test_damage_replaces_some_episodes_and_no_other(expected: dict[str, Any]) -> None:
    whole, other = (expected[name][1] for name in ("sound", "rotten"))
    pairs = [pair for batches in zip(whole, other, strict=True) for pair in zip(*batches, strict=True)]
    same = [one == another for one, another in pairs]
    assert 0.4 < sum(same) / len(same) < 0.95
    assert len(pairs) == BATCHES * SIZE


@pytest.mark.parametrize("start", [0, 5])
@pytest.mark.parametrize("world", [1, 2, 4])
@pytest.mark.parametrize(
    ("workers", "start_method"), [(0, None), (2, "fork"), pytest.param(4, "fork", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("name", ["sound", "rotten"])
def test_ranks_workers_and_starts_do_not_matter(
    name: str, workers: int, start_method: str | None, world: int, start: int,
    expected: dict[str, Any], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    train, whole = expected[name]
    assert drawn(train, monkeypatch, world, start, num_workers=workers, start_method=start_method) == whole[start:]


@pytest.mark.timeout(120)
def test_nor_do_spawned_workers(expected: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    train, whole = expected["rotten"]
    assert drawn(train, monkeypatch, 1, 5, num_workers=2, start_method="spawn") == whole[5:]


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("world", [1, 2, 4])
@pytest.mark.parametrize("workers", [2, 4])
@pytest.mark.parametrize("start_method", ["spawn", "forkserver"])
@pytest.mark.parametrize("name", ["sound", "rotten"])
def test_nor_do_spawned_workers_on_any_rank(
    name: str, start_method: str, workers: int, world: int, expected: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    train, whole = expected[name]
    for start in (0, 5):
        assert drawn(train, monkeypatch, world, start, num_workers=workers, start_method=start_method) == whole[start:]
