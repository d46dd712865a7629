"""Every episode is scored exactly once: any number of ranks, workers and any batch size give the same bits."""

import json
import os
import subprocess
import sys
from io import BytesIO
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import tiny
from PIL import Image
from torch import Tensor

from ldis_lightning.datamodules import VSPW, EpisodeDataModule, EvaluationSource, ShardWriter
from ldis_lightning.datamodules.protocols import PROTOCOLS
from ldis_lightning.episode import is_clip_batch
from ldis_lightning.evaluation.scores import EpisodeScores, SetResult
from ldis_lightning.evaluation.scoring import score_batch, score_clip

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")

CLIPS = {"long": 40, "middle": 21, "short": 5, "tiny": 2}
"""Frames: 64 after the first ones."""


def frame(class_ids: list[int], seed: int) -> tuple[bytes, bytes]:
    """A picture of noise with a block of each class, of 12 to 20 pixels a side."""
    generator = np.random.default_rng(seed)
    height, width = generator.integers(12, 21, 2).tolist()
    labels = np.zeros((height, width), np.uint8)
    for place, class_id in enumerate(class_ids):
        top, left = generator.integers(0, 6, 2).tolist()
        labels[top : top + 5, left + 4 * place : left + 4 * place + 4] = class_id
    labels[-1] = 255
    jpg, png = BytesIO(), BytesIO()
    Image.fromarray(generator.integers(0, 255, (height, width, 3), dtype=np.uint8)).save(jpg, "JPEG", quality=95)
    Image.fromarray(labels).save(png, "PNG")
    return jpg.getvalue(), png.getvalue()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`images`, 64 of them, and `clips`."""
    folder = tmp_path_factory.mktemp("sets")
    names = {1: "ring", 2: "star", 3: "moon", 4: "bolt"}
    with ShardWriter(folder / "images", "images", names) as writer:
        for number in range(64):
            writer.add_image(f"i{number:02d}", *frame([1 + number % 4, 1 + (number + 1) % 4], number))
    with ShardWriter(folder / "clips", "clips", names) as writer:
        for number, (clip, count) in enumerate(CLIPS.items()):
            concepts = [1, 2, 3][: 1 + number % 3]
            size = 100 * (number + 1)
            writer.add_clip(clip, [_of_size(frame(concepts, size + i), 14 + number) for i in range(count)])
    return folder


def _of_size(pair: tuple[bytes, bytes], side: int) -> tuple[bytes, bytes]:
    """The same picture as a square: frames of one clip are of one size."""
    streams = [BytesIO(), BytesIO()]
    for data, stream, kind in zip(pair, streams, ("JPEG", "PNG"), strict=True):
        Image.open(BytesIO(data)).resize((side, side), Image.Resampling.NEAREST).save(stream, kind)
    return streams[0].getvalue(), streams[1].getvalue()


def sets_of(folder: Path, episodes: int) -> dict[str, EvaluationSource]:
    """So many images, and all concepts of so many frames."""
    return {
        "images": EvaluationSource(str(folder / "images"), episodes=episodes),
        "clips": EvaluationSource(str(folder / "clips"), episodes=episodes, protocol=VSPW()),
    }


# ---- Simulated ranks


def guess(batch: Any) -> Tensor:
    """Logits that depend on query, references, masks and seeds, in integers: the same bits in any batch."""
    grey = batch["query_image"].long().sum(1)  # (B or F, H, W)
    own = batch["reference_image"].long().sum((1, 2, 3, 4)) + 7 * batch["reference_mask"].long().sum((1, 2, 3))
    if not is_clip_batch(batch):
        own = (own + batch["seed"]) % 500
        return (grey - own[:, None, None]).float()
    own = (own + batch["seed"]) % 500  # (F, C)
    return (grey[:, None] - own[..., None, None]).float()


def scored_by(
    sets: dict[str, EvaluationSource], world: int, patch: pytest.MonkeyPatch, **settings: Any
) -> dict[str, tuple[SetResult, str]]:
    """Each set's result and hash where so many ranks have each done their share, one after the other."""
    states: dict[str, EpisodeScores] = {}
    hashes: dict[str, set[str]] = {}
    steps: dict[str, set[int]] = {}
    score: Any
    for rank in range(world):
        patch.setattr(EpisodeDataModule, "_rank_and_world", lambda _, rank=rank: (rank, world))
        data = EpisodeDataModule(evaluation=sets, image_size=16, **settings)
        data.setup("test")
        for name, loader in zip(data.evaluation_names, data.test_dataloader(), strict=True):
            board = data.scoreboard("test", name)
            scores = EpisodeScores(board.measure, board.table)
            for batch in loader:
                score = score_clip if is_clip_batch(batch) else score_batch
                scores.update(*score(board, guess(batch), batch))
            total = states.setdefault(name, EpisodeScores(board.measure, board.table))
            total.counts, total.seen = total.counts + scores.counts, total.seen + scores.seen  # what all-reduce does
            hashes.setdefault(name, set()).add(data.manifests[name].hash)
            steps.setdefault(name, set()).add(len(loader))
    assert all(len(found) == 1 for found in (*hashes.values(), *steps.values()))  # equal on all ranks
    return {name: (total.result(confidence=False), hashes[name].pop()) for name, total in states.items()}


def bits(result: SetResult) -> tuple[Any, ...]:
    """All of a result that could differ; floats as they are."""
    numbers = {name: value.hex() for name, value in result.scores.items()}
    per_class = {class_id: value.hex() for class_id, value in result.per_class.items()}
    return result.counts.tolist(), result.seen.tolist(), numbers, per_class, result.episodes, result.expected


EVERY_WAY = [(world, workers, size) for world in (1, 2, 3) for workers in (0, 2) for size in (1, 4)]
SOME_WAYS = [(1, 0, 1), (1, 2, 4), (2, 0, 4), (3, 0, 1), (3, 2, 4)]


@pytest.mark.parametrize(("episodes", "grid"), [(1, SOME_WAYS), (7, EVERY_WAY), (64, SOME_WAYS)])
def test_the_same_bits_for_all_ranks_workers_and_batches(
    folder: Path, episodes: int, grid: list[tuple[int, int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = {
        point: scored_by(
            sets_of(folder, episodes), point[0], monkeypatch, num_workers=point[1], eval_batch_size=point[2]
        )
        for point in grid
    }
    for name in ("images", "clips"):
        alone, alone_hash = found[1, 0, 1][name]
        assert alone.complete and set(alone.seen.tolist()) == {1}
        assert alone.expected == episodes if name == "images" else alone.expected >= episodes
        if episodes > 1:
            assert 0 < alone.value < 1
        for point in grid:
            result, manifest_hash = found[point][name]
            assert bits(result) == bits(alone), point
            assert manifest_hash == alone_hash, point


@pytest.mark.parametrize("world", [1, 3])
def test_every_protocol_is_scored_whole(folder: Path, world: int, monkeypatch: pytest.MonkeyPatch) -> None:
    sets = {
        name: EvaluationSource(str(folder / ("clips" if kind.by_clip else "images")), episodes=11, protocol=kind())
        for name, kind in PROTOCOLS.items()
    }
    found = scored_by(sets, world, monkeypatch, references=2)
    for name, (result, _) in found.items():
        assert result.complete and result.headline == PROTOCOLS[name].measure.headline
        assert 0 < result.value < 1
    assert len({manifest_hash for _, manifest_hash in found.values()}) == len(PROTOCOLS)
    assert [len(found[name][0].run_scores) for name in ("bam-coco", "bam-pascal", "hsnet-coco")] == [5, 5, 0]


# ---- Ranks of their own


class InDouble(EpisodeDataModule):
    """Sums of floats come out differently for other batches, which might move a logit over 0."""

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return tiny.in_double(super().on_after_batch_transfer(batch, dataloader_idx))


def evaluate(folder: Path, ranks: int) -> tuple[int, dict[str, Any]]:
    """Test a small LDIS-1 under a trainer of so many ranks: the rank, and what it came to."""
    quiet: Any = {name: False for name in ("logger", "enable_progress_bar", "enable_checkpointing")}
    run = L.Trainer(
        accelerator="cpu", devices=ranks, strategy="ddp" if ranks > 1 else "auto",
        use_distributed_sampler=False, enable_model_summary=False, **quiet,
    )  # fmt: skip
    module = tiny.ldis1(timestep=100, add_noise=True).double()
    data = InDouble(evaluation=sets_of(folder, 20), image_size=tiny.PICTURE, eval_batch_size=3, num_workers=1)
    run.test(module, data, verbose=False)
    found = {}
    for name, result in module.results["test"].items():
        intervals = {score: [end.hex() for end in ends] for score, ends in result.intervals.items()}
        found[name] = {"bits": bits(result), "intervals": intervals, "hash": data.manifests[name].hash}
    return run.global_rank, json.loads(json.dumps(found))  # as a file would give it back


def test_three_ranks_are_as_one(folder: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, __file__, str(folder), str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    _, alone = evaluate(folder, ranks=1)
    for rank in range(3):
        assert json.loads((tmp_path / f"rank{rank}.json").read_text()) == alone
    for found in alone.values():
        counts, seen, *_ = found["bits"]
        assert set(seen) == {1}
        assert sum(row[0] for row in counts) > 0  # something was found
        assert found["intervals"]


def main(folder: str, out: str) -> None:
    """Evaluate on three ranks; each writes what it came to into a file of its own."""
    rank, found = evaluate(Path(folder), ranks=3)
    (Path(out) / f"rank{rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
