import math
from pathlib import Path

import numpy as np
import pytest
import stable_diffusion
import tiny
import torch
from diffusers import AutoencoderTiny
from torch import Tensor, nn

from ldis_lightning.alignment import Vanilla
from ldis_lightning.checkpoints import is_from_files
from ldis_lightning.datamodules.world import CONCEPTS, draw_scene, render
from ldis_lightning.errors import UserError
from ldis_lightning.evaluation.measures import EpisodeTable, RegionIoU
from ldis_lightning.latent import Autoencoder, PretrainedAutoencoder, StableDiffusionAutoencoder, TinyAutoencoder

PICTURE = tiny.pictures(3, 3, 32, 32)
SEED = torch.tensor([4, 5, 6])


def distribution(autoencoder: Autoencoder, picture: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of q(z | x), from the encoder's own layers."""
    with torch.no_grad():
        moments = autoencoder.vae.quant_conv(autoencoder.vae.encoder(picture))  # pyright: ignore
    mean, log_variance = moments.chunk(2, 1)
    return mean, (0.5 * log_variance).exp()


def tiny_autoencoder() -> Autoencoder:
    with tiny.seeded():
        return Autoencoder(
            AutoencoderTiny(
                encoder_block_out_channels=(4, 4, 4),
                decoder_block_out_channels=(4, 4, 4),
                num_encoder_blocks=(1, 1, 1),
                num_decoder_blocks=(1, 1, 1),
                scaling_factor=0.5,
            )
        )


def test_latents_are_the_mode_times_the_scaling_factor() -> None:
    autoencoder = tiny.autoencoder()
    mean, _ = distribution(autoencoder, PICTURE)
    torch.testing.assert_close(autoencoder.encode(PICTURE), 0.4 * mean)
    assert torch.equal(autoencoder.encode(PICTURE, SEED), autoencoder.encode(PICTURE))  # sampling is off


def test_decoding_divides_by_the_scaling_factor() -> None:
    autoencoder = tiny.autoencoder()
    latent = tiny.pictures(2, 4, 8, 8)
    with torch.no_grad():
        expected = autoencoder.vae.decoder(autoencoder.vae.post_quant_conv(latent / 0.4))  # pyright: ignore
    torch.testing.assert_close(autoencoder.decode(latent), expected)


def test_sampled_latents_follow_the_encoders_distribution() -> None:
    autoencoder = tiny.autoencoder(sample=True)
    with torch.no_grad():
        autoencoder.vae.quant_conv.bias[4:] -= 2  # pyright: ignore  # away from a variance of 1, where powers of it are equal
    picture = PICTURE[:1].expand(200, -1, -1, -1)
    mean, deviation = distribution(autoencoder, PICTURE[:1])
    noise = (autoencoder.encode(picture, torch.arange(200)) / 0.4 - mean) / deviation
    n = noise.numel()
    assert abs(float(noise.mean())) < 5 / math.sqrt(n)
    assert abs(float(noise.var()) - 1) < 5 * math.sqrt(2 / n)
    assert torch.equal(autoencoder.encode(PICTURE), tiny.autoencoder().encode(PICTURE))  # no seed, no sampling


def test_a_sample_belongs_to_its_episode() -> None:
    autoencoder = tiny.autoencoder(sample=True)
    together = autoencoder.encode(PICTURE, SEED)
    alone = torch.cat([autoencoder.encode(PICTURE[i : i + 1], SEED[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(together, autoencoder.encode(PICTURE, SEED + 1))


@pytest.mark.parametrize("build", [tiny.autoencoder, tiny_autoencoder])
def test_sizes(build) -> None:
    autoencoder = build()
    latent = autoencoder.encode(PICTURE)
    assert (autoencoder.latent_channels, autoencoder.downsampling) == (4, 4)
    assert latent.shape == (3, 4, 8, 8)
    assert autoencoder.decode(latent).shape == PICTURE.shape


def test_an_autoencoder_without_a_distribution() -> None:
    autoencoder = tiny_autoencoder()
    with torch.no_grad():
        expected = 0.5 * autoencoder.vae.encoder(PICTURE)
    torch.testing.assert_close(autoencoder.encode(PICTURE, SEED), expected)


@pytest.mark.parametrize("build", [tiny.autoencoder, tiny_autoencoder])
def test_it_is_frozen_but_gradients_flow_through_the_decoder(build) -> None:
    autoencoder = build()
    nn.Sequential(autoencoder).train()
    assert not any(module.training for module in autoencoder.modules())
    assert not any(weight.requires_grad for weight in autoencoder.parameters())
    assert not autoencoder.encode(PICTURE.clone().requires_grad_()).requires_grad
    latent = autoencoder.encode(PICTURE).requires_grad_()
    autoencoder.decode(latent).square().sum().backward()
    assert bool((latent.grad != 0).any())
    assert all(weight.grad is None for weight in autoencoder.parameters())


@pytest.mark.parametrize("build", [tiny.autoencoder, tiny_autoencoder])
def test_saved_and_loaded_again(build, tmp_path: Path) -> None:
    original = build()
    original.vae.save_pretrained(tmp_path / "vae")
    for loaded in (
        PretrainedAutoencoder(str(tmp_path), "vae"),
        PretrainedAutoencoder(str(tmp_path / "vae"), sample=True),
    ):
        assert type(loaded.vae) is type(original.vae)
        assert torch.equal(loaded.encode(PICTURE), original.encode(PICTURE))
        assert not any(weight.requires_grad for weight in loaded.parameters())
        assert is_from_files(loaded) and not is_from_files(original)
    assert loaded.sample


def test_nothing_to_load(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"model\.autoencoder\.path: '.*' has no config\.json"):
        PretrainedAutoencoder(str(tmp_path))


def test_a_pickle_beside_the_weights_does_nothing(tmp_path: Path) -> None:
    original = tiny.autoencoder()
    original.vae.save_pretrained(tmp_path, safe_serialization=False)
    path = tmp_path / "diffusion_pytorch_model.bin"
    assert torch.equal(PretrainedAutoencoder(str(tmp_path)).encode(PICTURE), original.encode(PICTURE))

    class Hostile:
        def __reduce__(self) -> tuple:
            return (Path.touch, (tmp_path / "touched",))

    torch.save({**original.vae.state_dict(), "encoder.conv_in.bias": Hostile()}, path)
    with pytest.raises(UserError, match=r"does not fit the architecture: it misses encoder\.conv_in\.bias"):
        PretrainedAutoencoder(str(tmp_path))
    assert not (tmp_path / "touched").exists()


def test_a_unet_is_no_autoencoder(tmp_path: Path) -> None:
    stable_diffusion.write_stable_diffusion(tmp_path)
    with pytest.raises(
        UserError, match="this is a UNet2DConditionModel, but AutoencoderKL or AutoencoderTiny is needed"
    ):
        PretrainedAutoencoder(str(tmp_path), "unet")


def test_stable_diffusions_autoencoder_from_scratch() -> None:
    with torch.device("meta"):
        autoencoder = StableDiffusionAutoencoder(sample=True)
        latent = autoencoder.encode(torch.zeros(1, 3, 64, 64))
        assert autoencoder.decode(latent).shape == (1, 3, 64, 64)
    assert latent.shape == (1, 4, 8, 8)
    assert (autoencoder.scaling_factor, autoencoder.downsampling, autoencoder.sample) == (0.18215, 8, True)
    assert not any(weight.requires_grad for weight in autoencoder.parameters())
    assert not is_from_files(autoencoder)


def test_the_shipped_autoencoder_hardly_limits_the_masks() -> None:
    """The ceiling of the tiny scale: vanilla pseudo-masks of novel concepts after one round trip."""
    novel = [concept for concept in CONCEPTS if concept.novel]
    autoencoder, pseudo_mask, measure = TinyAutoencoder(), Vanilla(), RegionIoU()
    counts, shown = [], []
    for seed in range(30):
        _, labels = render(draw_scene(np.random.default_rng([99, seed]), novel, 64, (3, 4)))
        class_ids = torch.tensor([int(label) for label in np.unique(labels) if label])
        masks = (torch.from_numpy(labels)[None] == class_ids[:, None, None]).to(torch.uint8)  # (n, 64, 64)
        image = torch.zeros(len(masks), 3, 64, 64)
        picture = pseudo_mask.encode(masks, image, class_ids)
        with torch.no_grad():
            decoded = autoencoder.decode(autoencoder.encode(picture))
        counts.append(measure.count(pseudo_mask.logits(decoded, image) > 0, masks))
        shown.append(class_ids)
    class_id = torch.cat(shown).numpy()
    table = EpisodeTable(class_id, np.full(len(class_id), -1))
    assert measure.scores(torch.cat(counts).numpy(), table)["miou"] >= 0.97
