"""Models as folders: they come back as they were, and nothing in them runs."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from made_up_rows import row
from small_models import mask, one_step, picture, write_model

from ldis_lightning.errors import UserError
from ldis_lightning.pipeline import InContextSegmentationPipeline
from ldis_lightning.pipeline import source as sources

Pipeline = InContextSegmentationPipeline


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "one")


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "many", steps=True)


def logits(pipe: Pipeline) -> np.ndarray:
    return pipe(picture(seed=1), pipe.encode(picture(), mask())).logits[0]


@pytest.mark.parametrize("name", ["folder", "many"])
def test_what_is_saved_comes_back(name: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    pipe = Pipeline.from_pretrained(request.getfixturevalue(name))
    assert (pipe.image_size, pipe.dtype, pipe.device.type) == (64, torch.float32, "cpu")
    assert set(pipe.components) == {"unet", "vae", "prompt_encoder"}
    pipe.save_pretrained(tmp_path / "copy")
    again = Pipeline.from_pretrained(str(tmp_path / "copy"))
    np.testing.assert_allclose(logits(again), logits(pipe), atol=1e-5)
    with pytest.raises(UserError, match=r"exists: add --overwrite \(`overwrite=True` in Python\)"):
        pipe.save_pretrained(tmp_path / "copy")
    pipe.save_pretrained(tmp_path / "copy", overwrite=True)
    assert not list((tmp_path / "copy").rglob("*.bin")) and (tmp_path / "copy/README.md").is_file()


def test_half_the_memory(folder: Path, tmp_path: Path) -> None:
    pipe = Pipeline.from_pretrained(folder, torch_dtype=torch.bfloat16)
    assert {part.dtype for part in pipe.model.unet.parameters()} == {torch.bfloat16}
    with pytest.raises(UserError, match=r"saved in float32, and these are torch\.bfloat16"):
        pipe.save_pretrained(tmp_path / "half")
    with pytest.raises(UserError, match="were rounded to bfloat16: load them again"):
        pipe.to(torch.float32).save_pretrained(tmp_path / "half")
    with pytest.raises(UserError, match="only a pipeline of from_pretrained can be saved"):
        one_step().save_pretrained(tmp_path / "parts")


def test_the_card_has_the_scores(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = Pipeline.from_pretrained(folder)
    pipe.save_pretrained(tmp_path / "scored", rows=[row(score=0.6125)])
    card = (tmp_path / "scored/README.md").read_text(encoding="utf-8")
    front = yaml.safe_load(card.split("---")[1])
    assert front["library_name"] == "ldis-lightning" and front["pipeline_tag"] == "image-segmentation"
    assert "61.2" in card or "61.3" in card
    assert "LDIS1(" in card and 'from_pretrained("scored")' in card and str(tmp_path) not in card
    (tmp_path / "plain").mkdir()
    monkeypatch.chdir(tmp_path / "plain")
    pipe.save_pretrained(".")
    assert 'from_pretrained("plain")' in (tmp_path / "plain/README.md").read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert "None were given." in (tmp_path / "plain/README.md").read_text(encoding="utf-8")


def test_names_of_models(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "MODELS", tmp_path / "models")
    with pytest.raises(UserError, match=r"`tiny` does not come with this installation.*ldis convert"):
        Pipeline.from_pretrained("tiny")
    (tmp_path / "models").mkdir()
    (tmp_path / "models/tiny").symlink_to(folder)
    assert Pipeline.from_pretrained("tiny").image_size == 64
    with pytest.raises(UserError, match=r"there is no folder `tinny`; did you mean `tiny`\?"):
        Pipeline.from_pretrained("tinny")
    with pytest.raises(UserError, match=r"there is no folder `\./models/none`"):
        Pipeline.from_pretrained("./models/none")
    with pytest.raises(UserError, match=r"is no model: it has no config\.yaml"):
        Pipeline.from_pretrained(tmp_path)


def test_models_of_the_hub(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    asked: list[Any] = []

    def download(hub_id: str, **options: Any) -> str:
        asked.append((hub_id, options))
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    Pipeline.from_pretrained("somebody/model", revision="v1")
    ((hub_id, options),) = asked
    assert (hub_id, options["revision"]) == ("somebody/model", "v1")
    assert all(pattern.endswith((".yaml", ".json", ".safetensors")) for pattern in options["allow_patterns"])

    def fail(*args: Any, **options: Any) -> None:
        raise ConnectionError("no route")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(UserError, match="as a hub id it cannot be had"):
        Pipeline.from_pretrained("somebody/model")


def test_a_model_goes_to_the_hub(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    seen: dict[str, Any] = {}

    class Api:
        def __init__(self, token: Any = None) -> None:
            seen["token"] = token

        def create_repo(self, repo_id: str, **options: Any) -> None:
            seen["repo"] = (repo_id, options)

        def upload_folder(self, repo_id: str, folder_path: str, **options: Any) -> str:
            names = {p.relative_to(folder_path).as_posix() for p in Path(folder_path).rglob("*") if p.is_file()}
            seen["files"], seen["card"] = names, Path(folder_path, "README.md").read_text(encoding="utf-8")
            return "https://hub/commit/1"

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    pipe = Pipeline.from_pretrained(folder)
    assert pipe.push_to_hub("somebody/model", private=True, token="secret") == "https://hub/commit/1"
    assert seen["repo"] == ("somebody/model", {"private": True, "exist_ok": True}) and seen["token"] == "secret"
    assert {"config.yaml", "unet/diffusion_pytorch_model.safetensors", "README.md"} <= seen["files"]
    assert 'from_pretrained("somebody/model")' in seen["card"]


# ---- What a stranger's folder may not do


def altered(folder: Path, out: Path, change: Any) -> Path:
    """The same folder with `change` done to its config's arguments."""
    shutil.copytree(folder, out)
    content = yaml.safe_load((out / "config.yaml").read_text(encoding="utf-8"))
    change(content["model"]["init_args"])
    (out / "config.yaml").write_text(json.dumps(content), encoding="utf-8")
    return out


def encoder(arguments: Any) -> Any:
    return arguments["instruction"]["init_args"]["encoder"]["init_args"]


HARM = {
    "class": lambda a: a.update(pseudo_mask={"class_path": "evil_module.Boom"}),
    "short class": lambda a: a.update(pseudo_mask="evil_module.Boom"),
    "in a list": lambda a: a.update(losses=["evil_module.Boom"]),
    "function": lambda a: a.update(optimizer="os.system"),
    "optimizer": lambda a: a["optimizer"].update(class_path="evil_module.AdamW"),
    "optimizer through torch": lambda a: a["optimizer"].update(class_path="torch.optim.optimizer.os"),
    "module through ours": lambda a: a.update(pseudo_mask="ldis_lightning.cli.os.system"),
    "function of ours": lambda a: a.update(schedule="ldis_lightning.cli.main"),
    "other files": lambda a: a["denoiser"]["init_args"].update(path="/etc"),
    "other files below": lambda a: a["denoiser"]["init_args"].update(subfolder="../../other"),
    "other files by name": lambda a: a["denoiser"]["init_args"].update(subfolder="/etc"),
    "links to other files": lambda a: a["denoiser"]["init_args"].update(subfolder="linked"),
    "a home": lambda a: a["denoiser"]["init_args"].update(path="~nobody_at_all", subfolder=None),
    "pickle by its folder": lambda a: a["denoiser"]["init_args"].update(path="${here}/pickled", subfolder=None),
    "pickle in a folder of folders": lambda a: a["denoiser"]["init_args"].update(subfolder="a/pickled"),
    "pickle beside safetensors": lambda a: a["denoiser"]["init_args"].update(subfolder="a/both"),
    "other hub": lambda a: a["autoencoder"]["init_args"].update(path="somebody/vae"),
    "pickle": lambda a: encoder(a).update(weights="${here}/prompt_encoder/model.pth"),
    "timm's files": lambda a: encoder(a)["model_args"].update(checkpoint_path="/tmp/x.pth"),
    "timm's addresses": lambda a: encoder(a).update(name="hf-hub:somebody/vit"),
    "timm's weights": lambda a: encoder(a).update(pretrained=True),
}


@pytest.mark.parametrize("name", HARM)
def test_a_config_names_nothing_foreign(
    name: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "evil_module.py").write_text("import pathlib; pathlib.Path('harmed').touch()\nclass Boom: ...\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    hostile = altered(folder, tmp_path / "model", HARM[name])
    for place in ("pickled", "a/pickled", "a/both"):
        shutil.copytree(hostile / "unet", hostile / place)
        (hostile / place / "diffusion_pytorch_model.bin").touch()
        if place != "a/both":
            (hostile / place / "diffusion_pytorch_model.safetensors").unlink()
    shutil.copytree(hostile / "unet", tmp_path / "other")
    (hostile / "linked").symlink_to(tmp_path / "other")
    with pytest.raises(UserError, match=r"model\.init_args\.\w+.*trust_classes=True"):
        Pipeline.from_pretrained(hostile)
    assert not (tmp_path / "harmed").exists()


def test_a_folder_of_the_hubs_cache(folder: Path, tmp_path: Path) -> None:
    """Its files are links to elsewhere."""
    for file in folder.rglob("*"):
        if file.is_file():
            link = tmp_path / "snapshot" / file.relative_to(folder)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(file)
    assert Pipeline.from_pretrained(tmp_path / "snapshot").image_size == 64


def test_trusted_folders_may_name_classes(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_parts.py").write_text(
        "from ldis_lightning.alignment import Vanilla\nclass Own(Vanilla):\n    pass\n", encoding="utf-8"
    )
    monkeypatch.syspath_prepend(tmp_path)
    own = altered(folder, tmp_path / "model", lambda a: a.update(pseudo_mask="own_parts.Own"))
    with pytest.raises(UserError, match="own_parts"):
        Pipeline.from_pretrained(own)
    assert type(Pipeline.from_pretrained(own, trust_classes=True).model.pseudo_mask).__name__ == "Own"


def test_weights_are_safetensors(folder: Path, tmp_path: Path) -> None:
    model = altered(folder, tmp_path / "model", lambda a: None)
    weights = model / "unet/diffusion_pytorch_model.safetensors"
    torch.save({}, weights.with_suffix(".bin"))
    with pytest.raises(UserError, match="weights must be safetensors"):
        Pipeline.from_pretrained(model)
