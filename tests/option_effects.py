"""What tests of config options look at: small runs of parts of a config, and what came of them."""

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from copy import deepcopy
from functools import cache
from io import StringIO
from itertools import islice
from multiprocessing import active_children
from pathlib import Path
from typing import Any

import numpy as np
import tiny
import torch
import yaml
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.cli import LightningArgumentParser
from option_names import Config
from stable_diffusion import ALPHA_CLIP, write_alpha_clip, write_stable_diffusion
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode

from ldis_lightning.datamodules import EpisodeDataModule, SyntheticWorld
from ldis_lightning.errors import UserError
from ldis_lightning.lightning_cli import LDISCLI, parse_fit
from ldis_lightning.sweeps.overrides import set_key

os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")  # as `ldis` does

Observer = Callable[[Config], Any]

# ---- Small configs

TINY_VIT = {"img_size": 16, "patch_size": 4, "embed_dim": 8, "depth": 1, "num_heads": 2}
WORLD: Config = {"train_images": 24, "test_images": 6, "train_clips": 2, "test_clips": 2, "frames": 3}


def write_world(folder: Path) -> Path:
    """All files that `config` names: a synthetic world, two Stable Diffusions, two Alpha-CLIPs."""
    SyntheticWorld(str(folder / "synthetic"), **WORLD).prepare()
    for number, name in enumerate(("sd", "other")):
        write_stable_diffusion(folder / name, seed=number)
        write_alpha_clip(folder / f"{name}.pth", seed=number)
    write_stable_diffusion(folder / "sd" / "inner", seed=2)
    return folder


def config(world: Path, base: str, changes: Config) -> Config:
    """A complete config: a shipped one made tiny, with changes by dotted key.

    Args:
        world: what `write_world` wrote; `{world}` in a changed value stands for it.
        base: `ldis1`, `ldisn`, `autoencoder`, `sd` (LDIS-1 on the files of Stable Diffusion and Alpha-CLIP), `mixture`.
    """
    whole = deepcopy(_base(str(world), base))
    for key, value in changes.items():
        set_key(whole, key, _in_world(value, str(world)))
    return whole


def _in_world(value: Any, world: str) -> Any:
    if isinstance(value, dict):
        return {key: _in_world(item, world) for key, item in value.items()}
    if isinstance(value, list):
        return [_in_world(item, world) for item in value]
    return value.replace("{world}", world) if isinstance(value, str) else value


SHIPPED = {"ldisn": "configs/quickstart_ldisn.yaml", "autoencoder": "configs/autoencoder_tiny.yaml"}


@cache
def parser(base: str) -> tuple[Any, Config]:
    """The parser of `ldis fit` and what it makes of a shipped config."""
    made, content = parse_fit(["--config", SHIPPED.get(base, "configs/quickstart.yaml")])
    return made, yaml.safe_load(made.dump(content, skip_check=True))


@cache
def _base(world: str, base: str) -> Config:
    whole = deepcopy(parser(base)[1])
    small: Config = {
        "trainer.max_steps": 2,
        "trainer.val_check_interval": 2,
        "trainer.limit_val_batches": 1,
        "trainer.limit_test_batches": 1,
        "trainer.accelerator": "cpu",
        "trainer.enable_progress_bar": False,
        "trainer.callbacks": ["option_effects.Recorder"],
        "score_after_fit": False,
        "data.prepare": None,
        "data.train": {"shards": f"{world}/synthetic/images/train", "min_pixels": 32},
        "data.evaluation": {"novel": {"shards": f"{world}/synthetic/images/novel", "min_pixels": 32}},
        "data.batch_size": 4,
        "data.eval_batch_size": 2,
    }
    if base == "autoencoder":
        small |= {"model.block_out_channels": [4, 4, 8], "model.latent_channels": 4, "model.norm_num_groups": 2}
    else:
        small["model.instruction.encoder.model_args"] = TINY_VIT
        unet = {"block_out_channels": [8, 16], "attention_head_dim": 8, "cross_attention_dim": 8, "norm_num_groups": 4}
        small["model.denoiser"] = {"class_path": "ScratchUNet", "init_args": unet}
        small["model.optimizer.lr"] = 1e-3
    if base == "ldisn":
        small["model.steps"] = 2
    if base == "sd":
        clip = {"weights": f"{world}/sd.pth", "model_args": ALPHA_CLIP}
        small["model.instruction.encoder"] = {"class_path": "AlphaCLIPPromptEncoder", "init_args": clip}
        for part, kind, folder in (("autoencoder", "Autoencoder", "vae"), ("denoiser", "UNet", "unet")):
            there = {"path": f"{world}/sd", "subfolder": folder}
            small[f"model.{part}"] = {"class_path": f"Pretrained{kind}", "init_args": there}
    if base == "mixture":
        sources = (("images", "AcrossImages"), ("clips", "WithinClip"))
        small["data.train"] = {
            kind: {"shards": f"{world}/synthetic/{kind}/train", "pairing": pairing} for kind, pairing in sources
        }
        small["data.batch_size"] = 16
    for key, value in small.items():
        set_key(whole, key, value)
    return whole


@cache
def _parser_of(part: str) -> Any:
    """A parser as the command line's, of the model or the data alone, which takes a fraction of the time."""
    made = LightningArgumentParser()
    if part == "model":
        made.add_lightning_class_args(LightningModule, part, subclass_mode=True)
    else:
        made.add_lightning_class_args(EpisodeDataModule, part)
    return made


def _built(whole: Config, part: str) -> Any:
    made = _parser_of(part)
    seed_everything(0, verbose=False)
    return made.instantiate_classes(made.parse_object({part: deepcopy(whole[part])}))[part]


def data_of(whole: Config, stage: str | None = None) -> EpisodeDataModule:
    """The datamodule of a config, set up for a stage."""
    data = _built(whole, "data")
    if stage is not None:
        data.setup(stage)
    return data


class Refused(str):
    """The message of a config that cannot be used."""


def remembered(observe: Observer) -> Observer:
    """Do not look twice at the same config; a `UserError` is seen as `Refused`."""
    seen: dict[str, Any] = {}

    def observe_once(whole: Config) -> Any:
        key = digest(whole)
        if key not in seen:
            try:
                seen[key] = observe(whole)
            except (UserError, ValueError) as error:
                seen[key] = Refused(error)
        return seen[key]

    return observe_once


# ---- Observers


def digest(*values: Any) -> str:
    """A hash of tensors, arrays and plain values, in any nesting."""
    sha = hashlib.sha256()
    for value in values:
        if isinstance(value, Tensor):
            value = value.to_local() if isinstance(value, DTensor) else value
            value = value.detach().cpu().contiguous().float().numpy()
        if isinstance(value, np.ndarray):
            sha.update(f"{value.dtype}{value.shape}".encode() + value.tobytes())
        elif isinstance(value, dict):
            sha.update(digest(*value, *value.values()).encode())
        elif isinstance(value, list | tuple):
            sha.update(digest(*value).encode())
        else:
            sha.update(repr(value).encode())
    return sha.hexdigest()[:12]


@remembered
def drawn(whole: Config) -> str:
    """What the first two training batches hold, as the model gets them."""
    data = data_of(whole, "fit")
    batches: Any = data.train_dataloader()
    return digest([data.to_model_range(batch, training=True) for batch in islice(batches, 2)])


def processes(whole: Config) -> int:
    """How many processes load a training batch."""
    data = data_of(whole, "fit")
    try:
        next(iter(data.train_dataloader()))
        return len(active_children())
    finally:
        data.teardown()


@remembered
def asked(whole: Config) -> str:
    """The episodes of the evaluation sets, and the first batch of validation and of a test."""
    data = data_of(whole, "test")
    loaders = [*data.val_dataloader(), *data.test_dataloader()]
    firsts = [next(iter(loader)) for loader in loaders]
    return digest([manifest.hash for manifest in data.manifests.values()], [len(x) for x in loaders], firsts)


def fold(whole: Config) -> list[list[int]]:
    """Which of 80 classes each evaluation set asks for."""
    protocols = [source.protocol for source in data_of(whole).evaluation.values()]
    classes = {number: str(number) for number in range(1, 81)}
    return [protocol.classes(classes) for protocol in protocols if protocol is not None]


def prepared(whole: Config) -> list[str]:
    """The folders that appear when the data are prepared in an empty one."""
    with in_folder(Path.cwd() / digest(whole)):
        data_of(whole).prepare_data()
        return sorted(path.name for path in Path().iterdir())


TRAINER = Trainer(accelerator="cpu", max_steps=10, logger=False, enable_checkpointing=False, enable_progress_bar=False)


def ready(whole: Config) -> Any:
    """The model of a config, as it is before the first batch."""
    model = _built(whole, "model")
    model.trainer = TRAINER
    model.configure_model()
    return model


@remembered
def learnt(whole: Config) -> str:
    """The losses of two steps and the parameters after them."""
    model = ready(whole)
    episodes, chosen = tiny.batch(3), model.configure_optimizers()
    losses = []
    for _ in range(2):
        loss = model.training_loss(episodes)["loss"]
        loss.backward()
        chosen["optimizer"].step()
        chosen["optimizer"].zero_grad()
        chosen["lr_scheduler"]["scheduler"].step()
        losses.append(loss)
    return digest(losses, list(model.trainable_parameters()))


@remembered
def predicted(whole: Config) -> str:
    """The logits of a batch, with weights for the query's latent, which start at zero."""
    model = ready(whole).eval()
    with torch.no_grad(), tiny.seeded(3):
        model.unet.conv_in.weight += torch.randn(model.unet.conv_in.weight.shape)
        return digest(model.logits(tiny.batch(2)))


def operations(whole: Config) -> set[str]:
    """The names of the operations that an optimizer step consists of."""
    model = ready(whole)
    optimizer = model.configure_optimizers()["optimizer"]
    model.training_loss(tiny.batch(2))["loss"].backward()
    with _Operations() as seen:
        optimizer.step()
    return seen.names


class _Operations(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(str(func))
        return func(*args, **(kwargs or {}))


def kept_bytes(whole: Config) -> int:
    """Bytes that the backward of a step finds kept from its forward."""
    model, kept = ready(whole), []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor.nbytes)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model.training_loss(tiny.batch(2))
    return sum(kept)


def frozen_bytes(whole: Config) -> int:
    """Bytes of the autoencoder's weights."""
    return sum(parameter.nbytes for parameter in ready(whole).autoencoder.parameters())


def is_channels_last(whole: Config) -> bool:
    """Whether the U-Net's first convolution works channels last."""
    results = []
    model = ready(whole)
    model.unet.conv_in.register_forward_hook(lambda layer, given, result: results.append(result))
    model.training_loss(tiny.batch(2))
    return results[0].is_contiguous(memory_format=torch.channels_last)


def is_compiled(whole: Config) -> bool:
    """Whether a call of some part of the U-Net goes through a compiler."""
    return any(module._compiled_call_impl is not None for module in ready(whole).unet.modules())


class Recorder(Callback):
    """Notes what a Trainer does."""

    seen: dict[str, list[Any]]

    def __init__(self) -> None:
        type(self).seen = {name: [] for name in ("sanity", "validations", "val", "test", "losses", "norms", "views")}

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        for optimizer in trainer.optimizers:
            optimizer.register_step_post_hook(self.note_gradients)

    def note_gradients(self, optimizer: torch.optim.Optimizer, *args: Any) -> None:
        """As the optimizer got them."""
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        self.seen["norms"].append(float(torch.stack([gradient.norm() for gradient in gradients]).norm()))
        self.seen["views"].append(any(gradient._is_view() for gradient in gradients))

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, *args: Any) -> None:
        self.seen["losses"].append(float(outputs["loss"]))

    def on_validation_batch_end(self, trainer: Trainer, *args: Any) -> None:
        self.seen["sanity" if trainer.sanity_checking else "val"].append(trainer.global_step)

    def on_validation_end(self, trainer: Trainer, *args: Any) -> None:
        self.seen["validations"] += [] if trainer.sanity_checking else [trainer.global_step]

    def on_test_batch_end(self, *args: Any) -> None:
        self.seen["test"].append(1)


def run(observation: str) -> Observer:
    """An observer of a fit.

    Args:
        observation: what of it: a name in `Recorder.seen`, or `steps`, `metrics`, `logs`, `files`, `callbacks`,
            `logged`, `averaged`.
    """

    def observe(whole: Config) -> Any:
        seen = _fitted(whole)
        return seen if isinstance(seen, Refused) else seen[observation]

    return observe


@remembered
def _fitted(whole: Config) -> dict[str, Any]:
    folder = Path.cwd() / digest(whole)
    with in_folder(folder), redirect_stdout(StringIO()):
        Path("config.yaml").write_text(yaml.safe_dump(whole), encoding="utf-8")
        cli = LDISCLI("fit", ["--config", "config.yaml"])
        if torch.distributed.is_initialized():  # Lightning leaves this to the end of the process
            torch.distributed.destroy_process_group()
        files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    return {
        **Recorder.seen,
        "steps": cli.trainer.global_step,
        "metrics": sorted(cli.trainer.callback_metrics),
        "files": sorted(name for name in files if "tfevents" not in name),
        "logs": sorted({Path(name).parent.as_posix() for name in files if "tfevents" in name}),
        "callbacks": [type(callback).__name__ for callback in cli.trainer.callbacks],  # pyright: ignore
        "logged": [path.read_text(encoding="utf-8").count("\n") for path in folder.rglob("metrics.csv")],
        "averaged": digest(list(cli.model.parameters())),  # what the Trainer leaves in the model
    }


@contextmanager
def in_folder(folder: Path) -> Iterator[Path]:
    """Inside, the working directory is `folder`, which is made."""
    before = Path.cwd()
    folder.mkdir(exist_ok=True)
    os.chdir(folder)
    try:
        yield folder
    finally:
        os.chdir(before)
