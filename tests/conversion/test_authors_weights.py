"""The authors' files, at tiny size: what is converted computes what the released parts compute, written out."""

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler
from released import (
    ALPHA_CLIP,
    Hostile,
    attended,
    clip_tokens,
    config_block,
    reported_logits,
    unet,
    write_deepspeed,
    write_model_config,
)
from safetensors.torch import save_file
from tiny import STABLE_DIFFUSION, pictures
from torch import Tensor

from ldis_lightning.cli import main
from ldis_lightning.conversion.folder import load_folder
from ldis_lightning.instruction import Instruction
from ldis_lightning.meta_architectures.base import InContextSegmenter
from ldis_lightning.randomness import normal

QUERY = pictures(1, 3, 32, 32, seed=1)
REFERENCE = pictures(1, 3, 16, 16, seed=2)
SEED = torch.tensor([7])


def reference_mask() -> Tensor:
    """(1, 16, 16): a few whole cells of the 4 x 4 token grid."""
    mask = torch.zeros(1, 16, 16)
    mask[:, 4:12, 4:8] = 1
    mask[:, 12:, 12:] = 1
    return mask


def instruction_of(model: InContextSegmenter) -> Instruction:
    return model.instruction(REFERENCE[:, None], reference_mask()[:, None].byte())


@pytest.fixture
def converted(tmp_path: Path) -> Path:
    """An LDIS-1 of the authors, converted, and moved away from everything that it was made of."""
    config = write_model_config(tmp_path / "ldis1.yaml", config_block(tmp_path / "old"))
    source = write_deepspeed(tmp_path / "mp_rank_00_model_states.pt", unet())
    assert main(["convert", str(source), "--config", config, "--out", str(tmp_path / "made")]) == 0
    (tmp_path / "old").rename(tmp_path / "gone")
    source.unlink()
    return (tmp_path / "made").rename(tmp_path / "moved")


@torch.no_grad()
def test_ldis1_of_a_deepspeed_file(converted: Path, tmp_path: Path) -> None:
    model = load_folder(converted)
    vae = AutoencoderKL.from_pretrained(tmp_path / "gone/sd/vae")
    expected = reported_logits(unet().bfloat16().float(), vae, QUERY, REFERENCE, reference_mask())
    found = model.predict_logits(QUERY, instruction_of(model), SEED)
    assert not model.training and expected.std() > 1e-3
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_the_folder_holds_each_part_in_its_librarys_format(converted: Path) -> None:
    files = {file.relative_to(converted).as_posix() for file in converted.rglob("*") if file.is_file()}
    weights = {f"{part}/diffusion_pytorch_model.safetensors" for part in ("unet", "vae")}
    assert files == {
        *weights,
        "unet/config.json",
        "vae/config.json",
        "prompt_encoder/config.json",
        "prompt_encoder/model.safetensors",
        "config.yaml",
    }
    assert len({(converted / name).stat().st_mode for name in files}) == 1  # whoever may read one may read all
    text = "".join((converted / name).read_text(encoding="utf-8") for name in files if not name.endswith("safetensors"))
    assert str(converted.parent) not in text  # no part remembers where it came from
    assert type(unet()).from_pretrained(converted / "unet").config["encoder_hid_dim"] == ALPHA_CLIP["embed_dim"]


@torch.no_grad()
def test_ldisn_of_a_safetensors_file_below_a_prefix(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    network = unet(query=True)
    state = {f"model.unet.{name}": tensor for name, tensor in network.state_dict().items()}
    save_file({**state, "model.vae.encoder.conv_in.bias": torch.zeros(4)}, tmp_path / "all.safetensors")
    config = write_model_config(tmp_path / "ldisn.yaml", config_block(tmp_path, "LDISn"))
    assert main(["convert", str(tmp_path / "all.safetensors"), "--config", config, "--out", str(tmp_path / "out")]) == 0
    shown = capsys.readouterr().out
    assert "a U-Net, below `model.unet.`" in shown and "not used: 1 tensors below `model`" in shown
    model = load_folder(tmp_path / "out")

    vae: Any = AutoencoderKL.from_pretrained(tmp_path / "sd/vae")
    scheduler: Any = DDIMScheduler.from_pretrained(tmp_path / "out/scheduler")
    assert scheduler.config["beta_end"] == STABLE_DIFFUSION["beta_end"]
    mask, blank = reference_mask(), torch.ones(1, 16, 16)
    tokens = attended(clip_tokens(REFERENCE, mask), mask)
    null = attended(clip_tokens(torch.zeros_like(REFERENCE), blank), mask)  # the sample's own attention mask is kept
    condition = vae.encode(QUERY).latent_dist.mode()
    scheduler.set_timesteps(2)
    latent = normal(SEED, "sampling", (4, 4, 4))
    for t in scheduler.timesteps:
        with_query, without = torch.cat([latent, condition], 1), torch.cat([latent, 0 * condition], 1)
        neither, query, both = (
            network(x, t, c).sample for x, c in ((without, null), (with_query, null), (with_query, tokens))
        )
        guided = neither + 1.5 * (query - neither) + 7 * (both - query)
        latent = scheduler.step(guided, t, latent).prev_sample
    picture = vae.decode(latent / 0.18215).sample
    expected = picture[:, 1] - picture[:, 0]
    torch.testing.assert_close(
        model.predict_logits(QUERY, instruction_of(model), SEED), expected, rtol=1e-5, atol=1e-5 * float(expected.std())
    )


def test_nothing_in_a_file_is_executed(tmp_path: Path) -> None:
    config = write_model_config(tmp_path / "ldis1.yaml", config_block(tmp_path))
    source = write_deepspeed(tmp_path / "states.pt", unet(), ds_config=Hostile(tmp_path / "executed"))
    assert main(["convert", str(source), "--config", config, "--out", str(tmp_path / "out")]) == 0
    assert not (tmp_path / "executed").exists()
    assert torch.load(source, weights_only=False)["module"] and (tmp_path / "executed").exists()  # it would have been


def test_the_unets_own_pretrained_weights_are_not_needed(tmp_path: Path) -> None:
    config = write_model_config(tmp_path / "ldis1.yaml", config_block(tmp_path))
    (weights,) = (tmp_path / "sd/unet").glob("*.safetensors")
    weights.unlink()
    source = write_deepspeed(tmp_path / "states.pt", unet())
    assert main(["convert", str(source), "--config", config, "--out", str(tmp_path / "out")]) == 0
