import json
from pathlib import Path
from typing import Any

import pytest
import stable_diffusion
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch import Tensor

from ldis_lightning.errors import UserError
from ldis_lightning.weights.known import SAFETENSORS, TORCH
from ldis_lightning.weights.loading import architecture, build, on_meta

KEY = "model.autoencoder.path"
KINDS = {"AutoencoderKL": AutoencoderKL, "UNet2DConditionModel": UNet2DConditionModel}


@pytest.fixture
def pipeline(tmp_path: Path) -> Path:
    return stable_diffusion.write_stable_diffusion(tmp_path)


def load(folder: Path, subfolder: str = "vae") -> Any:
    return build(KINDS, *architecture(str(folder), subfolder, KEY), KEY)


def change(pipeline: Path, **tensors: Tensor | None) -> None:
    """Change, add and with None remove weights of the autoencoder."""
    path = pipeline / "vae" / SAFETENSORS
    state = load_file(path) | tensors
    save_file({name: tensor for name, tensor in state.items() if tensor is not None}, path)


@pytest.mark.parametrize("subfolder", ["unet", "vae"])
def test_weights_are_those_of_the_file(pipeline: Path, subfolder: str) -> None:
    module = load(pipeline, subfolder)
    expected = load_file(pipeline / subfolder / SAFETENSORS)
    found = module.state_dict()
    assert set(found) == set(expected)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert not module.training and not any(tensor.is_meta for tensor in found.values())


def test_the_file_may_be_overwritten_while_the_module_is_in_use(pipeline: Path) -> None:
    module, path = load(pipeline), pipeline / "vae" / SAFETENSORS
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    path.write_bytes(b"\xff" * path.stat().st_size)
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())


def test_half_precision_becomes_single(pipeline: Path) -> None:
    half = {name: tensor.half() for name, tensor in load_file(pipeline / "vae" / SAFETENSORS).items()}
    save_file(half, pipeline / "vae" / SAFETENSORS)
    for name, tensor in load(pipeline).state_dict().items():
        assert tensor.dtype == torch.float32 and torch.equal(tensor, half[name].float())


def test_weights_in_torchs_format(pipeline: Path) -> None:
    state = load_file(pipeline / "vae" / SAFETENSORS)
    (pipeline / "vae" / SAFETENSORS).unlink()
    torch.save(state, pipeline / "vae" / TORCH)
    found = load(pipeline).state_dict()
    assert all(torch.equal(found[name], state[name]) for name in state)


def test_names_of_stable_diffusions_time(pipeline: Path) -> None:
    """Its autoencoder was saved before diffusers renamed the layers of attention."""
    path = pipeline / "vae" / SAFETENSORS
    state = load_file(path)
    former = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    renamed = {}
    for name, tensor in state.items():
        for present, old in former.items():
            if "attentions.0." in name:
                name = name.replace(f".{present}.", f".{old}.")
        renamed[name] = tensor
    assert "encoder.mid_block.attentions.0.proj_attn.weight" in renamed
    save_file(renamed, path)
    found = load(pipeline).state_dict()
    assert all(torch.equal(found[name], state[name]) for name in state)


def test_weights_that_do_not_fit_are_named(pipeline: Path) -> None:
    change(pipeline, **{"encoder.conv_in.bias": None, "more.weight": torch.ones(1), "quant_conv.bias": torch.ones(3)})
    with pytest.raises(UserError) as caught:
        load(pipeline)
    assert str(caught.value) == (
        f"{KEY}: {pipeline / 'vae' / SAFETENSORS} does not fit the architecture: it misses encoder.conv_in.bias; "
        "it has too many: more.weight; it has other shapes: quant_conv.bias (3,) instead of (8,)."
    )


def test_many_that_do_not_fit_are_counted(pipeline: Path) -> None:
    change(pipeline, **{f"more.{i}": torch.ones(1) for i in range(9)})
    with pytest.raises(UserError, match=r"too many: more\.0, more\.1, more\.2 and 6 more\."):
        load(pipeline)


def test_a_module_of_another_kind_is_refused(pipeline: Path) -> None:
    with pytest.raises(UserError, match="this is a AutoencoderKL, but UNet2DConditionModel is needed"):
        build({"UNet2DConditionModel": UNet2DConditionModel}, *architecture(str(pipeline), "vae", KEY), KEY)


@pytest.mark.parametrize("content", ["not json", "[1]"])
def test_a_config_that_is_none(pipeline: Path, content: str) -> None:
    (pipeline / "vae/config.json").write_text(content)
    with pytest.raises(UserError, match=r"config\.json"):
        load(pipeline)


def test_on_the_meta_device_no_weights_are_read(pipeline: Path) -> None:
    (pipeline / "vae" / SAFETENSORS).unlink()
    assert not on_meta()
    with torch.device("meta"):
        assert on_meta()
        module = load(pipeline)
        with pytest.raises(UserError, match="architecture of 'owner/model' is not known without its files"):
            architecture("owner/model", None, KEY)
    config = json.loads((pipeline / "vae/config.json").read_text())
    assert module.config["block_out_channels"] == config["block_out_channels"]
    assert all(tensor.is_meta for tensor in module.state_dict().values())
