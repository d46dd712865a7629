"""How well any model could do: the true masks after the autoencoder's round trip, scored beside the model."""

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from ldis_lightning.callbacks.runs import set_name
from ldis_lightning.errors import UserError
from ldis_lightning.evaluation.scores import EpisodeScores
from ldis_lightning.evaluation.scoring import Scoreboard, score
from ldis_lightning.suggestions import did_you_mean


class Ceiling(Callback):
    """In a test scores the true masks as the autoencoder gives them back, and logs that as `test/<set>/ceiling`.

    Args:
        sets: names of the evaluation sets to do this for; null for all of them.
    """

    def __init__(self, sets: list[str] | None = None) -> None:
        self.sets = sets
        self._boards: dict[str, Scoreboard] = {}
        self._scores: dict[str, EpisodeScores] = {}

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check that the sets exist.

        Raises:
            UserError: one does not, not even among those that `data.only` leaves out.
        """
        known = getattr(getattr(trainer, "datamodule", None), "configured_sets", None)
        for name in self.sets or ():
            if known is not None and name not in known:
                hint = did_you_mean(name, known)
                raise UserError(
                    f"Ceiling.sets: no evaluation set is called `{name}`{hint}; there are {', '.join(known)}."
                )

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Score the batch."""
        name = set_name(trainer, dataloader_idx)
        if self.sets is not None and name not in self.sets:
            return
        if name not in self._scores:
            datamodule: Any = getattr(trainer, "datamodule", None)
            board = self._boards[name] = datamodule.scoreboard("test", name)
            self._scores[name] = EpisodeScores(board.measure, board.table).to(pl_module.device)
        module: Any = pl_module
        logits = module.round_trip_logits(batch)
        self._scores[name].update(*score(self._boards[name], logits, batch))

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the results, on every rank: they are gathered."""
        for name, scores in self._scores.items():
            value = scores.result(confidence=False).value
            pl_module.log(f"test/{name}/ceiling", value, sync_dist=trainer.world_size > 1)
        self._scores, self._boards = {}, {}
