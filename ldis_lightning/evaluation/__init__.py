"""Scoring: metrics over episodes, and intervals over seeds."""

from ldis_lightning.evaluation.intervals import mean_interval
from ldis_lightning.evaluation.metrics import EpisodeIoU, SetResult
from ldis_lightning.evaluation.scoring import restore_logits, score_batch

__all__ = ["EpisodeIoU", "SetResult", "mean_interval", "restore_logits", "score_batch"]
