"""The LightningModules: LDIS-1, LDIS-n and the trainer of the small autoencoder."""

from ldis_lightning.meta_architectures.autoencoder import AutoencoderTrainer
from ldis_lightning.meta_architectures.base import EpisodeModule, InContextSegmenter
from ldis_lightning.meta_architectures.ldis1 import LDIS1
from ldis_lightning.meta_architectures.ldisn import ConditionDropout, DualGuidance, LDISn

__all__ = [
    "LDIS1",
    "AutoencoderTrainer",
    "ConditionDropout",
    "DualGuidance",
    "EpisodeModule",
    "InContextSegmenter",
    "LDISn",
]
