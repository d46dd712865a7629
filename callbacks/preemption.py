"""Leaving training in order: on a signal all ranks save a checkpoint at the same step and go."""

import copy
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from lightning.fabric.plugins.environments import LightningEnvironment
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, WeightAveraging
from lightning.pytorch.trainer.connectors.signal_connector import _SignalConnector
from torch import Tensor
from torch.distributed import ReduceOp

from ldis_lightning.callbacks.runs import run_folder
from ldis_lightning.cli import INTERRUPTED_STATUS, PREEMPTED_STATUS, Stopped
from ldis_lightning.errors import UserError, first_line

LEAVE_WITHIN = timedelta(seconds=20)
"""How long a rank that has saved waits for the others, before it leaves alone."""


class Preemption(Callback):
    """Ends training on a signal with a checkpoint from which `--ckpt_path last` goes on exactly, and before an error.

    A signal to any rank takes effect on all of them, at the end of the same batch of training or validation: they save
    `last.ckpt`, wait for each other and leave with status 75, or 130 after Ctrl-C. Validation that was cut short is
    begun again by the resumed run. A second Ctrl-C leaves at once.

    An error of a run of one process saves `last.ckpt` too, unless it came between a backward and the end of the
    optimiser's step, where the weights are those of no step. With several, the others could not be waited for.

    `ldis fit` adds it where the config does not. `signals: []` with `save_on_error: false` turns all of it off.

    Args:
        signals: names of the signals that it takes, while there is training; elsewhere they act as they would without
            it.
        save_on_error: save a checkpoint before an error ends the run.
    """

    def __init__(self, signals: Sequence[str] = ("SIGTERM", "SIGUSR1", "SIGINT"), save_on_error: bool = True) -> None:
        self.signals = tuple(_signal(name) for name in signals)
        self.save_on_error = save_on_error
        self._former: dict[signal.Signals, Any] = {}
        self._pid, self._speaks = 0, False
        self._received = 0
        self._group: Any = None
        self._folder = Path()
        self._boundary: dict[str, Any] | None = None
        self._validation_due = False
        self._backward_of = -1
        self._is_saving = False

    # ---- Signals

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Lightning's hook: take the last turn, so that everything that belongs to a step is done before ours."""
        if stage == "fit":
            trainer.callbacks = [*(one for one in trainer.callbacks if one is not self), self]  # type: ignore[attr-defined]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Lightning's hook, after Lightning has set up handlers of its own."""
        self._folder = run_folder(trainer) / "checkpoints"
        self._boundary, self._validation_due, self._backward_of, self._received = None, False, -1, 0
        if self.signals and trainer.world_size > 1:  # on the host: nothing waits for a GPU
            self._group = torch.distributed.new_group(backend="gloo")
        self._pid, self._speaks = os.getpid(), trainer.is_global_zero
        if threading.current_thread() is threading.main_thread():  # no other may
            self._former = {one: signal.signal(one, self._note) for one in self.signals}

    def _note(self, number: int, frame: FrameType | None) -> None:
        """The handler. Data workers inherit it when they are forked."""
        if os.getpid() != self._pid:
            return
        if number == signal.SIGINT:
            if self._received == number:
                raise KeyboardInterrupt
            if self._speaks:
                os.write(2, b"\nsaving a checkpoint at the end of this step ... (Ctrl-C again to leave at once)\n")
        self._received = number

    def give_back_signals(self) -> None:
        """From now on signals act as they did before training."""
        for one, handler in self._former.items():
            signal.signal(one, handler if handler is not None else signal.SIG_DFL)
        self._former = {}

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Lightning's hook."""
        self.give_back_signals()

    def _agreed(self) -> int:
        """The signal that any rank has got, or 0. All ranks must ask, and get the same answer."""
        if self._group is None:
            return self._received
        found = torch.tensor(self._received)
        torch.distributed.all_reduce(found, ReduceOp.MAX, group=self._group)
        return int(found)

    # ---- Boundaries

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Lightning's hook: from here to the end of the batch, weights and progress do not belong together."""
        self._backward_of = trainer.fit_loop.epoch_loop.batch_progress.total.processed  # pyright: ignore

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Lightning's hook: leave, if there was a signal. Before a validation, that is done at its start."""
        loop = trainer.fit_loop.epoch_loop
        self._boundary = trainer.fit_loop.state_dict()
        self._validation_due = loop._should_check_val_fx(trainer.fit_loop._data_fetcher)  # pyright: ignore
        if not self._validation_due:
            self._leave_if_asked(trainer, before=_log_step)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Lightning's hook: as at the end of a batch."""
        if self._former:
            self._leave_if_asked(trainer)

    def on_validation_batch_end(self, trainer: Trainer, pl_module: LightningModule, *batch: Any) -> None:
        """Lightning's hook: as at the end of a batch of training."""
        if self._former:
            self._leave_if_asked(trainer, before=_swap_averages)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Lightning's hook."""
        self._validation_due = False

    def _leave_if_asked(self, trainer: Trainer, before: Callable[[Trainer], None] | None = None) -> None:
        if not (number := self._agreed()):
            return
        if before is not None:
            before(trainer)
        saved = self._save(trainer)
        advice = "go on with --ckpt_path last" if saved else "nothing is saved (fast_dev_run)"
        line = f"stopped by {signal.Signals(number).name} after step {trainer.global_step}; {advice}"
        status = INTERRUPTED_STATUS if number == signal.SIGINT else PREEMPTED_STATUS
        raise Stopped(line if trainer.is_global_zero else "", 0 if _is_child(trainer) else status)

    # ---- Errors

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Lightning's hook: save, if what there is to save belongs to the end of a batch."""
        if isinstance(exception, Stopped):
            return  # the signals stay ours until all ranks have left
        if isinstance(exception, KeyboardInterrupt):
            self._former.pop(signal.SIGINT, None)  # Lightning ignores further ones while it closes down
        self.give_back_signals()
        if not isinstance(exception, Exception) or not self._can_save_now(trainer):
            return
        try:
            path = self._save(trainer)
        except Exception as error:  # the one that ends the run must be seen
            print(f"no checkpoint could be saved before the error: {first_line(error)}", file=sys.stderr)
        else:
            print(f"saved {path} after step {trainer.global_step}, before the error", file=sys.stderr)

    def _can_save_now(self, trainer: Trainer) -> bool:
        if not self.save_on_error or self._boundary is None or trainer.world_size > 1 or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return False
        if self._backward_of == trainer.fit_loop.epoch_loop.batch_progress.total.processed:  # pyright: ignore
            return False
        averages = any(isinstance(one, WeightAveraging) for one in trainer.callbacks)  # type: ignore[attr-defined]
        return not (averages and trainer.validating)  # which of the two the model has just then is not known

    # ---- Saving

    def _save(self, trainer: Trainer) -> Path | None:
        """Save the state at the end of the last batch. Every rank must call it."""
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return None
        path = self._last(trainer)
        self._is_saving = True
        try:
            trainer.save_checkpoint(path, weights_only=False)
        finally:
            self._is_saving = False
        return path

    def _last(self, trainer: Trainer) -> Path:
        """`last.ckpt` of the `ModelCheckpoint` that keeps one, or of the run. That `ModelCheckpoint` is told that the
        file is its own, or it would call its next one `last-v1.ckpt`."""
        found = [one for one in trainer.checkpoint_callbacks if isinstance(one, ModelCheckpoint)]
        keeper = next((one for one in found if one.save_last), found[0] if found else None)
        if keeper is None or keeper.dirpath is None:
            return self._folder / "last.ckpt"
        name = keeper.CHECKPOINT_NAME_LAST
        keeper.last_model_path = keeper.last_model_path or keeper.format_checkpoint_name(
            keeper._monitor_candidates(trainer), name
        )
        return Path(keeper.last_model_path)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Lightning's hook: in a checkpoint of ours, progress is that of the end of the last batch.

        Saved in the middle of the next batch or of a validation, Lightning's own would count a batch that was not
        trained on, and skip the validation.
        """
        if not self._is_saving or self._boundary is None:
            return
        now = trainer.fit_loop.state_dict()
        is_newer = _processed(now) > _processed(self._boundary)  # another callback failed at the end of a batch
        loops = now if is_newer else copy.deepcopy(self._boundary)
        if self._validation_due and not is_newer:
            _begin_validation(loops)
        checkpoint["loops"]["fit_loop"] = loops


def _log_step(trainer: Trainer) -> None:
    """Log the batch that has ended, as Lightning would do after the hook."""
    trainer._logger_connector.on_batch_end()
    trainer._logger_connector.update_train_step_metrics()


def _swap_averages(trainer: Trainer) -> None:
    """In validation, an average and the weights have changed places."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, WeightAveraging):
            callback.on_validation_epoch_end(trainer, trainer.lightning_module)


def leave_together(trainer: Trainer, datamodule: Any, stop: Stopped) -> None:
    """End this process with the others of the run; one process alone is left to end as usual.

    Whoever watches the ranks (torchrun, srun, Lightning) kills the others when the first one has left. So all wait for
    each other when everything is put away, and are gone before that. The status would else be that of being killed.

    Args:
        stop: what the training was left with.
    """
    preemption = next(one for one in trainer.callbacks if isinstance(one, Preemption))  # type: ignore[attr-defined]
    if preemption._group is None:
        preemption.give_back_signals()
        return
    datamodule.teardown("fit")  # the workers
    if stop.line:
        print(stop.line, file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    try:
        work = torch.distributed.barrier(group=preemption._group, async_op=True)
        work.wait(timeout=LEAVE_WITHIN)  # pyright: ignore[reportOptionalMemberAccess]
    except RuntimeError:
        pass  # another one died on its way out
    os._exit(stop.code)


class PlainSignals(_SignalConnector):
    """In the place of Lightning's handlers, which send a message to the other ranks in the middle of whatever goes on
    (and so wait for ever), or save and requeue a Slurm job there: outside of training, a signal just ends the process.

    One that has started others ends them first.
    """

    def register_signal_handlers(self) -> None:
        """Called by the Trainer when its processes have been launched."""
        self.received_sigterm = False
        launcher = self.trainer.strategy.launcher
        if getattr(launcher, "procs", None):
            self._original_handlers = {signal.SIGTERM: signal.signal(signal.SIGTERM, self._end_all)}

    def _end_all(self, number: int, frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)
        self.trainer.strategy.launcher.kill(number)  # type: ignore[union-attr]
        os.kill(os.getpid(), number)


def _signal(name: str) -> signal.Signals:
    found = getattr(signal.Signals, name, None)
    if found is None or found in (signal.SIGKILL, signal.SIGSTOP):
        raise UserError(
            f"Preemption.signals: `{name}` is no signal that a process can take, such as SIGTERM or SIGUSR1."
        )
    return found


def _processed(fit_loop: dict[str, Any]) -> int:
    """Batches of the whole run of which the optimiser has got the gradients."""
    return fit_loop["epoch_loop.batch_progress"]["total"]["processed"]


def _begin_validation(fit_loop: dict[str, Any]) -> None:
    """Change the state of the loops from the end of a batch to the beginning of the validation behind it, which
    Lightning then runs before it goes on. It knows that state as a validation that was cut short in its first batch."""
    batches = fit_loop["epoch_loop.batch_progress"]
    for counts in (batches["total"], batches["current"]):
        counts["completed"] = counts["processed"]
    validation = fit_loop["epoch_loop.val_loop.batch_progress"]
    done = validation["total"]["completed"]
    validation["total"] = {"ready": done + 1, "started": done + 1, "processed": done, "completed": done}
    validation["current"] = dict.fromkeys(validation["current"], 0)
    validation["is_last_batch"] = False


def _is_child(trainer: Trainer) -> bool:
    """Whether Lightning has started this process. Its parent kills all if one leaves with another status than 0."""
    environment = trainer._accelerator_connector.cluster_environment
    return isinstance(environment, LightningEnvironment) and trainer.local_rank > 0
