"""Files that cannot be converted, and what is said of them."""

from pathlib import Path
from typing import Any

import pytest
import torch
from released import ALPHA_CLIP, config_block, unet, write_deepspeed, write_model_config

from ldis_lightning.cli import main
from ldis_lightning.conversion.source import read_source
from ldis_lightning.errors import UserError


def refusal(source: Path, block: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """What `ldis convert` says; nothing must have been written."""
    config = write_model_config(tmp_path / "config.yaml", block)
    assert main(["convert", str(source), "--config", config, "--out", str(tmp_path / "out")]) == 2
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".out*"))
    (line,) = capsys.readouterr().err.splitlines()
    return line.removeprefix("error: ")


def test_the_other_meta_architectures_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    many = write_deepspeed(tmp_path / "n.pt", unet(query=True))
    said = refusal(many, config_block(tmp_path), tmp_path, capsys)
    assert "does not fit the config's model, LDIS1: its U-Net takes 8 channels, the config's 4" in said
    assert "it is an LDIS-n: use `--config configs/ldisn.yaml`" in said
    one = write_deepspeed(tmp_path / "1.pt", unet())
    assert "it is an LDIS-1: use `--config configs/ldis1.yaml`" in refusal(
        one, config_block(tmp_path, "LDISn"), tmp_path, capsys
    )


def test_another_prompt_encoder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    block = config_block(tmp_path)
    encoder = {"model_args": {**ALPHA_CLIP, "embed_dim": 16}, "trainable": False}
    block["init_args"]["instruction"]["init_args"]["encoder"] = {
        "class_path": "TimmPromptEncoder",
        "init_args": encoder,
    }
    source = write_deepspeed(tmp_path / "states.pt", unet())
    said = refusal(source, block, tmp_path, capsys)
    assert "takes tokens of width 8" in said and "makes tokens of width 16" in said


def test_an_encoder_with_random_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    block = config_block(tmp_path)
    encoder = {"model_args": ALPHA_CLIP, "trainable": False}
    block["init_args"]["instruction"]["init_args"]["encoder"] = {
        "class_path": "TimmPromptEncoder",
        "init_args": encoder,
    }
    source = write_deepspeed(tmp_path / "states.pt", unet())
    said = refusal(source, block, tmp_path, capsys)
    assert "holds a U-Net alone, and the config gives instruction.encoder." in said and "random weights" in said


def test_missing_surplus_and_reshaped_tensors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = dict(unet().state_dict())
    removed = [name for name in state if name.startswith("mid_block.resnets.0.")]
    changed = {name: tensor for name, tensor in state.items() if name not in removed} | {"adapter.w": torch.ones(1)}
    torch.save(changed, tmp_path / "changed.pt")
    said = refusal(tmp_path / "changed.pt", config_block(tmp_path), tmp_path, capsys)
    assert f"lacks {', '.join(removed[:3])} and {len(removed) - 3} more" in said
    assert "has adapter.w, which the model has not" in said
    torch.save(state | {"conv_out.bias": torch.ones(3)}, tmp_path / "reshaped.pt")
    said = refusal(tmp_path / "reshaped.pt", config_block(tmp_path), tmp_path, capsys)
    assert "conv_out.bias has the shape (3,), but the model needs (4,)" in said


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"weights": torch.ones(2)}, "holds no U-Net with diffusers' names"),
        ({part: {"time_embedding.linear_1.weight": torch.ones(2)} for part in ("a", "b")}, "below `a.`, `b.`"),
        ({"module": {"time_embedding.linear_1.weight": torch.ones(0)}}, "DeepSpeed's ZeRO-3"),
        ([1, 2], "not a dict"),
    ],
)
def test_files_without_the_weights_of_one_unet(content: Any, message: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "file.pt")
    with pytest.raises(UserError, match=message):
        read_source(tmp_path / "file.pt")


def test_damaged_and_missing_files(tmp_path: Path) -> None:
    whole = write_deepspeed(tmp_path / "states.pt", unet()).read_bytes()
    (tmp_path / "states.pt").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"states\.pt"):
        read_source(tmp_path / "states.pt")
    with pytest.raises(UserError, match="not a sharded checkpoint"):
        read_source(tmp_path)
    with pytest.raises(UserError, match="does not exist"):
        read_source(tmp_path / "nothing.pt")


def test_averaged_weights_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no averaged weights"):
        read_source(write_deepspeed(tmp_path / "states.pt", unet()), "averaged")
