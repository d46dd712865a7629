"""Our own checkpoints, as Lightning writes them: what is converted computes what the trained model computes."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, WeightAveraging
from released import ALPHA_CLIP, Hostile, config_block, write_model_config
from tiny import masks, pictures
from torch import Tensor
from torch.utils.data import DataLoader

from ldis_lightning.cli import main
from ldis_lightning.conversion.building import build, read_spec
from ldis_lightning.conversion.folder import load_folder
from ldis_lightning.lightning_cli import import_components
from ldis_lightning.meta_architectures.base import InContextSegmenter
from ldis_lightning.sharded_files import write

LORA = {"class_path": "LoRA", "init_args": {"rank": 2}}
BATCH = {
    "query_image": pictures(2, 3, 32, 32, seed=1),
    "query_mask": masks(2, seed=2),
    "reference_image": pictures(2, 1, 3, 16, 16, seed=3),
    "reference_mask": masks(2, 16, seed=4)[:, None],
    "seed": torch.tensor([3, 4]),
    "valid": torch.ones(2, dtype=torch.bool),
    "class_id": torch.tensor([0, 1]),
}


@torch.no_grad()
def logits(model: InContextSegmenter) -> Tensor:
    return model.eval().batch_logits(BATCH)  # pyright: ignore[reportArgumentType]


def trained(
    folder: Path, block: dict[str, Any], callbacks: Sequence[Callback] = (), steps: int = 3
) -> InContextSegmenter:
    """A model after some steps. Its checkpoint is `folder`/run/checkpoints/last.ckpt, its config where a run has it."""
    import_components()
    model = build(read_spec([block]))
    trainer = L.Trainer(
        accelerator="cpu",
        max_steps=steps,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[*callbacks, ModelCheckpoint(folder / "run/checkpoints", save_last=True, every_n_train_steps=1)],
        default_root_dir=folder,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(model, DataLoader([BATCH] * steps, batch_size=None))  # pyright: ignore[reportArgumentType]
    write_model_config(folder / "run/config.yaml", block)
    return model


def convert(source: Path, out: Path, *options: str) -> InContextSegmenter:
    assert main(["convert", str(source), "--out", str(out), *options]) == 0
    return load_folder(out)


@pytest.mark.parametrize("name", ["LDIS1", "LDISn"])
def test_a_checkpoint_beside_its_runs_config(name: str, tmp_path: Path) -> None:
    block = config_block(tmp_path, name, execution={"frozen_in_bfloat16": True, "checkpointing": "EveryBlock"})
    encoder = {"model_args": ALPHA_CLIP, "name": "vit_tiny_patch16_224", "trainable": True}
    block["init_args"]["instruction"]["init_args"]["encoder"] = {
        "class_path": "TimmPromptEncoder",
        "init_args": encoder,
    }
    block["init_args"]["denoiser"] = {
        "class_path": "ScratchUNet",
        "init_args": {"block_out_channels": [8, 16], "attention_head_dim": 8, "norm_num_groups": 4},
    }
    trained(tmp_path, block)
    source = tmp_path / "run/checkpoints/last.ckpt"
    found = convert(source, tmp_path / "out")
    assert found.execution.checkpointing is None and not found.execution.frozen_in_bfloat16
    del block["init_args"]["execution"]
    model = build(read_spec([block]))
    before = logits(model)
    model.load_state_dict(torch.load(source, weights_only=True)["state_dict"])
    assert (logits(model) - before).abs().max() > 1e-3  # of other weights than it was built with
    torch.testing.assert_close(logits(found), logits(model), rtol=1e-5, atol=1e-5)


def test_lora_is_merged(tmp_path: Path) -> None:
    model = trained(tmp_path, config_block(tmp_path, fine_tuning=LORA))
    source = tmp_path / "run/checkpoints/last.ckpt"
    saved = torch.load(source, weights_only=True)["state_dict"]
    assert any("lora_A" in name for name in saved) and not any("mid_block.resnets" in name for name in saved)
    found = convert(source, tmp_path / "out")
    assert not any("lora" in name for name, _ in found.named_parameters())
    torch.testing.assert_close(logits(found), logits(model), rtol=1e-5, atol=1e-5)
    plain = build(read_spec([config_block(tmp_path)]))
    assert (logits(plain) - logits(model)).abs().max() > 1e-3  # the adapters do something


def test_averaged_and_raw_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    average = WeightAveraging(avg_fn=lambda old, new, count: (old + new) / 2)
    trained(tmp_path, config_block(tmp_path), [average])
    source = tmp_path / "run/checkpoints/last.ckpt"
    saved = torch.load(source, weights_only=True)
    name = "conv_in.weight"
    averaged, raw = saved["state_dict"][f"unet.{name}"], saved["current_model_state"][f"unet.{name}"]
    assert not torch.equal(averaged, raw)
    found = convert(source, tmp_path / "out")
    assert "averaged weights" in capsys.readouterr().out
    assert torch.equal(found.unet.get_parameter(name), averaged)
    found = convert(source, tmp_path / "out", "--weights", "raw", "--overwrite")
    assert "raw weights" in capsys.readouterr().out
    assert torch.equal(found.unet.get_parameter(name), raw)


def write_sharded(folder: Path, model: InContextSegmenter, rest: dict[str, Any]) -> None:
    """As Lightning's sharded strategies leave it."""
    folder.mkdir(parents=True)
    optimizer = {"state": {"a": torch.ones(2)}, "param_groups": [{"lr": 0.1}]}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        write({"state_dict": model.state_dict(), "optimizer_0": optimizer}, rest, folder)


def test_a_sharded_checkpoint(tmp_path: Path) -> None:
    block = config_block(tmp_path)
    model = trained(tmp_path, block, steps=1)
    write_sharded(tmp_path / "run/checkpoints/sharded.ckpt", model, {"fingerprints": model._fingerprints})
    found = convert(tmp_path / "run/checkpoints/sharded.ckpt", tmp_path / "out")
    torch.testing.assert_close(logits(found), logits(model), rtol=1e-5, atol=1e-5)


def test_a_damaged_or_hostile_sharded_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import_components()
    block = config_block(tmp_path)
    config = write_model_config(tmp_path / "ldis1.yaml", block)
    folder, out = tmp_path / "sharded", tmp_path / "out"
    write_sharded(folder, build(read_spec([block])), {"hostile": Hostile(tmp_path / "executed")})
    command = ["convert", str(folder), "--out", str(out), "--config", config]
    assert main(command) == 0 and not (tmp_path / "executed").exists()
    (shard,) = folder.glob("*.distcp")
    shard.write_bytes(shard.read_bytes()[:5000])
    assert main([*command, "--overwrite"]) == 2
    torch.save(Hostile(tmp_path / "executed"), folder / ".metadata", _use_new_zipfile_serialization=False)
    assert main([*command, "--overwrite"]) == 2
    assert not (tmp_path / "executed").exists()
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 2 and all("sharded" in error for error in errors)
    load_folder(out)  # is still whole


def test_frozen_weights_other_than_in_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trained(tmp_path, config_block(tmp_path), steps=1)
    other = write_model_config(tmp_path / "other.yaml", config_block(tmp_path / "elsewhere"))
    (tmp_path / "elsewhere/alpha_clip.pth").unlink()
    state = torch.load(tmp_path / "alpha_clip.pth", weights_only=True)
    torch.save({name: 2 * tensor for name, tensor in state.items()}, tmp_path / "elsewhere/alpha_clip.pth")
    source = str(tmp_path / "run/checkpoints/last.ckpt")
    assert main(["convert", source, "--config", other, "--out", str(tmp_path / "out")]) == 2
    assert "trained with other weights of `instruction.encoder`" in capsys.readouterr().err


def test_a_checkpoint_without_any_config(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"state_dict": {}, "pytorch-lightning_version": "2.6.0"}, tmp_path / "lost.ckpt")
    assert main(["convert", str(tmp_path / "lost.ckpt"), "--out", str(tmp_path / "out")]) == 2
    assert "add the `--config` that it was trained with" in capsys.readouterr().err
