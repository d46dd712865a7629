"""Losses of two short trainings against those in golden.json: a change of the method must not go unnoticed.

    python tests/test_golden.py --update

writes the numbers anew, for a change that is meant to change them.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from torch import Tensor

from ldis_lightning.alignment import Augmented
from ldis_lightning.datamodules import world
from ldis_lightning.episode import EpisodeBatch
from ldis_lightning.losses import DiceCrossEntropy, LatentLoss
from ldis_lightning.meta_architectures import InContextSegmenter

FILE = Path(__file__).with_name("golden.json")
STEPS, BATCH_SIZE = 20, 4

MODELS: dict[str, Callable[[], InContextSegmenter]] = {
    "LDIS1": lambda: tiny.ldis1(
        losses=[LatentLoss(), DiceCrossEntropy(0.5)],
        autoencoder=tiny.autoencoder(sample=True),
        timestep=100,
        add_noise=True,
    ),
    "LDISn": lambda: tiny.ldisn(pseudo_mask=Augmented(0.4)),
}


def picture_of(generator: np.random.Generator, concept: world.Concept) -> tuple[Tensor, Tensor]:
    """A scene with one thing of the concept and another beside it: (3, H, W) in [-1, 1], mask (H, W) uint8."""
    other = world.CONCEPTS[(concept.class_id + 76) % len(world.CONCEPTS)]
    things = tuple(world.draw_thing(generator, thing, tiny.PICTURE) for thing in (other, concept))
    picture, labels = world.render(world.Scene(world.draw_background(generator, tiny.PICTURE), things))
    image = torch.from_numpy(picture).permute(2, 0, 1) / 127.5 - 1
    return image, torch.from_numpy(labels == concept.class_id).to(torch.uint8)


def batch_number(step: int) -> EpisodeBatch:
    """The same synthetic episodes on every machine; queries have a border to ignore."""
    generator = np.random.default_rng([2024, step])
    concepts = [world.CONCEPTS[i] for i in generator.integers(0, len(world.CONCEPTS), BATCH_SIZE)]
    queries, references = ([picture_of(generator, concept) for concept in concepts] for _ in range(2))
    masks = torch.stack([mask for _, mask in queries])
    masks[:, :, :2] = 255
    batch: Any = {
        "query_image": torch.stack([image for image, _ in queries]),
        "query_mask": masks,
        "reference_image": torch.stack([image for image, _ in references])[:, None],
        "reference_mask": torch.stack([mask for _, mask in references])[:, None],
        "class_id": torch.tensor([concept.class_id for concept in concepts]),
        "valid": torch.ones(BATCH_SIZE, dtype=torch.bool),
        "seed": torch.arange(BATCH_SIZE) + 100 * step,
        "meta": [],
    }
    return batch


def train(build: Callable[[], InContextSegmenter]) -> list[float]:
    """The loss of each step."""
    module = build().train()
    optimizer = torch.optim.AdamW(module.trainable_parameters(), lr=1e-3)
    losses = []
    for step in range(STEPS):
        loss = module.training_loss(batch_number(step))["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("name", MODELS)
def test_losses_are_those_written_down(name: str) -> None:
    golden = json.loads(FILE.read_text())[name]
    assert len(golden) == STEPS
    # Other CPU kernels moved these losses by 1e-6; a change of the method moves them by far more than the tolerance.
    assert train(MODELS[name]) == pytest.approx(golden, rel=1e-3), "if meant: python tests/test_golden.py --update"


def update() -> None:
    golden = {name: [float(f"{loss:.7g}") for loss in train(build)] for name, build in MODELS.items()}
    FILE.write_text(json.dumps(golden, indent=1) + "\n")
    print(f"Wrote {FILE.name}: {STEPS} losses each of {', '.join(golden)}.")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Golden losses of the tiny models.")
    parser.add_argument("--update", action="store_true", required=True, help="write golden.json anew")
    parser.parse_args()
    update()
