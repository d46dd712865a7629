"""The models at full scale, on the meta device: as many parameters as were published, and every width linked."""

import pytest
import tiny
import torch
from torch import nn

from ldis_lightning.instruction import AlphaChannel, AlphaCLIPPromptEncoder, CrossAttentionMask, InstructionExtractor
from ldis_lightning.latent import (
    Autoencoder,
    Denoiser,
    PretrainedAutoencoder,
    PretrainedUNet,
    StableDiffusionAutoencoder,
    StableDiffusionUNet,
)
from ldis_lightning.latent.fine_tuning import LoRA
from ldis_lightning.meta_architectures import LDIS1, InContextSegmenter
from ldis_lightning.weights.known import (
    CLIP_L14_VISUAL_PARAMETERS,
    STABLE_DIFFUSION,
    STABLE_DIFFUSION_UNET,
    STABLE_DIFFUSION_VAE,
)

PROJECTION = 1024 * 768 + 768
NEW_INPUT = 320 * 4 * 3 * 3
ALPHA = 1024 * 1 * 14 * 14
LAST_NORM = 2 * 1024
"""CLIP's `ln_post`, which comes after the tokens."""


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def parts(pretrained: bool) -> tuple[Denoiser, Autoencoder]:
    if pretrained:
        path = STABLE_DIFFUSION[0]
        return PretrainedUNet(path, "unet"), PretrainedAutoencoder(path, "vae", sample=True)
    return StableDiffusionUNet(), StableDiffusionAutoencoder(sample=True)


@pytest.fixture(scope="module", params=[True, False], ids=["from files", "from scratch"])
def full_scale(request: pytest.FixtureRequest) -> list[InContextSegmenter]:
    """LDIS-1 and LDIS-n as in the paper."""
    with torch.device("meta"):
        models = []
        for make in (tiny.ldis1, tiny.ldisn):
            denoiser, autoencoder = parts(request.param)
            encoder = AlphaCLIPPromptEncoder("not/read.pth")
            instruction = InstructionExtractor(encoder, AlphaChannel(), CrossAttentionMask())
            models.append(make(instruction=instruction, autoencoder=autoencoder, denoiser=denoiser))
    return models


def test_every_part_has_as_many_parameters_as_published(full_scale: list[InContextSegmenter]) -> None:
    assert (STABLE_DIFFUSION_UNET.parameters, STABLE_DIFFUSION_VAE.parameters) == (859_520_964, 83_653_863)
    for model in full_scale:
        conditions = 0 if isinstance(model, LDIS1) else NEW_INPUT
        assert count(model.unet) == 859_520_964 + PROJECTION + conditions
        assert count(model.autoencoder) == 83_653_863
        assert count(model.instruction) == CLIP_L14_VISUAL_PARAMETERS - LAST_NORM + ALPHA
        assert all(parameter.is_meta for parameter in model.parameters())
    assert count(full_scale[0].unet) == 860_308_164


def test_only_the_denoiser_trains(full_scale: list[InContextSegmenter]) -> None:
    for model in full_scale:
        assert sum(parameter.numel() for parameter in model.trainable_parameters()) == count(model.unet)


def test_a_call_of_the_paper_s_size(full_scale: list[InContextSegmenter]) -> None:
    """256 x 256 pictures, one reference: shapes alone go through."""
    for model in full_scale:
        with torch.device("meta"), torch.no_grad():
            picture = torch.zeros(2, 1, 3, 256, 256)
            instruction = model.instruction(picture, torch.zeros(2, 1, 256, 256, dtype=torch.uint8))
            latent = torch.zeros(2, model.unet.config["in_channels"], 32, 32)
            output = model.unet(latent, 0, instruction.tokens).sample
            decoded = model.autoencoder.decode(output)
        assert instruction.tokens.shape == (2, 256, 1024)
        assert (output.shape, decoded.shape) == ((2, 4, 32, 32), (2, 3, 256, 256))
        assert isinstance(model.unet.encoder_hid_proj, nn.Linear)
        assert (model.unet.encoder_hid_proj.in_features, model.unet.encoder_hid_proj.out_features) == (1024, 768)


@pytest.mark.parametrize(("rank", "adapters"), [(1, 199_296), (4, 797_184), (16, 3_188_736)])
def test_adapters(rank: int, adapters: int) -> None:
    with torch.device("meta"):
        unet = PretrainedUNet("stable-diffusion-v1-5/stable-diffusion-v1-5", "unet").build(4, 1024)
        LoRA(rank).apply(unet)
    trained = {name: parameter.numel() for name, parameter in unet.named_parameters() if parameter.requires_grad}
    projection = sum(trained.pop(f"encoder_hid_proj.{kind}") for kind in ("weight", "bias"))
    assert projection == PROJECTION
    assert sum(trained.values()) == adapters
