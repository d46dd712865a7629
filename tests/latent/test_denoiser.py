from pathlib import Path

import pytest
import stable_diffusion
import tiny
import torch
from diffusers import UNet2DConditionModel
from torch import nn

from ldis_lightning.checkpoints import is_from_files
from ldis_lightning.errors import UserError
from ldis_lightning.latent import PretrainedUNet, ScratchUNet, StableDiffusionUNet
from ldis_lightning.latent.denoiser import widen_unet_input
from ldis_lightning.latent.surgery import new_layers

LATENT = tiny.pictures(2, 4, 8, 8)
TOKENS = tiny.pictures(2, 5, 8, seed=1)


def denoised(unet: UNet2DConditionModel, latent: torch.Tensor = LATENT, tokens: torch.Tensor = TOKENS) -> torch.Tensor:
    with torch.no_grad():
        return unet(latent, 7, tokens).sample


def test_a_unet_fits_the_latents_and_the_tokens() -> None:
    unet = ScratchUNet([8, 16], attention_head_dim=8, cross_attention_dim=12, norm_num_groups=4).build(6, 10)  # pyright: ignore
    assert denoised(unet, tiny.pictures(2, 6, 8, 8), tiny.pictures(2, 3, 10)).shape == (2, 6, 8, 8)


def test_the_projection_of_eq_1_is_one_linear_layer_before_cross_attention() -> None:
    unet = ScratchUNet((8, 16), attention_head_dim=8, cross_attention_dim=12, norm_num_groups=4).build(4, 8)
    projection = unet.encoder_hid_proj
    assert isinstance(projection, nn.Linear)
    assert (projection.in_features, projection.out_features) == (8, 12)
    seen = []
    attention = unet.down_blocks[0].attentions[0].transformer_blocks[0].attn2  # pyright: ignore
    attention.to_k.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))  # pyright: ignore
    denoised(unet)
    torch.testing.assert_close(seen[0], TOKENS @ projection.weight.T + projection.bias)


def test_heads_have_the_asked_width() -> None:
    unet = tiny.unet()
    heads = [block.attentions[0].transformer_blocks[0].attn1.heads for block in unet.down_blocks]  # pyright: ignore
    assert heads == [1, 2]  # 8 and 16 channels in heads of 8


def test_groups_must_divide_the_channels() -> None:
    with pytest.raises(
        UserError, match=r"norm_num_groups: 5 does not divide every one of block_out_channels \(8, 16\)"
    ):
        ScratchUNet((8, 16), norm_num_groups=5)


def test_widening_keeps_what_the_unet_computes() -> None:
    unet = tiny.unet()
    weight, before = unet.conv_in.weight.clone(), denoised(unet)
    wide = widen_unet_input(unet, 4)
    assert wide is unet and wide.config["in_channels"] == 8
    assert torch.equal(wide.conv_in.weight[:, :4], weight)
    assert not wide.conv_in.weight[:, 4:].any()
    query = 100 * tiny.pictures(2, 4, 8, 8, seed=3)
    torch.testing.assert_close(denoised(wide, torch.cat([LATENT, query], 1)), before)


def test_a_unet_that_is_wide_already_is_left_as_it_is() -> None:
    wide = widen_unet_input(tiny.unet(), 4)
    weight = nn.init.normal_(wide.conv_in.weight).clone()
    assert torch.equal(widen_unet_input(wide, 4).conv_in.weight, weight)
    assert wide.config["in_channels"] == 8
    assert widen_unet_input(tiny.unet(), 0).config["in_channels"] == 4


@pytest.mark.parametrize("extra", [0, 3])
def test_a_unet_of_another_architecture_is_refused(extra: int) -> None:
    """E.g. a trained LDIS-n's in LDIS-1."""
    with pytest.raises(
        UserError, match=rf"the U-Net takes 8 channels, but the model has {4 + extra} for it. LDIS1 gives"
    ):
        widen_unet_input(widen_unet_input(tiny.unet(), 4), extra)


def test_a_widened_unet_can_be_saved_and_loaded(tmp_path: Path) -> None:
    wide = widen_unet_input(tiny.unet(), 4)
    wide.save_pretrained(tmp_path)
    loaded = UNet2DConditionModel.from_pretrained(tmp_path)
    latent = tiny.pictures(2, 8, 8, 8)
    assert torch.equal(denoised(loaded, latent), denoised(wide, latent))


def save_unet(folder: Path, **changes) -> UNet2DConditionModel:
    """Weights as Stable Diffusion's: without a projection."""
    with tiny.seeded():
        unet = UNet2DConditionModel(in_channels=4, out_channels=4, **(tiny.denoiser().config | changes))
    unet.save_pretrained(folder / "unet")
    return unet


def test_pretrained_weights_are_kept_and_get_a_projection(tmp_path: Path) -> None:
    original = save_unet(tmp_path)
    unet = PretrainedUNet(str(tmp_path), "unet").build(4, 6)
    tokens = tiny.pictures(2, 5, 6)
    projected = unet.encoder_hid_proj(tokens)  # pyright: ignore[reportOptionalCall]
    assert projected.shape == (2, 5, 8)
    assert torch.equal(denoised(unet, LATENT, tokens), denoised(original, LATENT, projected))
    assert is_from_files(unet) and not is_from_files(tiny.unet())
    assert new_layers(unet) == {"encoder_hid_proj"}
    assert new_layers(widen_unet_input(unet, 4)) == {"encoder_hid_proj", "conv_in"}


def test_a_fitting_projection_is_kept(tmp_path: Path) -> None:
    original = save_unet(tmp_path, encoder_hid_dim=8, encoder_hid_dim_type="text_proj")
    unet = PretrainedUNet(str(tmp_path / "unet")).build(4, 8)
    assert torch.equal(denoised(unet), denoised(original))
    assert not new_layers(unet)
    other = PretrainedUNet(str(tmp_path / "unet")).build(4, 9).encoder_hid_proj
    assert isinstance(other, nn.Linear) and other.in_features == 9


def test_latents_of_another_width_are_refused(tmp_path: Path) -> None:
    save_unet(tmp_path)
    with pytest.raises(UserError, match=r"has 4 latent channels, but model\.autoencoder has 16"):
        PretrainedUNet(str(tmp_path), "unet").build(16, 8)


def test_nothing_to_load(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"model\.denoiser\.path: '.*' has no config\.json"):
        PretrainedUNet(str(tmp_path)).build(4, 8)


def test_a_unet_in_the_layout_of_stable_diffusion(tmp_path: Path) -> None:
    stable_diffusion.write_stable_diffusion(tmp_path)
    original = UNet2DConditionModel.from_pretrained(tmp_path / "unet")
    unet = PretrainedUNet(str(tmp_path), "unet").build(4, 6)
    projected = unet.encoder_hid_proj(tiny.pictures(2, 5, 6))  # pyright: ignore[reportOptionalCall]
    assert torch.equal(denoised(unet, LATENT, tiny.pictures(2, 5, 6)), denoised(original, LATENT, projected))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"class_embed_type": "timestep"}, r"needs another condition beside its tokens \(class_embed_type: timestep\)"),
        ({"num_class_embeds": 3}, r"needs another condition beside its tokens \(num_class_embeds: 3\)"),
        (
            {
                "down_block_types": ("DownBlock2D",) * 2,
                "mid_block_type": "UNetMidBlock2D",
                "up_block_types": ("UpBlock2D",) * 2,
            },
            "has no cross-attention",
        ),
        ({"cross_attention_dim": (8, 12)}, r"take tokens of different widths \(\[8, 12\]\)"),
    ],
)
def test_a_unet_that_needs_something_else_is_refused(changes: dict, message: str, tmp_path: Path) -> None:
    stable_diffusion.write_stable_diffusion(tmp_path, unet=changes)
    with pytest.raises(UserError, match=message):
        PretrainedUNet(str(tmp_path), "unet").build(4, 8)


def test_an_autoencoder_is_no_unet(tmp_path: Path) -> None:
    stable_diffusion.write_stable_diffusion(tmp_path)
    with pytest.raises(UserError, match="this is a AutoencoderKL, but UNet2DConditionModel is needed"):
        PretrainedUNet(str(tmp_path), "vae").build(4, 8)


def test_stable_diffusions_architecture_fits_any_latents_and_tokens() -> None:
    with torch.device("meta"):
        unet = StableDiffusionUNet().build(16, 10)
        output = denoised(unet, torch.zeros(1, 16, 8, 8), torch.zeros(1, 3, 10))
    assert output.shape == (1, 16, 8, 8)
    assert [block.attentions[0].transformer_blocks[0].attn2.heads for block in unet.down_blocks[:3]] == [8] * 3  # pyright: ignore
    assert not is_from_files(unet)
