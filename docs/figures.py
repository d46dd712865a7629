"""Draws the figures of docs/concepts from the parts that they explain, on pictures of the synthetic world.

    python docs/figures.py --ldis1 models/ldis1 --ldisn models/ldisn

takes two folders of `ldis convert` (the points of configs/ablation_meta_architecture.yaml, seed 0) for the figures of
LDIS-1, LDIS-n and scoring, and replaces the files in docs/images.
"""

import argparse
import io
from pathlib import Path

import matplotlib
import numpy as np
import torch
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ldis_lightning.alignment import Additive, Augmented, Perturbed, PseudoMask, Vanilla
from ldis_lightning.callbacks.drawing import FALSE_ALARM, HIT, MISSED
from ldis_lightning.callbacks.pixels import blend, grey, image_pixels
from ldis_lightning.datamodules.world import CONCEPTS, Concept, draw_scene, render
from ldis_lightning.evaluation.boundaries import boundary, boundary_counts
from ldis_lightning.evaluation.fusion import concept_probabilities, fuse_concepts
from ldis_lightning.instruction import AlphaChannel, CropToMask, NoPreMasking, PixelProduct
from ldis_lightning.instruction.post_masks import foreground_tokens
from ldis_lightning.latent import TinyAutoencoder
from ldis_lightning.meta_architectures import LDIS1, LDISn
from ldis_lightning.pipeline import InContextSegmentationPipeline

IMAGES = Path(__file__).resolve().parent / "images"
SIDE = 64
MOST_BYTES = 60_000
Pixels = NDArray[np.uint8]

matplotlib.use("Agg")
plt.rcParams.update({"font.size": 8, "axes.titlesize": 8, "figure.dpi": 130})


def scene(concepts: list[Concept], seed: int) -> tuple[Pixels, Pixels]:
    """A picture (64, 64, 3) in which all the concepts are well seen, and its label map (64, 64)."""
    rng = np.random.default_rng(seed)
    while True:
        picture, labels = render(draw_scene(rng, concepts, SIDE, (len(concepts), len(concepts))))
        if all((labels == concept.class_id).sum() > 150 for concept in concepts):
            return picture, labels


def crowd(seed: int, number: int = 3) -> list[Concept]:
    """Novel concepts of different shapes and hues."""
    chosen: list[Concept] = []
    for i in np.random.default_rng(seed).permutation(len(CONCEPTS)):
        new = CONCEPTS[i]
        if new.novel and all(new.hue != old.hue and new.shape != old.shape for old in chosen):
            chosen.append(new)
        if len(chosen) == number:
            break
    return chosen


def tensor(picture: Pixels) -> Tensor:
    """(H, W, 3) uint8 -> (1, 3, H, W) in [-1, 1]."""
    return torch.from_numpy(picture.copy()).permute(2, 0, 1)[None] / 127.5 - 1


def grid(rows: int, columns: int, size: float = 1.25, top: float = 0.3) -> tuple[Figure, NDArray]:
    """Square axes without ticks; `size` inches each."""
    figure, axes = plt.subplots(rows, columns, figsize=(columns * size, rows * (size + top)), squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    figure.subplots_adjust(0.01, 0.01, 0.99, 1 - 0.25 / (rows * (size + top)), wspace=0.08, hspace=0.3)
    return figure, axes


def show(axis: Axes, picture: NDArray, title: str = "", **options: object) -> None:
    """A picture of few pixels, as they are."""
    axis.imshow(picture, interpolation="nearest", **options)  # pyright: ignore[reportArgumentType]
    axis.set_title(title, pad=3)


def marked(picture: Pixels, mask: NDArray) -> Pixels:
    """The mask's pixels as they are, the others grey and pale."""
    return np.where(np.asarray(mask, bool)[..., None], picture, blend(grey(picture), (255, 255, 255), 0.6))


def channels(latent: Tensor) -> NDArray:
    """(C, h, w) as colours (h, w, 3): its first three principal components, each spread over [0, 1]."""
    flat = latent.flatten(1).T  # (h*w, C)
    parts = torch.pca_lowrank(flat, 3, niter=8)[0].numpy()  # signs and order are of no meaning
    low, high = parts.min(0), parts.max(0)
    return ((parts - low) / (high - low)).reshape(*latent.shape[1:], 3)


def save(figure: Figure, name: str) -> None:
    """As a PNG of at most 256 colours.

    Raises:
        ValueError: it is larger than a page should have to load.
    """
    buffer = io.BytesIO()
    figure.savefig(buffer, facecolor="white")
    plt.close(figure)
    path = IMAGES / f"{name}.png"
    Image.open(buffer).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)
    if path.stat().st_size > MOST_BYTES:
        raise ValueError(f"{path} has {path.stat().st_size} bytes")
    print(path, path.stat().st_size)


def episode() -> None:
    """What a batch holds of one episode."""
    concepts = crowd(3)
    asked = concepts[0].class_id
    drawn = [scene(concepts, seed) for seed in (1, 2, 5)]
    figure, axes = grid(1, 6)
    for k, (picture, labels) in enumerate(drawn[:2]):
        show(axes[0, 2 * k], picture, f"reference {k + 1}")
        show(axes[0, 2 * k + 1], labels == asked, f"its mask {k + 1}", cmap="gray")
    show(axes[0, 4], drawn[2][0], "query")
    show(axes[0, 5], drawn[2][1] == asked, "to be found", cmap="gray")
    save(figure, "concept_episode")


def instruction() -> None:
    """The two stages of masking."""
    concepts = crowd(3)
    picture, labels = scene(concepts, 1)
    image, mask = tensor(picture), torch.from_numpy(labels == concepts[0].class_id)[None].float()
    figure, axes = grid(2, 4, 1.6)
    for axis, pre_mask in zip(axes[0], (NoPreMasking(), PixelProduct(), AlphaChannel(), CropToMask()), strict=True):
        prompt = pre_mask(image, mask)
        seen = image_pixels(prompt.image[0])
        if prompt.alpha.any():  # four channels: the fourth below the picture
            seen = np.concatenate([seen, np.repeat((prompt.mask[0].numpy() * 255)[..., None], 3, 2).astype(np.uint8)])
        show(axis, seen, type(pre_mask).__name__)
    tokens = foreground_tokens(mask, 64)[0].reshape(8, 8).numpy()
    large = np.kron(tokens, np.ones((8, 8)))
    show(axes[1, 0], mask[0].numpy(), "mask", cmap="gray")
    show(axes[1, 1], picture, "tokens of 8 x 8 pixels")
    show(axes[1, 2], marked(picture, large), "CrossAttentionMask")
    prototype = np.zeros_like(picture)
    prototype[:] = picture[large > 0].mean(0)
    show(axes[1, 3], prototype[:8, :8], "PrototypePooling: one token")
    for axis in axes[1, 1:3]:
        for line in range(0, SIDE + 1, 8):
            axis.axhline(line - 0.5, color="white", linewidth=0.6)
            axis.axvline(line - 0.5, color="white", linewidth=0.6)
    save(figure, "concept_instruction")


def alignment() -> None:
    """Pseudo-masks, and what the autoencoder leaves of them."""
    concepts = crowd(3)
    picture, labels = scene(concepts, 5)
    image, mask = tensor(picture), torch.from_numpy(labels == concepts[0].class_id)[None].to(torch.uint8)
    autoencoder, seed = TinyAutoencoder(), torch.tensor([7])
    kinds: list[tuple[str, PseudoMask]] = [
        ("Vanilla", Vanilla()),
        ("Perturbed, 0.4", Perturbed(0.4)),
        ("Augmented, 0.4", Augmented(0.4)),
        ("Additive, 2", Additive(2.0)),
    ]
    figure, axes = grid(3, 5, 1.3)
    show(axes[0, 0], picture, "query")
    show(axes[1, 0], mask[0].numpy(), "its mask", cmap="gray")
    for axis, (name, kind) in zip(axes[:, 1:].T, kinds, strict=True):
        pseudo = kind.encode(mask, image, seed)
        with torch.inference_mode():
            decoded = autoencoder.decode(autoencoder.encode(pseudo))
        found = kind.logits(decoded, image)[0] > 0
        truth = mask[0] == 1
        iou = float((found & truth).sum() / (found | truth).sum())
        show(axis[0], image_pixels(pseudo[0]), name)
        show(axis[1], image_pixels(decoded[0]), "D(E(·))")
        show(axis[2], found.numpy(), f"decoded, IoU {iou:.2f}", cmap="gray")
    save(figure, "concept_pseudo_masks")


class Question:
    """A reference and a query of the same two concepts, put to a model."""

    def __init__(self, folder: str, seeds: tuple[int, int] = (1, 5)) -> None:
        self.pipe = InContextSegmentationPipeline.from_pretrained(folder)
        self.concepts = crowd(3)
        self.reference, self.labels = scene(self.concepts, seeds[0])
        self.query, self.truth = scene(self.concepts, seeds[1])

    def context(self, number: int = 0) -> object:
        return self.pipe.encode(self.reference, self.labels == self.concepts[number].class_id)

    def instruction(self, number: int = 0) -> object:
        return self.context(number).parts[0]  # pyright: ignore[reportAttributeAccessIssue]

    def asked(self, number: int = 0) -> NDArray:
        return self.truth == self.concepts[number].class_id


def ldis1(folder: str) -> None:
    """One call, stage by stage."""
    question = Question(folder)
    model = question.pipe.model
    assert isinstance(model, LDIS1)
    image = tensor(question.query)
    with torch.inference_mode():
        latent = model.autoencoder.encode(image)
        found = model.predict_latent(latent, question.instruction(), torch.tensor([0]))  # pyright: ignore
        decoded = model.autoencoder.decode(found)
        logits = model.pseudo_mask.logits(decoded, image)[0]
    figure, axes = grid(1, 7, 1.15)
    reference = marked(question.reference, question.labels == question.concepts[0].class_id)
    show(axes[0, 0], reference, "reference, mask")
    show(axes[0, 1], question.query, "query")
    show(axes[0, 2], channels(latent[0]), "z_q = E(query)")
    show(axes[0, 3], channels(found[0]), "z~ = U-Net(z_q, τ)")
    show(axes[0, 4], image_pixels(decoded[0]), "D(z~)")
    show(axes[0, 5], logits.numpy(), "logits", cmap="RdBu_r", vmin=-2, vmax=2)
    show(axes[0, 6], marked(question.query, (logits > 0).numpy()), "mask")
    save(figure, "concept_ldis1")


def ldisn(folder: str) -> None:
    """Training's noise above, sampling below."""
    question = Question(folder)
    model = question.pipe.model
    assert isinstance(model, LDISn)
    image, mask = tensor(question.query), torch.from_numpy(question.asked())[None].to(torch.uint8)
    figure, axes = grid(2, 7, 1.15)
    show(axes[0, 0], question.query, "query")
    show(axes[1, 0], marked(question.reference, question.labels == question.concepts[0].class_id), "reference, mask")
    noise = torch.randn(1, 16, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        clean = model.autoencoder.encode(model.pseudo_mask.encode(mask, image, torch.tensor([0])))
        for axis, t in zip(axes[0, 1:], (0, 200, 400, 600, 800, 999), strict=True):
            noisy = model.abar[t].sqrt() * clean + (1 - model.abar[t]).sqrt() * noise
            show(axis, image_pixels(model.autoencoder.decode(noisy)[0]), f"noised, t = {t}")
    steps: dict[int, Tensor] = {}
    model.on_step = lambda number, latent: steps.update({number: latent.clone()})
    with torch.inference_mode():
        model.predict_logits(image, question.instruction(), torch.tensor([0]))  # pyright: ignore
        for axis, number in zip(axes[1, 1:], (1, 2, 4, 8, 14, 20), strict=True):
            show(axis, image_pixels(model.autoencoder.decode(steps[number])[0]), f"expected, step {number}")
    save(figure, "concept_ldisn")


def scoring(folder: str) -> None:
    """What is counted of an episode, and how concepts are fused."""
    question = Question(folder)
    names = {f"{i}": (question.reference, question.labels == c.class_id) for i, c in enumerate(question.concepts)}
    logits = torch.from_numpy(np.asarray(question.pipe(question.query, question.pipe.encode(names)).logits[0]))  # type: ignore
    found, truth = logits[0].numpy() > 0, question.asked()
    figure, axes = grid(1, 6, 1.35)
    show(axes[0, 0], question.query, "query")
    counted = np.full_like(question.query, 255)
    for pixels, colour in ((found & truth, HIT), (found & ~truth, FALSE_ALARM), (truth & ~found, MISSED)):
        counted[pixels] = colour
    show(axes[0, 1], counted, f"J = IoU = {(found & truth).sum() / (found | truth).sum():.2f}")
    edges = boundary(torch.from_numpy(np.stack([found, truth]))).numpy()
    drawn = np.full_like(question.query, 255)
    for pixels, colour in ((edges[0], FALSE_ALARM), (edges[1], MISSED), (edges[0] & edges[1], HIT)):
        drawn[pixels] = colour
    predicted, true, hit, met = boundary_counts(torch.from_numpy(found)[None], torch.from_numpy(truth)[None])[
        0
    ].tolist()
    precision, recall = hit / predicted, met / true
    show(axes[0, 2], drawn, f"F = {2 * precision * recall / (precision + recall):.2f}")
    probable = concept_probabilities(logits[None])[0]
    show(axes[0, 3], probable[1].numpy(), "p of concept 1", cmap="gray", vmin=0, vmax=1)
    show(axes[0, 4], probable[2].numpy(), "p of concept 2", cmap="gray", vmin=0, vmax=1)
    colours = np.array([(255, 255, 255), (230, 159, 0), (86, 180, 233), (0, 158, 115)], np.uint8)
    show(axes[0, 5], colours[fuse_concepts(logits[None])[0].numpy()], "fused, eq. 7")
    save(figure, "concept_scoring")


def main() -> None:
    """Draw what can be drawn with the models that were named."""
    parser = argparse.ArgumentParser(description="Draw the figures of docs/concepts.")
    parser.add_argument("--ldis1", metavar="FOLDER", help="of `ldis convert`, for the figures of LDIS-1 and scoring")
    parser.add_argument("--ldisn", metavar="FOLDER", help="of `ldis convert`, for the figure of LDIS-n")
    options = parser.parse_args()
    episode()
    instruction()
    alignment()
    if options.ldis1:
        ldis1(options.ldis1)
        scoring(options.ldis1)
    if options.ldisn:
        ldisn(options.ldisn)


if __name__ == "__main__":
    main()
