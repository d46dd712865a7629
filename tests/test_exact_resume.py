"""A run that was stopped anywhere and resumed sees the same batches and ends with the same bits as one that was not."""

import hashlib
import itertools
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import pytest
import tiny
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint
from torch import Tensor

from ldis_lightning.datamodules import EpisodeDataModule, Photometric, TrainingSource
from ldis_lightning.instruction import InstructionExtractor
from ldis_lightning.latent import PretrainedUNet
from ldis_lightning.latent.fine_tuning import LoRA
from ldis_lightning.meta_architectures import LDIS1

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create", "ignore:.*is smaller than the logging")

EPOCH = 5
"""Batches of what Lightning counts as an epoch."""
Extra = Callable[[], list[L.Callback]]
STEPS = {1: 14, 3: 6}
"""Steps of the optimiser in a run, by how many batches each takes; the last one of an epoch takes what is left."""


class Diary(L.Callback):
    """Writes down what each batch held."""

    def __init__(self) -> None:
        self.pages: list[str] = []

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        page = hashlib.sha256(str(batch["meta"]).encode())
        for value in batch.values():
            if isinstance(value, Tensor):
                page.update(value.contiguous().numpy().tobytes())
        self.pages.append(page.hexdigest())


class SaveAfter(L.Callback):
    """Saves when so many batches have been trained on, as every callback that saves inside an epoch does."""

    def __init__(self, path: Path, batches: int) -> None:
        self.path, self.batches, self.seen = path, batches, 0

    def on_train_batch_end(self, trainer: Any, module: Any, *args: Any) -> None:
        self.seen += 1
        if self.seen == self.batches:
            trainer.save_checkpoint(self.path)


class Accident(Exception):
    pass


class FailAt(L.Callback):
    """Fails between two batches."""

    def __init__(self, batch: int) -> None:
        self.batch, self.seen = batch, 0

    def on_train_batch_start(self, *args: Any) -> None:
        if self.seen == self.batch:
            raise Accident
        self.seen += 1


def model(**changes: Any) -> LDIS1:
    """Tiny, with dropout in the prompt encoder, which draws from torch's own generator."""
    encoder = tiny.prompt_encoder(proj_drop_rate=0.2)
    extractor = InstructionExtractor(encoder, tiny.AlphaChannel(), tiny.CrossAttentionMask())
    return tiny.ldis1(instruction=extractor, **changes)


def data(world: Path, **changes: Any) -> EpisodeDataModule:
    settings = {"image_size": tiny.PICTURE, "batch_size": 2, "batches_per_epoch": EPOCH, "eval_batch_size": 4}
    source = TrainingSource(str(world / "data/synthetic/images/train"))
    return EpisodeDataModule(source, augmentation=Photometric(), **{**settings, **changes})  # type: ignore[arg-type]


def trainer(folder: Path, callbacks: list[L.Callback], **settings: Any) -> L.Trainer:
    quiet = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    own = {"max_epochs": -1, "max_steps": STEPS[settings.get("accumulate_grad_batches", 1)], **settings}
    if not any(isinstance(callback, ModelCheckpoint) for callback in callbacks):
        own["enable_checkpointing"] = False
    return L.Trainer(default_root_dir=folder, callbacks=callbacks, **quiet, **own)


def bits(run: L.Trainer) -> dict[str, Tensor]:
    """All weights and all of the optimiser's state."""
    found = {name: value.clone() for name, value in run.lightning_module.state_dict().items()}
    states = run.optimizers[0].state_dict()["state"]
    found |= {f"{number}.{name}": torch.as_tensor(v) for number, s in states.items() for name, v in s.items()}
    return found


def assert_same_bits(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    different = [name for name in one if not torch.equal(one[name], other[name])]
    assert not different, different


class Whole(NamedTuple):
    """A run that was never stopped."""

    pages: list[str]
    bits: dict[str, Tensor]


WHOLE: dict[tuple[Any, ...], Whole] = {}
"""By what decides the weights: neither validation nor workers do."""


def run_through(world: Path, folder: Path, build: Callable[[], LDIS1], extra: Extra, accumulate: int) -> Whole:
    key = (build, extra, accumulate)
    if key not in WHOLE:
        L.seed_everything(11, verbose=False)
        diary = Diary()
        run = trainer(folder, [diary, *extra()], accumulate_grad_batches=accumulate)
        run.fit(build(), data(world))
        WHOLE[key] = Whole(diary.pages, bits(run))
    return WHOLE[key]


def compare(
    world: Path,
    tmp_path: Path,
    stop: Callable[[Path], L.Callback] | int,
    build: Callable[[], LDIS1] = model,
    extra: Extra = list,
    settings: dict[str, Any] | None = None,
    loading: dict[str, Any] | None = None,
) -> int:
    """Run through; run again with a callback that saves; resume from what it saved. Returns the batches resumed after.

    Args:
        stop: the callback, given the path to save at, or after how many batches to save.
    """
    settings, loading = settings or {}, loading or {}
    path = tmp_path / "stop.ckpt"
    whole = run_through(world, tmp_path, build, extra, settings.get("accumulate_grad_batches", 1))
    saver = SaveAfter(path, stop) if isinstance(stop, int) else stop(path)
    first = Diary()
    L.seed_everything(11, verbose=False)
    with torch.random.fork_rng(devices=[]), suppress(Accident):
        trainer(tmp_path, [first, *extra(), saver], **settings).fit(build(), data(world, **loading))
    torch.manual_seed(99)  # a new process knows nothing of the old one's generator
    rest = Diary()
    resumed = trainer(tmp_path, [rest, *extra()], **settings)
    resumed.fit(build(), data(world, **loading), ckpt_path=str(path), weights_only=True)
    assert len(whole.pages) >= 14 and len(set(whole.pages)) == len(whole.pages)
    done = len(whole.pages) - len(rest.pages)
    assert rest.pages == whole.pages[done:]
    assert first.pages[:done] == whole.pages[:done]
    assert_same_bits(whole.bits, bits(resumed))
    return done


def at_epoch_end(path: Path) -> L.Callback:
    return ModelCheckpoint(path.parent, path.stem, every_n_epochs=2, save_on_train_epoch_end=True, save_top_k=-1)


def at_first_validation(path: Path) -> L.Callback:
    class Save(L.Callback):
        def on_validation_end(self, trainer: Any, module: Any) -> None:
            if not path.exists() and not trainer.sanity_checking:
                trainer.save_checkpoint(path)

    return Save()


def on_accident(batch: int) -> Callable[[Path], L.Callback]:
    class Save(FailAt):
        def __init__(self, path: Path) -> None:
            super().__init__(batch)
            self.path = path

        def on_exception(self, trainer: Any, module: Any, exception: BaseException) -> None:
            trainer.save_checkpoint(self.path)

    return Save


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("after", [1, 3, EPOCH - 1, EPOCH, EPOCH + 1, 2 * EPOCH, 11])
def test_after_any_batch(miniature_world: Path, tmp_path: Path, after: int, accumulate: int) -> None:
    done = compare(miniature_world, tmp_path, after, settings={"accumulate_grad_batches": accumulate})
    assert done == after


@pytest.mark.parametrize("accumulate", [1, 3])
def test_at_the_end_of_an_epoch(miniature_world: Path, tmp_path: Path, accumulate: int) -> None:
    done = compare(miniature_world, tmp_path, at_epoch_end, settings={"accumulate_grad_batches": accumulate})
    assert done == 2 * EPOCH


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("batch", [0, 4, EPOCH, 7])
def test_after_an_exception(miniature_world: Path, tmp_path: Path, batch: int, accumulate: int) -> None:
    settings = {"accumulate_grad_batches": accumulate}
    assert compare(miniature_world, tmp_path, on_accident(batch), settings=settings) == batch


class Validated(LDIS1):
    """Validates on anything."""

    def validation_step(self, *args: Any) -> None:
        torch.rand(3)  # validation may draw numbers too


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize(
    "validation",
    [
        {"val_check_interval": 4, "check_val_every_n_epoch": None},
        {"val_check_interval": 2},
        {"check_val_every_n_epoch": 1},
    ],
)
def test_inside_validation(
    miniature_world: Path, tmp_path: Path, validation: dict[str, Any], accumulate: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(EpisodeDataModule, "val_dataloader", lambda self: [[0, 1, 2]])
    monkeypatch.setattr(EpisodeDataModule, "on_after_batch_transfer", _only_episodes)
    monkeypatch.setattr(LDIS1, "validation_step", Validated.validation_step)
    settings = {"accumulate_grad_batches": accumulate, "num_sanity_val_steps": 0, **validation}
    done = compare(miniature_world, tmp_path, at_first_validation, settings=settings)
    assert done == validation.get("val_check_interval", EPOCH)


_transferred: Any = EpisodeDataModule.on_after_batch_transfer


def _only_episodes(self: EpisodeDataModule, batch: Any, dataloader_idx: int) -> Any:
    return _transferred(self, batch, dataloader_idx) if isinstance(batch, dict) else batch


def averaging() -> list[L.Callback]:
    return [EMAWeightAveraging(decay=0.9)]


@pytest.mark.parametrize("after", [4, EPOCH, 7])
def test_with_averaged_weights(miniature_world: Path, tmp_path: Path, after: int) -> None:
    compare(miniature_world, tmp_path, after, extra=averaging)


@pytest.mark.parametrize(("after", "accumulate"), [(4, 1), (7, 3)])
def test_with_adapters(miniature_world: Path, tmp_path: Path, after: int, accumulate: int) -> None:
    pytest.importorskip("peft")
    tiny.unet().save_pretrained(tmp_path / "unet")

    def build() -> LDIS1:
        return model(denoiser=PretrainedUNet(str(tmp_path / "unet")), fine_tuning=LoRA(rank=2))

    compare(miniature_world, tmp_path, after, build=build, settings={"accumulate_grad_batches": accumulate})


WORKERS = [(0, None), *itertools.product((2, 4), ("fork", "spawn"))]


@pytest.mark.parametrize(("workers", "start_method"), WORKERS[:2])
def test_with_workers(miniature_world: Path, tmp_path: Path, workers: int, start_method: str | None) -> None:
    loading = {"num_workers": workers, "start_method": start_method}
    assert compare(miniature_world, tmp_path, 7, loading=loading) == 7


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(("workers", "start_method"), WORKERS[2:])
def test_with_more_workers(miniature_world: Path, tmp_path: Path, workers: int, start_method: str | None) -> None:
    test_with_workers(miniature_world, tmp_path, workers, start_method)
