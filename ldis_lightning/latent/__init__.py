"""The latent side: autoencoder, denoiser and the surgery on them."""

from ldis_lightning.latent.autoencoder import (
    Autoencoder,
    PretrainedAutoencoder,
    StableDiffusionAutoencoder,
    TinyAutoencoder,
)
from ldis_lightning.latent.denoiser import Denoiser, PretrainedUNet, ScratchUNet, StableDiffusionUNet
from ldis_lightning.latent.surgery import widen_input

__all__ = [
    "Autoencoder",
    "Denoiser",
    "PretrainedAutoencoder",
    "PretrainedUNet",
    "ScratchUNet",
    "StableDiffusionAutoencoder",
    "StableDiffusionUNet",
    "TinyAutoencoder",
    "widen_input",
]
