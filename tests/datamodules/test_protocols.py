"""Every protocol draws what the table in its documentation says, and nothing else decides what."""

import hashlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from protocol_sets import assert_uniform, classed, classes_of, drawn, like_coco, like_pascal
from tiny_sets import bare_index

from ldis_lightning.datamodules import protocols
from ldis_lightning.datamodules.index import Row, Shard, ShardIndex
from ldis_lightning.datamodules.index_builder import IndexBuilder
from ldis_lightning.datamodules.pairing import AcrossImages
from ldis_lightning.datamodules.pools import Catalogue
from ldis_lightning.datamodules.protocols import (
    BAMCOCO,
    BAMPASCAL,
    DAVIS,
    FSS1000,
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
from ldis_lightning.datamodules.source import Episode, EpisodeSource
from ldis_lightning.datamodules.treatment import Swapped
from ldis_lightning.errors import UserError
from ldis_lightning.evaluation.measures import FalsePositives, JAndF, RegionIoU


@pytest.fixture(scope="module")
def coco(tmp_path_factory: pytest.TempPathFactory) -> ShardIndex:
    return like_coco(tmp_path_factory.mktemp("coco") / "set")


@pytest.fixture(scope="module")
def pascal(tmp_path_factory: pytest.TempPathFactory) -> ShardIndex:
    return like_pascal(tmp_path_factory.mktemp("pascal") / "set")


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> ShardIndex:
    """Rows 0-4: class 3 comes late. Rows 5-7: the first frame is empty. Rows 8-9: two frames. Row 10: one."""
    contents = [[[1, 2], [1, 2], [1, 3], [], [2]], [[], [2], [2, 4]], [[4], [4]], [[1]]]
    return bare_index(tmp_path_factory.mktemp("clips") / "set", clips=contents)


# ---- One pass


def test_every_image_once_and_its_class_uniform_among_its_own(tmp_path: Path) -> None:
    index = bare_index(tmp_path / "set", [[2, 4, 1]] * 3000 + [[3]])  # the only image of class 3 has no reference
    manifest = drawn(index, OnePass())
    assert [episode.query for episode in manifest.episodes] == list(range(3000))
    assert_uniform(Counter(episode.class_id for episode in manifest.episodes), 3)  # whatever it covers
    assert (manifest.score_size, manifest.runs) == (None, 1)


def test_references_are_uniform_among_the_other_images_of_the_class(tmp_path: Path) -> None:
    index = bare_index(tmp_path / "set", [[1]] * 4 + [[2]] * 3)
    pairs = Counter[tuple[int, int]]()
    for seed in range(600):
        for query, (reference,), *_ in drawn(index, OnePass(), seed=seed).episodes:
            pairs[query, reference] += 1
    assert_uniform(Counter({pair: n for pair, n in pairs.items() if pair[0] < 4}), 4 * 3)
    assert_uniform(Counter({pair: n for pair, n in pairs.items() if pair[0] >= 4}), 3 * 2)


def test_fss1000_asks_for_every_image_of_the_test_classes(tmp_path: Path) -> None:
    ids = range(1, 241)
    index = bare_index(tmp_path / "set", [[c] for c in ids for _ in range(10)], classes=classed(ids))
    manifest = drawn(index, FSS1000())
    assert [e.query for e in manifest.episodes] == list(range(2400))
    assert all(e.class_id == 1 + e.query // 10 == 1 + e.references[0] // 10 for e in manifest.episodes)
    assert all(e.query not in e.references for e in manifest.episodes)
    assert (manifest.protocol, manifest.score_size) == ("fss1000", None)


# ---- Clips


def asked_of(episodes: Sequence[Episode]) -> list[tuple[int, int, int]]:
    """(prompt, query, class) of episodes."""
    return [(e.references[0], e.query, e.class_id) for e in episodes]


def test_vspw_asks_all_later_frames_for_all_classes_of_the_first(clips: ShardIndex) -> None:
    manifest = drawn(clips, VSPW())
    expected = [(0, row, c) for row in (1, 2, 3, 4) for c in (1, 2)]  # class 3 was never prompted
    expected += [(6, 7, 2), (8, 9, 4)]  # the first frame with labels prompts; one frame alone has none after it
    assert asked_of(manifest.episodes) == expected
    assert manifest.clip == [0] * 8 + [1, 2]
    assert all(len(e.references) == 1 for e in manifest.episodes)
    assert (manifest.score_size, manifest.runs, manifest.references) == (None, 1, 1)
    assert isinstance(VSPW.measure, RegionIoU)
    assert VSPW.by_clip


def test_davis_leaves_out_first_and_last_frames(clips: ShardIndex) -> None:
    manifest = drawn(clips, DAVIS())
    assert asked_of(manifest.episodes) == [(0, row, c) for row in (1, 2, 3) for c in (1, 2)]
    assert manifest.clip == [0] * 6
    assert isinstance(DAVIS.measure, JAndF)
    assert DAVIS.by_clip


def test_frames_go_by_their_numbers_and_clips_may_lie_beside_images(tmp_path: Path) -> None:
    (tmp_path / "none.tar").write_bytes(b"")
    builder = IndexBuilder()
    builder.add(Row("image", -1, -1, (8, 8), 0, (0, 0), (0, 0), {1: 4}, 0, 0))
    clip = builder.add_clip("clip")
    for frame in (30, 10, 20):  # rows 1, 2, 3
        builder.add(Row(f"clip.{frame}", clip, frame, (8, 8), 0, (0, 0), (0, 0), {1: 4}, 0, 0))
    builder.write(tmp_path, "odd", {1: "cat"}, [Shard("none.tar", 0, "")])
    index = ShardIndex.open(tmp_path)
    assert asked_of(drawn(index, VSPW()).episodes) == [(2, 3, 1), (2, 1, 1)]
    assert asked_of(drawn(index, DAVIS()).episodes) == [(2, 3, 1)]


def test_classes_of_the_source_choose_the_concepts_and_the_prompt(clips: ShardIndex) -> None:
    assert asked_of(drawn(clips, VSPW(), classes=[3, 4]).episodes) == [(2, 3, 3), (2, 4, 3), (8, 9, 4)]


def test_episodes_of_a_frame_do_not_depend_on_other_clips(clips: ShardIndex) -> None:
    whole = drawn(clips, VSPW()).episodes
    assert drawn(clips, VSPW(), classes=[1]).episodes == [e for e in whole if e.class_id == 1]
    assert len({e.seed for e in whole}) == len(whole)


def test_swapped_concepts_of_clips_are_others_of_the_prompt(clips: ShardIndex) -> None:
    episodes = drawn(clips, DAVIS(), treatment=Swapped()).episodes
    assert [(e.class_id, e.reference_class) for e in episodes] == [(1, 2), (2, 1)] * 3
    with pytest.raises(UserError, match=r"c1 shows one class alone, so the treatment Swapped has no other"):
        drawn(clips, VSPW(), treatment=Swapped())


def test_a_clip_of_which_the_first_frame_alone_is_labelled(tmp_path: Path) -> None:
    """As in DAVIS' test sets: there is nothing to learn from the score, but there are masks to predict."""
    index = bare_index(tmp_path / "set", clips=[[[1, 2], [], []]])
    assert asked_of(drawn(index, VSPW()).episodes) == [(0, 1, 1), (0, 1, 2), (0, 2, 1), (0, 2, 2)]


# ---- Absence


def test_absence_never_asks_for_a_shown_class(coco: ShardIndex) -> None:
    manifest = drawn(coco, Absence(), k=2)
    with_classes = [row for row in range(len(coco)) if classes_of(coco, row)]
    assert [e.query for e in manifest.episodes] == with_classes
    for episode in manifest.episodes:
        assert episode.class_id not in classes_of(coco, episode.query)
        assert all(episode.class_id in classes_of(coco, row) for row in episode.references)
        assert len(set(episode.references)) == 2
        assert episode.reference_class == episode.class_id
    assert isinstance(Absence.measure, FalsePositives)


def test_a_class_of_few_pixels_is_not_absent(tmp_path: Path) -> None:
    index = bare_index(tmp_path / "set", [[1, 2]] * 3 + [[3, 1]] * 3)  # 10 pixels of the first class, 20 of the second
    asked = [(e.query, e.class_id) for e in drawn(index, Absence(), min_pixels=15).episodes]
    assert asked == [(3, 2), (4, 2), (5, 2)]  # the others show a little of class 1, and none shows enough of class 3


def test_absent_classes_are_uniform(tmp_path: Path) -> None:
    index = bare_index(tmp_path / "set", [[1]] * 3000 + [[2]] * 40 + [[3]] * 3 + [[4]] * 2)
    asked = Counter(e.class_id for e in drawn(index, Absence()).episodes if e.query < 3000)
    assert_uniform(asked, 3)
    assert set(asked) == {2, 3, 4}


# ---- Caps, references, determinism

EVERY_PROTOCOL = [
    OnePass(),
    FSS1000(),
    Absence(),
    HSNetCOCO(episodes=60),
    HSNetPASCAL(episodes=60),
    BAMCOCO(episodes=60),
    BAMPASCAL(episodes=60),
    PFENetCOCO(episodes=60),
    PFENetPASCAL(episodes=60),
    DAVIS(),
    VSPW(),
]
by_name = pytest.mark.parametrize("protocol", EVERY_PROTOCOL, ids=lambda protocol: protocol.name)


@by_name
def test_draws_are_a_pure_function(protocol: Protocol, coco: ShardIndex, clips: ShardIndex) -> None:
    index = clips if protocol.by_clip else coco
    one, same, other = drawn(index, protocol), drawn(index, protocol), drawn(index, protocol, seed=1)
    assert one == same
    assert one.hash == same.hash != other.hash
    assert [e.seed for e in one.episodes] != [e.seed for e in other.episodes]


DRAWN = {
    "ldis": "5e5a879f0d03",
    "fss1000": "5e5a879f0d03",
    "absence": "7d816fca3096",
    "hsnet-coco": "10da9fe1188e",
    "hsnet-pascal": "87d4c39552cc",
    "bam-coco": "e23ce5e5d26d",
    "bam-pascal": "7aac24df18bd",
    "pfenet-coco": "98b599004541",
    "pfenet-pascal": "98b599004541",
    "davis": "c09fc3b3b626",
    "vspw": "5b93a928fbb7",
}


@by_name
def test_draws_are_those_of_earlier_versions(protocol: Protocol, coco: ShardIndex, clips: ShardIndex) -> None:
    """Published rows refer to manifests by hash: who changes a draw takes them their meaning."""
    manifest = drawn(clips, protocol) if protocol.by_clip else drawn(coco, protocol, k=2)
    episodes = repr([tuple(episode) for episode in manifest.episodes])
    assert hashlib.sha256(episodes.encode()).hexdigest()[:12] == DRAWN[protocol.name]


@pytest.mark.parametrize("protocol", [OnePass(), Absence()], ids=["ldis", "absence"])
def test_a_cap_on_one_pass_takes_an_even_part(protocol: Protocol, coco: ShardIndex) -> None:
    whole, part = drawn(coco, protocol).episodes, drawn(coco, protocol, episodes=40).episodes
    places = [whole.index(episode) for episode in part]  # every episode as it was
    assert len(part) == 40
    assert max(np.diff(places)) - min(np.diff(places)) <= 1
    assert [whole.index(e) for e in drawn(coco, protocol, episodes=40, seed=0).episodes] == places
    assert drawn(coco, protocol, episodes=10**6).episodes == whole


def test_a_cap_on_clips_counts_frames_and_keeps_their_concepts(clips: ShardIndex) -> None:
    whole, part = drawn(clips, VSPW()).episodes, drawn(clips, VSPW(), episodes=3).episodes
    assert all(episode in whole for episode in part)
    frames = {episode.query for episode in part}
    assert len(frames) == 3
    assert part == [episode for episode in whole if episode.query in frames]
    assert any(count == 2 for count in Counter(e.query for e in part).values())


@by_name
def test_more_references_change_nothing_else(protocol: Protocol, coco: ShardIndex, clips: ShardIndex) -> None:
    if protocol.by_clip:
        assert drawn(clips, protocol, k=5) == drawn(clips, protocol)  # the datamodule's K is not theirs
        return
    one, five = drawn(coco, protocol), drawn(coco, protocol, k=5)
    assert [e._replace(references=e.references[:1]) for e in five.episodes] == one.episodes
    assert {len(e.references) for e in five.episodes} == {5}
    assert five.references == 5
    assert drawn(coco, protocol, references=5) == five
    assert drawn(coco, protocol, k=5, references=1) == one  # the set's own K counts


# ---- The registry, and mistakes


def test_the_registry_knows_every_protocol_by_its_name() -> None:
    assert list(PROTOCOLS) == [
        "ldis", "hsnet-coco", "hsnet-pascal", "bam-coco", "bam-pascal", "pfenet-coco", "pfenet-pascal", "few-shot",
        "fss1000", "davis", "vspw", "absence",
    ]  # fmt: skip
    assert all(kind.name == name for name, kind in PROTOCOLS.items())


@by_name
def test_settings_say_all_that_decides_the_draws(protocol: Protocol) -> None:
    few_shot = {"fold", "folds", "interleaved", "listed", "episodes", "runs", "score_size"}
    assert set(protocol.settings()) >= (few_shot if isinstance(protocol, FewShot) else set())
    assert type(protocol)().settings().keys() == protocol.settings().keys()


def test_data_sets_that_do_not_allow_a_protocol(pascal: ShardIndex, tmp_path: Path) -> None:
    for protocol in (DAVIS(), VSPW()):
        with pytest.raises(UserError, match=rf"holds images, and the protocol {protocol.name} needs clips"):
            drawn(pascal, protocol)
    short = bare_index(tmp_path / "short", clips=[[[1], [1]], [[2], [2]]])
    with pytest.raises(UserError, match="no clip has a labelled frame and another after it"):
        drawn(short, DAVIS())
    full = bare_index(tmp_path / "full", [[1, 2, 3, 4]] * 3)
    with pytest.raises(UserError, match="every image shows every class"):
        drawn(full, Absence())


@pytest.mark.parametrize("rules", [{"pairing": AcrossImages()}, {"references": 2}])
def test_the_first_frame_is_the_one_reference(clips: ShardIndex, rules: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="takes the first frame of a clip as its one reference"):
        drawn(clips, VSPW(), **rules)


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"episodes": 0}, "`episodes` is 0, and must be 1 or more"),
        ({"episodes": -3}, "`episodes` is -3, and must be 1 or more"),
        ({"references": 0}, "`references` is 0, and must be 1 or more"),
        ({"min_pixels": 0}, "`min_pixels` is 0, and must be 1 or more"),
        ({"seed": -1}, "`seed` is -1, and must be 0 or more"),
        ({"classes": []}, "no image can be a query"),
    ],
)
@pytest.mark.parametrize("protocol", [OnePass(), HSNetCOCO()], ids=lambda p: p.name)
def test_rules_out_of_range(coco: ShardIndex, protocol: Protocol, rules: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        drawn(coco, protocol, **rules)


def test_a_protocol_of_ones_own(pascal: ShardIndex) -> None:
    class Reversed(OnePass):
        name = "reversed"

        def __init__(self, step: int = 1) -> None:
            self.step = step

        def draw(self, catalogue: Catalogue, references: int) -> list[Episode]:
            return super().draw(catalogue, references)[:: -self.step]

    manifest = drawn(pascal, Reversed(2))
    assert manifest.episodes == drawn(pascal, OnePass()).episodes[::-2]
    assert (manifest.protocol, manifest.settings) == ("reversed", {"step": 2})
    with pytest.raises(NotImplementedError, match=r"Protocol must implement draw\(catalogue, references\)"):
        Protocol().draw(Catalogue(pascal, EpisodeSource(str(pascal.folder))), 1)


def test_all_protocols_can_be_named_in_a_config() -> None:
    import ldis_lightning.datamodules as datamodules

    assert all(getattr(datamodules, kind.__name__) is kind for kind in (*PROTOCOLS.values(), FewShot))
    assert set(vars(protocols)) >= {kind.__name__ for kind in PROTOCOLS.values()}
