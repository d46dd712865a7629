"""What cannot work on this machine is one message, before anything is built."""

import os
from functools import cache, wraps
from pathlib import Path
from typing import Any

import pytest
import torch
from cli_support import write_config
from lightning.pytorch import Trainer
from lightning.pytorch.accelerators import CUDAAccelerator

from ldis_lightning.config_files import resolve_configs
from ldis_lightning.errors import UserError
from ldis_lightning.lightning_cli import LDISCLI, LDISParser, parse_fit
from ldis_lightning.platform import check, check_checkpoint

QUICKSTART = ["--config", "configs/quickstart.yaml"]
FSDP = ["--config", "configs/cluster/fsdp.yaml", "--trainer.accelerator", "cpu", "--trainer.devices", "2"]
COMPILED = ["--model.execution", "{compile: true}"]
SLURM = {
    "SLURM_JOB_ID": "7",
    "SLURM_JOB_NAME": "fit",
    "SLURM_LOCALID": "0",
    "SLURM_NNODES": "2",
    "SLURM_NODEID": "0",
    "SLURM_NTASKS": "4",
    "SLURM_NTASKS_PER_NODE": "2",
    "SLURM_PROCID": "0",
}
TORCHRUN = {
    "GROUP_RANK": "0",
    "LOCAL_RANK": "0",
    "LOCAL_WORLD_SIZE": "1",
    "MASTER_ADDR": "localhost",
    "MASTER_PORT": "29500",
    "RANK": "0",
    "TORCHELASTIC_RUN_ID": "7",
    "WORLD_SIZE": "2",
}


@cache
def fit_parser() -> LDISParser:
    """It takes a second to build."""
    return parse_fit(QUICKSTART)[0]


def checked(options: list[str], config: str = "quickstart") -> None:
    """Check a run of a shipped config with these options."""
    check(fit_parser().parse_args(resolve_configs(["--config", config, *options])[0]))


def message(options: list[str]) -> str:
    """What is said against a run of the quickstart with these options."""
    with pytest.raises(UserError) as found:
        checked(options)
    (line,) = str(found.value).splitlines()
    return line


REFUSED = {
    "FSDP1": (
        ["--trainer.strategy", "fsdp"],
        "FSDPStrategy (FSDP1) is not supported; use `--config configs/cluster/fsdp",
    ),
    "tensor-parallel": (
        ["--trainer.strategy.class_path", "lightning.pytorch.strategies.ModelParallelStrategy"],
        "ModelParallelStrategy is tensor-parallel inside a node; use `--config configs/cluster/fsdp.yaml`",
    ),
    "averages of shards": (
        [*FSDP, "--trainer.callbacks+", "lightning.pytorch.callbacks.WeightAveraging"],
        "averages of weights (EMA) cannot be kept of a sharded model; use `--config configs/cluster/ddp.yaml`",
    ),
    "8 bits of shards": (
        [*FSDP, "--model.optimizer", "bitsandbytes.optim.AdamW8bit"],
        "bitsandbytes cannot update a sharded model; use torch.optim.AdamW, or `--config configs/cluster/ddp.yaml`",
    ),
    "unknown strategy": (["--trainer.strategy", "dpp"], "there is no strategy `dpp`; did you mean `ddp`?"),
    "no devices": (["--trainer.accelerator", "cpu", "--trainer.devices", "0"], "`Trainer(devices='0')` value is not a"),
    "float16 shards": ([*FSDP, "--trainer.precision", "16-mixed"], "does not support"),
    "code in checkpoints": (["--weights_only", "false"], "code in a checkpoint is never run"),
    "folder": (["--ckpt_path", "."], "the folder `.` is no sharded checkpoint"),
}


@pytest.mark.parametrize(("options", "expected"), REFUSED.values(), ids=REFUSED.keys())
def test_refused(options: list[str], expected: str) -> None:
    assert expected in message(options)


@pytest.mark.parametrize(
    "options", [[], FSDP, ["--config", "configs/cluster/ddp.yaml", "--trainer.precision", "bf16-mixed"]]
)
def test_accepted(options: list[str]) -> None:
    checked(options)


def test_a_model_that_does_not_shard() -> None:
    with pytest.raises(UserError, match="AutoencoderTrainer has no `configure_model` that would shard it"):
        checked(FSDP, "autoencoder_tiny")


def test_nothing_is_built_before_the_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[Any] = []
    monkeypatch.setattr(
        "ldis_lightning.meta_architectures.ldis1.LDIS1.__init__", lambda *args, **kwargs: built.append(1)
    )
    with pytest.raises(UserError, match="FSDP1"):
        LDISCLI("fit", [*QUICKSTART, "--trainer.strategy", "fsdp"])
    assert built == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has what the test asks for")
def test_a_missing_gpu() -> None:
    assert "use `--trainer.accelerator auto` (or `cpu`)" in message(["--trainer.accelerator", "gpu"])


def test_more_gpus_than_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CUDAAccelerator, "is_available", staticmethod(lambda: True))
    monkeypatch.setattr("lightning.fabric.utilities.device_parser._get_all_available_gpus", lambda **kinds: [0])
    found = message(["--trainer.accelerator", "cuda", "--trainer.devices", "2"])
    assert "[0, 1]" in found and "[0]" in found


@pytest.mark.skipif("__import__('importlib').util.find_spec('deepspeed')", reason="deepspeed is installed")
def test_deepspeed_without_its_package() -> None:
    assert "pip install -U deepspeed" in message(["--trainer.strategy", "deepspeed"])


def test_adapters_without_peft(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ldis_lightning.platform.find_spec", lambda name: None)
    assert "LoRA needs peft, which is not installed" in message(["--model.fine_tuning", "LoRA"])


def test_a_config_with_a_package_that_is_missing(tmp_path: Path) -> None:
    optimizer = {"class_path": "absent_package.AdamW8bit", "init_args": {"lr": 1e-3}}
    config = write_config(tmp_path / "absent.yaml", {"model": {"init_args": {"optimizer": optimizer}}})
    with pytest.raises(
        UserError, match=r"absent\.yaml`: `absent_package\.AdamW8bit` needs `absent_package`, which is not"
    ):
        parse_fit([*QUICKSTART, "--config", config])


def test_compilation_without_a_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "model.execution.compile: needs a C++ compiler" in message(["--trainer.accelerator", "cpu", *COMPILED])


def test_a_fused_optimiser_cannot_clip_scaled_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    options = ["--trainer.precision", "16-mixed", "--model.optimizer.fused", "true", "--trainer.accelerator", "cpu"]
    checked(options)  # on a CPU, Lightning takes bfloat16 instead
    monkeypatch.setattr("ldis_lightning.platform.Run.device", "cuda")
    assert "16-mixed cannot clip gradients with `fused: true`" in message(options)


PROCESSES = {
    "Slurm's tasks of a node": (SLURM, ["--trainer.devices", "1", "--trainer.num_nodes", "2"], "Set `devices=2`"),
    "Slurm's nodes": (SLURM, ["--trainer.devices", "2"], "Set `num_nodes=2`"),
    "torchrun's processes": (TORCHRUN, ["--trainer.devices", "1"], "does not match the world size (2)"),
}


@pytest.mark.parametrize(("environment", "options", "expected"), PROCESSES.values(), ids=PROCESSES.keys())
def test_numbers_of_processes_must_agree(
    environment: dict[str, str], options: list[str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert expected in message(["--trainer.accelerator", "cpu", *options])


def test_agreeing_numbers_are_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in SLURM.items():
        monkeypatch.setenv(name, value)
    checked([*FSDP, "--trainer.num_nodes", "2"])


class Hostile:
    """Would create a file where it is unpickled without care."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def test_a_hostile_checkpoint_does_nothing(tmp_path: Path) -> None:
    content = {"state_dict": {}, "callbacks": Hostile(tmp_path / "executed")}
    torch.save(content, tmp_path / "zip")
    assert "holds objects that would have to be executed" in message(["--ckpt_path", str(tmp_path / "zip")])
    torch.save(content, tmp_path / "old", _use_new_zipfile_serialization=False)
    assert "it is no archive of `torch.save`" in message(["--ckpt_path", str(tmp_path / "old")])
    assert not (tmp_path / "executed").exists()


def test_a_damaged_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    torch.save({"state_dict": {"weight": torch.zeros(1000)}}, path)
    check_checkpoint(path)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(UserError, match="is damaged"):
        check_checkpoint(path)
    path.write_bytes(b"")
    with pytest.raises(UserError, match="is damaged"):
        check_checkpoint(path)


def test_a_sharded_checkpoint_needs_its_strategy(tmp_path: Path) -> None:
    (tmp_path / ".metadata").write_bytes(b"")
    expected = "is a sharded checkpoint: add `--config configs/cluster/fsdp.yaml`, or export it with `ldis convert`"
    assert expected in message(["--ckpt_path", str(tmp_path)])
    checked([*FSDP, "--ckpt_path", str(tmp_path)])


def test_checkpoints_are_loaded_as_plain_data(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    given: dict[str, Any] = {}

    @wraps(Trainer.fit)  # the command line reads its parameters
    def fit(trainer: Trainer, model: object, **options: Any) -> None:
        given.update(options)

    monkeypatch.setattr(Trainer, "fit", fit)
    quiet = ["--trainer.logger", "false", "--trainer.callbacks", "[]", "--score_after_fit", "false"]
    LDISCLI("fit", [*QUICKSTART, *quiet])
    assert given["ckpt_path"] is None
    assert given.get("weights_only", True) is True  # Lightning 2.5 has no such argument
