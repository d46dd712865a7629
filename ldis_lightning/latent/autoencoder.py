"""The frozen autoencoder: E and D of the method, between pictures and latents."""

from pathlib import Path

import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from torch import Tensor, nn

from ldis_lightning.errors import UserError
from ldis_lightning.randomness import normal

ASSETS = Path(__file__).resolve().parent.parent / "assets"


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
        self.vae = vae.eval().requires_grad_(False)
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

    @torch.no_grad()
    def encode(self, picture: Tensor, seed: Tensor | None = None) -> Tensor:
        """Encode pictures.

        Args:
            picture: (B, 3, H, W) in [-1, 1], H and W multiples of `downsampling`.
            seed: (B,) int64; with `sample`, the latents are drawn with it. None takes the mode.

        Returns:
            (B, C, H/f, W/f), scaled.
        """
        output = self.vae.encode(picture)
        if isinstance(self.vae, AutoencoderTiny):
            return output.latents * self.scaling_factor  # pyright: ignore[reportAttributeAccessIssue]
        distribution = output.latent_dist  # pyright: ignore[reportAttributeAccessIssue]
        latent = distribution.mode()
        if self.sample and seed is not None:
            latent = latent + distribution.std * normal(seed, "autoencoder", tuple(latent.shape[1:]))
        return latent * self.scaling_factor

    def decode(self, latent: Tensor) -> Tensor:
        """Decode latents (B, C, h, w), scaled, to pictures (B, 3, h*f, w*f), about in [-1, 1]."""
        return self.vae.decode(latent / self.scaling_factor).sample  # pyright: ignore

    def train(self, mode: bool = True) -> "Autoencoder":
        """Frozen: stays in evaluation mode."""
        return super().train(False)


class PretrainedAutoencoder(Autoencoder):
    """An autoencoder from a folder in diffusers' format or from the hub.

    Args:
        path: a local folder with `config.json` and the weights in safetensors, or a hub id.
        subfolder: folder inside it, e.g. `vae` for a Stable Diffusion pipeline.
        sample: see `Autoencoder`.

    Raises:
        UserError: there is nothing loadable there.
    """

    def __init__(self, path: str, subfolder: str | None = None, sample: bool = False) -> None:
        try:
            local = Path(path).is_absolute()  # a hub id never is: do not look for a missing folder on the hub
            config = AutoencoderKL.load_config(path, subfolder=subfolder, local_files_only=local)
            kind = AutoencoderTiny if config.get("_class_name") == "AutoencoderTiny" else AutoencoderKL  # pyright: ignore
            vae = kind.from_pretrained(
                path, subfolder=subfolder, use_safetensors=True, low_cpu_mem_usage=False, local_files_only=local
            ).float()
        except (OSError, ValueError) as error:
            raise UserError(f"model.autoencoder.path: cannot load an autoencoder from '{path}': {error}") from error
        super().__init__(vae, sample)


class TinyAutoencoder(PretrainedAutoencoder):
    """The small autoencoder that comes with the package (64 x 64 pictures, factor 8, 16 channels).

    `configs/autoencoder_tiny.yaml` trains it.
    """

    def __init__(self, sample: bool = False) -> None:
        super().__init__(str(ASSETS / "autoencoder_tiny"), sample=sample)
