"""A checkpoint holds what was trained, and not what can be read again from the files that the model was made of."""

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import tiny
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging
from stable_diffusion import write_stable_diffusion
from torch.utils.data import DataLoader

from ldis_lightning.checkpoints import check_fingerprints, fingerprints, left_out
from ldis_lightning.errors import UserError
from ldis_lightning.latent import PretrainedAutoencoder, PretrainedUNet
from ldis_lightning.latent.fine_tuning import LoRA
from ldis_lightning.meta_architectures import LDIS1, InContextSegmenter
from ldis_lightning.optim import WarmupConstant

QUIET: Any = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_stable_diffusion(tmp_path_factory.mktemp("files"))


def pretrained(files: Path, build: Any = tiny.ldis1, **changes: Any) -> InContextSegmenter:
    parts = {
        "autoencoder": PretrainedAutoencoder(str(files), "vae"),
        "denoiser": PretrainedUNet(str(files), "unet"),
        "schedule": WarmupConstant(0),
    }
    return build(**(parts | changes))


def fit(module: InContextSegmenter, folder: Path, steps: int = 2, **options: Any) -> Path:
    trainer = L.Trainer(max_steps=steps, default_root_dir=folder, enable_checkpointing=False, **(QUIET | options))
    trainer.fit(module, DataLoader([tiny.batch(2, seed=s) for s in range(steps)], batch_size=None))  # pyright: ignore
    trainer.save_checkpoint(folder / "saved.ckpt")
    return folder / "saved.ckpt"


def test_what_files_hold_and_nothing_trains_is_left_out(files: Path) -> None:
    module = pretrained(files)
    assert {name.split(".")[0] for name in module.state_dict()} == {"unet", "instruction"}
    assert left_out(module) == {f"autoencoder.{name}": value for name, value in module.autoencoder.named_parameters()}
    made_up = tiny.ldis1(instruction=tiny.extractor(trainable=False))  # frozen, but in no file: it must be kept
    assert len(made_up.state_dict()) == len([*made_up.named_parameters(), *made_up.named_buffers()]) - 4  # statistics


@pytest.mark.parametrize("build", [tiny.ldis1, tiny.ldisn])
def test_of_lora_only_the_adapters_and_new_layers_are_kept(build: Any, files: Path, tmp_path: Path) -> None:
    instruction = tiny.extractor(trainable=False)
    module = pretrained(files, build, fine_tuning=LoRA(rank=2), instruction=instruction)
    path = fit(module, tmp_path)
    kept = torch.load(path, weights_only=True)["state_dict"]
    of_the_unet = {name for name in kept if name.startswith("unet.")}
    new = {"unet.encoder_hid_proj.weight", "unet.encoder_hid_proj.bias"}
    if build is tiny.ldisn:
        new |= {"unet.conv_in.weight", "unet.conv_in.bias"}
    assert of_the_unet == new | {name for name in of_the_unet if ".lora_" in name}
    # q, k, v, o of self- and cross-attention in four transformer blocks, an A and a B each
    assert len(of_the_unet) - len(new) == 4 * 2 * 4 * 2
    again = pretrained(files, build, fine_tuning=LoRA(rank=2), instruction=instruction)
    again.load_state_dict(kept)
    for name, value in module.unet.named_parameters():
        assert torch.equal(again.unet.get_parameter(name), value)


def test_what_was_trained_must_be_there(files: Path) -> None:
    module = pretrained(files)
    state = module.state_dict()
    del state["unet.conv_in.weight"]
    with pytest.raises(RuntimeError, match=r"Missing key\(s\).*unet\.conv_in\.weight"):
        module.load_state_dict(state)
    with pytest.raises(RuntimeError, match=r"Unexpected key\(s\).*unet\.conv_on"):
        module.load_state_dict({**module.state_dict(), "unet.conv_on": torch.zeros(1)})


def test_checkpoints_with_everything_still_load(files: Path) -> None:
    module = pretrained(files)
    everything = {**dict(module.named_parameters()), **module.state_dict()}
    assert len(everything) > len(module.state_dict())
    pretrained(files).load_state_dict(everything)


def test_other_frozen_weights_than_in_training_are_refused(files: Path, tmp_path: Path) -> None:
    path = fit(pretrained(files), tmp_path)
    other = write_stable_diffusion(tmp_path / "other", seed=1)
    batches: Any = DataLoader([tiny.batch(2)], batch_size=None)  # pyright: ignore
    same = L.Trainer(max_steps=3, default_root_dir=tmp_path, enable_checkpointing=False, **QUIET)
    same.fit(pretrained(files), batches, ckpt_path=str(path))
    mixed = pretrained(files, autoencoder=PretrainedAutoencoder(str(other), "vae"))
    trainer = L.Trainer(max_steps=3, default_root_dir=tmp_path, enable_checkpointing=False, **QUIET)
    with pytest.raises(UserError, match="was trained with other weights of `autoencoder`"):
        trainer.fit(mixed, batches, ckpt_path=str(path))


def test_fingerprints(files: Path) -> None:
    module = pretrained(files)
    found = fingerprints(module)
    assert set(found) == {"autoencoder"}
    check_fingerprints(found, fingerprints(pretrained(files)))
    check_fingerprints({}, found)
    with torch.no_grad():
        next(module.autoencoder.parameters()).add_(1)
    assert fingerprints(module)["autoencoder"] != found["autoencoder"]
    with torch.device("meta"):
        assert fingerprints(tiny.ldis1()) == {}


def test_averaged_weights_are_in_the_checkpoint_beside_the_raw_ones(files: Path, tmp_path: Path) -> None:
    module = pretrained(files)
    seen: list[dict[str, torch.Tensor]] = []

    class Record(L.Callback):
        def on_train_batch_end(self, trainer: Any, module: Any, *args: Any) -> None:
            seen.append({name: value.detach().clone() for name, value in module.unet.named_parameters()})

    start = {name: value.detach().clone() for name, value in module.unet.named_parameters()}
    path = fit(module, tmp_path, steps=2, callbacks=[EMAWeightAveraging(decay=0.9), Record()])
    checkpoint = torch.load(path, weights_only=True)
    name = "conv_out.weight"
    first = seen[0][name]  # the first update copies
    torch.testing.assert_close(module.unet.get_parameter(name).detach(), first.lerp(seen[1][name], 0.1))
    assert not torch.equal(start[name], first)
    assert not any(key.startswith("autoencoder") for key in checkpoint["state_dict"])


def test_a_run_with_averaging_resumes(files: Path, tmp_path: Path) -> None:
    from lightning.pytorch.callbacks import ModelCheckpoint

    def run(steps: int, folder: Path, resume: Path | None = None) -> tuple[LDIS1, Path]:
        module: Any = pretrained(files)
        callbacks = [
            EMAWeightAveraging(decay=0.9),
            ModelCheckpoint(folder, filename="{step}", every_n_train_steps=2, save_top_k=-1),
        ]
        trainer = L.Trainer(max_steps=steps, default_root_dir=folder, callbacks=callbacks, **QUIET)
        batches: Any = DataLoader([tiny.batch(2)] * 4, batch_size=None)  # pyright: ignore
        trainer.fit(module, batches, ckpt_path=None if resume is None else str(resume))
        return module, folder / "step=2.ckpt"

    through, middle = run(4, tmp_path / "through")
    checkpoint = torch.load(middle, weights_only=True)
    assert not any(key.startswith("autoencoder") for key in checkpoint["current_model_state"])
    assert any(
        not torch.equal(checkpoint["state_dict"][key], value)
        for key, value in checkpoint["current_model_state"].items()
    )
    resumed, _ = run(4, tmp_path / "resumed", resume=middle)
    for name, value in through.state_dict().items():
        torch.testing.assert_close(resumed.state_dict()[name], value, rtol=0, atol=1e-6)
