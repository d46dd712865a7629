"""The paper's recipe: what the configs say, what they build at full size, and that they train."""

from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from cli_support import provide_weights_and_data, tiny, tiny_paper_scale

from ldis_lightning.cli import main
from ldis_lightning.config_files import packaged_configs
from ldis_lightning.lightning_cli import parse_fit
from ldis_lightning.sweeps.estimate import ModelCost
from ldis_lightning.sweeps.grid import Sweep, expand
from ldis_lightning.sweeps.overrides import with_values

SD15 = "configs/scale/sd15.yaml"
BASES = ["quickstart", "quickstart_ldisn", *(Path(n).stem for n in packaged_configs() if "ablation" in n)]
AT_PAPER_SCALE = {"ldis1": ("configs/ldis1.yaml",), "ldisn": ("configs/ldisn.yaml",)}
OWN = {name: f"configs/scale/sd15_{name.removeprefix('ablation_')}.yaml" for name in BASES}  # overlays of one ablation
AT_PAPER_SCALE |= {
    f"{name} + sd15": (f"configs/{name}.yaml", OWN[name] if OWN[name] in packaged_configs() else SD15) for name in BASES
}


def options(*configs: str) -> list[str]:
    return [option for config in configs for option in ("--config", config)]


@cache
def parsed_once(*configs: str) -> tuple[Any, Any]:
    return parse_fit(options(*configs))


def parsed(*configs: str) -> tuple[Any, dict[str, Any]]:
    """The parser, and the complete config as plain values, for the test to do with as it likes (parsing again does)."""
    parser, config = parsed_once(*configs)
    return parser, deepcopy(config.as_dict())


def components(config: dict[str, Any]) -> dict[str, Any]:
    return config["model"]["init_args"]


def is_part(expected: Any, actual: Any) -> bool:
    """Whether a nested mapping holds at least what is expected."""
    if isinstance(expected, dict):
        return all(key in actual and is_part(value, actual[key]) for key, value in expected.items())
    return expected == actual


# ---- What the configs say


@pytest.mark.parametrize("name", ["ldis1", "ldisn"])
def test_optimisation_is_that_of_the_method(name: str) -> None:
    _, config = parsed(f"configs/{name}.yaml")
    adam = {"lr": 1e-5, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 1e-2}
    assert is_part({"class_path": "torch.optim.AdamW", "init_args": adam}, components(config)["optimizer"])
    warmup = {"class_path": "ldis_lightning.optim.WarmupConstant", "init_args": {"warmup_steps": 10_000}}
    assert is_part(warmup, components(config)["schedule"])
    run = {"max_steps": 160_000, "gradient_clip_val": 1.0, "precision": "bf16-mixed", "accumulate_grad_batches": 1}
    assert is_part(run, config["trainer"])
    assert is_part({"batch_size": 64, "image_size": 256, "references": 1}, config["data"])


@pytest.mark.parametrize("name", ["ldis1", "ldisn"])
def test_data_are_those_of_the_method(name: str) -> None:
    data = parsed(f"configs/{name}.yaml")[1]["data"]
    assert {name: source["weight"] for name, source in data["train"].items()} == {
        "pascal": 0.4, "coco": 0.1, "davis": 0.5, "vspw": 0.2,
    }  # fmt: skip
    pairing = {name: source["pairing"] and source["pairing"]["class_path"] for name, source in data["train"].items()}
    within = "ldis_lightning.datamodules.WithinClip"
    assert pairing == {"pascal": None, "coco": None, "davis": within, "vspw": within}
    assert data["mixing"]["class_path"].endswith(".PerSample")
    assert data["augmentation"]["class_path"].endswith(".Photometric")
    crop = {"ratio": (0.9, 1.1), "long_side": 2.0, "max_cover": 0.75}
    assert data["geometry"]["class_path"].endswith(".RandomCrop")
    assert is_part(crop, data["geometry"]["init_args"])


def test_ldis1_is_one_call_without_noise() -> None:
    model = components(parsed("configs/ldis1.yaml")[1])
    assert (model["timestep"], model["add_noise"]) == (0, False)
    assert [loss["class_path"] for loss in model["losses"]] == ["ldis_lightning.losses.LatentLoss"]
    assert model["pseudo_mask"]["class_path"].endswith(".Vanilla")
    assert model["autoencoder"]["init_args"]["sample"] is True
    assert model["instruction"]["init_args"]["encoder"]["init_args"]["trainable"] is False


def test_ldisn_is_20_guided_steps() -> None:
    model = components(parsed("configs/ldisn.yaml")[1])
    assert is_part({"steps": 20, "scale_query": False, "null_keeps_mask": True}, model)
    assert model["pseudo_mask"]["init_args"]["gamma"] == 0.4
    assert model["guidance"]["init_args"] == {"query": 1.5, "instruction": 7.0}
    assert model["dropout"]["init_args"] == {"p": 0.05}
    noise = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "num_train_timesteps": 1000}
    sampling = {"clip_sample": False, "prediction_type": "epsilon", "timestep_spacing": "leading", "steps_offset": 1}
    assert model["scheduler"]["class_path"].endswith("DDPMScheduler")
    assert is_part(noise | sampling, model["scheduler"]["init_args"])


def test_the_first_version_trains_adapters() -> None:
    _, config = parsed("configs/ldis1.yaml", "configs/recipe/lora.yaml")
    assert (config["trainer"]["max_steps"], config["data"]["batch_size"]) == (80_000, 16)
    lora = {"rank": 4, "alpha": 4.0, "targets": ("to_q", "to_k", "to_v", "to_out.0")}
    assert components(config)["fine_tuning"]["init_args"] == lora


def test_the_overlays_add_up() -> None:
    overlays = [name for name in packaged_configs() if name.startswith("configs/recipe/")]
    _, config = parsed("configs/ldis1.yaml", *overlays)
    execution = components(config)["execution"]
    assert execution["checkpointing"]["class_path"].endswith("EveryBlock")
    assert (execution["compile"], execution["channels_last"], execution["frozen_in_bfloat16"]) == (True, True, True)
    assert components(config)["optimizer"]["init_args"]["lr"] == 1e-5
    assert [callback["class_path"].rpartition(".")[2] for callback in config["trainer"]["callbacks"]] == [
        "ModelCheckpoint", "Previews", "ResultTable", "PredictedMasks", "EMAWeightAveraging",
    ]  # fmt: skip


def test_the_quickstart_at_paper_scale_is_ldis1() -> None:
    _, lifted = parsed("configs/quickstart.yaml", SD15)
    _, paper = parsed("configs/ldis1.yaml")
    assert lifted["model"] == paper["model"]
    assert lifted["data"] == paper["data"]
    assert lifted["trainer"] | {"logger": None} == paper["trainer"] | {"logger": None}


# ---- What they build


def meta_model(parser: Any, config: dict[str, Any]) -> Any:
    """The model of a config without memory for its weights, and without reading any."""
    from jsonargparse import Namespace

    only_model = parser.parse_object({"model": config["model"], "trainer": {"logger": False}})
    with torch.device("meta"):
        return parser.instantiate_classes(Namespace(model=only_model.model)).model


@pytest.mark.parametrize("name", AT_PAPER_SCALE)
def test_a_config_at_paper_scale_builds_and_links(name: str) -> None:
    parser, config = parsed(*AT_PAPER_SCALE[name])
    model = meta_model(parser, config)
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    assert (model.unet.encoder_hid_proj.in_features, model.unet.encoder_hid_proj.out_features) == (1024, 768)
    many_steps = config["model"]["class_path"].endswith(".LDISn")
    assert model.unet.config["in_channels"] == (8 if many_steps else 4)
    assert (model.autoencoder.latent_channels, model.autoencoder.downsampling) == (4, 8)
    assert (model.instruction.encoder.image_size, model.instruction.encoder.grid) == (224, 16)
    trained = sum(parameter.numel() for parameter in model.trainable_parameters())
    assert trained == 860_308_164 + (4 * 320 * 9 if many_steps else 0)


@pytest.mark.parametrize("name", [name for name in AT_PAPER_SCALE if name.startswith("ablation")])
def test_the_points_of_an_ablation_build_at_paper_scale(name: str) -> None:
    parser, config = parsed(*AT_PAPER_SCALE[name])
    widths = set()
    for point in (expand(Sweep(**config["sweep"]))[0], expand(Sweep(**config["sweep"]))[-1]):
        whole = with_values(config, point.values)
        widths.add(meta_model(parser, whole).unet.encoder_hid_proj.in_features)
    assert widths == {1024}


# ---- That they train


@pytest.fixture
def in_world_with_weights(in_miniature_world: Path) -> Path:
    provide_weights_and_data(in_miniature_world)
    return in_miniature_world


@pytest.mark.parametrize("overlay", ["ema", "lora", "adam8bit", "low_memory"])
def test_an_overlay_trains(overlay: str, in_world_with_weights: Path, tmp_path: Path) -> None:
    shipped = options("configs/ldis1.yaml", f"configs/recipe/{overlay}.yaml")
    small = [*tiny(tmp_path), *tiny_paper_scale("configs/ldis1.yaml", tmp_path)]
    assert main(["fit", *shipped, *small, "--score_after_fit", "false"]) == 0
    (checkpoint,) = tmp_path.rglob("last.ckpt")
    state = torch.load(checkpoint, map_location="cpu", weights_only=True)
    names = [name for name in state["state_dict"] if not name.startswith("unet.")]
    assert names == []  # what the files hold is read from them again
    adapters = [name for name in state["state_dict"] if "lora_" in name]
    assert bool(adapters) == (overlay == "lora")
    assert ("current_model_state" in state) == (overlay == "ema")


def test_the_fine_tuning_ablation_adapts_trained_weights(in_world_with_weights: Path, tmp_path: Path) -> None:
    shipped = options("configs/ablation_fine_tuning.yaml")
    small = [*tiny(tmp_path), "--score_after_fit", "false", "--model.fine_tuning", "LoRA"]
    assert main(["fit", *shipped, *small]) == 0
    (checkpoint,) = tmp_path.rglob("last.ckpt")
    names = torch.load(checkpoint, map_location="cpu", weights_only=True)["state_dict"]
    of_unet = {name for name in names if name.startswith("unet.") and "lora_" not in name}
    assert of_unet == {"unet.encoder_hid_proj.weight", "unet.encoder_hid_proj.bias"}  # new to those weights


def test_every_point_of_the_fine_tuning_ablation_is_valid(
    in_world_with_weights: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ldis_lightning.sweeps.estimate.model_cost", lambda *_: ModelCost())  # takes most of the time
    assert main(["sweep", *options("configs/ablation_fine_tuning.yaml"), "--dry_run"]) == 0
    assert "15 runs" in capsys.readouterr().out
    assert main(["sweep", *options("configs/ablation_fine_tuning.yaml", SD15), "--dry_run"]) == 0
