"""The LightningModules under a real Trainer."""

import math
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import tiny
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from ldis_lightning.episode import EpisodeBatch
from ldis_lightning.errors import UserError
from ldis_lightning.evaluation.scoring import Scoreboard
from ldis_lightning.meta_architectures import EpisodeModule, InContextSegmenter
from ldis_lightning.optim import LearningRateSchedule, OneCycle, WarmupConstant


def loader(batches: list[EpisodeBatch]) -> DataLoader:
    return DataLoader(batches, batch_size=None)  # pyright: ignore[reportArgumentType]


class Batches(L.LightningDataModule):
    """Four training batches; two evaluation sets, the second of which ends with padding."""

    evaluation_names = ("seen", "novel")

    def scoreboard(self, stage: str, name: str) -> Scoreboard:
        batches = self.evaluation_batches()[self.evaluation_names.index(name)]
        return tiny.board([c for batch in batches for c in batch["class_id"][batch["valid"]].tolist()])

    def train_dataloader(self) -> DataLoader:
        return loader([tiny.batch(2, seed=i) for i in range(4)])

    def evaluation_batches(self) -> list[list[EpisodeBatch]]:
        padded = tiny.batch(3, seed=12)
        padded["valid"] = torch.tensor([True, True, False])
        padded["position"] = torch.tensor([3, 4, -1])
        return [[tiny.batch(2, seed=10)], [tiny.batch(3, seed=11), padded]]

    def val_dataloader(self) -> list[DataLoader]:
        return [loader(batches) for batches in self.evaluation_batches()]

    test_dataloader = predict_dataloader = val_dataloader


class Guess(EpisodeModule):
    """Marks the lower half of every picture; learns one number, beside a frozen one."""

    def __init__(self, schedule: LearningRateSchedule | None = None) -> None:
        super().__init__(lambda parameters: torch.optim.SGD(parameters, lr=0.5), schedule or WarmupConstant(0))
        self.weight = torch.nn.Parameter(torch.tensor(1.0))
        self.frozen = torch.nn.Parameter(torch.tensor(1.0), requires_grad=False)

    def training_loss(self, batch: EpisodeBatch) -> dict[str, Tensor]:
        return {"loss": self.weight, "twice": 2 * self.weight.detach()}

    def batch_logits(self, batch: EpisodeBatch) -> Tensor:
        logits = torch.full(batch["query_mask"].shape, -1.0)
        logits[:, tiny.PICTURE // 2 :] = 1
        return logits


def trainer(folder: Path, **options: Any) -> L.Trainer:
    quiet: dict[str, Any] = {
        "logger": False,
        "enable_progress_bar": False,
        "enable_checkpointing": False,
        "enable_model_summary": False,
    }
    return L.Trainer(accelerator="cpu", default_root_dir=folder, **(quiet | options))


def by_hand(batches: list[EpisodeBatch]) -> tuple[float, float]:
    """mIoU and FB-IoU of `Guess`: sums over the set by class, then the ratio."""
    sums: dict[Any, list[int]] = {}
    for batch in batches:
        for mask, class_id, valid in zip(batch["query_mask"], batch["class_id"].tolist(), batch["valid"], strict=True):
            if not valid:
                continue
            lower = torch.arange(tiny.PICTURE)[:, None].expand_as(mask) >= tiny.PICTURE // 2
            counted, truth = mask != 255, mask == 1
            for key, said, true in ((class_id, lower, truth), ("front", lower, truth), ("back", ~lower, ~truth)):
                entry = sums.setdefault(key, [0, 0])
                entry[0] += int((said & true & counted).sum())
                entry[1] += int(((said | true) & counted).sum())
    ratio = {key: intersection / union for key, (intersection, union) in sums.items()}
    classes = [value for key, value in ratio.items() if isinstance(key, int)]
    return sum(classes) / len(classes), (ratio["front"] + ratio["back"]) / 2


@pytest.mark.parametrize("stage", ["val", "test"])
def test_scores_are_logged_and_kept(stage: str, tmp_path: Path) -> None:
    module, data, run = Guess(), Batches(), trainer(tmp_path)
    {"val": run.validate, "test": run.test}[stage](module, data, verbose=False)
    expected = {}
    for name, batches in zip(data.evaluation_names, data.evaluation_batches(), strict=True):
        miou, fb_iou = by_hand(batches)
        expected |= {f"{stage}/{name}/miou": miou, f"{stage}/{name}/fb_iou": fb_iou}
        result = module.results[stage][name]
        assert result.scores == pytest.approx({"miou": miou, "fb_iou": fb_iou})
        assert result.value == result.scores["miou"]
        assert result.episodes == result.expected == sum(int(batch["valid"].sum()) for batch in batches)
        assert set(result.intervals) == ({"miou", "fb_iou"} if stage == "test" else set())
        assert result.per_class.keys() == {1, 2}
    logged = {key: float(value) for key, value in run.callback_metrics.items()}
    assert logged == pytest.approx(expected, rel=1e-6)
    assert list(module.results[stage]) == ["seen", "novel"]
    first = module.results[stage]
    {"val": run.validate, "test": run.test}[stage](module, data, verbose=False)
    again = module.results[stage]  # sums start anew
    assert all((again[name].counts == first[name].counts).all() for name in first)
    assert all(again[name].seen.tolist() == [1] * len(again[name].seen) for name in first)


def test_scoring_needs_a_datamodule_that_says_how(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="evaluation needs a datamodule"):
        trainer(tmp_path).validate(Guess(), Batches().val_dataloader(), verbose=False)


def test_an_episode_scored_twice_is_an_error(tmp_path: Path) -> None:
    class Twice(Batches):
        def val_dataloader(self) -> list[DataLoader]:
            return [loader([tiny.batch(2), tiny.batch(2)]), loader(self.evaluation_batches()[1])]

    with pytest.raises(RuntimeError, match="2 of 2 episodes were scored more than once"):
        trainer(tmp_path).validate(Guess(), Twice(), verbose=False)


def test_a_part_of_a_set_is_scored_as_a_part(tmp_path: Path) -> None:
    module = Guess()
    trainer(tmp_path, limit_val_batches=1).validate(module, Batches(), verbose=False)
    result = module.results["val"]["novel"]
    assert (result.episodes, result.expected, result.complete) == (3, 5, False)
    assert result.scores["miou"] == pytest.approx(by_hand([Batches().evaluation_batches()[1][0]])[0])


class Watch(L.Callback):
    """Remembers what steps return and which learning rate each optimiser step used."""

    def __init__(self) -> None:
        self.rates: list[float] = []
        self.outputs: list[Any] = []

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Any) -> None:
        self.rates.append(optimizer.param_groups[0]["lr"])

    def on_validation_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self.outputs.append(outputs)

    def on_test_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self.outputs.append(outputs)


def test_the_schedule_steps_with_the_optimiser(tmp_path: Path) -> None:
    watch = Watch()
    module = Guess(OneCycle(0.25))
    run = trainer(tmp_path, max_steps=8, limit_val_batches=0, callbacks=[watch])
    run.fit(module, Batches())
    fall = [0.5 * (1 + math.cos(math.pi * i / 6)) for i in range(6)]
    assert watch.rates == pytest.approx([0.5 * factor for factor in (0.5, 1, *fall)])
    assert float(module.weight.detach()) == pytest.approx(1 - sum(watch.rates), rel=1e-5)
    assert set(run.callback_metrics) == {"train/loss", "train/twice"}


def test_the_end_of_the_run_may_be_given_in_epochs(tmp_path: Path) -> None:
    watch = Watch()
    run = trainer(tmp_path, max_epochs=2, accumulate_grad_batches=2, limit_val_batches=0, callbacks=[watch])
    run.fit(Guess(OneCycle(0.0)), Batches())
    assert watch.rates == pytest.approx([0.5 * f for f in (1, 1, 0.75, 0.25)])  # 2 x 4 / 2 steps: 1 up, 3 down


def test_one_cycle_without_an_end(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"trainer\.max_steps"):
        trainer(tmp_path, max_steps=-1, max_epochs=-1).fit(Guess(OneCycle()), Batches())


def snapshot(module: torch.nn.Module) -> dict[str, Tensor]:
    return {name: weight.detach().clone() for name, weight in module.named_parameters()}


@pytest.mark.parametrize(
    "build",
    [
        lambda: tiny.ldis1(instruction=tiny.extractor(trainable=False), schedule=WarmupConstant(0)),
        lambda: tiny.ldisn(schedule=WarmupConstant(0), steps=1),
    ],
    ids=["LDIS1", "LDISn"],
)
def test_fit_validate_test_and_predict(build: Any, tmp_path: Path) -> None:
    watch, module = Watch(), build()
    before = snapshot(module)
    run = trainer(tmp_path, max_steps=2, check_val_every_n_epoch=None, val_check_interval=2, callbacks=[watch])
    run.fit(module, Batches())
    changed = {name for name, weight in snapshot(module).items() if not torch.equal(weight, before[name])}
    trainable = {name for name, weight in module.named_parameters() if weight.requires_grad}
    assert changed <= trainable
    assert any(name.startswith("unet.") for name in changed)
    held = {id(weight) for group in run.optimizers[0].param_groups for weight in group["params"]}
    assert held == {id(weight) for weight in module.parameters() if weight.requires_grad}
    assert "train/loss" in run.callback_metrics
    run.test(module, Batches(), verbose=False)
    shapes = [tuple(output["logits"].shape) for output in watch.outputs]
    assert shapes[-3:] == [(2, 32, 32), (3, 32, 32), (3, 32, 32)]
    assert {set_ for stage in module.results.values() for set_ in stage} == {"seen", "novel"}
    assert all(0 <= result.value <= 1 for stage in module.results.values() for result in stage.values())
    predictions: Any = run.predict(module, Batches())
    assert torch.equal(predictions[0][0]["logits"], watch.outputs[-3]["logits"])


def test_metrics_and_constants_are_not_in_checkpoints(tmp_path: Path) -> None:
    module = tiny.ldis1()
    before = set(module.state_dict())
    trainer(tmp_path).validate(module, Batches(), verbose=False)
    assert set(module.state_dict()) == before
    assert {name.split(".")[0] for name in before} == {"instruction", "autoencoder", "unet"}


def test_slots_say_what_is_missing() -> None:
    batch = tiny.batch(1)
    module: Any = EpisodeModule(tiny.adam, OneCycle())
    for call in ("training_loss", "batch_logits", "clip_logits", "round_trip_logits"):
        with pytest.raises(NotImplementedError, match=rf"EpisodeModule must implement {call.removesuffix('_logits')}"):
            getattr(module, call)(batch)
    assert issubclass(InContextSegmenter, EpisodeModule)


# ---- The optimiser's step


def test_gradients_are_freed_before_the_next_forward(tmp_path: Path) -> None:
    module = tiny.ldis1()
    alive: list[int] = []
    module.unet.register_forward_pre_hook(
        lambda *_: alive.append(sum(parameter.grad is not None for parameter in module.parameters()))
    )
    trainer(tmp_path, max_steps=3).fit(module, loader([tiny.batch(2)] * 3))
    assert alive == [0, 0, 0]
    alive.clear()
    accumulating = trainer(tmp_path, max_steps=1, accumulate_grad_batches=2)
    accumulating.fit(module, loader([tiny.batch(2)] * 2))
    assert alive[0] == 0 < alive[1]  # those that are accumulated must stay


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize(("algorithm", "largest"), [("norm", 0.5), ("value", None)])
def test_gradients_are_clipped(
    precision: Any, fused: bool, algorithm: str, largest: float | None, tmp_path: Path
) -> None:
    module = tiny.ldis1(
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=1.0, fused=fused), schedule=WarmupConstant(0)
    )
    before = {name: value.detach().clone() for name, value in module.named_parameters()}
    clip: Any = {"gradient_clip_val": 0.5 if algorithm == "norm" else 1e-3, "gradient_clip_algorithm": algorithm}
    trainer(tmp_path, max_steps=1, precision=precision, **clip).fit(module, loader([tiny.batch(2)]))
    steps = [before[name] - value.detach() for name, value in module.named_parameters()]
    if largest is None:
        assert max(float(step.abs().max()) for step in steps) == pytest.approx(1e-3, rel=1e-3)
    else:
        assert float(torch.stack([step.norm() for step in steps]).norm()) == pytest.approx(largest, rel=1e-3)
