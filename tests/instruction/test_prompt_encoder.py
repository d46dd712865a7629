from pathlib import Path
from typing import Any

import pytest
import timm
import tiny
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ldis_lightning.checkpoints import is_from_files
from ldis_lightning.errors import UserError
from ldis_lightning.instruction import TimmPromptEncoder
from ldis_lightning.instruction.pre_masks import Prompt

SIZE = tiny.PROMPT
SIZES: dict[str, Any] = {"img_size": SIZE, "patch_size": 4, "embed_dim": 8, "depth": 1, "num_heads": 2}


def prompt(count: int = 2, seed: int = 0) -> Prompt:
    alpha = tiny.pictures(count, 1, SIZE, SIZE, seed=seed + 1)
    return Prompt(tiny.pictures(count, 3, SIZE, SIZE, seed=seed), alpha, (alpha[:, 0] > 0).float())


def plain_vit(**changes: Any) -> Any:
    """timm's own transformer of three channels, whose class and position embeddings are not zero."""
    with tiny.seeded(4):
        vit: Any = timm.create_model("vit_tiny_patch16_224", num_classes=0, **(SIZES | changes))
        for embedding in (vit.cls_token, vit.pos_embed):
            nn.init.normal_(embedding)
    return vit


@pytest.fixture
def pretrained(monkeypatch: pytest.MonkeyPatch) -> tuple[TimmPromptEncoder, nn.Module]:
    """An encoder that believes to have loaded pretrained weights, and the transformer they are from."""
    asked = {}
    create = timm.create_model

    def load(name: str, pretrained: bool, **arguments: Any) -> Any:
        asked.update(pretrained=pretrained)
        vit = create(name, **arguments)
        vit.load_state_dict(original.state_dict())
        return vit

    original = plain_vit()
    monkeypatch.setattr(timm, "create_model", load)
    encoder = TimmPromptEncoder(pretrained=True, trainable=False, model_args=SIZES)
    assert asked == {"pretrained": True}
    return encoder, original.eval()


def patch_embedding(encoder: Any, given: Prompt) -> tuple[Tensor, Tensor]:
    """Input and output of the patch convolution."""
    seen = {}
    handle = encoder.vit.patch_embed.proj.register_forward_hook(
        lambda _, inputs, output: seen.update(x=inputs[0], y=output)
    )
    encoder(given)
    handle.remove()
    return seen["x"], seen["y"]


def test_the_patch_convolution_is_alpha_clips_sum_of_two() -> None:
    encoder: Any = tiny.prompt_encoder()
    given = prompt()
    channels, embedded = patch_embedding(encoder, given)
    weight, bias = encoder.vit.patch_embed.proj.weight, encoder.vit.patch_embed.proj.bias
    assert weight.shape == (8, 4, 4, 4)
    rgb = F.conv2d(channels[:, :3], weight[:, :3], bias, stride=4)
    alpha = F.conv2d(given.alpha, weight[:, 3:], None, stride=4)
    torch.testing.assert_close(embedded, rgb + alpha)
    assert not torch.allclose(embedded, rgb, atol=1e-3)  # a new encoder sees the mask from the start


def test_pictures_are_normalised_as_the_transformer_was_trained() -> None:
    encoder, given = tiny.prompt_encoder(), prompt()
    statistics: Any = timm.data.resolve_model_data_config(plain_vit())  # pyright: ignore[reportAttributeAccessIssue]
    mean, std = (torch.tensor(statistics[key]).view(3, 1, 1) for key in ("mean", "std"))
    channels, _ = patch_embedding(encoder, given)
    torch.testing.assert_close(channels[:, :3], ((given.image + 1) / 2 - mean) / std)
    assert torch.equal(channels[:, 3:], given.alpha)  # the pre-mask has normalised it already


def test_widening_leaves_a_pretrained_encoder_as_it_was(pretrained: tuple[TimmPromptEncoder, Any]) -> None:
    encoder, original = pretrained
    given = prompt()
    statistics: Any = timm.data.resolve_model_data_config(original)  # pyright: ignore[reportAttributeAccessIssue]
    mean, std = (torch.tensor(statistics[key]).view(3, 1, 1) for key in ("mean", "std"))
    with torch.no_grad():
        expected = original.forward_features(((given.image + 1) / 2 - mean) / std)[:, 1:]  # without the class token
    torch.testing.assert_close(encoder(given), expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(encoder(given), encoder(given._replace(alpha=100 * given.alpha - 7)))


def test_class_and_register_tokens_are_dropped() -> None:
    encoder: Any = tiny.prompt_encoder(reg_tokens=3)
    given = prompt()
    with torch.no_grad():
        every = encoder.vit.forward_features(patch_embedding(encoder, given)[0])
        tokens = encoder(given)
    assert every.shape == (2, 1 + 3 + 16, 8)
    assert torch.equal(tokens, every[:, 4:])
    assert (encoder.width, encoder.grid, encoder.image_size) == (8, 4, SIZE)


def test_tokens_go_row_by_row() -> None:
    """With no transformer layers, position embedding or norm, token i depends on patch i alone."""
    encoder = tiny.prompt_encoder(depth=0, pos_embed="none")
    given = prompt(1)
    image = given.image.clone()
    image[:, :, 4:8, 8:12] += 0.5  # patch in row 1, column 2
    changed = (encoder(given._replace(image=image)) != encoder(given)).any(2)[0]
    assert changed.nonzero().flatten().tolist() == [1 * 4 + 2]


def test_without_the_final_norm_tokens_are_the_last_layers() -> None:
    normed = tiny.prompt_encoder()
    with tiny.seeded(1):
        raw = TimmPromptEncoder(final_norm=False, model_args=SIZES)
    given = prompt()
    torch.testing.assert_close(normed(given), F.layer_norm(raw(given), (8,), eps=1e-6), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(normed(given), raw(given), atol=1e-2)


def test_a_frozen_encoder_has_no_gradient_and_stays_in_evaluation_mode() -> None:
    encoder = tiny.prompt_encoder(trainable=False, proj_drop_rate=0.5)
    nn.Sequential(encoder).train()
    assert not any(module.training for module in encoder.modules())
    given = prompt()
    given.image.requires_grad_()
    tokens = encoder(given)
    assert not tokens.requires_grad
    assert not any(weight.requires_grad for weight in encoder.parameters())
    assert torch.equal(tokens, encoder(given))  # no dropout


def test_a_trainable_encoder_learns_every_weight() -> None:
    encoder: Any = tiny.prompt_encoder().train()
    assert encoder.vit.training
    (encoder(prompt()) * tiny.pictures(2, 16, 8, seed=3)).sum().backward()
    without = [name for name, weight in encoder.named_parameters() if weight.grad is None]
    assert not without
    alpha_gradient = encoder.vit.patch_embed.proj.weight.grad[:, 3]
    assert bool((alpha_gradient != 0).any())


def test_an_unknown_model_is_named_with_similar_ones() -> None:
    with pytest.raises(UserError, match=r"no model 'vit_huge_nonsense'.*vit_"):
        TimmPromptEncoder("vit_huge_nonsense")


def test_a_model_without_patches_is_refused() -> None:
    with pytest.raises(UserError, match="'lcnet_035' has no patch convolution"):
        TimmPromptEncoder("lcnet_035")


def test_a_grid_that_is_not_square_is_refused() -> None:
    with pytest.raises(UserError, match=r"\(4, 2\), not square"):
        tiny.prompt_encoder(img_size=(16, 8))


@pytest.mark.parametrize(
    ("name", "sizes", "expected"),
    [
        ("vit_base_patch32_clip_quickgelu_224.openai", {}, (224, 7, 768)),
        ("vit_small_patch14_dinov2.lvd142m", {"img_size": 224}, (224, 16, 384)),
        ("vit_small_patch14_reg4_dinov2.lvd142m", {"img_size": 112}, (112, 8, 384)),
        ("vit_small_patch16_dinov3.lvd1689m", {}, (256, 16, 384)),
        ("vit_base_patch16_siglip_224.v2_webli", {}, (224, 14, 768)),
        ("eva02_tiny_patch14_224.mim_in22k", {}, (224, 16, 192)),
        ("beit_base_patch16_224.in22k_ft_in22k", {}, (224, 14, 768)),
        ("deit3_small_patch16_224.fb_in1k", {}, (224, 14, 384)),
    ],
)
def test_any_vision_transformer_of_timm(name: str, sizes: dict, expected: tuple[int, int, int], tmp_path: Path) -> None:
    """Its own features of the picture, without the tokens in front of the grid; every weight of it takes part."""
    if not timm.is_model(name):
        pytest.skip(f"this timm is older than {name}")
    model_args = {"depth": 1, **sizes}
    with tiny.seeded():
        plain: Any = timm.create_model(name, num_classes=0, **model_args).eval()
    save_file({key: tensor.contiguous() for key, tensor in plain.state_dict().items()}, tmp_path / "vit.safetensors")
    encoder = TimmPromptEncoder(name, model_args=model_args, weights=str(tmp_path / "vit.safetensors")).eval()
    assert (encoder.image_size, encoder.grid, encoder.width) == expected
    size = encoder.image_size
    given = Prompt(tiny.pictures(1, 3, size, size), torch.ones(1, 1, size, size), torch.ones(1, size, size))
    mean, std = (torch.tensor(plain.pretrained_cfg[key]).view(3, 1, 1) for key in ("mean", "std"))
    with torch.no_grad():
        features = plain.forward_features(((given.image + 1) / 2 - mean) / std)
    tokens = encoder(given)
    torch.testing.assert_close(tokens, features[:, plain.num_prefix_tokens :], rtol=1e-4, atol=1e-4)
    (tokens * tiny.pictures(*tokens.shape, seed=1)).sum().backward()
    assert not [key for key, weight in encoder.named_parameters() if weight.grad is None]


@pytest.mark.parametrize("name", ["swin_tiny_patch4_window7_224", "samvit_base_patch16"])
def test_a_model_without_a_token_for_each_patch_is_refused(name: str) -> None:
    message = rf"name: '{name}' gives \(.*\), not a token for each of its patches"
    with torch.device("meta"), pytest.raises(UserError, match=message):
        TimmPromptEncoder(name)


def test_weights_with_four_channels_come_back(tmp_path: Path) -> None:
    original = tiny.prompt_encoder()
    torch.save({"state_dict": original.vit.state_dict()}, tmp_path / "vit.pth")
    again = TimmPromptEncoder(model_args=SIZES, weights=str(tmp_path / "vit.pth"), trainable=False)
    assert torch.equal(again(prompt()), original(prompt()))
    assert is_from_files(again)
    assert not is_from_files(original)
    assert not is_from_files(TimmPromptEncoder(model_args=SIZES, weights=str(tmp_path / "vit.pth")))  # it trains


def test_heads_in_the_file_are_left_out(tmp_path: Path) -> None:
    with tiny.seeded():
        vit = timm.create_model("vit_tiny_patch16_224", num_classes=7, **SIZES)
    save_file(vit.state_dict(), tmp_path / "vit.safetensors")
    encoder = TimmPromptEncoder(model_args=SIZES, weights=str(tmp_path / "vit.safetensors"), final_norm=False)
    found = encoder.vit.state_dict()
    assert not [name for name in found if name.startswith(("head", "norm."))]
    assert torch.equal(
        found["blocks.0.mlp.fc1.weight"], load_file(tmp_path / "vit.safetensors")["blocks.0.mlp.fc1.weight"]
    )


def test_weights_of_another_size_are_named(tmp_path: Path) -> None:
    save_file(plain_vit().state_dict(), tmp_path / "vit.safetensors")
    with pytest.raises(
        UserError, match=r"encoder\.weights: .*has other shapes: pos_embed \(1, 17, 8\) instead of \(1, 65, 8\)"
    ):
        TimmPromptEncoder(model_args={**SIZES, "img_size": 32}, weights=str(tmp_path / "vit.safetensors"))
    with pytest.raises(UserError, match=r"encoder\.weights: .*nothing\.pth: there is no such file"):
        TimmPromptEncoder(model_args=SIZES, weights=str(tmp_path / "nothing.pth"))


def test_one_source_of_weights() -> None:
    with pytest.raises(UserError, match=r"weights and pretrained: true name two sources"):
        TimmPromptEncoder(pretrained=True, weights="vit.pth")


def test_pretrained_weights_that_cannot_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError("no network\nand a page of advice")

    monkeypatch.setattr(timm, "create_model", fail)
    message = (
        r"cannot load the pretrained weights of 'vit_tiny_patch16_224' \(no network\)\. .*encoder\.weights instead"
    )
    with pytest.raises(UserError, match=message):
        TimmPromptEncoder(pretrained=True)


def test_on_the_meta_device_nothing_is_loaded() -> None:
    with torch.device("meta"):
        encoder = TimmPromptEncoder("vit_large_patch14_clip_224.openai", pretrained=True, trainable=False)
        other = TimmPromptEncoder(model_args=SIZES, weights="nothing.pth", trainable=False)
    assert (encoder.width, encoder.grid, other.width) == (1024, 16, 8)
    assert is_from_files(encoder) and is_from_files(other)
    assert all(weight.is_meta for weight in encoder.parameters())
