from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from recorder import datamodule
from tiny_sets import bare_index, mixed_contents, write_images

from ldis_lightning.datamodules.evaluation_set import EvaluationSet, EvaluationSource, draw_manifest
from ldis_lightning.datamodules.index import ShardIndex
from ldis_lightning.datamodules.pairing import AcrossImages, Itself
from ldis_lightning.datamodules.protocols import (
    BAMCOCO,
    BAMPASCAL,
    DAVIS,
    PROTOCOLS,
    VSPW,
    Absence,
    FewShot,
    HSNetCOCO,
    HSNetPASCAL,
    OnePass,
    PFENetCOCO,
    PFENetPASCAL,
    Protocol,
)
from ldis_lightning.datamodules.treatment import Hidden, Swapped
from ldis_lightning.errors import UserError


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> ShardIndex:
    return bare_index(tmp_path_factory.mktemp("images") / "set", mixed_contents(30))


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> ShardIndex:
    return bare_index(tmp_path_factory.mktemp("clips") / "set", clips=[[[1, 2]] * 5, [[3]] * 4])


def source_of(index: ShardIndex, **rules: Any) -> EvaluationSource:
    return EvaluationSource(str(index.folder), **rules)


def written(index: ShardIndex, folder: Path, **rules: Any) -> str:
    """Path of a manifest that was drawn under such rules."""
    path = folder / "drawn.json"
    draw_manifest(index, source_of(index, **rules)).save(path)
    return str(path)


def test_a_set_draws_its_episodes_by_the_papers_protocol(images: ShardIndex) -> None:
    opened = EvaluationSet.open(source_of(images), references=2)
    assert opened.manifest == draw_manifest(images, source_of(images, protocol=OnePass()), 2)
    assert isinstance(opened.protocol, OnePass)
    assert opened.index.hash == images.hash
    assert opened.manifest.rules["pairing"] == "AcrossImages()"
    assert opened.manifest.treatment == "Intact()"


def test_what_the_model_needs_to_score_a_set(images: ShardIndex, clips: ShardIndex) -> None:
    board = EvaluationSet.open(source_of(images, protocol=BAMCOCO(2, episodes=6, score_size=77))).scoreboard()
    assert (board.measure.headline, board.size, len(board.table), board.table.runs) == ("miou", 77, 30, 5)
    davis = EvaluationSet.open(source_of(clips, protocol=DAVIS()))
    board = davis.scoreboard()
    assert (board.measure.headline, board.size) == ("j_and_f", None)
    assert board.table.clip.tolist() == davis.manifest.clip
    part = davis.subset(2)
    assert len(part.scoreboard().table) == len(part.manifest) < len(davis.manifest)
    assert davis.subset(None).manifest is davis.manifest


def test_a_fold_holds_its_own_classes_of_those_asked_for(images: ShardIndex) -> None:
    fold = FewShot(0, folds=2, episodes=20)  # classes 1 and 3
    manifest = draw_manifest(images, source_of(images, protocol=fold, classes=[1, 2]))
    assert manifest.classes == {1: "cat"}
    with pytest.raises(UserError, match=r"classes \[9\] do not exist"):
        draw_manifest(images, source_of(images, protocol=fold, classes=[1, 9]))
    with pytest.raises(UserError, match="no image can be a query"):
        draw_manifest(images, source_of(images, protocol=fold, classes=[2]))


def test_references_of_a_set_and_of_the_datamodule(images: ShardIndex) -> None:
    assert EvaluationSet.open(source_of(images), references=3).manifest.references == 3
    assert EvaluationSet.open(source_of(images, references=5), references=3).manifest.references == 5


# ---- Episodes from a file

PROTOCOLS_TO_SAVE: list[Protocol] = [
    *(kind() for kind in PROTOCOLS.values() if not issubclass(kind, FewShot)),
    HSNetCOCO(3, episodes=7, score_size=None),
    HSNetPASCAL(1, episodes=7),
    BAMCOCO(2, episodes=3, runs=2),
    BAMPASCAL(1, episodes=3),
    PFENetCOCO(1, interleaved=True, episodes=9),
    PFENetPASCAL(2, episodes=9),
]


@pytest.mark.parametrize("protocol", PROTOCOLS_TO_SAVE, ids=lambda protocol: protocol.name)
@pytest.mark.parametrize("named", [False, True])
def test_a_manifest_is_all_that_is_needed(
    images: ShardIndex, clips: ShardIndex, tmp_path: Path, protocol: Protocol, named: bool
) -> None:
    index = clips if protocol.by_clip else images
    path = written(index, tmp_path, protocol=protocol, treatment=Hidden())
    source = source_of(index, manifest=path, treatment=Hidden(), protocol=protocol if named else None)
    opened = EvaluationSet.open(source, references=4)
    drawn = EvaluationSet.open(source_of(index, protocol=protocol, treatment=Hidden()))
    assert opened.manifest == drawn.manifest
    assert type(opened.protocol) is type(protocol)
    assert opened.protocol.settings() == protocol.settings()
    assert opened.scoreboard().size == drawn.scoreboard().size
    assert isinstance(opened.treatment, Hidden)


def test_the_loader_follows_the_manifest(tmp_path: Path) -> None:
    index = write_images(tmp_path / "set", mixed_contents(12))
    path = written(index, tmp_path, episodes=5, seed=3, references=2)
    data = datamodule(index.folder, evaluation={"some": EvaluationSource(str(index.folder), manifest=path)})
    data.setup("test")
    (batch,) = data.test_dataloader()[0]
    assert "position" in batch
    episodes = data.manifests["some"].episodes
    assert [meta["query_key"] for meta in batch["meta"]] == [index.key(e.query) for e in episodes]
    assert [meta["reference_keys"] for meta in batch["meta"]] == [
        [index.key(r) for r in e.references] for e in episodes
    ]
    assert batch["position"].tolist() == list(range(5))
    assert batch["seed"].tolist() == [e.seed for e in episodes]


@pytest.mark.parametrize(
    ("rules", "given", "message"),
    [
        ({}, {"protocol": HSNetCOCO()}, r"was drawn by ldis \{\}, not by the set's `protocol`"),
        ({"protocol": HSNetCOCO(1)}, {"protocol": HSNetCOCO(2)}, r"was drawn by hsnet-coco .*'fold': 1"),
        ({"protocol": HSNetCOCO()}, {"protocol": BAMCOCO(runs=1)}, "was drawn by hsnet-coco"),
        ({"treatment": Hidden()}, {}, r"was drawn for the treatment Hidden\(\): give the set the same"),
        ({}, {"treatment": Swapped()}, r"was drawn for the treatment Intact\(\)"),
        ({}, {"pairing": AcrossImages()}, "fixes the episodes, so `pairing` would have no effect: leave it out"),
        ({"pairing": Itself()}, {"pairing": Itself()}, "so `pairing` would have no effect"),
        ({}, {"classes": [1]}, "so `classes` would have no effect"),
        ({}, {"episodes": 3}, "so `episodes` would have no effect"),
        ({}, {"references": 1}, "so `references` would have no effect"),
        ({}, {"min_pixels": 5}, "so `min_pixels` would have no effect"),
        ({}, {"seed": 4}, "so `seed` would have no effect"),
    ],
)
def test_a_manifest_that_does_not_fit_its_set(
    images: ShardIndex, tmp_path: Path, rules: dict[str, Any], given: dict[str, Any], message: str
) -> None:
    path = written(images, tmp_path, **rules)
    with pytest.raises(UserError, match=message) as caught:
        EvaluationSet.open(source_of(images, manifest=path, **given))
    assert path in str(caught.value)


def test_a_manifest_of_another_data_set(images: ShardIndex, tmp_path: Path) -> None:
    other = bare_index(tmp_path / "other", mixed_contents(31))
    path = written(other, tmp_path)
    with pytest.raises(UserError, match=r"another version of `bare` than .*the hashes of their indexes differ"):
        EvaluationSet.open(source_of(images, manifest=path))


def test_a_missing_manifest(images: ShardIndex, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        EvaluationSet.open(source_of(images, manifest=str(tmp_path / "nowhere.json")))


class Mine(OnePass):
    """A protocol that the registry does not know."""

    name = "mine"

    def __init__(self, speed: int = 1) -> None:
        self.speed = speed


def test_a_manifest_of_ones_own_protocol(images: ShardIndex, tmp_path: Path) -> None:
    path = written(images, tmp_path, protocol=Mine(3))
    with pytest.raises(UserError, match=r"drawn by the protocol `mine`, which is none of ours .*name its class"):
        EvaluationSet.open(source_of(images, manifest=path))
    with pytest.raises(UserError, match=r"drawn by mine \{'speed': 3\}"):
        EvaluationSet.open(source_of(images, manifest=path, protocol=Mine()))
    opened = EvaluationSet.open(source_of(images, manifest=path, protocol=Mine(3)))
    assert len(opened.manifest) == 30


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (lambda settings: {**settings, "speed": 2}, "was drawn by hsnet-coco"),
        (lambda settings: {**settings, "interleaved": False}, "was drawn by hsnet-coco"),
        (lambda settings: {**settings, "fold": "first"}, "has settings that the protocol hsnet-coco does not know"),
        (lambda settings: {**settings, "fold": 8}, r"fold must be in 0 \.\. 3, got 8"),
    ],
)
def test_settings_that_the_protocol_does_not_have(
    images: ShardIndex, tmp_path: Path, changes: Callable[[dict[str, Any]], dict[str, Any]], message: str
) -> None:
    manifest = draw_manifest(images, source_of(images, protocol=HSNetCOCO(episodes=4)))
    replace(manifest, settings=changes(manifest.settings)).save(tmp_path / "m.json")
    with pytest.raises(UserError, match=message):
        EvaluationSet.open(source_of(images, manifest=str(tmp_path / "m.json")))


def test_manifests_of_clips_and_absence_keep_their_measures(
    images: ShardIndex, clips: ShardIndex, tmp_path: Path
) -> None:
    for index, protocol in ((clips, DAVIS()), (clips, VSPW()), (images, Absence())):
        path = written(index, tmp_path, protocol=protocol)
        opened = EvaluationSet.open(source_of(index, manifest=path))
        assert opened.scoreboard().measure.names == protocol.measure.names
        assert opened.protocol.by_clip is protocol.by_clip
