from typing import Any

import pytest
import timm
import tiny
import torch
import torch.nn.functional as F
from torch import Tensor, nn

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
