"""The latent side: autoencoder, denoiser and the surgery on them."""

from ldis_lightning.latent.autoencoder import Autoencoder, PretrainedAutoencoder, TinyAutoencoder
from ldis_lightning.latent.denoiser import Denoiser, PretrainedUNet, ScratchUNet
from ldis_lightning.latent.surgery import widen_input

__all__ = [
    "Autoencoder",
    "Denoiser",
    "PretrainedAutoencoder",
    "PretrainedUNet",
    "ScratchUNet",
    "TinyAutoencoder",
    "widen_input",
]
