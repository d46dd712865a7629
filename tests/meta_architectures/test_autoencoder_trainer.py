import math
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import tiny
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from ldis_lightning.latent import PretrainedAutoencoder
from ldis_lightning.meta_architectures import AutoencoderTrainer
from ldis_lightning.optim import WarmupConstant

BATCH = tiny.batch(8)
RED, GREEN = (torch.tensor(colour).view(3, 1, 1) for colour in ([1.0, -1.0, 0.0], [-1.0, 1.0, 0.0]))


def autoencoder_trainer(**changes: Any) -> AutoencoderTrainer:
    sizes = {"block_out_channels": (4, 4, 8), "latent_channels": 3, "norm_num_groups": 4}
    with tiny.seeded():
        return AutoencoderTrainer(tiny.adam, WarmupConstant(0), **(sizes | changes))


def watch_inputs(module: AutoencoderTrainer) -> list[Tensor]:
    seen: list[Tensor] = []
    module.vae.encoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    return seen


def vanilla() -> Tensor:
    return torch.where((BATCH["query_mask"] == 1)[:, None], GREEN, RED)


def encoded(module: AutoencoderTrainer, batch: Any) -> tuple[Tensor, Tensor]:
    """What a training step gives the encoder: queries, and then a pseudo-mask of every query."""
    seen = watch_inputs(module)
    module.training_loss(batch)
    count = len(batch["seed"])
    pictures, targets = seen[0][:-count], seen[0][-count:]
    assert all(any(torch.equal(picture, query) for query in batch["query_image"]) for picture in pictures)
    return pictures, targets


def mixing_ratios(targets: Tensor, batch: Any) -> Tensor:
    """gamma of every pseudo-mask (B,): the red of a background pixel is (1 - gamma) + gamma I."""
    assert not (batch["query_mask"][:, 0, 0] == 1).any()
    return (1 - targets[:, 0, 0, 0]) / (1 - batch["query_image"][:, 0, 0, 0])


def test_sizes() -> None:
    module = autoencoder_trainer()
    latent, decoded = module.reconstruct(BATCH["query_image"])
    assert latent.shape == (8, 3, 8, 8)
    assert decoded.shape == BATCH["query_image"].shape


def test_half_of_the_pseudo_masks_are_mixed_with_the_image() -> None:
    batch = tiny.batch(64)
    _, targets = encoded(autoencoder_trainer(max_gamma=0.6), batch)
    gamma = mixing_ratios(targets, batch)
    assert 0.3 < float((gamma.abs() < 1e-5).float().mean()) < 0.7
    mixed = gamma[gamma > 1e-5]
    assert 0.45 < float(mixed.max()) <= 0.6 and float(mixed.min()) < 0.15


def test_the_training_loss_by_hand() -> None:
    module = autoencoder_trainer(mask_weight=0.7, latent_weight=0.05)
    pictures, targets = encoded(module, BATCH)
    gamma = mixing_ratios(targets, BATCH).view(-1, 1, 1, 1)
    assert len(pictures) and (gamma > 0.01).any()
    image = BATCH["query_image"]
    masked = (1 - gamma) * vanilla() + gamma * image
    torch.testing.assert_close(targets, masked)
    losses = module.training_loss(BATCH)
    with torch.no_grad():
        latent = torch.cat([module.vae.encode(part).latent_dist.mode() for part in (pictures, masked)])  # pyright: ignore
        decoded_image, decoded_mask = module.vae.decode(latent).sample.split([len(pictures), 8])  # pyright: ignore
    clean = decoded_mask - gamma * image
    probability = torch.sigmoid(4 * (clean[:, 1] - clean[:, 0]))
    truth = BATCH["query_mask"] == 1
    expected = {
        "image": (decoded_image - pictures).square().mean(),
        "pseudo_mask": (decoded_mask - masked).square().mean(),
        "mask": -torch.where(truth, probability, 1 - probability).log().mean(),
    }
    for name, value in expected.items():
        assert losses[name].item() == pytest.approx(value.item(), rel=1e-4)
    total = expected["image"] + expected["pseudo_mask"] + 0.7 * expected["mask"] + 0.05 * latent.square().mean()
    assert losses["loss"].item() == pytest.approx(total.item(), rel=1e-4)


def test_it_is_scored_by_the_round_trip_of_vanilla_pseudo_masks() -> None:
    module = autoencoder_trainer()
    with torch.no_grad():
        logits = module.logits(BATCH)
        decoded = module.vae.decode(module.vae.encode(vanilla()).latent_dist.mode()).sample  # pyright: ignore
    torch.testing.assert_close(logits, decoded[:, 1] - decoded[:, 0])
    assert torch.equal(module.round_trip(BATCH["query_image"], BATCH["query_mask"], BATCH["seed"]), logits)


def test_clips_are_scored_by_the_round_trip_of_each_concept() -> None:
    module, step = autoencoder_trainer(), tiny.clip(frames=2, concepts=2)
    with torch.no_grad():
        logits = module.logits(step)
        assert logits.shape == (2, 2, tiny.PICTURE, tiny.PICTURE)
        for frame in range(2):
            for concept in range(2):
                foreground = step["labels"][frame, None] == concept + 1
                decoded = module.reconstruct(torch.where(foreground, GREEN, RED)[None])[1][0]
                torch.testing.assert_close(logits[frame, concept], decoded[1] - decoded[0], rtol=1e-4, atol=1e-4)


def test_the_variance_of_the_latents_is_a_running_mean() -> None:
    module: Any = autoencoder_trainer()
    seen = watch_inputs(module)
    module.training_loss(BATCH)
    variance = module.reconstruct(seen[0])[0].detach().var()
    assert module.latent_variance.item() == pytest.approx(0.99 * 1 + 0.01 * float(variance))


def test_fit_writes_an_autoencoder_that_loads(tmp_path: Path) -> None:
    module: Any = autoencoder_trainer()
    quiet: Any = {"logger": False, "enable_progress_bar": False, "enable_checkpointing": False}
    run = L.Trainer(accelerator="cpu", default_root_dir=tmp_path, max_steps=3, enable_model_summary=False, **quiet)
    run.fit(module, DataLoader([BATCH] * 3, batch_size=None))  # pyright: ignore[reportArgumentType]
    written = PretrainedAutoencoder(str(tmp_path / "autoencoder"))
    factor = written.scaling_factor
    assert factor == pytest.approx(1 / math.sqrt(module.latent_variance.item()), abs=1e-5)
    with torch.no_grad():
        latent, decoded = module.eval().reconstruct(BATCH["query_image"])
        half: Any = {"atol": 1e-2, "rtol": 1e-2}  # it is written in half precision
        torch.testing.assert_close(written.encode(BATCH["query_image"]), factor * latent, **half)
        torch.testing.assert_close(written.decode(factor * latent), decoded, **half)
