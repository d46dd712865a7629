from pathlib import Path
from typing import Any

import pytest
import stable_diffusion
import tiny
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldis_lightning.checkpoints import is_from_files
from ldis_lightning.errors import UserError
from ldis_lightning.instruction import AlphaCLIPPromptEncoder
from ldis_lightning.instruction.pre_masks import Prompt

SIZE = stable_diffusion.ALPHA_CLIP["img_size"]
HEADS = stable_diffusion.ALPHA_CLIP["num_heads"]
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""CLIP's statistics of pictures in [0, 1]."""


def prompt(seed: int = 0) -> Prompt:
    alpha = tiny.pictures(2, 1, SIZE, SIZE, seed=seed + 1)
    return Prompt(tiny.pictures(2, 3, SIZE, SIZE, seed=seed), alpha, (alpha[:, 0] > 0).float())


def alpha_clip(state: dict[str, Tensor], image: Tensor, alpha: Tensor) -> Tensor:
    """Alpha-CLIP's visual tower up to its last layer, written out: (N, 3, S, S), (N, 1, S, S) -> (N, g*g, C)."""
    patch = state["conv1.weight"].shape[-1]
    image = ((image + 1) / 2 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    x = F.conv2d(image, state["conv1.weight"], stride=patch) + F.conv2d(
        alpha, state["conv1_alpha.weight"], stride=patch
    )
    x = x.flatten(2).transpose(1, 2)  # (N, g*g, C)
    x = torch.cat([state["class_embedding"].expand(len(x), 1, -1), x], 1) + state["positional_embedding"]

    def norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], eps=1e-5)

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    x = norm(x, "ln_pre")
    for layer in range(stable_diffusion.ALPHA_CLIP["depth"]):
        block = f"transformer.resblocks.{layer}"
        q, k, v = (
            part.unflatten(2, (HEADS, -1)).transpose(1, 2)
            for part in linear(norm(x, f"{block}.ln_1"), f"{block}.attn.in_proj").chunk(3, 2)
        )
        weight = (q @ k.transpose(2, 3) / q.shape[-1] ** 0.5).softmax(3)
        x = x + linear((weight @ v).transpose(1, 2).flatten(2), f"{block}.attn.out_proj")
        hidden = linear(norm(x, f"{block}.ln_2"), f"{block}.mlp.c_fc")
        x = x + linear(hidden * torch.sigmoid(1.702 * hidden), f"{block}.mlp.c_proj")  # QuickGELU
    return x[:, 1:]


def encoder(path: Path, **changes: Any) -> AlphaCLIPPromptEncoder:
    return AlphaCLIPPromptEncoder(str(path), **{"model_args": stable_diffusion.ALPHA_CLIP, **changes})


def test_tokens_are_alpha_clips(tmp_path: Path) -> None:
    path = stable_diffusion.write_alpha_clip(tmp_path / "alpha_clip.pth")
    given = prompt()
    tokens = encoder(path)(given)
    expected = alpha_clip(stable_diffusion.alpha_clip_state(), given.image, given.alpha)
    assert tokens.shape == (2, 16, 8)
    torch.testing.assert_close(tokens, expected, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(
        tokens, alpha_clip(stable_diffusion.alpha_clip_state(), given.image, -given.alpha), atol=0.1
    )


@pytest.mark.parametrize("prefix", ["module.", "visual."])
def test_names_of_other_savers(prefix: str, tmp_path: Path) -> None:
    """In a parallel model; in a whole CLIP, beside its text tower; with plain CLIP's name of in_proj."""
    state = stable_diffusion.alpha_clip_state()
    renamed = {f"{prefix}{name.replace('in_proj.', 'in_proj_')}": value for name, value in state.items()}
    torch.save(renamed | ({"token_embedding.weight": torch.ones(3)} if prefix == "visual." else {}), tmp_path / "a.pth")
    original = encoder(stable_diffusion.write_alpha_clip(tmp_path / "b.pth"))
    assert torch.equal(encoder(tmp_path / "a.pth")(prompt()), original(prompt()))


def test_it_is_frozen_unless_it_is_to_train(tmp_path: Path) -> None:
    path = stable_diffusion.write_alpha_clip(tmp_path / "alpha_clip.pth")
    frozen, trainable = encoder(path), encoder(path, trainable=True)
    nn.Sequential(frozen).train()
    assert is_from_files(frozen) and not is_from_files(trainable)
    assert not any(weight.requires_grad for weight in frozen.parameters())
    assert not any(module.training for module in frozen.modules())
    trainable(prompt()).square().sum().backward()
    assert all(weight.grad is not None for weight in trainable.parameters())


def test_another_architecture_is_named(tmp_path: Path) -> None:
    path = stable_diffusion.write_alpha_clip(tmp_path / "alpha_clip.pth", {"depth": 3})
    with pytest.raises(UserError, match=r"does not fit the architecture: it has too many: blocks\.2\..* and 9 more"):
        encoder(path)


def test_plain_clip_has_no_alpha(tmp_path: Path) -> None:
    state = stable_diffusion.alpha_clip_state()
    del state["conv1_alpha.weight"]
    torch.save(state, tmp_path / "clip.pth")
    with pytest.raises(UserError, match=r"clip\.pth is no checkpoint of Alpha-CLIP: it has no conv1 and conv1_alpha"):
        encoder(tmp_path / "clip.pth")


def test_a_missing_file_says_where_it_is_to_be_had(tmp_path: Path) -> None:
    message = r"there is no file '.*2xe\.pth'.*model-zoo\.md of github\.com/SunzeY/AlphaCLIP.* sha256 42c621bb"
    with pytest.raises(UserError, match=message):
        AlphaCLIPPromptEncoder(str(tmp_path / "clip_l14_grit20m_fultune_2xe.pth"))


def test_a_released_file_is_checked_by_its_hash(tmp_path: Path) -> None:
    """Under the released name another file is another file; sizes of one's own make it one's own file."""
    path = stable_diffusion.write_alpha_clip(tmp_path / "clip_l14_grit20m_fultune_2xe.pth")
    assert encoder(path).width == 8
    with pytest.raises(
        UserError, match=r"is not the published file: its sha256 is [0-9a-f]{64}, expected sha256 42c621bb"
    ):
        AlphaCLIPPromptEncoder(str(path))


def test_a_hostile_checkpoint_does_nothing(tmp_path: Path) -> None:
    class Hostile:
        def __reduce__(self) -> tuple:
            return (Path.touch, (tmp_path / "touched",))

    torch.save(stable_diffusion.alpha_clip_state() | {"extra": Hostile()}, tmp_path / "a.pth")
    with pytest.raises(UserError, match="it has too many: extra"):
        encoder(tmp_path / "a.pth")
    assert not (tmp_path / "touched").exists()


def test_on_the_meta_device_nothing_is_read() -> None:
    with torch.device("meta"):
        full = AlphaCLIPPromptEncoder("nothing.pth")
    assert (full.image_size, full.grid, full.width) == (224, 16, 1024)
    assert is_from_files(full)
