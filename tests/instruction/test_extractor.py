import pytest
import tiny
import torch
import torch.nn.functional as F
from torch import Tensor

from ldis_lightning.instruction import (
    AlphaChannel,
    CropToMask,
    CrossAttentionMask,
    Instruction,
    InstructionExtractor,
    NoPostMasking,
    NoPreMasking,
    PixelProduct,
    PostMask,
    PreMask,
    PrototypePooling,
    compact,
)

SIZE = tiny.PROMPT
IMAGE = tiny.pictures(2, 3, 3, SIZE, SIZE)  # 2 episodes of 3 references
MASK = tiny.masks(6, SIZE).unflatten(0, (2, 3))


def direct_tokens(extractor: InstructionExtractor, image: Tensor, alpha: Tensor) -> Tensor:
    """Tokens of one reference (3, S, S) from the transformer itself, its class token dropped: (16, 8)."""
    encoder = extractor.encoder
    channels = torch.cat([(image - encoder.mean) / encoder.std, alpha[None]])  # pyright: ignore
    return encoder.vit.forward_features(channels[None])[0, 1:]  # pyright: ignore


def test_eq_1_references_are_concatenated_along_the_tokens_in_order() -> None:
    extractor = tiny.extractor()
    tokens, attended, position = extractor(IMAGE, MASK)
    assert position.tolist() == [[*range(16)] * 3] * 2
    assert (tokens.shape, attended.shape, attended.dtype) == ((2, 3 * 16, 8), (2, 3 * 16), torch.bool)
    for b in range(2):
        for k in range(3):
            foreground = (MASK[b, k] == 1).float()
            expected = direct_tokens(extractor, IMAGE[b, k], (foreground - 0.5) / 0.26)
            torch.testing.assert_close(tokens[b, 16 * k : 16 * (k + 1)], expected, rtol=1e-4, atol=1e-5)
            assert torch.equal(attended[b, 16 * k : 16 * (k + 1)], foreground[::4, ::4].flatten().bool())


@pytest.mark.parametrize("pre_mask", [NoPreMasking(), PixelProduct(), AlphaChannel(), CropToMask()])
@pytest.mark.parametrize("post_mask", [NoPostMasking(), CrossAttentionMask(), PrototypePooling()])
def test_ignored_pixels_are_background(pre_mask: PreMask, post_mask: PostMask) -> None:
    extractor = tiny.extractor(pre_mask, post_mask)
    assert (MASK == 255).any()
    ignored, background = extractor(IMAGE, MASK), extractor(IMAGE, MASK.masked_fill(MASK == 255, 0))
    assert torch.equal(ignored.tokens, background.tokens)
    assert torch.equal(ignored.attention_mask, background.attention_mask)


def test_prototypes_are_one_token_a_reference() -> None:
    tokens, attended, position = tiny.extractor(post_mask=PrototypePooling())(IMAGE, MASK)
    assert tokens.shape == (2, 3, 8) and not position.any()
    assert bool(attended.all())


def test_references_of_another_size_are_resized() -> None:
    extractor = tiny.extractor()
    image, mask = tiny.pictures(1, 1, 3, 32, 32), tiny.masks(1, 32)[None]
    resized = F.interpolate(image[0], (SIZE, SIZE), mode="bilinear", antialias=True)
    foreground = (mask[0, 0, ::2, ::2] == 1).float()  # nearest
    tokens, attended, _ = extractor(image, mask)
    expected = direct_tokens(extractor, resized[0], (foreground - 0.5) / 0.26)
    torch.testing.assert_close(tokens[0], expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(attended[0], foreground[::4, ::4].flatten().bool())


def test_a_thin_object_survives_the_resizing_to_the_encoders_input() -> None:
    mask = torch.zeros(1, 1, 32, 32, dtype=torch.uint8)
    mask[..., 21, 9:15] = 1  # an odd row, which nearest resizing from 32 to 16 skips; token (2, 1) of 4 x 4
    seen = {}
    extractor = tiny.extractor()
    extractor.encoder.register_forward_pre_hook(lambda _, inputs: seen.update(prompt=inputs[0]))
    attended = extractor(tiny.pictures(1, 1, 3, 32, 32), mask).attention_mask
    assert attended[0].nonzero().flatten().tolist() == [2 * 4 + 1]
    assert seen["prompt"].mask[0].nonzero().tolist() == [[10, 4], [10, 5], [10, 6], [10, 7]]


@pytest.mark.parametrize("post_mask", [NoPostMasking(), CrossAttentionMask(), PrototypePooling()])
def test_the_null_instruction_is_that_of_a_blank_picture_wholly_marked(post_mask: PostMask) -> None:
    extractor = tiny.extractor(post_mask=post_mask)
    like = extractor(IMAGE, MASK)
    blank = direct_tokens(extractor, torch.zeros(3, SIZE, SIZE), torch.full((SIZE, SIZE), 0.5 / 0.26))
    if isinstance(post_mask, PrototypePooling):
        blank = blank.mean(0, keepdim=True)
    whole = extractor.null(like, keep_mask=False)  # of one reference: more would say the same again
    assert bool(whole.attended.all())
    torch.testing.assert_close(whole.tokens, blank.expand(2, -1, -1), rtol=1e-4, atol=1e-5)
    for given in (like, compact(like)):
        masked = extractor.null(given, keep_mask=True)
        assert torch.equal(masked.attended, given.attended)
        assert torch.equal(masked.position, given.position)
        torch.testing.assert_close(masked.tokens, blank[given.position], rtol=1e-4, atol=1e-5)


def test_a_frozen_encoder_gives_tokens_without_gradient() -> None:
    instruction: Instruction = tiny.extractor(trainable=False)(IMAGE, MASK)
    assert not instruction.tokens.requires_grad
    assert tiny.extractor()(IMAGE, MASK).tokens.requires_grad


def test_the_null_instruction_of_a_frozen_encoder_is_made_once() -> None:
    extractor = tiny.extractor(trainable=False)
    calls = []
    extractor.encoder.register_forward_hook(lambda *_: calls.append("x"))
    like = extractor(IMAGE, MASK)
    first = extractor.null(like, keep_mask=False)
    assert torch.equal(extractor.null(compact(like), keep_mask=False).tokens, first.tokens)
    assert len(calls) == 2  # the references, the null instruction
    with torch.no_grad():
        extractor.encoder.get_parameter("vit.patch_embed.proj.weight").mul_(3)
    assert not torch.allclose(extractor.null(like, keep_mask=False).tokens, first.tokens)
    with torch.inference_mode():
        double = extractor.double().null(like._replace(tokens=like.tokens.double()), keep_mask=False)
    assert double.tokens.dtype == torch.float64
    weight = torch.ones(8, dtype=torch.float64, requires_grad=True)  # what inference made can be trained with
    (extractor.null(like._replace(tokens=like.tokens.double()), keep_mask=True).tokens * weight).sum().backward()


def test_the_null_instruction_of_a_trained_encoder_is_not_kept() -> None:
    extractor = tiny.extractor()
    like = extractor(IMAGE, MASK)
    for _ in range(2):
        extractor.null(like, keep_mask=False).tokens.sum().backward()
