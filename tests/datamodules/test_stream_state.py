"""The state of a stream in a checkpoint: what it holds, and what is refused with which explanation."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from recorder import Recorder, datamodule, digests, trainer
from tiny_sets import mixed_contents, write_clips, write_images

from ldis_lightning import __version__
from ldis_lightning.datamodules import plan as plan_module
from ldis_lightning.datamodules.augment import Photometric
from ldis_lightning.datamodules.damage import Quarantine, Raise
from ldis_lightning.datamodules.episodes import EpisodeDataModule
from ldis_lightning.datamodules.geometry import RandomCrop, WholePicture
from ldis_lightning.datamodules.mixture import PerDataset
from ldis_lightning.datamodules.pairing import WithinClip
from ldis_lightning.datamodules.source import TrainingSource
from ldis_lightning.datamodules.stream_state import STATE_VERSION
from ldis_lightning.datamodules.treatment import Hidden
from ldis_lightning.errors import UserError

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create", "ignore:The `srun` command")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("images") / "set", mixed_contents(30)).folder


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clips(tmp_path_factory.mktemp("clips") / "set", [[[1, 2]] * 4, [[3, 1]] * 5, [[2]] * 3]).folder


def ready(folder: Path, **settings: Any) -> EpisodeDataModule:
    data = datamodule(folder, **settings)
    data.setup("fit")
    return data


def written(state: dict[str, Any], path: Path) -> dict[str, Any]:
    """As a checkpoint gives it back."""
    torch.save(state, path)
    return torch.load(path, weights_only=True)


def begin(data: EpisodeDataModule, state: Any) -> list[str]:
    """The first batch of a stream that goes on from a state."""
    data.load_state_dict(state)
    return digests(next(iter(data.train_dataloader())))


def refusal(data: EpisodeDataModule, state: Any) -> str:
    with pytest.raises(UserError) as caught:
        begin(data, state)
    return str(caught.value)


def test_what_a_state_holds(folder: Path, tmp_path: Path) -> None:
    data = ready(folder, train=TrainingSource(str(folder), classes=[1, 2], min_pixels=2))
    list(data.train_dataloader())
    state = written(data.state_dict(), tmp_path / "state")
    assert state == data.state_dict()
    assert (state["version"], state["written_by"], state["batches"]) == (2, f"ldis_lightning {__version__}", 5)
    assert state["trained_on"] == {"tiny": ["cat", "dog"]}
    assert state["damaged"] == []
    plan = state["plan"]
    assert (plan["train.classes"], plan["train.min_pixels"], plan["train.episodes"]) == ([1, 2], 2, None)
    assert (plan["image_size"], plan["augmentation"], plan["fewest_references"]) == (16, None, None)
    assert plan["geometry"].startswith("RandomCrop(")
    assert EpisodeDataModule().state_dict() == {}


def test_numbers_of_numpy_and_tuples_survive(folder: Path, tmp_path: Path) -> None:
    numbers: Any = {"seed": np.int64(3), "image_size": np.int32(16), "batch_size": np.int64(4)}
    odd = TrainingSource(str(folder), classes=(1, 2), min_pixels=np.int64(2))  # pyright: ignore[reportArgumentType]
    plain = TrainingSource(str(folder), classes=[1, 2], min_pixels=2)
    state = written(ready(folder, train=odd, **numbers).state_dict(), tmp_path / "state")
    begin(ready(folder, train=plain, seed=3), state)


CHANGES: dict[str, tuple[dict[str, Any], str]] = {
    "seed": ({"seed": 1}, "seed was 0 and is 1"),
    "batch_size": ({"batch_size": 8}, "batch_size was 4 and is 8"),
    "references": ({"references": 2}, "references was 1 and is 2"),
    "fewest_references": ({"references": 2, "fewest_references": 1}, "fewest_references was None and is 1"),
    "window_shards": ({"window_shards": 3}, "window_shards was 16 and is 3"),
    "image_size": ({"image_size": 24}, "image_size was 16 and is 24"),
    "geometry": ({"geometry": WholePicture()}, "geometry was 'RandomCrop(flip=0.5, "),
    "its settings": ({"geometry": RandomCrop(flip=0.25)}, "and is 'RandomCrop(flip=0.25, "),
    "augmentation": ({"augmentation": Photometric()}, "augmentation was None and is 'Photometric("),
    "classes": ({"rules": {"classes": [1, 2]}}, "train.classes was None and is [1, 2]"),
    "min_pixels": ({"rules": {"min_pixels": 2}}, "train.min_pixels was 1 and is 2"),
    "episodes": ({"rules": {"episodes": 9}}, "train.episodes was None and is 9"),
    "subset": ({"rules": {"seed": 9}}, "train.seed was 0 and is 9"),
    "pairing": ({"rules": {"pairing": WithinClip()}, "set": "clips"}, "train.pairing was 'AcrossImages()'"),
    "treatment": ({"rules": {"treatment": Hidden()}}, "train.treatment was 'Intact()' and is 'Hidden()'"),
    "index": ({"set": "clips"}, "  index was '"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_another_stream_is_refused_with_a_line_a_change(name: str, folder: Path, clips: Path) -> None:
    change, line = CHANGES[name]
    change = dict(change)
    chosen = clips if change.pop("set", "images") == "clips" else folder
    train = TrainingSource(str(chosen), **change.pop("rules", {}))
    message = refusal(ready(folder, **{"train": train, **change}), ready(folder).state_dict())
    first, *lines, last = message.splitlines()
    assert first == "the checkpoint cannot be continued, because the training data would be another:"
    assert last == "Restore these settings, or start a new run from the checkpoint's weights."
    assert any(line in found for found in lines)
    assert len(lines) == len({found.split()[0] for found in lines})
    assert all(" was " in found and " and is " in found for found in lines)


def test_another_plan_version_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state, version = ready(folder).state_dict(), plan_module.PLAN_VERSION
    monkeypatch.setattr(plan_module, "PLAN_VERSION", version + 1)
    assert f"  plan_version was {version} and is {version + 1}\n" in refusal(ready(folder), state)


def test_another_mixture_is_refused(folder: Path, clips: Path) -> None:
    def mixed(**changes: Any) -> EpisodeDataModule:
        train = {"images": TrainingSource(str(folder)), "clips": TrainingSource(str(clips))}
        return ready(folder, **{"train": train, **changes})

    assert "train.images.places was " in refusal(mixed(mixing=PerDataset()), mixed().state_dict())
    message = refusal(ready(folder), mixed().state_dict())
    assert "train.images.places was" in message and "and is not set" in message


@pytest.mark.parametrize(
    "change",
    [
        {"num_workers": 2, "start_method": "fork"},
        {"num_workers": 1, "start_method": "spawn"},
        {"batches_per_epoch": 3},
        {"eval_batch_size": 1, "val_episodes": 2, "evaluation": {}},
        {"damage": Raise()},
        {"damage": Quarantine(3)},
    ],
)
def test_what_decides_no_batch_may_change(folder: Path, change: dict[str, Any]) -> None:
    data = ready(folder)
    list(data.train_dataloader())
    expected = begin(ready(folder), data.state_dict())
    other = ready(folder, **change)
    assert begin(other, data.state_dict()) == expected
    assert other.state_dict()["batches"] == 6
    other.teardown("fit")


def test_ranks_are_not_part_of_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = ready(folder).state_dict()
    monkeypatch.setattr(EpisodeDataModule, "_rank_and_world", lambda _: (1, 2))
    assert ready(folder).state_dict() == state


def test_states_of_other_versions_are_refused_by_name(folder: Path) -> None:
    state = ready(folder).state_dict()
    old = {name: state[name] for name in ("batches", "plan", "trained_on")}  # all that it was before it had a version
    message = refusal(ready(folder), old)
    assert "its stream state is without a version, written by ldis_lightning 0.1.0, before its release" in message
    assert f"reads version {STATE_VERSION}" in message and "\n" not in message
    newer = {**state, "version": STATE_VERSION + 1, "written_by": "ldis_lightning 9.9"}
    assert "is version 3, written by ldis_lightning 9.9" in refusal(ready(folder), newer)


@pytest.mark.parametrize("batches", [None, -1, 2.0, "2", True, [1]])
def test_a_damaged_state_is_refused(folder: Path, batches: Any) -> None:
    state = ready(folder).state_dict()
    assert "its stream state is damaged" in refusal(ready(folder), {**state, "batches": batches})


@pytest.mark.parametrize("state", [[], "state", 3, {"version": [2]}, {"version": 2, "batches": 1, "plan": 3}])
def test_what_is_no_state_is_refused(folder: Path, state: Any) -> None:
    assert "cannot be continued" in refusal(ready(folder), state)
    data = datamodule(folder)
    data.load_state_dict(state)
    data.setup("test")
    assert data.trained_on is None


def test_garbage_among_the_damaged_is_passed_over(folder: Path) -> None:
    for damaged in (None, 3, ["a", 3, {"shard": "s"}]):
        begin(ready(folder), {**ready(folder).state_dict(), "damaged": damaged})


class OtherDataModule(EpisodeDataModule):
    """Lightning keeps its state under its own name."""


def test_a_checkpoint_of_another_datamodule_is_refused(folder: Path, tmp_path: Path) -> None:
    train, settings = TrainingSource(str(folder)), dict[str, Any](image_size=16, batch_size=4, batches_per_epoch=5)
    saving = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=2)
    trainer([saving], max_steps=2, limit_val_batches=0).fit(Recorder(), OtherDataModule(train, **settings))
    with pytest.raises(UserError, match=r"it holds no state of this datamodule's stream"):
        run = trainer(max_steps=4, limit_val_batches=0)
        run.fit(Recorder(), EpisodeDataModule(train, **settings), ckpt_path=str(tmp_path / "step=2.ckpt"))
