import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ldis_lightning.datamodules.pairing import AcrossImages, FirstFrame, Itself, Members, Pairing, WithinClip


@st.composite
def members(draw: st.DrawFn) -> Members:
    """Rows of images (clip -1) and of frames of up to three clips."""
    clips = draw(st.lists(st.integers(-1, 2), max_size=12))
    frames = [-1 if clip < 0 else clips[:i].count(clip) for i, clip in enumerate(clips)]
    rows = np.arange(len(clips), dtype=np.int64) * 3
    return Members(rows, np.array(clips, np.int32), np.array(frames, np.int32))


@pytest.mark.parametrize("pairing", [AcrossImages(), WithinClip(), FirstFrame(), Itself()])
@settings(deadline=None)
@given(members=members())
def test_eligible_is_having_a_candidate(pairing: Pairing, members: Members) -> None:
    assert np.array_equal(pairing.eligible(members), Pairing.eligible(pairing, members))


@pytest.mark.parametrize("pairing", [AcrossImages(), WithinClip(), FirstFrame()])
@settings(deadline=None)
@given(members=members())
def test_candidates_are_other_members(pairing: Pairing, members: Members) -> None:
    for query in (members[i] for i in range(len(members))):
        candidates = pairing.candidates(query, members)
        assert query.row not in candidates
        assert np.isin(candidates, members.rows).all()
        assert len(np.unique(candidates)) == len(candidates)


TWO_CLIPS = Members(
    rows=np.array([2, 3, 5, 7, 8, 9]),
    clip=np.array([0, 0, 0, 1, 1, -1], np.int32),
    frame=np.array([1, 2, 4, 0, 3, -1], np.int32),
)


def test_across_images_leaves_the_clip() -> None:
    assert AcrossImages().candidates(TWO_CLIPS[1], TWO_CLIPS).tolist() == [7, 8, 9]
    assert AcrossImages().candidates(TWO_CLIPS[5], TWO_CLIPS).tolist() == [2, 3, 5, 7, 8]


def test_within_clip_stays_in_it() -> None:
    assert WithinClip().candidates(TWO_CLIPS[1], TWO_CLIPS).tolist() == [2, 5]
    assert WithinClip().candidates(TWO_CLIPS[5], TWO_CLIPS).tolist() == []


def test_first_frame_prompts_the_later_ones_only() -> None:
    found = [FirstFrame().candidates(TWO_CLIPS[i], TWO_CLIPS).tolist() for i in range(6)]
    assert found == [[], [2], [2], [], [7], []]


def test_itself_is_the_query() -> None:
    assert [Itself().candidates(TWO_CLIPS[i], TWO_CLIPS).tolist() for i in range(6)] == [[2], [3], [5], [7], [8], [9]]
