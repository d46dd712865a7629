"""The difference of each point to the baseline, paired by seed and episode, with its interval.

The estimate is the mean over the seeds that both points have of (score of the point - score of the baseline). Both are
scored on the same episodes, and a query that is hard for the one is hard for the other; in the difference this cancels,
so its interval is much narrower than two separate ones suggest.

Two things would vary if everything were done again. *Other episodes*: the percentile bootstrap (Efron, 1979) draws
the units of the evaluation set with replacement, frames of a clip together, and scores both points at every seed on the
same draw. Seeds share the episodes, so they share the draw: seeds and episodes are crossed, not nested (Owen, "The
pigeonhole bootstrap", 2007). *Other seeds*: drawing 3 seeds out of 3 with replacement, as a two-level bootstrap does,
makes intervals that are far too narrow: in simulations they hold the truth in 75% to 97% of the cases instead of 95%,
the less, the more seeds matter. So the seeds' part of every draw comes from Student's t with n - 1 degrees of freedom,
times s / sqrt(n), where s is the spread of the n paired differences. Without variation over episodes this is the paired
t-interval, without variation over seeds the paired bootstrap.

What the interval says: in 95% of repetitions with new seeds and new episodes of the same kind it holds the difference
of the two designs' expected scores (95% to 98.5% in the same simulations: s also contains variation over episodes). It
assumes that seeds vary about normally, and with three seeds is wide where seeds matter: t is 4.3 then, against 2.0. It
does not cover other data sets or training schedules, and is not corrected for many points: of 20 points without any
difference one is expected outside.
"""

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ldis_lightning.evaluation.intervals import mean_interval
from ldis_lightning.sweeps.episodes import EpisodeCounts, read_episodes
from ldis_lightning.sweeps.finished import FinishedRun, FinishedSweep

SAMPLES = 1000
NOTHING = (math.nan, math.nan)


@dataclass(frozen=True)
class Difference:
    """Of a point to the baseline, in the sweep's metric.

    Attributes:
        mean: point minus baseline, over `seeds`; NaN where there is none.
        interval: 95%, for other seeds and other episodes; NaN where it cannot be known.
        episodes_interval: 95%, for other episodes and these very trainings; NaN without counts of episodes.
        seeds: that both points have.
        note: what the interval does not cover and why, or "".
    """

    mean: float
    interval: tuple[float, float]
    episodes_interval: tuple[float, float]
    seeds: tuple[int, ...]
    note: str = ""

    @property
    def is_clear(self) -> bool:
        """Whether the interval leaves out zero."""
        return self.interval[0] > 0 or self.interval[1] < 0


def differences(sweep: FinishedSweep, samples: int = SAMPLES) -> dict[str, Difference]:
    """The difference to the baseline of every other point, by slug; empty without a baseline."""
    if sweep.baseline is None:
        return {}
    scores = _Scores(sweep, samples)
    return {
        point.slug: _difference(sweep, point.slug, scores) for point in sweep.points if point.slug != sweep.baseline
    }


def paired_interval(
    differences: Sequence[float] | np.ndarray, resampled: np.ndarray, confidence: float = 0.95
) -> tuple[float, float]:
    """The interval of a mean of paired differences over seeds and episodes: see the module.

    Args:
        differences: the difference at each of the n seeds, on all episodes.
        resampled: (n, samples) the same on draws of the episodes.
        confidence: coverage, in (0, 1).

    Returns:
        (low, high) with the mean inside. With one seed it covers other episodes alone.
    """
    own, draws = np.asarray(differences, np.float64), resampled.mean(0)
    if len(own) > 1:
        draws = draws + _student(len(own) - 1, len(draws)) * own.std(ddof=1) / math.sqrt(len(own))
    return percentiles(draws, float(own.mean()), confidence)


def percentiles(draws: np.ndarray, estimate: float, confidence: float) -> tuple[float, float]:
    """The percentile interval of what was drawn, widened to hold the estimate; NaN where there is nothing to go by."""
    draws = draws[~np.isnan(draws)]
    if math.isnan(estimate) or not len(draws):
        return NOTHING
    low, high = np.quantile(draws, [(1 - confidence) / 2, (1 + confidence) / 2])
    return min(float(low), estimate), max(float(high), estimate)


def _student(freedom: int, samples: int) -> np.ndarray:
    """(samples,) of Student's t: its quantiles in a fixed random order, so that their spread is exact."""
    from scipy.special import stdtrit

    order = np.argsort(np.random.PCG64(freedom).random_raw(samples), kind="stable")
    return np.asarray(stdtrit(freedom, (order + 0.5) / samples))


def _difference(sweep: FinishedSweep, slug: str, scores: "_Scores") -> Difference:
    point = {run.seed: run for run in sweep.runs_of(slug) if sweep.metric in run.metrics}
    base = {run.seed: run for run in sweep.runs_of(sweep.baseline or "") if sweep.metric in run.metrics}
    pairs = [(point[seed], base[seed]) for seed in sweep.seeds if seed in point and seed in base]
    seeds = tuple(run.seed for run, _ in pairs)
    if not pairs:
        return Difference(math.nan, NOTHING, NOTHING, (), "no seed has finished both here and at the baseline")
    own = [run.metrics[sweep.metric] - other.metrics[sweep.metric] for run, other in pairs]
    mean, half_width = mean_interval(own)
    if why := next((why for pair in pairs if (why := scores.why_unpaired(*pair))), ""):
        return Difference(mean, (mean - half_width, mean + half_width), NOTHING, seeds, f"paired by seed alone: {why}")
    drawn = np.stack([scores.resampled(run) - scores.resampled(other) for run, other in pairs])  # (n, samples)
    note = "" if len(pairs) > 1 else "one seed: the interval covers other episodes, not other trainings"
    episodes = percentiles(drawn.mean(0), mean, 0.95)
    return Difference(mean, paired_interval(own, drawn), episodes, seeds, note)


class _Scores:
    """The metric of runs under draws of their episodes, each worked out once."""

    def __init__(self, sweep: FinishedSweep, samples: int) -> None:
        self.set, self.score = sweep.metric_set, sweep.metric.rpartition("/")[2]
        self.metric, self.samples = sweep.metric, samples
        self._episodes: dict[tuple[str, int], EpisodeCounts | str] = {}
        self._resampled: dict[tuple[str, int], np.ndarray] = {}

    def why_unpaired(self, run: FinishedRun, other: FinishedRun) -> str:
        """Why two runs cannot be compared episode by episode; "" where they can."""
        if self.set is None:
            return "the metric is of no evaluation set"
        for one in (run, other):
            if isinstance(why := self._read(one), str):
                return why
        if run.manifests.get(self.set) is None or run.manifests.get(self.set) != other.manifests.get(self.set):
            return f"the points were scored on different episodes of `{self.set}`, or on part of them"
        return ""

    def resampled(self, run: FinishedRun) -> np.ndarray:
        """(samples,); equal manifests get equal draws."""
        if (key := _key(run)) not in self._resampled:
            episodes = self._read(run)
            assert isinstance(episodes, EpisodeCounts) and self.set is not None  # `why_unpaired` has looked
            seed = zlib.crc32(run.manifests[self.set].encode())
            self._resampled[key] = episodes.resampled(self.score, self.samples, seed)
        return self._resampled[key]

    def _read(self, run: FinishedRun) -> EpisodeCounts | str:
        """The counts of a run's episodes, or why there are none."""
        if (key := _key(run)) not in self._episodes:
            self._episodes[key] = self._read_anew(run)
        return self._episodes[key]

    def _read_anew(self, run: FinishedRun) -> EpisodeCounts | str:
        path = run.folder / "episodes" / f"{self.set}.csv"
        if self.set is None or "\\" in self.set or not path.is_file():
            return f"not every run has kept what was counted of the episodes of `{self.set}`"
        try:
            episodes = read_episodes(path)
            score = episodes.score(self.score)
        except (OSError, ValueError, KeyError) as error:
            return f"{run.name}: {path.name} cannot be used ({error})"
        if len(np.unique(episodes.table.unit)) < 2:
            return f"{run.name}: `{self.set}` has fewer than two independent episodes"
        if not math.isclose(score, run.metrics[self.metric], rel_tol=0, abs_tol=1e-6):  # another test wrote it
            return f"{run.name}: {path.name} does not belong to results.json ({score:.4f} from the counts)"
        return episodes


def _key(run: FinishedRun) -> tuple[str, int]:
    return run.point.slug, run.seed
