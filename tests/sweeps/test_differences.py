"""Paired differences: which runs pair, what the interval covers, and that pairing pays."""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
from made_up_sweep import MEASURE, MadeUp, made_up_counts, write_counts

from ldis_lightning.evaluation.bootstrap import Units, bootstrap_intervals, draws
from ldis_lightning.evaluation.measures import EpisodeTable, JAndF, RegionIoU
from ldis_lightning.sweeps.differences import differences, paired_interval
from ldis_lightning.sweeps.episodes import FACTS, EpisodeCounts, read_episodes
from ldis_lightning.sweeps.finished import read_sweep

BASE, OTHER = "mask=None", "mask=Alpha"


def made_up(folder: Path, **changes: object) -> Path:
    plan = {"baseline": BASE}
    return MadeUp({BASE: 0.4, OTHER: 0.5}, plan=plan, **changes).write(folder)  # pyright: ignore[reportArgumentType]


def test_the_estimate_is_the_mean_over_seeds_of_the_paired_differences(tmp_path: Path) -> None:
    sweep = read_sweep(made_up(tmp_path))
    own = [[run.metrics["test/novel/miou"] for run in sweep.runs_of(slug)] for slug in (OTHER, BASE)]
    found = differences(sweep)
    assert set(found) == {OTHER}
    difference = found[OTHER]
    assert difference.mean == pytest.approx(np.mean(own[0]) - np.mean(own[1]))
    assert difference.seeds == (0, 1, 2) and difference.note == "" and difference.is_clear
    low, high = difference.interval
    assert low < difference.episodes_interval[0] < difference.mean < difference.episodes_interval[1] < high
    assert differences(sweep) == found  # the draws are always the same


def test_without_a_baseline_there_is_nothing_to_compare(tmp_path: Path) -> None:
    assert differences(read_sweep(MadeUp({BASE: 0.4}).write(tmp_path))) == {}


def test_one_seed_covers_episodes_alone_and_says_so(tmp_path: Path) -> None:
    difference = differences(read_sweep(made_up(tmp_path, seeds=(5,))))[OTHER]
    assert difference.interval == difference.episodes_interval
    assert "not other trainings" in difference.note


def test_only_seeds_that_both_have_are_compared(tmp_path: Path) -> None:
    folder = made_up(tmp_path)
    shutil.rmtree(folder / "points" / BASE / "seed-1")
    assert differences(read_sweep(folder))[OTHER].seeds == (0, 2)
    shutil.rmtree(folder / "points" / BASE / "seed-0")
    shutil.rmtree(folder / "points" / OTHER / "seed-2")
    difference = differences(read_sweep(folder))[OTHER]
    assert math.isnan(difference.mean) and not difference.is_clear and "no seed" in difference.note


def edit_results(folder: Path, **changes: object) -> None:
    content = json.loads((folder / "results.json").read_text())
    (folder / "results.json").write_text(json.dumps({**content, **changes}))


def test_what_cannot_be_paired_by_episode_is_paired_by_seed_and_says_why(tmp_path: Path) -> None:
    folder = made_up(tmp_path)
    run = folder / "points" / OTHER / "seed-1"
    paired = differences(read_sweep(folder))[OTHER]

    def by_seed(reason: str) -> None:
        difference = differences(read_sweep(folder))[OTHER]
        assert difference.note.startswith("paired by seed alone") and reason in difference.note
        assert difference.mean == pytest.approx(paired.mean, abs=0.05)
        assert math.isnan(difference.episodes_interval[0]) and difference.interval[0] < difference.mean

    kept = (run / "episodes/novel.csv").read_text()
    (run / "episodes/novel.csv").write_text(kept.replace("400", "401", 1))
    by_seed("does not belong to results.json")
    (run / "episodes/novel.csv").write_text("nonsense\n")
    by_seed("cannot be used")
    (run / "episodes/novel.csv").unlink()
    by_seed("not every run has kept")
    (run / "episodes/novel.csv").write_text(kept)
    assert differences(read_sweep(folder))[OTHER] == paired
    edit_results(run, manifests={"novel": "f" * 64})
    by_seed("different episodes")
    edit_results(run, manifests={})
    by_seed("or on part of them")


def test_a_metric_without_episodes_has_the_paired_t_interval(tmp_path: Path) -> None:
    folder = made_up(tmp_path)
    for slug, losses in {BASE: (1.0, 2.0, 3.0), OTHER: (0.5, 1.4, 2.6)}.items():
        for seed, loss in enumerate(losses):
            edit_results(folder / "points" / slug / f"seed-{seed}", metrics={"val/loss": loss})
    difference = differences(read_sweep(folder, metric="val/loss"))[OTHER]
    assert difference.mean == pytest.approx(-0.5)
    half_width = 4.302653 * 0.1 / math.sqrt(3)
    assert difference.interval == pytest.approx((-0.5 - half_width, -0.5 + half_width))


# ---- Scores of draws


def test_sums_by_class_score_as_the_rows_do() -> None:
    counts, table = made_up_counts(0.4, 90, 0.1, np.random.default_rng(0))
    table = EpisodeTable(table.class_id, np.where(np.arange(90) < 30, np.arange(90) // 6, -1))  # five clips and images
    episodes = EpisodeCounts([], table, counts, MEASURE)
    units = Units(table)
    rows = [score["fb_iou"] for score in episodes._scores_of_rows(units, draws(len(units), 130, 4))]
    assert episodes.resampled("fb_iou", 130, 4).tolist() == rows


def test_draws_agree_with_the_bootstrap_of_one_model() -> None:
    counts, table = made_up_counts(0.4, 90, 0.1, np.random.default_rng(0))
    drawn = EpisodeCounts([], table, counts, MEASURE).resampled("miou", 500, 0)
    interval = bootstrap_intervals(MEASURE, counts, table, samples=500, seed=0)["miou"]
    assert np.quantile(drawn, [0.025, 0.975]) == pytest.approx(interval)


def test_other_measures_are_read_by_their_columns(tmp_path: Path) -> None:
    measure = JAndF()
    path = tmp_path / "davis.csv"
    rows = ["0,a,1,0,0,1,5,10,4,4,3,3", "1,b,1,0,0,1,8,10,4,4,4,4", "2,c,1,1,0,0,0,0,0,0,0,0"]
    path.write_text("\n".join([",".join([*FACTS, *measure.columns]), *rows]))
    episodes = read_episodes(path)
    assert isinstance(episodes.measure, JAndF) and episodes.queries == ["a", "b"]  # the third was not scored
    assert episodes.score("j") == pytest.approx(0.65)
    assert (episodes.resampled("j_and_f", 20, 0) == episodes.score("j_and_f")).all()  # one clip: nothing to vary


LINES = {
    "short": "0,a,1,-1,0,1,5",
    "words": "0,a,1,-1,0,1,five,10,5,10",
    "negative": "0,a,1,-1,0,1,-5,10,5,10",
    "huge": f"0,a,1,-1,0,1,{10**30},10,5,10",
}


@pytest.mark.parametrize("line", LINES.values(), ids=LINES.keys())
def test_damaged_counts_are_refused(line: str, tmp_path: Path) -> None:
    path = tmp_path / "novel.csv"
    path.write_text(",".join([*FACTS, *RegionIoU().columns]) + f"\n{line}\n")
    with pytest.raises(ValueError):
        read_episodes(path)


def test_written_counts_come_back(tmp_path: Path) -> None:
    counts, table = made_up_counts(0.4, 20, 0.1, np.random.default_rng(0))
    write_counts(tmp_path / "novel.csv", counts, table)
    episodes = read_episodes(tmp_path / "novel.csv")
    assert (episodes.counts == counts).all() and (episodes.table.class_id == table.class_id).all()


# ---- The interval, on simulated differences whose truth is known to be zero

SEEDS, EPISODES, SAMPLES, REPETITIONS = 3, 100, 300, 500


def simulate(
    seed_spread: float, episode_spread: float, both: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """The paired differences of each seed, (S,), and of draws of the episodes, (S, samples); seeds x episodes crossed.

    Args:
        seed_spread: of what a training is better or worse than its design.
        episode_spread: of how much an episode favours one of the designs.
        both: of what is left, by seed and episode.
        rng: of everything.
    """
    own = seed_spread * rng.standard_normal((SEEDS, 1)) + episode_spread * rng.standard_normal(EPISODES)
    own = own + both * rng.standard_normal((SEEDS, EPISODES))
    drawn = own[:, rng.integers(0, EPISODES, (SAMPLES, EPISODES))].mean(2)
    return own.mean(1), drawn


WORLDS = {"seeds matter": (0.03, 0.02, 0.02), "both matter": (0.01, 0.15, 0.05), "no seeds": (0.0, 0.05, 0.05)}


@pytest.mark.parametrize("world", WORLDS.values(), ids=WORLDS.keys())
def test_the_interval_holds_the_truth_as_often_as_it_says(world: tuple[float, float, float]) -> None:
    rng = np.random.default_rng(11)
    intervals = [paired_interval(*simulate(*world, rng)) for _ in range(REPETITIONS)]
    coverage = np.mean([low <= 0 <= high for low, high in intervals])
    assert 0.93 <= coverage <= 0.995  # 95%, or a little more where s counts the episodes twice; 500 repetitions: ± 2%


def test_a_two_level_bootstrap_of_three_seeds_would_not() -> None:
    rng = np.random.default_rng(11)
    hits = []
    for _ in range(REPETITIONS):
        _, drawn = simulate(*WORLDS["seeds matter"], rng)
        seeds = rng.integers(0, SEEDS, (SEEDS, SAMPLES))
        low, high = np.quantile(np.take_along_axis(drawn, seeds, 0).mean(0), [0.025, 0.975])
        hits.append(low <= 0 <= high)
    assert np.mean(hits) < 0.85  # why `paired_interval` takes Student's t for the seeds


def test_without_episodes_to_vary_it_is_the_paired_t_interval() -> None:
    own = [0.01, 0.03, 0.02]
    low, high = paired_interval(own, np.repeat(np.array(own)[:, None], 4000, 1))
    assert (low, high) == pytest.approx((0.02 - 4.302653 * 0.01 / 3**0.5, 0.02 + 4.302653 * 0.01 / 3**0.5), rel=0.02)


def test_pairing_makes_the_interval_much_narrower_on_the_real_measure(tmp_path: Path) -> None:
    """Hard episodes are hard for both points: the difference does not see them."""
    sweep = read_sweep(made_up(tmp_path, seed_spread=0.0, noise=0.02, episodes=80))
    paired = differences(sweep)[OTHER].episodes_interval
    runs = [[read_episodes(run.folder / "episodes/novel.csv") for run in sweep.runs_of(slug)] for slug in (OTHER, BASE)]
    alone = [np.mean([own.resampled("miou", 1000, number) for own in of], 0) for number, of in enumerate(runs)]
    low, high = np.quantile(alone[0] - alone[1], [0.025, 0.975])  # other draws for the one than for the other
    assert paired[1] - paired[0] < 0.4 * (high - low)


def test_the_real_measures_interval_holds_a_known_difference() -> None:
    """Whole episodes as counts: the difference in expected mIoU is 0.05 by construction; 60 data sets of 3 seeds."""
    rng, hits = np.random.default_rng(5), 0
    for _ in range(60):
        hard, favour = 0.1 * rng.standard_normal(60), 0.05 * rng.standard_normal(60)
        own, drawn = [], []
        for _ in range(3):
            pair = []
            for level in (0.45 + favour + 0.02 * rng.standard_normal(), 0.40 + 0.02 * rng.standard_normal()):
                inner = np.clip(np.round(400 * (level + hard + 0.03 * rng.standard_normal(60))), 0, 400).astype(
                    np.int64
                )
                whole = np.full(60, 400)
                counts = np.stack([inner, whole, inner, whole], 1)
                pair.append(EpisodeCounts([], EpisodeTable(np.arange(60) % 5, np.full(60, -1)), counts, MEASURE))
            own.append(pair[0].score("miou") - pair[1].score("miou"))
            drawn.append(pair[0].resampled("miou", 100, 1) - pair[1].resampled("miou", 100, 1))
        low, high = paired_interval(own, np.stack(drawn))
        hits += low <= 0.05 <= high
    assert 53 <= hits <= 60  # 95% of 60 is 57
