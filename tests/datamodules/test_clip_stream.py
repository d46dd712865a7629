"""Evaluation of clips: what a step holds, and which rank gets which."""

import pickle
from collections import Counter
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from recorder import datamodule
from tiny_sets import CLASSES, bare_index, encode, picture, write_clips, write_images

from ldis_lightning.datamodules.clip_stream import ClipFetch, ClipStep, ClipSteps, clip_steps, numbered
from ldis_lightning.datamodules.decode import FrameReader
from ldis_lightning.datamodules.episodes import EpisodeDataModule
from ldis_lightning.datamodules.evaluation_set import EvaluationSource, draw_manifest
from ldis_lightning.datamodules.index import ShardIndex
from ldis_lightning.datamodules.protocols import VSPW, OnePass
from ldis_lightning.datamodules.shards import ShardWriter
from ldis_lightning.datamodules.source import Episode
from ldis_lightning.datamodules.treatment import Hidden, Intact, ReferenceTreatment, ShiftedMask, Swapped
from ldis_lightning.episode import ClipBatch, is_clip_batch
from ldis_lightning.errors import UserError

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")

CLIPS = [[[1, 2], [2, 1], [1, 3], [2]], [[3]] * 6, [[4, 1, 2]] * 3]
"""Stripes of 1, 2, ... columns; the last column is 255. In clip 0 the order changes, and class 3 comes unasked."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clips(tmp_path_factory.mktemp("clips") / "set", CLIPS).folder


def opened(folder: Path, protocol: Any = None, treatment: Any = None, **settings: Any) -> EpisodeDataModule:
    source = EvaluationSource(str(folder), protocol=protocol or VSPW(), treatment=treatment)
    data = datamodule(folder, evaluation={"video": source}, **{"eval_batch_size": 4, **settings})
    data.setup("test")
    return data


def batches_of(folder: Path, **settings: Any) -> list[ClipBatch]:
    return list(opened(folder, **settings).test_dataloader()[0])  # pyright: ignore[reportReturnType]


def step_of(batches: list[ClipBatch], clip: str) -> list[ClipBatch]:
    return [batch for batch in batches if batch["meta"][0]["clip"] == clip]


# ---- What a step holds


def test_a_step_keeps_the_contract(folder: Path) -> None:
    batch = step_of(batches_of(folder, image_size=24), "c0")[0]  # two concepts, so two frames for four episodes
    assert is_clip_batch(batch)
    tensors = {name: value for name, value in batch.items() if isinstance(value, torch.Tensor)}
    assert {name: (tuple(value.shape), value.dtype) for name, value in tensors.items()} == {
        "query_image": ((2, 3, 24, 24), torch.uint8),
        "reference_image": ((2, 1, 3, 24, 24), torch.uint8),
        "reference_mask": ((2, 1, 24, 24), torch.uint8),
        "class_id": ((2,), torch.int64),
        "position": ((2, 2), torch.int64),
        "seed": ((2, 2), torch.int64),
        "valid": ((2,), torch.bool),
        "labels": ((2, 24, 24), torch.uint8),
    }
    assert batch["valid"].all()
    assert batch["class_id"].tolist() == batch["label_values"] == [1, 2]
    assert batch["class_names"] == ["cat", "dog"]
    assert [(m["clip"], m["frame"], m["class_name"]) for m in batch["meta"]] == [("c0", 1, ""), ("c0", 2, "")]
    assert all(m["reference_keys"] == ["c0.00000"] for m in batch["meta"])
    assert all(m["original_size"] == (16, 16) and m["content"] == (0, 0, 24, 24) for m in batch["meta"])
    assert set(batch) - set(tensors) == {
        "meta", "class_names", "label_values", "context", "labels_original", "first_frame",
    }  # fmt: skip


def test_labels_are_numbers_of_concepts(folder: Path) -> None:
    first, second = step_of(batches_of(folder), "c0")
    rows = [labels[0].tolist() for labels in (*first["labels_original"], *second["labels_original"])]
    assert rows[0] == [2, 1, 1] + [0] * 12 + [255]  # the order of the concepts is the prompt's, not the frame's
    assert rows[1] == [1, 0, 0] + [0] * 12 + [255]  # class 3 was never asked for
    assert rows[2] == [2] + [0] * 14 + [255]
    for step in (first, second):
        assert torch.equal(step["labels"], torch.stack(step["labels_original"]))  # 16 x 16 is the model's size here
        assert all(labels.dtype == torch.uint8 for labels in step["labels_original"])


def test_pictures_that_are_no_squares(tmp_path: Path) -> None:
    with ShardWriter(tmp_path / "set", "wide", CLASSES) as writer:
        writer.add_clip("wide", [picture([1], (12, 24), seed=i) for i in range(3)])
    (batch,) = batches_of(tmp_path / "set")
    assert batch["meta"][0]["content"] == (0, 0, 8, 16)
    assert batch["labels_original"][0].shape == (12, 24)
    assert (batch["labels"][:, 8:] == 255).all()
    assert (batch["query_image"][:, :, 8:] == 128).all()
    assert batch["labels"][0, 0].tolist() == [1] + [0] * 14 + [255]
    assert (batch["reference_mask"][..., 8:, :] == 0).all()
    assert batch["first_frame"]["image"].shape == (12, 24, 3)  # pyright: ignore[reportTypedDictNotRequiredAccess]


def test_references_are_the_concepts_of_the_first_frame(folder: Path) -> None:
    index = FrameReader(opened(folder).evaluation_sets["video"].index)
    for batch in batches_of(folder):
        prompt = {"c0": 0, "c1": 4, "c2": 10}[batch["meta"][0]["clip"]]
        image, labels = index.read(prompt)
        for concept, class_id in enumerate(batch["class_id"].tolist()):
            assert np.array_equal(batch["reference_image"][concept, 0].permute(1, 2, 0), image)
            assert np.array_equal(batch["reference_mask"][concept, 0], labels == class_id)


def test_the_first_step_brings_the_first_frame(folder: Path) -> None:
    for clip, steps in groupby(batches_of(folder), lambda batch: batch["meta"][0]["clip"]):
        first, *others = steps
        assert all("first_frame" not in step for step in others)
        assert "first_frame" in first
        given = first["first_frame"]
        assert (given["key"], given["frame"]) == (f"{clip}.00000", 0)
        assert given["image"].dtype == given["labels"].dtype == np.uint8
        assert np.array_equal(given["image"], first["reference_image"][0, 0].permute(1, 2, 0))
        width = {"c0": [1, 2, 2], "c1": [1], "c2": [3, 1, 1, 2, 2, 2]}[clip]  # classes 4, 1, 2 are concepts 3, 1, 2
        assert given["labels"][0].tolist() == width + [0] * (15 - len(width)) + [255]


def test_treatments_change_the_references_alone(folder: Path) -> None:
    treatments: dict[str, ReferenceTreatment] = {
        "intact": Intact(), "hidden": Hidden(), "shifted": ShiftedMask(), "swapped": Swapped(),
    }  # fmt: skip
    sets = {
        name: EvaluationSource(str(folder), protocol=VSPW(), treatment=treatment, classes=[1, 2])
        for name, treatment in treatments.items()
    }
    data = datamodule(folder, evaluation=sets)
    data.setup("test")
    for steps in zip(*data.test_dataloader(), strict=True):
        of: dict[str, ClipBatch] = dict(zip(sets, steps, strict=True))
        intact = of["intact"]
        for other in of.values():
            assert all(torch.equal(other[name], intact[name]) for name in ("query_image", "labels", "class_id", "seed"))
        assert (of["hidden"]["reference_image"] == 128).all() and (of["hidden"]["reference_mask"] == 1).all()
        masks = intact["reference_mask"]
        assert torch.equal(of["shifted"]["reference_mask"], masks.roll((8, 8), (-2, -1)))
        assert torch.equal(of["swapped"]["reference_mask"], masks.flip(0))  # of two concepts each shows the other
        assert not torch.equal(masks, masks.flip(0))
        for name in ("shifted", "swapped"):
            assert torch.equal(of[name]["reference_image"], intact["reference_image"])
        assert len({batch["context"] for batch in of.values()}) == 4


def test_the_context_is_that_of_the_references(folder: Path) -> None:
    data = opened(folder, eval_batch_size=2)
    contexts: dict[str, set[str]] = {}
    for batch in data.test_dataloader()[0]:
        assert "context" in batch
        contexts.setdefault(batch["meta"][0]["clip"], set()).add(batch["context"])
    assert all(len(of_clip) == 1 for of_clip in contexts.values())
    assert len(set.union(*contexts.values())) == 3
    larger = batches_of(folder, image_size=32)[0]
    assert larger["context"] not in set.union(*contexts.values())


def test_a_clip_as_steps(folder: Path) -> None:
    """At most so many episodes, but one frame at least; frames in order; positions as in the manifest."""
    episodes = opened(folder).manifests["video"].episodes
    for batch_size, frames in ((1, [1, 1, 1, 1, 1, 1]), (4, [2, 1, 4, 1, 1, 1]), (6, [3, 5, 2]), (64, [3, 5, 2])):
        steps = [step for clip in clip_steps(episodes, batch_size) for step in clip]
        if batch_size > 1:
            assert [len(step.frames) for step in steps] == frames
        assert all(len(step.frames) == 1 or sum(map(len, step.frames)) <= batch_size for step in steps)
        flat = [episode for step in steps for frame in step.frames for episode in frame]
        assert flat == episodes
        assert [step.first for step in steps] == np.cumsum([0, *(sum(map(len, s.frames)) for s in steps)])[:-1].tolist()
        assert sum(step.opens for step in steps) == 3


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("world", [1, 2, 3, 5])
@pytest.mark.parametrize("batch_size", [1, 4])
def test_every_frame_and_concept_once(
    folder: Path, world: int, workers: int, batch_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted, lengths, ranks_of_clip = Counter[int](), set(), Counter[str]()
    for rank in range(world):
        monkeypatch.setattr(EpisodeDataModule, "_rank_and_world", lambda _, rank=rank: (rank, world))
        data = opened(folder, eval_batch_size=batch_size, num_workers=workers)
        loader = data.test_dataloader()[0]
        batches: list[ClipBatch] = list(loader)  # pyright: ignore[reportAssignmentType]
        assert len(batches) == len(loader)
        lengths.add(len(batches))
        clips = []
        for batch in batches:
            frames, concepts = batch["position"].shape
            assert len(batch["valid"]) == len(batch["meta"]) == len(batch["labels_original"]) == frames
            assert concepts == len(batch["class_id"]) == len(batch["reference_image"])
            assert batch["valid"].all() or not batch["valid"].any()
            if batch["valid"].all():
                counted.update(batch["position"].flatten().tolist())
                clips.append(batch["meta"][0]["clip"])
            else:
                assert "first_frame" not in batch
        whole = [clip for clip, _ in groupby(clips)]
        assert len(whole) == len(set(whole))  # a clip's steps follow each other
        ranks_of_clip.update(whole)
    assert len(lengths) == 1
    assert counted == Counter(range(3 * 2 + 5 + 2 * 3))
    assert set(ranks_of_clip.values()) == {1}


def test_long_clips_are_dealt_out_first(tmp_path: Path) -> None:
    lengths = [3, 9, 4, 2, 8, 4]
    index = bare_index(tmp_path / "set", clips=[[[1]] * (length + 1) for length in lengths])
    episodes = draw_manifest(index, EvaluationSource("", protocol=VSPW())).episodes
    assert [len(ClipSteps(episodes, 1, 0, world)) for world in (1, 2, 3)] == [30, 15, 11]


def test_stages_travel_to_workers(folder: Path) -> None:
    data = opened(folder)
    opened_set = data.evaluation_sets["video"]
    steps = ClipSteps(opened_set.manifest.episodes, 4, 1, 2)
    fetch = ClipFetch(FrameReader(opened_set.index), Intact(), 16)
    steps_again, fetch_again = pickle.loads(pickle.dumps((steps, fetch)))
    assert list(steps_again()) == list(steps())
    one, again = fetch.batch(next(steps())), fetch_again.batch(next(steps()))
    assert torch.equal(one["query_image"], again["query_image"])


class CountingReader(FrameReader):
    """Remembers what was read."""

    def __init__(self, index: ShardIndex) -> None:
        super().__init__(index)
        self.rows: list[int] = []

    def read(self, row: int) -> tuple[np.ndarray, np.ndarray]:
        self.rows.append(row)
        return super().read(row)


def test_a_prompt_is_read_once_a_clip(folder: Path) -> None:
    opened_set = opened(folder).evaluation_sets["video"]
    reader = CountingReader(opened_set.index)
    fetch = ClipFetch(reader, Intact(), 16)
    steps = [step for clip in clip_steps(opened_set.manifest.episodes, 1) for step in clip]
    for step in steps:
        fresh = ClipFetch(FrameReader(opened_set.index), Intact(), 16).batch(step)
        batch = fetch.batch(step)
        for name in ("query_image", "reference_image", "reference_mask", "labels"):
            assert torch.equal(batch[name], fresh[name])
    prompts = [steps[i].frames[0][0].references[0] for i in range(len(steps))]
    assert [reader.rows.count(row) for row in dict.fromkeys(prompts)] == [1, 1, 1]
    assert len(reader.rows) == 3 + len(steps)


def test_validation_takes_a_part_of_the_frames(folder: Path) -> None:
    data = opened(folder, val_episodes=4)
    batches: list[ClipBatch] = list(data.val_dataloader()[0])  # pyright: ignore[reportAssignmentType]
    frames = [meta["query_key"] for batch in batches for meta in batch["meta"]]
    assert len(frames) == len(set(frames)) == 4
    positions = [p for batch in batches for p in batch["position"].flatten().tolist()]
    assert sorted(positions) == list(range(len(data.scoreboard("val", "video").table)))


def test_clips_beside_images(folder: Path, tmp_path: Path) -> None:
    images = write_images(tmp_path / "images", [[1]] * 3).folder
    sets = {"images": EvaluationSource(str(images)), "video": EvaluationSource(str(folder), protocol=VSPW())}
    data = datamodule(folder, evaluation=sets)
    data.setup("test")
    kinds = [{is_clip_batch(batch) for batch in loader} for loader in data.test_dataloader()]
    assert kinds == [{False}, {True}]
    one_by_one = opened(folder, protocol=OnePass())  # the same frames, each by itself
    assert not any(is_clip_batch(batch) for batch in one_by_one.test_dataloader()[0])


def test_on_the_device(folder: Path) -> None:
    data = opened(folder)
    batch = batches_of(folder)[0]
    moved = data.on_after_batch_transfer(batch, 0)
    assert torch.equal(moved["query_image"], batch["query_image"] / 255 * 2 - 1)
    assert torch.equal(moved["reference_image"], batch["reference_image"] / 255 * 2 - 1)
    assert batch["query_image"].dtype == torch.uint8
    rest = set(batch) - {"query_image", "reference_image"}
    assert all(moved[name] is batch[name] for name in rest)


def test_labels_of_16_bits() -> None:
    labels = np.array([[0, 300, 7], [255, 301, 300]], np.uint16)
    assert numbered(labels, [300, 7]).tolist() == [[0, 1, 2], [255, 0, 1]]
    assert numbered(labels, [300, 7]).dtype == np.uint8


def test_too_many_concepts_for_a_label_map(folder: Path) -> None:
    reader = FrameReader(opened(folder).evaluation_sets["video"].index)
    step = ClipStep([[Episode(1, (0,), class_id, 0, class_id) for class_id in range(1, 256)]], 0, opens=True)
    with pytest.raises(UserError, match=r"c0\.00001: a clip may have 254 concepts, and this has 255"):
        ClipFetch(reader, Intact(), 16).batch(step)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_frame_stops_with_a_plain_message(tmp_path: Path, workers: int) -> None:
    jpg, png = encode(np.zeros((8, 8, 3), np.uint8), np.ones((8, 8), np.uint8))
    with ShardWriter(tmp_path / "set", "broken", CLASSES) as writer:
        writer.add_clip("clip", [(jpg, png), (jpg, png), (jpg[:300] + bytes(200) + jpg[-2:], png)])
    with pytest.raises(UserError) as caught:
        batches_of(tmp_path / "set", num_workers=workers, eval_batch_size=1)
    message = str(caught.value)
    del caught  # its traceback keeps the workers alive
    assert message.startswith("clip.00002 in ") and "its image cannot be read as JPEG" in message
