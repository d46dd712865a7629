"""The frozen autoencoder: E and D of the method, between pictures and latents."""

from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from torch import Tensor, nn

from ldis_lightning.checkpoints import from_files
from ldis_lightning.randomness import normal
from ldis_lightning.weights.known import STABLE_DIFFUSION_VAE
from ldis_lightning.weights.loading import architecture, build

CPU_PIXELS = 256 * 256
"""Pixels that the encoder gets at once on a CPU."""
ASSETS = Path(__file__).resolve().parent.parent / "assets"
KINDS = {"AutoencoderKL": AutoencoderKL, "AutoencoderTiny": AutoencoderTiny}


class Autoencoder(nn.Module):
    """A frozen diffusers autoencoder with the conventions of the method.

    Latents are multiplied by the autoencoder's `scaling_factor` (0.18215 for Stable Diffusion 1.5) on the way in and
    divided by it on the way out. It is always in evaluation mode and its weights take no gradient, but gradients flow
    through `decode`, which the pixel-space loss needs.

    Args:
        vae: an `AutoencoderKL` or `AutoencoderTiny`.
        sample: draw from the encoder's distribution, as LDIS-1's released code does, instead of taking its mode.
            Without effect on an autoencoder that has no distribution.
    """

    def __init__(self, vae: AutoencoderKL | AutoencoderTiny, sample: bool = False) -> None:
        super().__init__()
        # Channels last is what convolutions are fastest with where nothing is trained, on CPUs and on tensor cores.
        self.vae = vae.eval().requires_grad_(False).to(memory_format=torch.channels_last)  # pyright: ignore
        self.sample = sample

    @property
    def latent_channels(self) -> int:
        """Channels of a latent (4 for Stable Diffusion 1.5)."""
        return self.vae.config["latent_channels"]

    @property
    def scaling_factor(self) -> float:
        """Factor between the encoder's output and a latent."""
        return self.vae.config["scaling_factor"]

    @property
    def downsampling(self) -> int:
        """Pixels of a picture's side for one of its latent's (8 for Stable Diffusion 1.5)."""
        channels = self.vae.config.get("block_out_channels") or self.vae.config["encoder_block_out_channels"]
        return 2 ** (len(channels) - 1)

    @property
    def stages(self) -> list[nn.Module]:
        """The modules that are called: what `torch.compile` is to compile."""
        return [self.vae.encoder, self.vae.decoder]

    def encode(self, picture: Tensor, seed: Tensor | None = None) -> Tensor:
        """Encode pictures.

        Args:
            picture: (B, 3, H, W) in [-1, 1], H and W multiples of `downsampling`.
            seed: (B,) int64; with `sample`, the latents are drawn with it. None takes the mode.

        Returns:
            (B, C, H/f, W/f), scaled.
        """
        return self.encode_together([picture], [seed])[0]

    def encode_together(self, pictures: Sequence[Tensor], seeds: Sequence[Tensor | None]) -> list[Tensor]:
        """`encode` for several batches of pictures of one size, in one call of the encoder.

        Args:
            pictures: each (B_i, 3, H, W).
            seeds: for each, (B_i,) int64 or None.

        Returns:
            For each, (B_i, C, H/f, W/f), scaled.
        """
        means, deviations = self._moments(torch.cat(list(pictures)))
        sizes = [len(picture) for picture in pictures]
        latents = []
        for mean, deviation, seed in zip(means.split(sizes), deviations.split(sizes), seeds, strict=True):
            if self.sample and seed is not None:
                mean = mean + deviation * normal(seed, "autoencoder", tuple(mean.shape[1:]))
            latents.append(mean * self.scaling_factor)  # outside inference mode: an ordinary tensor again
        return latents

    @torch.inference_mode()
    def _moments(self, picture: Tensor) -> tuple[Tensor, Tensor]:
        """Mode and standard deviation of the encoder's distribution: (B, 3, H, W) -> twice (B, C, H/f, W/f)."""
        # A CPU is fastest with few activations, which stay in its caches; a GPU with many.
        pixels = CPU_PIXELS if picture.device.type == "cpu" else picture.numel()
        outputs = [self.vae.encode(part) for part in picture.split(max(1, pixels // picture[0, 0].numel()))]
        if isinstance(self.vae, AutoencoderTiny):
            means = torch.cat([output.latents for output in outputs]).contiguous()  # pyright: ignore
            return means, torch.zeros_like(means)
        distributions = [output.latent_dist for output in outputs]  # pyright: ignore[reportAttributeAccessIssue]
        means, deviations = (torch.cat([getattr(d, part) for d in distributions]) for part in ("mean", "std"))
        return means.contiguous(), deviations.contiguous()  # the U-Net's layout is not the autoencoder's affair

    def decode(self, latent: Tensor) -> Tensor:
        """Decode latents (B, C, h, w), scaled, to pictures (B, 3, h*f, w*f), about in [-1, 1]."""
        return self.vae.decode(latent / self.scaling_factor).sample  # pyright: ignore

    def train(self, mode: bool = True) -> "Autoencoder":
        """Frozen: stays in evaluation mode."""
        return super().train(False)


class PretrainedAutoencoder(Autoencoder):
    """An `AutoencoderKL` or `AutoencoderTiny` from a folder in diffusers' format or from the hub.

    On the meta device nothing is read: the architecture alone is built (see `ldis_lightning.weights.loading`).

    Args:
        path: a local folder with `config.json` and the weights, or a hub id.
        subfolder: folder inside it, e.g. `vae` for a Stable Diffusion pipeline.
        sample: see `Autoencoder`.

    Raises:
        UserError: there is nothing loadable there.
    """

    def __init__(self, path: str, subfolder: str | None = None, sample: bool = False) -> None:
        key = "model.autoencoder.path"
        vae = build(KINDS, *architecture(path, subfolder, key), key)
        super().__init__(vae, sample)  # pyright: ignore[reportArgumentType]
        from_files(self)


class StableDiffusionAutoencoder(Autoencoder):
    """Stable Diffusion 1.5's architecture with random weights: for benchmarks.

    Args:
        sample: see `Autoencoder`.
    """

    def __init__(self, sample: bool = False) -> None:
        super().__init__(AutoencoderKL.from_config(dict(STABLE_DIFFUSION_VAE.architecture)), sample)  # pyright: ignore


class TinyAutoencoder(PretrainedAutoencoder):
    """The small autoencoder that comes with the package (64 x 64 pictures, factor 8, 16 channels).

    `configs/autoencoder_tiny.yaml` trains it.
    """

    def __init__(self, sample: bool = False) -> None:
        super().__init__(str(ASSETS / "autoencoder_tiny"), sample=sample)
