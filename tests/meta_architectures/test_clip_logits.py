"""Clips: every concept in every frame, with references encoded once a clip and queries once a frame."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import tiny
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from ldis_lightning.episode import ClipBatch
from ldis_lightning.evaluation.scoring import Scoreboard, concept_masks
from ldis_lightning.instruction import Instruction
from ldis_lightning.latent import Autoencoder
from ldis_lightning.meta_architectures import InContextSegmenter

BUILDS: list[Any] = [
    tiny.ldis1,
    lambda **changes: tiny.ldis1(**({"timestep": 400, "add_noise": True} | changes)),
    lambda **changes: tiny.noisy_conv_in(tiny.ldisn(steps=2, **changes)),
]
every_model = pytest.mark.parametrize("build", BUILDS, ids=["LDIS1", "LDIS1 with noise", "LDISn"])


def counted(module: torch.nn.Module) -> list[int]:
    """Fills with the number of rows of every call."""
    calls: list[int] = []
    module.register_forward_pre_hook(lambda _, args: calls.append(len(args[0])))
    return calls


def logits_of(module: InContextSegmenter, step: Any) -> Tensor:
    with torch.no_grad():
        return module.logits(step)


# ---- What comes out


@every_model
def test_concepts_and_frames_are_as_if_asked_one_by_one(build: Callable[..., Any]) -> None:
    module, step = build().eval().double(), tiny.in_double(tiny.clip(frames=3, concepts=2))
    logits = logits_of(module, step)
    assert logits.shape == (3, 2, tiny.PICTURE, tiny.PICTURE)
    with torch.no_grad():
        for frame in range(3):
            for concept in range(2):
                instruction = module.instruction(
                    step["reference_image"][concept : concept + 1], step["reference_mask"][concept : concept + 1]
                )
                query, seed = step["query_image"][frame : frame + 1], step["seed"][frame, concept].view(1)
                alone = module.predict_logits(query, instruction, seed)[0]
                torch.testing.assert_close(logits[frame, concept], alone, rtol=0, atol=1e-9)
    assert not torch.allclose(logits[:, 0], logits[:, 1], atol=1e-4)


@every_model
def test_a_clip_in_one_step_or_in_many(build: Callable[..., Any]) -> None:
    module, whole = build().eval().double(), tiny.in_double(tiny.clip(frames=4))
    together = logits_of(module, whole)
    for frame in range(4):
        part = dict(whole)
        for name in ("query_image", "seed", "position", "valid", "labels"):
            part[name] = whole[name][frame : frame + 1]
        torch.testing.assert_close(logits_of(module, part)[0], together[frame], rtol=0, atol=1e-9)


def test_queries_may_share_rows() -> None:
    """`query_of` says which query each row of the instruction is for, in any order."""
    module, batch = tiny.ldis1().eval().double(), tiny.in_double(tiny.batch(2))
    with torch.no_grad():
        instruction = module.encode_references(batch)
        rows = torch.tensor([1, 0, 1])
        picked = [0, 0, 1]
        three = Instruction(instruction.tokens[picked], instruction.attended[picked], instruction.position[picked])
        seed = torch.tensor([3, 4, 5])
        logits = module.predict_logits(batch["query_image"], three, seed, query_of=rows)
        plain = module.predict_logits(batch["query_image"][rows], three, seed)
    torch.testing.assert_close(logits, plain, rtol=0, atol=1e-9)


# ---- What is computed once


@every_model
def test_references_are_encoded_once_a_clip(build: Callable[..., Any]) -> None:
    module = build().eval()
    module.guidance = None if not hasattr(module, "guidance") else type(module.guidance)(1, 1)  # no null instruction
    calls = counted(module.instruction)
    for number in range(3):
        logits_of(module, tiny.clip(seed=number, name="first"))
    assert calls == [2]  # its concepts
    logits_of(module, tiny.clip(concepts=3, name="second"))
    assert calls == [2, 3]
    logits_of(module, tiny.clip(name="first"))
    assert calls == [2, 3, 2]  # one clip is remembered at a time


@every_model
def test_queries_are_encoded_once_a_frame(build: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    encoded: list[int] = []
    original = Autoencoder.encode

    def encode(self: Autoencoder, picture: Tensor, seed: Tensor | None = None) -> Tensor:
        encoded.append(len(picture))
        return original(self, picture, seed)

    module = build().eval()
    monkeypatch.setattr(Autoencoder, "encode", encode)
    logits_of(module, tiny.clip(frames=2, concepts=5))
    assert encoded == [2]


class Clips(L.LightningDataModule):
    """Two clips of three and one steps, one step of padding, and the references of a third as training data."""

    evaluation_names = ("video",)

    def steps(self) -> list[ClipBatch]:
        steps = [tiny.clip(seed=0, name="a"), tiny.clip(seed=1, name="a"), tiny.clip(seed=2, name="a")]
        steps.append(tiny.clip(seed=3, concepts=3, name="b"))
        start = 0
        for step in steps:
            step["position"] = step["position"] + start
            start += step["position"].numel()
        padding = tiny.clip(name="a")
        padding["valid"] = torch.zeros(2, dtype=torch.bool)
        return [*steps, padding]

    def scoreboard(self, stage: str, name: str) -> Scoreboard:
        classes = [1, 2] * 6 + [1, 2, 3] * 2
        return tiny.board(classes, [0] * 12 + [1] * 6)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(self.steps(), batch_size=None)  # pyright: ignore[reportArgumentType]

    test_dataloader = predict_dataloader = val_dataloader

    def train_dataloader(self) -> DataLoader:
        return DataLoader([tiny.batch(2, seed=i) for i in range(2)], batch_size=None)  # pyright: ignore


def trainer(folder: Path, **options: Any) -> L.Trainer:
    quiet: dict[str, Any] = {name: False for name in ("logger", "enable_progress_bar", "enable_checkpointing")}
    return L.Trainer(accelerator="cpu", default_root_dir=folder, enable_model_summary=False, **(quiet | options))


def test_a_new_stage_forgets_references(tmp_path: Path) -> None:
    """They may have been encoded with other weights."""
    module = tiny.ldis1()
    run = trainer(tmp_path, max_steps=2, val_check_interval=1, check_val_every_n_epoch=None, num_sanity_val_steps=0)
    calls = counted(module.instruction)
    logits_of(module.eval(), tiny.clip(name="a"))
    run.fit(module, Clips())
    clips = [2, 3, 2]  # references of clip a, of clip b, and of the padding
    assert calls == [2, 2, *clips, 2, *clips]  # each training step has two references
    logits_of(module.eval(), tiny.clip(name="a"))
    del calls[:]
    run.validate(module, Clips(), verbose=False)
    run.test(module, Clips(), verbose=False)
    run.predict(module, Clips())
    assert calls == clips * 3


# ---- Scoring


@every_model
def test_clips_are_scored_under_a_trainer(build: Callable[..., Any], tmp_path: Path) -> None:
    module, data = build(), Clips()
    run = trainer(tmp_path)
    run.test(module, data, verbose=False)
    result = module.results["test"]["video"]
    assert (result.episodes, result.expected) == (18, 18)
    assert set(result.per_class) == {1, 2, 3}
    sums: dict[int, list[int]] = {}
    for step in data.steps()[:-1]:
        logits = logits_of(module, step)
        fused = torch.cat([torch.zeros(2, 1, 32, 32), logits], 1).argmax(1)
        for concept, class_id in enumerate(step["class_id"].tolist(), start=1):
            said, true = fused == concept, step["labels"] == concept
            entry = sums.setdefault(class_id, [0, 0])
            entry[0] += int((said & true).sum())
            entry[1] += int(((said | true) & (step["labels"] != 255)).sum())
    assert result.per_class == {class_id: both / either for class_id, (both, either) in sums.items()}


def test_steps_return_the_logits_of_all_concepts(tmp_path: Path) -> None:
    predictions: Any = trainer(tmp_path).predict(tiny.ldis1(), Clips())
    assert [tuple(p["logits"].shape) for p in predictions] == [(2, 2, 32, 32)] * 3 + [(2, 3, 32, 32), (2, 2, 32, 32)]


# ---- The ceiling


def test_masks_of_concepts() -> None:
    step = tiny.clip(frames=1, concepts=2)
    step["labels"] = torch.tensor([[[0, 1, 2, 255]]], dtype=torch.uint8)
    masks = concept_masks(step["labels"], len(step["class_id"]))
    assert masks.dtype == torch.uint8
    assert masks.tolist() == [[[[0, 1, 0, 255]], [[0, 0, 1, 255]]]]


@pytest.mark.parametrize("build", [tiny.ldis1, tiny.ldisn], ids=["LDIS1", "LDISn"])
def test_the_round_trip_of_true_masks(build: Callable[..., Any]) -> None:
    module, batch, step = build().eval(), tiny.batch(2), tiny.clip(frames=2, concepts=2)
    with torch.no_grad():
        logits = module.round_trip_logits(batch)
        picture = module.pseudo_mask.encode(batch["query_mask"], batch["query_image"], batch["seed"])
        latent = module.autoencoder.vae.encode(picture).latent_dist.mode()
        decoded = module.autoencoder.vae.decode(latent).sample
        torch.testing.assert_close(logits, module.pseudo_mask.logits(decoded, batch["query_image"]))
        of_clip = module.round_trip_logits(step)
        assert of_clip.shape == (2, 2, 32, 32)
        for frame in range(2):
            for concept in range(2):
                one: Any = {
                    "query_image": step["query_image"][frame : frame + 1],
                    "query_mask": concept_masks(step["labels"], len(step["class_id"]))[frame, concept][None],
                    "seed": step["seed"][frame, concept].view(1),
                }
                alone = module.round_trip_logits(one)[0]
                torch.testing.assert_close(of_clip[frame, concept], alone, rtol=1e-4, atol=1e-4)
