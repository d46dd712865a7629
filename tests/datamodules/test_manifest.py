import json
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from recorder import datamodule
from tiny_sets import bare_index, mixed_contents, write_images

from ldis_lightning.datamodules.episodes import EpisodeDataModule
from ldis_lightning.datamodules.evaluation_set import EvaluationSource, draw_manifest
from ldis_lightning.datamodules.index import ShardIndex
from ldis_lightning.datamodules.manifest import Manifest
from ldis_lightning.datamodules.pairing import Itself
from ldis_lightning.datamodules.protocols import VSPW, FewShot, OnePass, Protocol
from ldis_lightning.datamodules.treatment import Hidden
from ldis_lightning.errors import UserError


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> ShardIndex:
    names = {1: "Kuh", 2: "bœuf", 3: "牛", 4: "hen"}
    return bare_index(tmp_path_factory.mktemp("images") / "set", mixed_contents(30), classes=names)


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> ShardIndex:
    return bare_index(tmp_path_factory.mktemp("clips") / "set", clips=[[[1, 2]] * 5, [[3]] * 4, [[4, 1, 2]] * 3])


def drawn(index: ShardIndex, protocol: Protocol | None = None, k: int = 1, **rules: Any) -> Manifest:
    return draw_manifest(index, EvaluationSource(str(index.folder), protocol=protocol, **rules), k)


FOLD = FewShot(1, folds=2, episodes=9, runs=3)


def every_manifest(images: ShardIndex, clips: ShardIndex) -> list[Manifest]:
    capped = drawn(images, k=3, episodes=7, classes=[1, 2], pairing=Itself(), treatment=Hidden())
    return [drawn(images), capped, drawn(images, FOLD), drawn(clips, VSPW())]


def test_what_is_saved_comes_back(images: ShardIndex, clips: ShardIndex, tmp_path: Path) -> None:
    for number, manifest in enumerate(every_manifest(images, clips)):
        path = tmp_path / "deep" / f"{number}.json"
        manifest.save(path)
        again = Manifest.load(path)
        assert again == manifest
        assert again.hash == manifest.hash == json.loads(path.read_text())["hash"]
        assert again.table().runs == manifest.table().runs
        assert again.table().clip.tolist() == manifest.clip
    assert {file.suffix for file in (tmp_path / "deep").iterdir()} == {".json"}  # nothing half-written is left


def test_the_table_is_what_measures_need(images: ShardIndex, clips: ShardIndex) -> None:
    fold, video = drawn(images, FOLD), drawn(clips, VSPW())
    assert fold.table().class_id.tolist() == [episode.class_id for episode in fold.episodes]
    assert (fold.table().runs, len(fold.table()), set(fold.table().clip)) == (3, 27, {-1})
    assert (video.table().runs, video.table().clip.tolist()) == (1, [0] * 8 + [1] * 3 + [2] * 6)


# ---- The hash


def test_the_hash_changes_with_everything_in_it(images: ShardIndex) -> None:
    manifest = drawn(images, FOLD)
    other: dict[str, Any] = {
        "protocol": "another",
        "settings": {**manifest.settings, "fold": 0},
        "rules": {**manifest.rules, "min_pixels": 2},
        "dataset": "another",
        "index_hash": "0" * 64,
        "references": 2,
        "treatment": "Hidden()",
        "classes": {**manifest.classes, 3: "another"},
        "episodes": manifest.episodes[::-1],
        "clip": [0, *manifest.clip[1:]],
        "score_size": 401,
        "runs": 9,
    }
    assert other.keys() == {field.name for field in fields(Manifest)}
    hashes = {replace(manifest, **{name: value}).hash for name, value in other.items()}
    assert len(hashes | {manifest.hash}) == 1 + len(other)


@pytest.mark.parametrize("field", ["query", "references", "class_id", "seed", "reference_class"])
def test_the_hash_changes_with_every_number_of_an_episode(images: ShardIndex, field: str) -> None:
    manifest = drawn(images)
    first, *rest = manifest.episodes
    value = {"references": (*first.references, 0)}.get(field, 77)
    assert replace(manifest, episodes=[first._replace(**{field: value}), *rest]).hash != manifest.hash


def test_the_hash_knows_the_rules(images: ShardIndex) -> None:
    """Even where they give the same episodes: a row says what was asked for."""
    ways: list[dict[str, Any]] = [{}, {"seed": 1}, {"episodes": 5}, {"classes": [1]}, {"min_pixels": 11}]
    ways += [{"treatment": Hidden()}, {"pairing": Itself()}, {"k": 2}, {"protocol": FOLD}, {"classes": [1, 2, 3, 4]}]
    assert len({drawn(images, **rules).hash for rules in ways}) == len(ways)


def test_the_hash_does_not_know_the_folder(tmp_path: Path) -> None:
    hashes = {drawn(write_images(tmp_path / name, [[1], [1, 2], [2]])).hash for name in ("here", "there")}
    assert len(hashes) == 1


def test_nothing_of_a_manifest_depends_on_who_loads_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_images(tmp_path / "set", mixed_contents(9)).folder
    loading: list[dict[str, Any]] = [{}, {"num_workers": 2}, {"eval_batch_size": 3}, {"batch_size": 6, "seed": 5}]
    hashes = set()
    for rank, world in ((0, 1), (0, 2), (1, 2), (1, 3)):
        monkeypatch.setattr(EpisodeDataModule, "_rank_and_world", lambda _, place=(rank, world): place)
        for settings in loading:
            data = datamodule(folder, **settings)
            data.setup("test")
            hashes.add(data.manifests["all"].hash)
    assert hashes == {drawn(ShardIndex.open(folder)).hash}


# ---- Parts


def test_a_subset_keeps_all_episodes_of_its_queries(clips: ShardIndex, images: ShardIndex) -> None:
    whole = drawn(clips, VSPW())
    part = whole.subset(4)
    queries = list(dict.fromkeys(episode.query for episode in part.episodes))
    assert len(queries) == 4
    assert part.episodes == [episode for episode in whole.episodes if episode.query in queries]
    assert part.clip == [int(clips.clip[episode.query]) for episode in part.episodes]
    assert part.hash != whole.hash
    assert whole.subset(None) is whole.subset(100) is whole
    runs = drawn(images, FOLD).subset(4)
    assert runs.runs == 1  # part of a run is none
    assert len(runs) >= 4


# ---- Files that are not what was drawn


def change(key: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda content: content.update({key: value})


def first_query(content: dict[str, Any]) -> None:
    content["episodes"]["query"][0] += 1


@pytest.mark.parametrize(
    "edit",
    [
        first_query,
        change("dataset", "another"),
        change("score_size", 100),
        change("classes", {"1": "another"}),
        change("hash", "0" * 64),
        change("runs", 2),
    ],
)
def test_an_edited_file_is_refused(images: ShardIndex, tmp_path: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    drawn(images, episodes=6).save(tmp_path / "m.json")
    content = json.loads((tmp_path / "m.json").read_text())
    edit(content)
    (tmp_path / "m.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"m\.json is not what was drawn \(its hash differs\): it was edited"):
        Manifest.load(tmp_path / "m.json")


def test_reformatting_is_no_edit(images: ShardIndex, tmp_path: Path) -> None:
    drawn(images).save(tmp_path / "m.json")
    content = json.loads((tmp_path / "m.json").read_text())
    (tmp_path / "m.json").write_text(json.dumps(dict(reversed(content.items())), indent=2, ensure_ascii=False))
    assert Manifest.load(tmp_path / "m.json") == drawn(images)


def shorter(content: dict[str, Any]) -> None:
    content["episodes"]["seed"].pop()


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda c: c.pop("episodes"), "is damaged"),
        (lambda c: c.pop("hash"), "is damaged"),
        (lambda c: c.pop("rules"), "is damaged"),
        (change("colour", "red"), "is damaged"),
        (change("classes", {"one": "cat"}), "is damaged"),
        (shorter, "is damaged"),
        (change("episodes", None), "is damaged"),
        (change("classes", None), "is damaged"),
        (change("version", 99), "has manifest format 99, this version reads 1"),
        (change("format", "something"), "is no manifest"),
    ],
)
def test_a_damaged_file_is_refused(
    images: ShardIndex, tmp_path: Path, edit: Callable[[dict[str, Any]], Any], message: str
) -> None:
    drawn(images).save(tmp_path / "m.json")
    content = json.loads((tmp_path / "m.json").read_text())
    edit(content)
    (tmp_path / "m.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=rf"m\.json {message}"):
        Manifest.load(tmp_path / "m.json")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b'{"format": "ldis_lightning manif', "is damaged"),
        (b"\xff\xfe", "is damaged"),
        (b"[1, 2]", "is no manifest"),
        (b"", "is damaged"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "m.json").write_bytes(data)
    with pytest.raises(UserError, match=rf"m\.json {message}"):
        Manifest.load(tmp_path / "m.json")


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"the manifest .*m\.json cannot be read: No such file"):
        Manifest.load(tmp_path / "m.json")
    with pytest.raises(UserError, match="cannot be read: Is a directory"):
        Manifest.load(tmp_path)


def test_one_pass_is_written_without_clips_and_is_small(images: ShardIndex, tmp_path: Path) -> None:
    manifest = drawn(images, OnePass())
    manifest.save(tmp_path / "m.json")
    content = json.loads((tmp_path / "m.json").read_text())
    assert content["clip"] is None
    assert len(json.dumps(content["episodes"])) < 60 * len(manifest)
