"""Writing a folder: all of it or nothing, and never over something else."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from released import config_block
from tiny import prompt_encoder

from ldis_lightning.conversion import folder as folders
from ldis_lightning.conversion.building import build, read_spec
from ldis_lightning.conversion.folder import load_folder, write_folder
from ldis_lightning.errors import UserError
from ldis_lightning.instruction import TimmPromptEncoder
from ldis_lightning.lightning_cli import import_components


@pytest.fixture
def model(tmp_path: Path) -> tuple[Any, dict[str, Any]]:
    import_components()
    spec = read_spec([config_block(tmp_path / "parts")])
    return build(spec), spec


def listing(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_failure_leaves_what_was_there(
    model: tuple[Any, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_folder(*model, 32, tmp_path / "out")
    before = listing(tmp_path / "out")
    with torch.no_grad():
        model[0].unet.conv_in.weight.add_(1)

    def interrupted(*args: Any) -> None:
        raise KeyboardInterrupt

    def no_space(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(folders, "_save_tensors", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_folder(*model, 32, tmp_path / "out", overwrite=True)
    monkeypatch.setattr(folders, "_save_tensors", no_space)
    with pytest.raises(UserError, match="cannot be written: No space left"):
        write_folder(*model, 32, tmp_path / "new")
    assert {path.name for path in tmp_path.iterdir()} == {"parts", "out"}
    assert listing(tmp_path / "out") == before
    monkeypatch.undo()
    write_folder(*model, 32, tmp_path / "out", overwrite=True)
    assert {path.name for path in tmp_path.iterdir()} == {"parts", "out"}
    assert torch.equal(load_folder(tmp_path / "out").unet.conv_in.weight, model[0].unet.conv_in.weight)


def test_half_precision_is_half_the_size_and_reads_back_as_float32(
    model: tuple[Any, dict[str, Any]], tmp_path: Path
) -> None:
    write_folder(*model, 32, tmp_path / "whole")
    write_folder(*model, 32, tmp_path / "half", half=True)
    sizes = {
        name: sum(file.stat().st_size for file in (tmp_path / name).rglob("*.safetensors"))
        for name in ("whole", "half")
    }
    assert sizes["half"] < 0.6 * sizes["whole"]
    whole, half = (load_folder(tmp_path / name).state_dict() for name in ("whole", "half"))
    assert whole.keys() == half.keys()
    for name, tensor in whole.items():
        assert half[name].dtype == tensor.dtype
        assert torch.equal(half[name], tensor.half().to(tensor.dtype) if tensor.is_floating_point() else tensor), name


def test_what_float16_cannot_hold_is_refused(model: tuple[Any, dict[str, Any]], tmp_path: Path) -> None:
    with torch.no_grad():
        model[0].unet.conv_in.bias[0] = 1e5
    with pytest.raises(UserError, match=r"conv_in\.bias has values that float16 cannot hold"):
        write_folder(*model, 32, tmp_path / "half", half=True)
    assert not (tmp_path / "half").exists()


def test_what_may_not_be_replaced(model: tuple[Any, dict[str, Any]], tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    write_folder(*model, 32, out)  # an empty folder may be
    with pytest.raises(UserError, match="exists: add --overwrite"):
        write_folder(*model, 32, out)
    (out / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="holds something else than a converted model"):
        write_folder(*model, 32, out, overwrite=True)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="is no folder"):
        write_folder(*model, 32, tmp_path / "file", overwrite=True)


def test_the_folders_config_asks_for_nothing_of_the_training(model: tuple[Any, dict[str, Any]], tmp_path: Path) -> None:
    segmenter, spec = model
    spec["init_args"]["optimizer"] = {"class_path": "bitsandbytes.optim.AdamW8bit", "init_args": {"lr": 0.25}}
    spec["init_args"]["execution"] = {"compile": True}
    write_folder(segmenter, spec, 48, tmp_path / "out")
    config = yaml.safe_load((tmp_path / "out/config.yaml").read_text(encoding="utf-8"))
    assert config["data"] == {"image_size": 48}
    arguments = config["model"]["init_args"]
    assert arguments["optimizer"] == {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.25}}
    assert arguments["execution"] is None and arguments["fine_tuning"] is None
    assert spec["init_args"]["execution"] == {"compile": True}  # the caller's own is left alone


def test_the_encoders_own_statistics_of_pictures(model: tuple[Any, dict[str, Any]], tmp_path: Path) -> None:
    segmenter, spec = model
    encoder = segmenter.instruction.encoder
    encoder.mean.fill_(0.25)
    write_folder(segmenter, spec, 32, tmp_path / "out")
    found = load_folder(tmp_path / "out").instruction.encoder
    torch.testing.assert_close(found.mean, torch.full((3, 1, 1), 0.25))
    torch.testing.assert_close(found.std, encoder.std)
    config = json.loads((tmp_path / "out/prompt_encoder/config.json").read_text())
    assert config["pretrained_cfg"]["mean"] == [0.625] * 3  # of pictures in [0, 1]


class Doubled(TimmPromptEncoder):
    def forward(self, prompt: Any) -> torch.Tensor:
        return 2 * super().forward(prompt)


def test_a_part_that_no_folder_can_hold(model: tuple[Any, dict[str, Any]], tmp_path: Path) -> None:
    segmenter, spec = model
    encoder = prompt_encoder()
    encoder.__class__ = Doubled
    segmenter.instruction.encoder = encoder
    with pytest.raises(UserError, match=r"model\.instruction\.encoder: Doubled cannot be written"):
        write_folder(segmenter, spec, 32, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_folders_that_are_no_model(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no config\.yaml"):
        load_folder(tmp_path)
    (tmp_path / "config.yaml").write_text("data: {image_size: 32}")
    with pytest.raises(UserError, match="no `model:` block"):
        load_folder(tmp_path)
    (tmp_path / "config.yaml").write_text("model: {class_path: ldis_lightning.meta_architectures.LDIS7}")
    with pytest.raises(UserError, match="LDIS7"):
        load_folder(tmp_path)
