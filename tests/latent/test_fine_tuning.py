"""What of the U-Net trains."""

import sys
from pathlib import Path

import pytest
import tiny
import torch
from diffusers import UNet2DConditionModel
from stable_diffusion import write_stable_diffusion

from ldis_lightning.errors import UserError
from ldis_lightning.latent import PretrainedUNet
from ldis_lightning.latent.denoiser import widen_unet_input
from ldis_lightning.latent.fine_tuning import FullFineTuning, LoRA

LATENT, TOKENS = tiny.pictures(2, 4, 8, 8), tiny.pictures(2, 5, 8, seed=1)


@pytest.fixture
def unet(tmp_path: Path) -> UNet2DConditionModel:
    folder = write_stable_diffusion(tmp_path)
    with tiny.seeded(7):
        return PretrainedUNet(str(folder), "unet").build(4, 8)


def denoised(unet: UNet2DConditionModel) -> torch.Tensor:
    with torch.no_grad():
        return unet(LATENT, 7, TOKENS).sample


def shake(unet: UNet2DConditionModel) -> None:
    """Give the adapters weights as after training: the second factor starts at zero."""
    with tiny.seeded(5), torch.no_grad():
        for name, parameter in unet.named_parameters():
            if "lora_B" in name:
                parameter.copy_(torch.randn_like(parameter))


def test_all_of_it(unet: UNet2DConditionModel) -> None:
    unet.requires_grad_(False)
    FullFineTuning().apply(unet)
    assert all(parameter.requires_grad for parameter in unet.parameters())
    before = denoised(unet)
    FullFineTuning().merge(unet)
    assert torch.equal(denoised(unet), before)


def test_adapters_start_as_the_pretrained_unet(unet: UNet2DConditionModel) -> None:
    before = denoised(unet)
    LoRA(rank=2).apply(unet)
    torch.testing.assert_close(denoised(unet), before)
    shake(unet)
    assert not torch.allclose(denoised(unet), before, atol=1e-3)


def test_adapters_and_new_layers_train(unet: UNet2DConditionModel) -> None:
    widen_unet_input(unet, 4)
    LoRA(rank=3, targets=("to_k", "to_v")).apply(unet)
    trained = {name for name, parameter in unet.named_parameters() if parameter.requires_grad}
    adapters = {name for name in trained if ".lora_" in name}
    assert trained - adapters == {
        f"{layer}.{kind}" for layer in ("conv_in", "encoder_hid_proj") for kind in ("weight", "bias")
    }
    assert len(adapters) == 4 * 2 * 2 * 2 and all(".to_k." in name or ".to_v." in name for name in adapters)
    assert {unet.get_parameter(name).shape[0] for name in adapters if "lora_A" in name} == {3}


@pytest.mark.parametrize("alpha", [None, 1.0, 6.0])
def test_an_adapted_layer_is_w_plus_alpha_over_rank_b_a(unet: UNet2DConditionModel, alpha: float | None) -> None:
    LoRA(rank=3, alpha=alpha).apply(unet)
    shake(unet)
    layer = unet.get_submodule("down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k")
    weight, a, b = (
        layer.get_parameter(name) for name in ("base_layer.weight", "lora_A.default.weight", "lora_B.default.weight")
    )
    x = tiny.pictures(4, weight.shape[1], seed=3)
    expected = x @ (weight + (3 if alpha is None else alpha) / 3 * b @ a).T
    torch.testing.assert_close(layer(x), expected, rtol=1e-5, atol=1e-5)


def test_merged_it_is_a_plain_unet_that_computes_the_same(unet: UNet2DConditionModel) -> None:
    plain = set(unet.state_dict())
    rule = LoRA(rank=2, alpha=4)
    rule.apply(unet)
    shake(unet)
    adapted = denoised(unet)
    rule.merge(unet)
    assert set(unet.state_dict()) == plain
    torch.testing.assert_close(denoised(unet), adapted, rtol=1e-5, atol=1e-5)


def test_mistakes(unet: UNet2DConditionModel, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"model.fine_tuning.rank: must be at least 1, got 0"):
        LoRA(rank=0)
    with pytest.raises(UserError, match=r"random weights; use PretrainedUNet"):
        LoRA().apply(tiny.unet())
    with pytest.raises(UserError, match=r"model.fine_tuning.targets: no layer's name ends in to_nowhere"):
        LoRA(targets=("to_nowhere",)).apply(unet)
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(UserError, match=r"pip install 'ldis-lightning\[lora\]'"):
        LoRA().apply(unet)
