import copy
import math
import pickle
from dataclasses import astuple
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ldis_lightning.evaluation.measures import EpisodeTable, FalsePositives, JAndF, Measure, RegionIoU
from ldis_lightning.evaluation.scores import EpisodeScores, SetResult

MEASURES = [RegionIoU(), JAndF(), FalsePositives()]


def make_set(measure: Measure, episodes: int, seed: int = 0, runs: int = 1) -> tuple[EpisodeTable, Tensor]:
    """A table of images and clips, and counts of its episodes as the measure makes them."""
    rng = np.random.default_rng(seed)
    table = EpisodeTable(rng.integers(0, 4, episodes), rng.integers(-1, 3, episodes), runs)
    prediction = torch.from_numpy(rng.random((episodes, 6, 7)) < 0.5)
    target = torch.from_numpy(rng.choice(np.array([0, 1, 255], np.uint8), (episodes, 6, 7), p=[0.5, 0.4, 0.1]))
    return table, measure.count(prediction, target)


def add(scores: EpisodeScores, counts: Tensor, positions: list[int], batch: int) -> None:
    """Add the episodes at `positions` (-1 is padding, whose counts are anything) in batches."""
    position = torch.tensor(positions, dtype=torch.int64)
    rows = torch.where(position[:, None] >= 0, counts[position.clamp_min(0)], 999)
    for start in range(0, len(positions), batch):
        scores.update(position[start : start + batch], rows[start : start + batch])


def alone(measure: Measure, table: EpisodeTable, counts: Tensor) -> EpisodeScores:
    """All episodes in one process and one batch."""
    scores = EpisodeScores(measure, table)
    scores.update(torch.arange(len(table)), counts)
    return scores


def bits(result: SetResult) -> str:
    """A result to the last bit: repr tells floats apart, and NaN equals NaN."""
    return repr([part.tolist() if isinstance(part, np.ndarray) else part for part in astuple(result)])


@settings(max_examples=50, deadline=None)
@given(
    st.sampled_from(MEASURES),
    st.integers(1, 20),
    st.integers(1, 4),
    st.integers(1, 5),
    st.integers(0, 3),
    st.randoms(use_true_random=False),
)
def test_any_split_over_ranks_gives_the_same_bits(
    measure: Measure, episodes: int, ranks: int, batch: int, padding: int, random: object
) -> None:
    table, counts = make_set(measure, episodes)
    positions = [*range(episodes), *[-1] * padding]
    random.shuffle(positions)  # type: ignore[attr-defined]
    shares = [EpisodeScores(measure, table) for _ in range(ranks)]
    for rank, share in enumerate(shares):
        add(share, counts, positions[rank::ranks], batch)
    merged = EpisodeScores(measure, table)
    merged.counts = torch.stack([share.counts for share in shares]).sum(0)
    merged.seen = torch.stack([share.seen for share in shares]).sum(0)
    expected = alone(measure, table, counts)
    assert bits(merged.result(confidence=False)) == bits(expected.result(confidence=False))
    assert merged.result(confidence=False).complete


def test_result_says_all_there_is_to_say() -> None:
    table, counts = make_set(RegionIoU(), 12)
    result = alone(RegionIoU(), table, counts).result()
    assert result.scores == RegionIoU().scores(counts.numpy(), table)
    assert result.per_class == RegionIoU().per_class(counts.numpy(), table)
    assert (result.headline, result.value) == ("miou", result.scores["miou"])
    assert set(result.intervals) == {"miou", "fb_iou"}
    assert all(low <= result.scores[name] <= high for name, (low, high) in result.intervals.items())
    assert (result.episodes, result.expected, result.complete, result.run_scores) == (12, 12, True, [])
    assert np.array_equal(result.counts, counts.numpy())
    assert result.seen.tolist() == [1] * 12
    assert alone(RegionIoU(), table, counts).result(confidence=False).intervals == {}


def test_computed_tensors_are_the_scores() -> None:
    table, counts = make_set(JAndF(), 9)
    scores = alone(JAndF(), table, counts)
    computed = {name: value.item() for name, value in scores.compute().items()}
    assert computed == pytest.approx(scores.result().scores, abs=1e-6)


def test_scoring_twice_is_an_error() -> None:
    table, counts = make_set(RegionIoU(), 5)
    scores = alone(RegionIoU(), table, counts)
    scores.update(torch.tensor([3]), counts[3:4])
    with pytest.raises(RuntimeError, match=r"1 of 5 episodes were scored more than once, e.g. number 3 2 times"):
        scores.result()
    one_batch = EpisodeScores(RegionIoU(), table)
    one_batch.update(torch.tensor([2, 2]), counts[:2])
    with pytest.raises(RuntimeError, match="number 2"):
        one_batch.result()


def test_an_incomplete_set_says_so_and_scores_what_it_has() -> None:
    table, counts = make_set(RegionIoU(), 10)
    scores = EpisodeScores(RegionIoU(), table)
    add(scores, counts, [7, 2, -1, 4], batch=2)
    result = scores.result()
    rows = np.array([2, 4, 7])
    assert not result.complete
    assert (result.episodes, result.expected) == (3, 10)
    assert np.flatnonzero(result.seen).tolist() == [2, 4, 7]
    assert result.scores == RegionIoU().scores(counts.numpy()[rows], table.take(rows))
    assert set(result.per_class) == set(table.class_id[rows].tolist())
    assert not result.counts[[0, 1, 3, 5, 6, 8, 9]].any()


@pytest.mark.parametrize("measure", MEASURES)
def test_nothing_scored_is_nan(measure: Measure) -> None:
    for episodes in (0, 3):
        table, counts = make_set(measure, max(episodes, 1))
        scores = EpisodeScores(measure, table.take(np.arange(episodes)))
        scores.update(torch.tensor([-1]), counts[:1])
        result = scores.result()
        assert (result.episodes, result.per_class, result.complete) == (0, {}, episodes == 0)
        assert all(math.isnan(score) for score in result.scores.values())
        assert all(math.isnan(end) for interval in result.intervals.values() for end in interval)


def test_runs_are_scored_one_by_one() -> None:
    table, counts = make_set(JAndF(), 15, runs=3)
    scores = EpisodeScores(JAndF(), table)
    add(scores, counts, [k for k in range(15) if k != 6], batch=4)
    kept = [np.arange(5), np.array([5, 7, 8, 9]), np.arange(10, 15)]
    expected = [JAndF().scores(counts.numpy()[rows], table.take(rows)) for rows in kept]
    assert scores.result().run_scores == expected


def test_casting_the_module_leaves_the_counts_whole() -> None:
    table, counts = make_set(RegionIoU(), 4)
    holder = torch.nn.ModuleDict({"scores": EpisodeScores(RegionIoU(), table)}).half()
    scores = holder["scores"]
    assert isinstance(scores, EpisodeScores)
    scores.update(torch.arange(4), counts * 10**6)
    assert torch.equal(scores.counts, counts * 10**6)


def test_reset_copy_and_pickle() -> None:
    table, counts = make_set(RegionIoU(), 6)
    scores = EpisodeScores(RegionIoU(), table)
    add(scores, counts, [0, 1, 2], batch=3)
    for copied in (copy.deepcopy(scores), pickle.loads(pickle.dumps(scores))):
        add(copied, counts, [3, 4, 5], batch=2)
        assert bits(copied.result()) == bits(alone(RegionIoU(), table, counts).result())
    assert scores.result().episodes == 3
    scores.reset()
    assert scores.result().episodes == 0
    add(scores, counts, [0, 1, 2], batch=3)
    assert scores.result().episodes == 3


def test_states_survive_inference_mode() -> None:
    table, counts = make_set(RegionIoU(), 2)
    scores = EpisodeScores(RegionIoU(), table)
    with torch.inference_mode():
        scores.reset()
        add(scores, counts, [1], batch=1)
    add(scores, counts, [0], batch=1)
    assert bits(scores.result()) == bits(alone(RegionIoU(), table, counts).result())


def _rank(rank: int, folder: str) -> None:
    """One of two processes: adds every second episode and writes down what both should agree on."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/store", timedelta(seconds=60), world_size=2, rank=rank)
    lines = []
    for measure in MEASURES:
        table, counts = make_set(measure, 7, seed=3)
        scores = EpisodeScores(measure, table)
        add(scores, counts, [[0, 2, 4, 6], [1, 3, 5, -1]][rank], batch=2)
        lines.append(bits(scores.result()))
        lines.append(
            bits(scores.result(confidence=False))
        )  # gathering disturbs neither what is computed nor what is added afterwards
        lines.append(repr({name: value.item() for name, value in scores.compute().items()}))
    scores.update(torch.tensor([0]), counts[:1])  # once on each rank more: seen 3 times over both
    with pytest.raises(RuntimeError, match="number 0 3 times"):
        scores.result()
    Path(folder, f"rank{rank}.txt").write_text("\n".join(lines))
    dist.destroy_process_group()


def test_two_processes_agree_with_one_to_the_last_bit(tmp_path: Path) -> None:
    expected = []
    for measure in MEASURES:
        table, counts = make_set(measure, 7, seed=3)
        scores = alone(measure, table, counts)
        computed = repr({name: value.item() for name, value in scores.compute().items()})
        expected += [bits(scores.result()), bits(scores.result(confidence=False)), computed]
    spawning = mp.get_context("spawn")
    ranks = [spawning.Process(target=_rank, args=(rank, str(tmp_path))) for rank in (0, 1)]
    for process in ranks:
        process.start()
    try:
        for process in ranks:
            process.join(timeout=150)
        assert [process.exitcode for process in ranks] == [0, 0]  # None: still waiting for the other
    finally:
        for process in ranks:
            process.kill()
    assert [(tmp_path / f"rank{rank}.txt").read_text().split("\n") for rank in (0, 1)] == [expected] * 2
