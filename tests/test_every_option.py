"""Every option of every shipped config does something: another value of it, and something that can be seen differs."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from option_effects import (
    WORLD,
    Observer,
    Refused,
    asked,
    config,
    drawn,
    fold,
    frozen_bytes,
    is_channels_last,
    is_compiled,
    kept_bytes,
    learnt,
    operations,
    parser,
    predicted,
    prepared,
    processes,
    run,
    write_world,
)
from option_names import Config, names_in

from ldis_lightning.config_files import packaged_configs, resolve_configs
from ldis_lightning.sweeps.grid import Sweep, expand
from ldis_lightning.sweeps.plan import plan_sweep


@dataclass(frozen=True)
class Effect:
    """Where an option shows.

    Args:
        observer: what is looked at.
        key: of the option in a whole config, without `init_args`.
        values: two of its values, with which the observations must differ.
        given: further changes, for both.
        base: the config that is changed, see `option_effects.config`.
        other_base: the same for the second value; empty where it is the same.
    """

    observer: Observer
    key: str
    values: tuple[Any, Any]
    given: Config = field(default_factory=dict)
    base: str = "ldis1"
    other_base: str = ""

    def observations(self, world: Path) -> list[Any]:
        bases = (self.base, self.other_base or self.base)
        return [
            self.observer(config(world, base, {**self.given, self.key: value}))
            for base, value in zip(bases, self.values, strict=True)
        ]


@dataclass(frozen=True)
class Elsewhere:
    """An option whose effect needs more than a process: the file of the tests that see it, and what they call it."""

    file: str
    word: str


def component(name: str, /, **init_args: Any) -> Config:
    return {"class_path": name, "init_args": init_args}


def two(name: str, key: str, one: Any, other: Any, **both: Any) -> tuple[Config, Config]:
    """The same component twice, with two values of one of its parameters."""
    return component(name, **(both | {key: one})), component(name, **(both | {key: other}))


def points(whole: Config) -> list[str]:
    return [point.slug for point in expand(Sweep(**whole["sweep"]))]


def planned(whole: Config) -> tuple[Config, list[str]]:
    """What `sweep.yaml` holds, and the runs."""
    made, sweep = parser("ldis1")[0], Sweep(**whole["sweep"])
    plan = plan_sweep(made, made.parse_object(whole), sweep, Path("sweep"))
    return plan.summary(), [run.name for run in [*plan.trainings, *plan.runs]]


def configs_read(whole: Config) -> list[str]:
    """What `--config` stands for, of a file with this `extends`."""
    path = Path("child.yaml")
    path.write_text(f"extends: {whole['extends']}\n", encoding="utf-8")
    return resolve_configs(["--config", str(path)])[0]


BATCH = {"shards": "{world}/synthetic/images/train"}
CSV = component("CSVLogger", save_dir="runs")
ACROSS_CLIPS = {"data.train": {"shards": "{world}/synthetic/clips/train"}}
CLIPS = {"shards": "{world}/synthetic/clips/train", "pairing": "WithinClip"}
NOVEL = "{world}/synthetic/images/novel"
NOVEL_CLIPS = "{world}/synthetic/clips/novel"
SCHEDULE = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
INFERENCE_GRID = {"sweep.grid": {"data.references": [1, 2]}}
GRID = {"sweep.grid": {"model.pseudo_mask": ["Vanilla", "Augmented"]}}


def drawing(key: str, one: Any, other: Any, given: Config | None = None, base: str = "ldis1") -> Effect:
    return Effect(drawn, f"data.{key}", (one, other), given or {}, base)


def asking(key: str, one: Any, other: Any, **given: Any) -> Effect:
    values = tuple({"set": {"shards": NOVEL, "min_pixels": 32, **given, key: value}} for value in (one, other))
    return Effect(asked, "data.evaluation", values)  # pyright: ignore[reportArgumentType]


def mixing(one: Config, other: Config, **both: Any) -> Effect:
    values = tuple({"images": {**BATCH, **both}, "clips": {**CLIPS, **change}} for change in (one, other))
    return Effect(drawn, "data.train", values, base="mixture")  # pyright: ignore[reportArgumentType]


def learning(key: str, one: Any, other: Any, given: Config | None = None, base: str = "ldis1") -> Effect:
    return Effect(learnt, f"model.{key}", (one, other), given or {}, base)


def predicting(key: str, one: Any, other: Any, given: Config | None = None, base: str = "ldisn") -> Effect:
    return Effect(predicted, f"model.{key}", (one, other), given or {}, base)


def running(observation: str, key: str, one: Any, other: Any, given: Config | None = None) -> Effect:
    return Effect(run(observation), key, (one, other), given or {})


def optimizing(key: str, one: Any, other: Any, kind: str = "torch.optim.AdamW") -> Effect:
    return learning("optimizer", *two(kind, key, one, other, lr=1e-2))


def optimizing_in_8_bits(key: str, one: Any, other: Any) -> Effect:
    return optimizing(key, one, other, "bitsandbytes.optim.AdamW8bit")


def scheduling(kind: str, key: str, one: Any, other: Any, see: Any = learning) -> Effect:
    return see("scheduler", *two(f"diffusers.{kind}", key, one, other, **SCHEDULE), {"model.steps": 3}, "ldisn")


def adapting(key: str, one: Any, other: Any) -> Effect:
    return learning("fine_tuning", *two("LoRA", key, one, other, rank=2), base="sd")


def cutting(key: str, one: Any, other: Any) -> Effect:
    return drawing("geometry", *two("RandomCrop", key, one, other))


def encoding(key: str, one: Any, other: Any) -> Effect:
    return learning(f"instruction.encoder.model_args.{key}", one, other)


def with_callbacks(observation: str, one: Config, other: Config, given: Config | None = None) -> Effect:
    recorder = component("option_effects.Recorder")
    return running(observation, "trainer.callbacks", [recorder, one], [recorder, other], given)


def averaging(key: str, one: Any, other: Any) -> Effect:
    return with_callbacks("averaged", *two(EMA, key, one, other, decay=0.5))


def saving(key: str, one: Any, other: Any) -> Effect:
    return with_callbacks("files", *two("ModelCheckpoint", key, one, other, save_last=False, save_top_k=0))


def logging(key: str, one: str, other: str) -> Effect:
    return running("logs", "trainer.logger", *two("TensorBoardLogger", key, one, other, save_dir="runs"))


EMA = "lightning.pytorch.callbacks.EMAWeightAveraging"
PRE_MASK = learning("instruction.pre_mask", "AlphaChannel", "NoPreMasking")
POST_MASK = learning("instruction.post_mask", "CrossAttentionMask", "NoPostMasking")
ADDITIVE = "ldis_lightning.alignment.Additive"
AUGMENTED, PERTURBED = "ldis_lightning.alignment.Augmented", "ldis_lightning.alignment.Perturbed"
TEST = {"score_after_fit": True}
ONE_DEVICE = {"trainer.devices": 1}
SHARDED = "ldis_lightning.strategies.FullySharded"
LAST = {"trainer.callbacks": [component("option_effects.Recorder"), component("ModelCheckpoint", save_last=True)]}

EFFECTS: dict[str, Effect | Elsewhere] = {
    # ---- The run
    "extends": Effect(configs_read, "extends", ("configs/quickstart.yaml", "configs/quickstart_ldisn.yaml")),
    "seed_everything": running("losses", "seed_everything", 0, 1),
    "score_after_fit": running("test", "score_after_fit", False, True),
    "trainer.callbacks": with_callbacks("files", component("Previews"), component("ResultTable")),
    "trainer.check_val_every_n_epoch": running(
        "validations", "trainer.check_val_every_n_epoch", None, 1, {"data.batches_per_epoch": 1}
    ),
    "trainer.devices": Elsewhere("test_two_ranks.py", "devices"),
    "trainer.enable_model_summary": running("callbacks", "trainer.enable_model_summary", False, True),
    "trainer.gradient_clip_val": running("norms", "trainer.gradient_clip_val", None, 1e-3),
    "trainer.limit_test_batches": running("test", "trainer.limit_test_batches", 1, 2, TEST),
    "trainer.limit_val_batches": running("val", "trainer.limit_val_batches", 1, 2),
    "trainer.log_every_n_steps": running("logged", "trainer.log_every_n_steps", 1, 2, {"trainer.logger": CSV}),
    "trainer.logger": running("logs", "trainer.logger", False, component("TensorBoardLogger", save_dir="runs")),
    "trainer.max_steps": running("steps", "trainer.max_steps", 1, 2, {"trainer.val_check_interval": 1}),
    "trainer.num_nodes": Elsewhere("test_two_nodes.py", "num_nodes"),
    "trainer.num_sanity_val_steps": running("sanity", "trainer.num_sanity_val_steps", 0, 1),
    "trainer.precision": running("losses", "trainer.precision", "32-true", "bf16-mixed"),
    "trainer.strategy": Elsewhere("test_sharded.py", "cluster/fsdp"),
    "trainer.val_check_interval": running("validations", "trainer.val_check_interval", 1, 2),
    "Ceiling.sets": with_callbacks(
        "metrics", component("Ceiling", sets=[]), component("Ceiling", sets=["novel"]), TEST
    ),
    "DDPStrategy.gradient_as_bucket_view": running(
        "views", "trainer.strategy", *two("DDPStrategy", "gradient_as_bucket_view", False, True), ONE_DEVICE
    ),
    "EMAWeightAveraging.decay": averaging("decay", 0.5, 0.9),
    "EMAWeightAveraging.update_every_n_steps": averaging("update_every_n_steps", 1, 2),
    "FullySharded.save_distributed_checkpoint": running(
        "files", "trainer.strategy", *two(SHARDED, "save_distributed_checkpoint", False, True), ONE_DEVICE | LAST
    ),
    "ModelCheckpoint.save_last": saving("save_last", False, True),
    "ModelCheckpoint.save_top_k": saving("save_top_k", 0, 1),
    "TensorBoardLogger.name": logging("name", "a", "b"),
    "TensorBoardLogger.save_dir": logging("save_dir", "runs", "elsewhere"),
    "sweep.grid": Effect(points, "sweep.grid", (GRID["sweep.grid"], {"model.pseudo_mask": ["Vanilla"]})),
    "sweep.points": Effect(
        points, "sweep.points", ({"one": {}}, {"one": {}, "other": {"model.pseudo_mask": "Augmented"}})
    ),
    "sweep.seeds": Effect(planned, "sweep.seeds", ([0], [0, 1]), GRID),
    "sweep.metric": Effect(planned, "sweep.metric", ("test/novel/miou", "test/novel/fb_iou"), GRID),
    "sweep.baseline": Effect(
        planned, "sweep.baseline", ({"pseudo_mask": "Vanilla"}, {"pseudo_mask": "Augmented"}), GRID
    ),
    "sweep.shared_training": Effect(planned, "sweep.shared_training", (False, True), INFERENCE_GRID),
    # ---- Training data
    "data.prepare": Effect(prepared, "data.prepare", (None, component("SyntheticWorld", root="a", **WORLD))),
    "SyntheticWorld.root": Effect(prepared, "data.prepare", two("SyntheticWorld", "root", "a", "b", **WORLD)),
    "data.train.shards": drawing("train.shards", BATCH["shards"], CLIPS["shards"]),
    "data.train.min_pixels": drawing("train.min_pixels", 1, 320),
    "data.train.pairing": drawing("train.pairing", "WithinClip", "AcrossImages", ACROSS_CLIPS),
    "data.train.weight": mixing({"weight": 1.0}, {"weight": 9.0}),
    "data.mixing": drawing("mixing", "PerSample", "PerDataset", base="mixture"),
    "data.references": drawing("references", 1, 2),
    "data.image_size": drawing("image_size", 64, 32),
    "data.batch_size": drawing("batch_size", 2, 3),
    "data.num_workers": Effect(processes, "data.num_workers", (0, 1)),
    "data.geometry": drawing("geometry", "WholePicture", "RandomCrop"),
    "data.augmentation": drawing("augmentation", None, "Photometric"),
    "RandomCrop.ratio": cutting("ratio", [0.9, 1.1], [1.5, 2.0]),
    "RandomCrop.long_side": cutting("long_side", 2.0, 0.5),
    "RandomCrop.max_cover": cutting("max_cover", 1.0, 0.05),
    # ---- Evaluation data
    "data.eval_batch_size": Effect(asked, "data.eval_batch_size", (1, 2)),
    "data.val_episodes": Effect(asked, "data.val_episodes", (None, 1)),
    "data.evaluation.shards": asking("shards", NOVEL, NOVEL_CLIPS),
    "data.evaluation.min_pixels": asking("min_pixels", 1, 600),
    "data.evaluation.episodes": asking("episodes", None, 1),
    "data.evaluation.pairing": asking("pairing", None, "Itself"),
    "data.evaluation.protocol": asking("protocol", "DAVIS", "VSPW", shards=NOVEL_CLIPS),
    "data.evaluation.references": asking("references", 1, 2),
    "data.evaluation.treatment": asking("treatment", None, "Hidden"),
    **{
        f"{name}.fold": Effect(
            fold,
            "data.evaluation.set.protocol.fold",
            (0, 1),
            {"data.evaluation": {"set": {"shards": NOVEL, "protocol": component(name, fold=0)}}},
        )
        for name in ("HSNetCOCO", "HSNetPASCAL")
    },
    # ---- The instruction
    "model.instruction": learning(
        "instruction.pre_mask", "AlphaChannel", "CropToMask"
    ),  # its parts are its only options
    "InstructionExtractor.encoder": learning("instruction.encoder.final_norm", True, False),
    "model.instruction.encoder": learning("instruction.encoder.final_norm", True, False),
    "InstructionExtractor.pre_mask": PRE_MASK,
    "InstructionExtractor.post_mask": POST_MASK,
    "model.instruction.pre_mask": PRE_MASK,
    "model.instruction.post_mask": POST_MASK,
    "TimmPromptEncoder.name": learning("instruction.encoder.name", "vit_tiny_patch16_224", "vit_base_patch16_clip_224"),
    "TimmPromptEncoder.pretrained": Elsewhere("instruction/test_prompt_encoder.py", "pretrained=True"),
    "TimmPromptEncoder.trainable": learning("instruction.encoder.trainable", True, False),
    "TimmPromptEncoder.model_args.img_size": encoding("img_size", 16, 32),
    "TimmPromptEncoder.model_args.patch_size": encoding("patch_size", 4, 8),
    "TimmPromptEncoder.model_args.embed_dim": encoding("embed_dim", 8, 16),
    "TimmPromptEncoder.model_args.depth": encoding("depth", 1, 2),
    "TimmPromptEncoder.model_args.num_heads": encoding("num_heads", 1, 2),
    "AlphaCLIPPromptEncoder.weights": learning(
        "instruction.encoder.weights", "{world}/sd.pth", "{world}/other.pth", base="sd"
    ),
    "AlphaCLIPPromptEncoder.name": learning(  # the file fits the first alone
        "instruction.encoder.name", "vit_large_patch14_clip_quickgelu_224", "vit_tiny_patch16_224", base="sd"
    ),
    "AlphaCLIPPromptEncoder.trainable": learning("instruction.encoder.trainable", False, True, base="sd"),
    "AlphaCLIPPromptEncoder.standardise": learning("instruction.encoder.standardise", False, True, base="sd"),
    "AlphaCLIPPromptEncoder.model_args": learning("instruction.encoder.model_args.num_heads", 2, 4, base="sd"),
    # ---- Pseudo-masks, latents, the denoiser
    "model": Effect(learnt, "data.batch_size", (2, 2), base="ldis1", other_base="ldisn"),
    "model.pseudo_mask": learning("pseudo_mask", "Vanilla", "Augmented"),
    "Additive.alpha": learning("pseudo_mask.alpha", 2.0, 4.0, {"model.pseudo_mask": component(ADDITIVE)}),
    "Augmented.gamma": learning("pseudo_mask.gamma", 0.2, 0.4, {"model.pseudo_mask": component(AUGMENTED)}),
    "Perturbed.strength": learning("pseudo_mask.strength", 0.2, 0.4, {"model.pseudo_mask": component(PERTURBED)}),
    "model.autoencoder": learning(
        "autoencoder", "TinyAutoencoder", component("PretrainedAutoencoder", path="{world}/sd", subfolder="vae")
    ),
    "PretrainedAutoencoder.path": learning("autoencoder.path", "{world}/sd", "{world}/other", base="sd"),
    "PretrainedAutoencoder.subfolder": learning("autoencoder.subfolder", "vae", "inner/vae", base="sd"),
    "PretrainedAutoencoder.sample": learning("autoencoder.sample", False, True, base="sd"),
    "model.denoiser": learning(
        "denoiser", "ScratchUNet", component("PretrainedUNet", path="{world}/sd", subfolder="unet"), base="sd"
    ),
    "ScratchUNet.block_out_channels": learning("denoiser.block_out_channels", [8, 16], [8, 8]),
    "ScratchUNet.cross_attention_dim": learning("denoiser.cross_attention_dim", 8, 16),
    "PretrainedUNet.path": learning("denoiser.path", "{world}/sd", "{world}/other", base="sd"),
    "PretrainedUNet.subfolder": learning("denoiser.subfolder", "unet", "inner/unet", base="sd"),
    "model.block_out_channels": learning("block_out_channels", [4, 4, 8], [4, 8, 8], base="autoencoder"),
    "model.latent_channels": learning("latent_channels", 4, 8, base="autoencoder"),
    "model.norm_num_groups": learning("norm_num_groups", 2, 4, base="autoencoder"),
    # ---- LDIS-1
    "model.losses": learning("losses", [{"class_path": "LatentLoss"}], [{"class_path": "PixelLoss"}]),
    "model.timestep": learning("timestep", 0, 500),
    "model.add_noise": learning("add_noise", False, True),
    # ---- LDIS-n
    "model.steps": predicting("steps", 1, 2),
    "model.dropout": learning(
        "dropout", component("ConditionDropout", p=0.0), component("ConditionDropout", p=0.33), base="ldisn"
    ),
    "ConditionDropout.p": learning(
        "dropout.p", 0.0, 0.33, {"model.dropout": component("ConditionDropout", p=0.0)}, "ldisn"
    ),
    "model.guidance": predicting(
        "guidance", component("DualGuidance", query=1.0, instruction=1.0), component("DualGuidance")
    ),
    "DualGuidance.query": predicting("guidance.query", 1.5, 2.0),
    "DualGuidance.instruction": predicting("guidance.instruction", 7.0, 2.0),
    "model.guidance.query": predicting("guidance.query", 1.5, 2.0),
    "model.guidance.instruction": predicting("guidance.instruction", 7.0, 2.0),
    "model.scale_query": predicting("scale_query", False, True),
    "model.null_keeps_mask": predicting("null_keeps_mask", False, True),
    "model.scheduler": predicting(
        "scheduler",
        component("diffusers.DDIMScheduler", clip_sample=False, **SCHEDULE),
        component("diffusers.DDPMScheduler", clip_sample=False, **SCHEDULE),
    ),
    **{
        f"{kind}Scheduler.{key}": scheduling(f"{kind}Scheduler", key, *values, see=see)
        for kind in ("DDIM", "DDPM", "DPMSolverMultistep")
        for key, values, see in (
            ("beta_schedule", ("scaled_linear", "linear"), learning),
            ("beta_start", (0.00085, 0.01), learning),
            ("beta_end", (0.012, 0.02), learning),
            ("prediction_type", ("epsilon", "v_prediction"), learning),
        )
    },
    "DDIMScheduler.clip_sample": scheduling("DDIMScheduler", "clip_sample", False, True, see=predicting),
    "DDPMScheduler.clip_sample": scheduling("DDPMScheduler", "clip_sample", False, True, see=predicting),
    "DPMSolverMultistepScheduler.algorithm_type": scheduling(
        "DPMSolverMultistepScheduler", "algorithm_type", "dpmsolver++", "sde-dpmsolver++", see=predicting
    ),
    "DDPMScheduler.steps_offset": scheduling("DDPMScheduler", "steps_offset", 0, 1, see=predicting),
    # ---- Optimisation
    "model.optimizer": learning(
        "optimizer", component("torch.optim.AdamW", lr=0.1), component("torch.optim.SGD", lr=0.1)
    ),
    "AdamW.lr": optimizing("lr", 1e-2, 1e-3),
    "AdamW.betas": optimizing("betas", [0.9, 0.999], [0.5, 0.6]),
    "AdamW.eps": optimizing("eps", 1e-8, 1e-1),
    "AdamW.weight_decay": optimizing("weight_decay", 0.0, 0.5),
    "AdamW.fused": Effect(operations, "model.optimizer.fused", (False, True)),
    "AdamW8bit.lr": optimizing_in_8_bits("lr", 1e-2, 1e-3),
    "AdamW8bit.betas": optimizing_in_8_bits("betas", [0.9, 0.999], [0.5, 0.6]),
    "AdamW8bit.eps": optimizing_in_8_bits("eps", 1e-8, 1e-1),
    "AdamW8bit.weight_decay": optimizing_in_8_bits("weight_decay", 0.0, 0.5),
    "model.schedule": learning("schedule", component("WarmupConstant", warmup_steps=9), "OneCycle"),
    "WarmupConstant.warmup_steps": learning(
        "schedule.warmup_steps", 1, 9, {"model.schedule": component("WarmupConstant")}
    ),
    "model.fine_tuning": learning("fine_tuning", "FullFineTuning", "LoRA", base="sd"),
    "LoRA.rank": adapting("rank", 2, 4),
    "LoRA.alpha": adapting("alpha", 2.0, 8.0),
    "LoRA.targets": adapting("targets", ["to_q"], ["to_k"]),
    # ---- Execution
    "model.execution.channels_last": Effect(is_channels_last, "model.execution.channels_last", (False, True)),
    "model.execution.checkpointing": Effect(kept_bytes, "model.execution.checkpointing", (None, "EveryBlock")),
    "model.execution.compile": Effect(is_compiled, "model.execution.compile", (False, True)),
    "model.execution.frozen_in_bfloat16": Effect(frozen_bytes, "model.execution.frozen_in_bfloat16", (False, True)),
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_world(tmp_path_factory.mktemp("options"))


def test_every_option_of_every_config_is_listed_and_no_other() -> None:
    used = {name: file for file, path in packaged_configs().items() for name in names_in(path)}
    assert {name: file for name, file in used.items() if name not in EFFECTS} == {}, "say in EFFECTS where they show"
    assert [name for name in EFFECTS if name not in used] == [], "no config has them any more"


@pytest.mark.parametrize("name", [name for name, effect in EFFECTS.items() if isinstance(effect, Effect)])
def test_another_value_makes_a_difference(
    name: str, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    effect = EFFECTS[name]
    assert isinstance(effect, Effect)
    one, other = effect.observations(world)
    assert one != other
    assert not (isinstance(one, Refused) and isinstance(other, Refused)), (one, other)


def test_options_of_many_processes_have_tests_of_their_own() -> None:
    for name, effect in EFFECTS.items():
        if isinstance(effect, Elsewhere):
            assert effect.word in (Path(__file__).parent / effect.file).read_text(encoding="utf-8"), name
