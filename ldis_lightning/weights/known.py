"""Facts about published weights: where they are, how large, their hashes, and the architectures that they fit.

Sizes and hashes of Stable Diffusion 1.5 are those of the hub repository stable-diffusion-v1-5/stable-diffusion-v1-5 at
revision 451f4fe16113bff5a5d2269ed5ad43b0592e9a14 (its cache names large files by their sha256). Those of Alpha-CLIP are
what public programs that download the files of its model zoo expect of them (two of them for the one that LDIS uses);
sizes were not to be had there. What could not be confirmed is None.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class KnownFile:
    """What is known of a published file; None where it is not."""

    size: int | None = None  # bytes
    sha256: str | None = None

    def __str__(self) -> str:
        parts = [f"{self.size} bytes"] * (self.size is not None) + [f"sha256 {self.sha256}"] * (self.sha256 is not None)
        return ", ".join(parts) or "size unknown"


@dataclass(frozen=True)
class KnownPart:
    """A part of a published pipeline.

    Attributes:
        ids: hub ids that hold the same files, the ones to be tried first in front.
        subfolder: the part's folder inside them; None where the part is all there is.
        files: by their names.
        architecture: the config from which diffusers builds it.
        parameters: how many it has.
    """

    ids: tuple[str, ...]
    subfolder: str | None
    files: Mapping[str, KnownFile]
    architecture: Mapping[str, Any] = field(repr=False)
    parameters: int

    def is_at(self, source: str, subfolder: str | None) -> bool:
        """Whether this is what lies in `subfolder` of the hub's `source`."""
        return source in self.ids and (subfolder or None) == self.subfolder


SAFETENSORS, TORCH = "diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin"
"""Names that diffusers gives to weights, in the order in which they are looked for."""

STABLE_DIFFUSION = (
    "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "sd-legacy/stable-diffusion-v1-5",
    "benjamin-paine/stable-diffusion-v1-5",
    "runwayml/stable-diffusion-v1-5",  # the original, deleted in August 2024: a cache may still have it
)

STABLE_DIFFUSION_UNET = KnownPart(
    STABLE_DIFFUSION,
    "unet",
    {
        SAFETENSORS: KnownFile(3438167540, "19da7aaa4b880e59d56843f1fcb4dd9b599c28a1d9d9af7c1143057c8ffae9f1"),
        TORCH: KnownFile(3438354725, "c7da0e21ba7ea50637bee26e81c220844defdf01aafca02b2c42ecdadb813de4"),
    },
    {
        "_class_name": "UNet2DConditionModel",
        "sample_size": 64,
        "in_channels": 4,
        "out_channels": 4,
        "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        "block_out_channels": (320, 640, 1280, 1280),
        "layers_per_block": 2,
        "attention_head_dim": 8,
        "cross_attention_dim": 768,
        "norm_num_groups": 32,
    },
    859_520_964,
)

STABLE_DIFFUSION_VAE = KnownPart(
    STABLE_DIFFUSION,
    "vae",
    {
        SAFETENSORS: KnownFile(334643276, "a2b5134f4dbc140d9c11f11cba3233099e00af40f262f136c691fb7d38d2194c"),
        TORCH: KnownFile(334707217, "1b134cded8eb78b184aefb8805b6b572f36fa77b255c483665dda931fa0130c5"),
    },
    {
        "_class_name": "AutoencoderKL",
        "sample_size": 512,
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "block_out_channels": (128, 256, 512, 512),
        "layers_per_block": 2,
        "latent_channels": 4,
        "norm_num_groups": 32,
        "scaling_factor": 0.18215,
    },
    83_653_863,
)

PARTS = (STABLE_DIFFUSION_UNET, STABLE_DIFFUSION_VAE)

ALPHA_CLIP_ZOO = "the table in model-zoo.md of github.com/SunzeY/AlphaCLIP"
"""Where Alpha-CLIP's authors link to their files."""

ALPHA_CLIP: Mapping[str, KnownFile] = {
    "clip_b16_grit1m_fultune_8xe.pth": KnownFile(
        sha256="9f6ffac9044f641b09975f9c782a34a02a2b52ffd8de4a3d3394404b38794c16"
    ),
    "clip_l14_grit1m_fultune_8xe.pth": KnownFile(
        sha256="05254743d5fc12e24f947fb92ba3737e3bc86a9c190dc6608fc9926a0eb64b91"
    ),
    "clip_b16_grit20m_fultune_2xe.pth": KnownFile(
        sha256="6ff9e3c5735aa34bcbd386ba4d1b99e5efc5deffab077d3d2f2911d1f1c43a57"
    ),
    "clip_l14_grit20m_fultune_2xe.pth": KnownFile(
        sha256="42c621bb5bac89a511ab625a878f026c11de4de8cf7abf52db5dfd11862bdb8e"
    ),
}
"""Alpha-CLIP's released files by their names; LDIS uses clip_l14_grit20m_fultune_2xe.pth."""

CLIP_L14_VISUAL_PARAMETERS = 303_179_776
"""Of CLIP ViT-L/14's visual tower without its projection, as `CLIPVisionModel` of openai/clip-vit-large-patch14."""


def known_part(source: str, subfolder: str | None) -> KnownPart | None:
    """The published part that lies in `subfolder` of the hub's `source`, if there is one."""
    return next((part for part in PARTS if part.is_at(source, subfolder)), None)
