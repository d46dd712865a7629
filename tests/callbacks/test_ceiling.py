"""The ceiling: true masks after the autoencoder's round trip, scored as the model is."""

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import tiny
import torch
from torch.utils.data import DataLoader

from ldis_lightning.alignment import Vanilla
from ldis_lightning.callbacks import Ceiling
from ldis_lightning.errors import UserError
from ldis_lightning.evaluation.measures import JAndF
from ldis_lightning.evaluation.scoring import Scoreboard, score_batch, score_clip
from ldis_lightning.latent import TinyAutoencoder

SETS = ("images", "large", "video")


def batches() -> dict[str, list[Any]]:
    """Images; images that are scored at another size, one batch with padding; a clip."""
    images, large, more = tiny.batch(3), tiny.batch(2, seed=1), tiny.batch(2, seed=2)
    for batch in (large, more):
        batch["query_mask_original"] = [mask.repeat_interleave(2, 0) for mask in batch["query_mask"]]
    more["valid"], more["position"] = torch.tensor([True, False]), torch.tensor([2, -1])
    return {"images": [images], "large": [large, more], "video": [tiny.clip(frames=3, concepts=2)]}


class Sets(L.LightningDataModule):
    evaluation_names = SETS

    def scoreboard(self, stage: str, name: str) -> Scoreboard:
        assert stage == "test"
        return {
            "images": tiny.board([1, 2, 1]),
            "large": tiny.board([1, 2, 1], size=40),
            "video": tiny.board([1, 2] * 3, [0] * 6, measure=JAndF()),
        }[name]

    def test_dataloader(self) -> list[DataLoader]:
        return [DataLoader(of_set, batch_size=None) for of_set in batches().values()]  # pyright: ignore

    val_dataloader = test_dataloader


def run_test(module: L.LightningModule, folder: Path, *callbacks: Ceiling, stage: str = "test") -> dict[str, float]:
    """What was logged."""
    quiet: Any = {name: False for name in ("logger", "enable_progress_bar", "enable_checkpointing")}
    run = L.Trainer(
        accelerator="cpu", default_root_dir=folder, callbacks=list(callbacks), enable_model_summary=False, **quiet
    )
    {"test": run.test, "val": run.validate}[stage](module, Sets(), verbose=False)
    return {name: float(value) for name, value in run.callback_metrics.items()}


def test_it_is_the_score_of_the_round_trip(tmp_path: Path) -> None:
    module = tiny.ldis1()
    logged = run_test(module, tmp_path, Ceiling())
    for name, of_set in batches().items():
        board = Sets().scoreboard("test", name)
        counts = torch.zeros(len(board.table), board.measure.width, dtype=torch.int64)
        for batch in of_set:
            with torch.no_grad():
                logits = module.round_trip_logits(batch)
            found = (score_clip if name == "video" else score_batch)(board, logits, batch)
            counts[found.position[found.position >= 0]] = found.counts[found.position >= 0]
        expected = board.measure.scores(counts.numpy(), board.table)[board.measure.headline]
        assert logged[f"test/{name}/ceiling"] == pytest.approx(expected, rel=1e-6)


def test_the_models_own_results_stay(tmp_path: Path) -> None:
    module = tiny.ldis1()
    plain = run_test(module, tmp_path)
    results = module.results["test"]
    logged = run_test(module, tmp_path, Ceiling())
    assert {name: value for name, value in logged.items() if not name.endswith("/ceiling")} == plain
    assert list(module.results["test"]) == list(results) == list(SETS)
    assert {name for name in logged if name.endswith("/ceiling")} == {f"test/{name}/ceiling" for name in SETS}


def test_a_good_autoencoder_has_a_high_ceiling(tmp_path: Path) -> None:
    """Higher than what an untrained model on top of it reaches: it is the true masks that are scored."""
    module = tiny.ldis1(autoencoder=TinyAutoencoder(), pseudo_mask=Vanilla())
    logged = run_test(module, tmp_path, Ceiling(["images"]))
    assert logged["test/images/ceiling"] > 0.9 > logged["test/images/miou"]


def test_only_the_named_sets(tmp_path: Path) -> None:
    logged = run_test(tiny.ldis1(), tmp_path, Ceiling(["video"]))
    assert [name for name in logged if name.endswith("/ceiling")] == ["test/video/ceiling"]


def test_a_second_test_starts_anew(tmp_path: Path) -> None:
    ceiling = Ceiling(["large"])
    first = run_test(tiny.ldis1(), tmp_path, ceiling)
    assert run_test(tiny.ldis1(), tmp_path, ceiling) == first
    other = run_test(tiny.ldis1(pseudo_mask=Vanilla(), autoencoder=TinyAutoencoder()), tmp_path, ceiling)
    assert other["test/large/ceiling"] > first["test/large/ceiling"]


def test_the_autoencoders_own_score_is_its_ceiling(tmp_path: Path) -> None:
    from ldis_lightning.meta_architectures import AutoencoderTrainer
    from ldis_lightning.optim import OneCycle

    with tiny.seeded():
        module = AutoencoderTrainer(tiny.adam, OneCycle(), (4, 4, 8), 3, norm_num_groups=4)
    logged = run_test(module, tmp_path, Ceiling(["images"]))
    assert logged["test/images/ceiling"] == logged["test/images/miou"]


def test_a_set_that_does_not_exist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Sets, "configured_sets", [*SETS, "left_out"], raising=False)
    run_test(tiny.ldis1(), tmp_path, Ceiling(["images", "left_out"]))
    with pytest.raises(UserError, match="no evaluation set is called `image`; did you mean `images`"):
        run_test(tiny.ldis1(), tmp_path, Ceiling(["image"]))
