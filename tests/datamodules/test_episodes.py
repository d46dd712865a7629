import contextlib
import gc
import multiprocessing
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from jsonargparse import ArgumentError, ArgumentParser
from recorder import Recorder, datamodule, trainer
from tiny_sets import CLASSES, encode, mixed_contents, picture, write_clips, write_images

import ldis_lightning.datamodules as datamodules
from ldis_lightning.datamodules import (
    DAVIS,
    DataPreparation,
    EpisodeDataModule,
    EvaluationSource,
    HSNetCOCO,
    OnePass,
    TrainingSource,
)
from ldis_lightning.datamodules.augment import Photometric
from ldis_lightning.datamodules.damage import Raise
from ldis_lightning.datamodules.geometry import RandomCrop, WholePicture
from ldis_lightning.datamodules.pairing import AcrossImages, FirstFrame, WithinClip
from ldis_lightning.datamodules.shards import ShardWriter
from ldis_lightning.datamodules.treatment import Hidden, Swapped
from ldis_lightning.episode import EpisodeBatch
from ldis_lightning.errors import UserError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("images") / "set", mixed_contents(10)).folder


def ready(folder: Path, stage: str = "fit", **settings: Any) -> EpisodeDataModule:
    data = datamodule(folder, **settings)
    data.setup(stage)
    return data


def first_training_batch(folder: Path, **settings: Any) -> EpisodeBatch:
    return next(iter(ready(folder, **settings).train_dataloader()))


def evaluation_batches(folder: Path, **settings: Any) -> list[EpisodeBatch]:
    """All batches of the first evaluation set."""
    data = ready(folder, "test", **settings)
    return of_images(data.test_dataloader()[0])


def of_images(loader: Any) -> list[EpisodeBatch]:
    """The batches of a loader of single images."""
    return list(loader)


@pytest.mark.parametrize("references", [1, 3])
@pytest.mark.parametrize("geometry", [WholePicture(), RandomCrop()])
def test_a_training_batch_keeps_the_contract(folder: Path, references: int, geometry: Any) -> None:
    batch = first_training_batch(folder, references=references, geometry=geometry, image_size=24)
    assert {name: tuple(value.shape) for name, value in batch.items() if isinstance(value, torch.Tensor)} == {
        "query_image": (4, 3, 24, 24),
        "query_mask": (4, 24, 24),
        "reference_image": (4, references, 3, 24, 24),
        "reference_mask": (4, references, 24, 24),
        "class_id": (4,),
        "valid": (4,),
        "seed": (4,),
    }
    assert {batch[name].dtype for name in ("query_image", "query_mask", "reference_image", "reference_mask")} == {
        torch.uint8
    }
    assert batch["class_id"].dtype == batch["seed"].dtype == torch.int64
    assert batch["valid"].all()
    assert set(batch["query_mask"].unique().tolist()) <= {0, 1, 255}
    assert set(batch["reference_mask"].unique().tolist()) == {0, 1}
    assert (batch["query_mask"] == 1).any((1, 2)).all()
    assert (batch["reference_mask"] == 1).any(-1).any(-1).all()
    for meta, class_id in zip(batch["meta"], batch["class_id"].tolist(), strict=True):
        assert meta["dataset"] == "tiny"
        assert meta["class_name"] == CLASSES[class_id]
        assert meta["query_key"] not in meta["reference_keys"]
        assert len(meta["reference_keys"]) == references
        assert (meta["clip"], meta["frame"]) == ("", -1)


def test_evaluation_can_be_undone(tmp_path: Path) -> None:
    shapes = {"wide": (10, 20), "high": (30, 12), "small": (5, 5), "fitting": (16, 16)}
    with ShardWriter(tmp_path / "set", "shapes", CLASSES) as writer:
        for number, (key, shape) in enumerate(shapes.items()):
            writer.add_image(key, *picture([1, 1], shape, seed=number))
    (batch,) = evaluation_batches(tmp_path / "set", image_size=16)
    found = {meta["query_key"]: i for i, meta in enumerate(batch["meta"])}
    contents = {"wide": (0, 0, 8, 16), "high": (0, 0, 16, 6), "small": (0, 0, 16, 16), "fitting": (0, 0, 16, 16)}
    assert "query_mask_original" in batch
    for key, shape in shapes.items():
        i = found[key]
        _, _, height, width = content = batch["meta"][i]["content"]
        assert batch["meta"][i]["original_size"] == tuple(batch["query_mask_original"][i].shape) == shape
        assert content == contents[key]
        assert set(batch["query_mask_original"][i].unique().tolist()) == {0, 1, 255}
        assert (batch["query_mask"][i, height:] == 255).all()
        assert (batch["query_mask"][i, :, width:] == 255).all()
        assert (batch["query_image"][i, :, height:] == 128).all()
        assert (batch["query_mask"][i, :height, 0] == 1).all()
    original, square = batch["query_mask_original"][found["fitting"]], batch["query_mask"][found["fitting"]]
    assert torch.equal(original, square)


@pytest.mark.parametrize("world", [1, 3, 4])
def test_every_rank_runs_the_same_steps(folder: Path, world: int, monkeypatch: pytest.MonkeyPatch) -> None:
    counted, shapes = [], set()
    for rank in range(world):
        monkeypatch.setattr(EpisodeDataModule, "_rank_and_world", lambda _, rank=rank: (rank, world))
        batches = evaluation_batches(folder, eval_batch_size=2)
        shapes.add(tuple(len(batch["valid"]) for batch in batches))
        counted += [
            meta["query_key"]
            for batch in batches
            for meta, valid in zip(batch["meta"], batch["valid"].tolist(), strict=True)
            if valid
        ]
    assert len(shapes) == 1
    assert sorted(counted) == [f"i{number:04d}" for number in range(10)]


def test_validation_takes_a_part_and_tests_all(folder: Path) -> None:
    sets = {"all": EvaluationSource(str(folder)), "cats": EvaluationSource(str(folder), classes=[1])}
    data = ready(folder, "validate", evaluation=sets, val_episodes=3)
    assert data.evaluation_names == ["all", "cats"]
    assert data.class_names("cats") == CLASSES
    validated = [[m["query_key"] for b in loader for m in b["meta"]] for loader in data.val_dataloader()]
    tested = [[m["query_key"] for b in loader for m in b["meta"]] for loader in data.test_dataloader()]
    assert [len(keys) for keys in validated] == [3, 3]
    assert [len(keys) for keys in tested] == [10, len(data.manifests["cats"])]
    assert all(set(part) <= set(whole) for part, whole in zip(validated, tested, strict=True))


@pytest.mark.parametrize("world", [1, 3])
def test_episodes_know_their_place_in_the_manifest(folder: Path, world: int, monkeypatch: pytest.MonkeyPatch) -> None:
    found: dict[int, str] = {}
    for rank in range(world):
        monkeypatch.setattr(EpisodeDataModule, "_rank_and_world", lambda _, rank=rank: (rank, world))
        data = ready(folder, "test", eval_batch_size=3)
        for batch in data.test_dataloader()[0]:
            assert "context" not in batch and "position" in batch
            assert batch["position"].dtype == torch.int64
            assert torch.equal(batch["position"] >= 0, batch["valid"])
            for place, meta in zip(batch["position"].tolist(), batch["meta"], strict=True):
                if place >= 0:
                    assert place not in found
                    found[place] = meta["query_key"]
    index, episodes = data.evaluation_sets["all"].index, data.manifests["all"].episodes
    assert found == {place: index.key(episode.query) for place, episode in enumerate(episodes)}
    assert "position" not in first_training_batch(folder, batch_size=3)


def test_only_the_sets_that_are_asked_for(folder: Path) -> None:
    sets = {name: EvaluationSource(str(folder)) for name in ("one", "two", "three")}
    sets["missing"] = EvaluationSource("nowhere")
    data = ready(folder, "test", evaluation=sets, only=["three", "one"])  # what is not asked for is not opened
    assert data.evaluation_names == list(data.manifests) == ["one", "three"]
    assert len(data.test_dataloader()) == 2
    with pytest.raises(UserError, match=r"data\.only: there is no set `tow`.*two.*there are one, two, three, missing"):
        datamodule(folder, evaluation=sets, only=["tow"])


def test_the_classes_trained_on_are_known_and_remembered(folder: Path) -> None:
    data = ready(folder, train=TrainingSource(str(folder), classes=[4, 1]))
    assert data.trained_on == {"tiny": ["cat", "hen"]}
    other = datamodule(folder)
    assert other.trained_on is None
    other.load_state_dict(data.state_dict())
    other.setup("test")
    assert other.trained_on == {"tiny": ["cat", "hen"]}  # of the checkpoint, not of its own settings


def test_evaluation_needs_no_training_data(folder: Path) -> None:
    data = EpisodeDataModule(evaluation={"all": EvaluationSource(str(folder))}, image_size=16)
    data.setup("test")
    assert len(list(data.test_dataloader()[0])) == 1
    assert data.state_dict() == {}
    with pytest.raises(UserError, match=r"data\.train names no data set, and training needs one"):
        data.setup("fit")


def test_evaluation_does_not_know_the_training_seed(folder: Path) -> None:
    one, other = evaluation_batches(folder, seed=1), evaluation_batches(folder, seed=2)
    assert torch.equal(one[0]["seed"], other[0]["seed"])
    assert torch.equal(one[0]["reference_image"], other[0]["reference_image"])


def test_hidden_references_show_nothing(folder: Path) -> None:
    sets = {"hidden": EvaluationSource(str(folder), treatment=Hidden()), "intact": EvaluationSource(str(folder))}
    data = ready(folder, "test", evaluation=sets)
    (hidden,), (intact,) = (of_images(loader) for loader in data.test_dataloader())
    assert (hidden["reference_image"] == 128).all()
    assert (hidden["reference_mask"] == 1).all()
    assert torch.equal(hidden["query_image"], intact["query_image"])
    assert torch.equal(hidden["query_mask"], intact["query_mask"])


def test_swapped_references_mark_another_class(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "set", [[1, 2]] * 6).folder  # one column of class 1, two of class 2
    sets = {"swapped": EvaluationSource(str(folder), treatment=Swapped()), "intact": EvaluationSource(str(folder))}
    data = ready(folder, "test", evaluation=sets)
    (swapped,), (intact,) = (of_images(loader) for loader in data.test_dataloader())
    assert torch.equal(swapped["query_mask"], intact["query_mask"])
    columns = {name: batch["reference_mask"][:, 0, 0].sum(-1) for name, batch in (("s", swapped), ("i", intact))}
    assert torch.equal(columns["i"], intact["class_id"])
    assert torch.equal(columns["s"], 3 - intact["class_id"])


def test_frames_of_clips(tmp_path: Path) -> None:
    folder = write_clips(tmp_path / "set", [[[1]] * 3, [[1, 2]] * 4]).folder
    (batch,) = evaluation_batches(folder, evaluation={"video": EvaluationSource(str(folder), FirstFrame())})
    assert [(m["clip"], m["frame"]) for m in batch["meta"]] == [("c0", 1), ("c0", 2), ("c1", 1), ("c1", 2), ("c1", 3)]
    assert all(m["reference_keys"] == [f"{m['clip']}.00000"] for m in batch["meta"])


def test_model_range_and_augmentation(folder: Path) -> None:
    data = ready(folder, augmentation=Photometric(probability=1))
    batch = next(iter(data.train_dataloader()))
    plain, augmented = data.to_model_range(batch), data.to_model_range(batch, training=True)
    assert torch.equal(plain["query_image"], batch["query_image"] / 255 * 2 - 1)
    assert not torch.allclose(plain["query_image"], augmented["query_image"], atol=0.01)
    assert torch.equal(data.on_after_batch_transfer(batch, 0)["query_image"], plain["query_image"])
    assert augmented["query_image"].min() >= -1
    assert augmented["query_image"].max() <= 1


def test_only_training_is_augmented(folder: Path) -> None:
    class Colours(Recorder):
        def on_train_batch_start(self, batch: EpisodeBatch, batch_idx: int) -> None:
            self.trained_mean = float(batch["query_image"].mean())

        def on_validation_batch_start(self, batch: EpisodeBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
            self.validated_mean = float(batch["query_image"].mean())

    class Black(Photometric):
        def __call__(self, query: torch.Tensor, references: torch.Tensor, seed: torch.Tensor) -> Any:
            return torch.zeros_like(query), references

    model = Colours()
    trainer(max_steps=5).fit(model, datamodule(folder, augmentation=Black()))
    assert model.trained_mean == -1
    assert abs(model.validated_mean) < 0.2


def test_a_default_pass_visits_all_queries(folder: Path) -> None:
    data = ready(folder, batches_per_epoch=None)
    loader = data.train_dataloader()
    assert len(loader) == 3  # ten queries in batches of four
    keys = [meta["query_key"] for batch in loader for meta in batch["meta"]]
    assert len(set(keys[:10])) == 10


def test_prepare_comes_before_the_data_is_opened(tmp_path: Path) -> None:
    class Writing(DataPreparation):
        def prepare(self) -> None:
            write_images(tmp_path / "set", mixed_contents(8))

    model = Recorder()
    trainer(max_steps=1, limit_val_batches=0).fit(model, datamodule(tmp_path / "set", prepare=Writing()))
    assert len(model.trained) == 1


def test_a_missing_set_says_how_to_do_without_it(folder: Path, tmp_path: Path) -> None:
    sets = {"here": EvaluationSource(str(folder)), "gone": EvaluationSource(str(tmp_path / "gone"))}
    with pytest.raises(UserError, match=r"data\.evaluation\.gone: .*no such folder.*--data\.only"):
        ready(folder, "test", evaluation=sets)
    assert ready(folder, "test", evaluation=sets, only=["here"]).evaluation_names == ["here"]


def test_mistakes_are_user_errors(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="there is no such folder"):
        ready(tmp_path / "nowhere")
    for name in ("image_size", "references", "batch_size", "eval_batch_size", "batches_per_epoch", "val_episodes"):
        with pytest.raises(UserError, match=rf"data\.{name} is 0"):
            datamodule(folder, **{name: 0})
    with pytest.raises(UserError, match=r"data\.num_workers is -1"):
        datamodule(folder, num_workers=-1)
    with pytest.raises(UserError, match=r"data\.start_method is 'spoon'.*'spawn'"):
        datamodule(folder, start_method="spoon")
    monkeypatch.setattr(EpisodeDataModule, "_rank_and_world", lambda _: (0, 3))
    with pytest.raises(UserError, match="make it a multiple of 3"):
        ready(folder, batch_size=4)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("stage", ["fit", "test"])
def test_a_broken_picture_stops_with_a_plain_message(tmp_path: Path, workers: int, stage: str) -> None:
    jpg, png = encode(np.zeros((8, 8, 3), np.uint8), np.ones((8, 8), np.uint8))
    with ShardWriter(tmp_path / "set", "broken", CLASSES) as writer:
        writer.add_image("good", jpg, png)
        writer.add_image("bad", jpg[:300] + bytes(200) + jpg[-2:], png)
    data = ready(tmp_path / "set", stage, batch_size=2, num_workers=workers, damage=Raise())
    with pytest.raises(UserError) as caught:
        list(data.train_dataloader() if stage == "fit" else data.test_dataloader()[0])
    message = str(caught.value)
    del caught  # its traceback keeps the workers alive
    data.teardown(stage)
    assert message.startswith("bad in ") and "its image cannot be read as JPEG" in message
    assert "Traceback" not in message


def test_workers_end_with_the_error(tmp_path: Path) -> None:
    """At once, and not when the garbage is next collected, where each of them would be waited for."""
    folder = write_images(tmp_path / "set", [[1]] * 4).folder
    data = ready(folder, num_workers=2)
    for path in folder.glob("*.tar"):
        path.write_bytes(bytes(path.stat().st_size))  # zeros, after the set was opened
    before = {process.pid for process in multiprocessing.active_children()}
    gc.disable()
    try:
        with contextlib.suppress(UserError):
            list(data.train_dataloader())
            pytest.fail("it reads zeros")
        data.teardown("fit")
        assert {process.pid for process in multiprocessing.active_children()} <= before
    finally:
        gc.enable()


def parse(**data: Any) -> EpisodeDataModule:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(EpisodeDataModule, "data")
    return parser.instantiate(parser.parse_object({"data": data})).data


def test_configs_name_components() -> None:
    data = parse(
        train={"shards": "a", "pairing": "WithinClip"},
        evaluation={"novel": {"shards": "b", "treatment": "Swapped", "classes": [1, 2]}},
        geometry={"class_path": "RandomCrop", "init_args": {"flip": 0.0}},
    )
    assert isinstance(data.train, TrainingSource)
    assert isinstance(data.train.pairing, WithinClip)
    assert data.train.treatment is None
    assert isinstance(data.evaluation["novel"].treatment, Swapped)
    assert data.evaluation["novel"].classes == [1, 2]
    assert isinstance(data.geometry, RandomCrop)
    assert data.geometry.flip == 0


def test_configs_name_protocols() -> None:
    data = parse(
        evaluation={
            "video": {"shards": "a", "protocol": "DAVIS"},
            "fold": {"shards": "b", "protocol": {"class_path": "HSNetCOCO", "init_args": {"fold": 2}}, "references": 5},
            "drawn": {"shards": "c", "manifest": "c/drawn.json"},
        },
        only=["fold", "video"],
    )
    assert data.evaluation_names == ["video", "fold"]
    assert isinstance(data.evaluation["video"].protocol, DAVIS)
    protocol = data.evaluation["fold"].protocol
    assert isinstance(protocol, HSNetCOCO)
    assert (protocol.fold, data.evaluation["fold"].references) == (2, 5)
    assert parse(evaluation={"drawn": {"shards": "c", "manifest": "m.json"}}).evaluation["drawn"].manifest == "m.json"


def test_a_saved_config_is_the_same_config() -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(EpisodeDataModule, "data")
    fold = {"shards": "b", "protocol": {"class_path": "HSNetCOCO", "init_args": {"fold": 2}}}
    train = {"images": {"shards": "a", "weight": 0.4}, "clips": {"shards": "c", "pairing": "WithinClip"}}
    config = parser.parse_object({"data": {"train": train, "evaluation": {"novel": {"shards": "b"}, "fold": fold}}})
    saved = parser.dump(config)
    assert "Unable" not in saved
    assert parser.parse_string(saved) == config


@pytest.mark.parametrize(
    ("data", "word"),
    [
        ({"train": {"shards": "a", "paring": "WithinClip"}, "evaluation": {}}, "paring"),
        ({"train": {"shards": "a", "pairing": "WithinKlip"}, "evaluation": {}}, "WithinKlip"),
        ({"train": {"shards": "a"}, "evaluation": {"novel": {"shards": "b", "min_pixel": 3}}}, "min_pixel"),
        ({"train": {"shards": "a"}, "evaluation": {"novel": {"pairing": "WithinClip"}}}, "shards"),
        ({"train": {"shards": "a"}, "evaluation": {}, "batchsize": 3}, "batchsize"),
        ({"evaluation": {"novel": {"shards": "b", "protocol": "DAVID"}}}, "DAVID"),
        ({"evaluation": {"novel": {"shards": "b", "protocoll": "DAVIS"}}}, "protocoll"),
        ({"train": {"a": {"shards": "a", "wait": 2}}}, "wait"),
    ],
)
def test_misspelt_keys_are_errors(data: dict[str, Any], word: str) -> None:
    with pytest.raises(ArgumentError, match=word):
        parse(**data)


def test_the_default_rules_are_the_named_ones(folder: Path) -> None:
    spelt = TrainingSource(str(folder), pairing=AcrossImages())
    sets = {"all": EvaluationSource(str(folder), pairing=AcrossImages(), protocol=OnePass())}
    one, other = ready(folder), ready(folder, train=spelt, evaluation=sets)
    assert one.state_dict() == other.state_dict()
    assert one.manifests["all"].hash == other.manifests["all"].hash


def test_public_names_and_start_up() -> None:
    assert all(getattr(datamodules, name).__name__ == name for name in datamodules.__all__)
    root = Path(__file__).resolve().parents[2]
    code = (
        "import sys, ldis_lightning.datamodules as d\n"
        "d.TrainingPlan, d.ShardWriter, d.RandomCrop\n"
        "import ldis_lightning.datamodules.stream\n"
        "assert 'lightning' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=root, timeout=120)
    done = subprocess.run([sys.executable, "-c", "import datamodules"], cwd=root, capture_output=True, text=True)
    assert "import ldis_lightning.datamodules instead" in done.stderr


@pytest.mark.parametrize("name", ["v1.5", "a/b"])
def test_names_of_evaluation_sets_fit_into_metric_names(name: str) -> None:
    with pytest.raises(UserError, match=f"data.evaluation: `{name}` becomes part"):
        EpisodeDataModule(TrainingSource("train"), {name: EvaluationSource("test")})
