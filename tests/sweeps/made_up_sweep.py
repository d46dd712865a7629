"""Folders of finished sweeps, made up in a moment: what `ldis sweep` and its runs would have left."""

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image, ImageDraw
from tensorboard.compat.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]
from tensorboard.compat.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]
from tensorboard.summary.writer.record_writer import RecordWriter

from ldis_lightning.evaluation.measures import EpisodeTable, RegionIoU
from ldis_lightning.sweeps.episodes import FACTS

CLASSES, PIXELS = 5, 400
MEASURE = RegionIoU()


@dataclass
class MadeUp:
    """What to make up.

    Attributes:
        quality: IoU that a point comes to, by the `heading=label,...` of its slug.
        seeds: of each.
        episodes: of the set `novel`; `seen` and `novel_swapped` have as many.
        seed_spread, noise: standard deviations of a training's quality and of an episode's.
        plan: what else `sweep.yaml` says.
    """

    quality: Mapping[str, float]
    seeds: Sequence[int] = (0, 1, 2)
    episodes: int = 60
    seed_spread: float = 0.01
    noise: float = 0.05
    tiles: int = 3
    plan: Mapping[str, Any] = field(default_factory=dict)

    def write(self, folder: Path) -> Path:
        """The folder of a sweep of which every run has finished."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "sweep.yaml").write_text(yaml.safe_dump(self.sweep_yaml(), sort_keys=False), encoding="utf-8")
        for slug, quality in self.quality.items():
            for seed in self.seeds:
                self.write_run(folder / "points" / slug / f"seed-{seed}", slug, seed, quality)
        return folder

    def sweep_yaml(self) -> dict[str, Any]:
        points = [{"slug": slug, "labels": labels_of(slug), "values": values_of(slug)} for slug in self.quality]
        default = {"metric": "test/novel/miou", "mode": "max", "baseline": None, "shared_training": False}
        return {**default, "seeds": list(self.seeds), "points": points, **self.plan}

    def write_run(self, folder: Path, slug: str, seed: int, quality: float) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        rng = np.random.default_rng([seed, *slug.encode()])
        own = quality + self.seed_spread * rng.standard_normal()
        sets = {"novel": own, "novel_swapped": own / 6, "seen": own + 0.02}
        metrics: dict[str, float | None] = {}
        for number, (name, level) in enumerate(sets.items()):
            counts, table = made_up_counts(level, self.episodes, self.noise, rng, manifest=number)
            write_counts(folder / "episodes" / f"{name}.csv", counts, table)
            metrics |= {f"test/{name}/{score}": value for score, value in MEASURE.scores(counts, table).items()}
        manifests = {name: f"{number:064x}" for number, name in enumerate(sets)}
        content = {"metrics": metrics, "intervals": {}, "per_class": {}, "episodes": {}, "manifests": manifests}
        (folder / "results.json").write_text(json.dumps(content), encoding="utf-8")
        config = {"seed_everything": seed, "trainer": {"default_root_dir": str(folder)}, "model": values_of(slug)}
        (folder / "point.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
        (folder / "log.txt").write_text("it went well\n", encoding="utf-8")
        losses = {step: 0.1 + 2 * float(np.exp(-step / 60)) + 0.02 * rng.random() for step in range(9, 400, 10)}
        write_events(folder / "events.out.tfevents.1700000000.host.1.0", {"train/loss": losses})
        values = {step: own * (1 - float(np.exp(-step / 80))) for step in range(99, 400, 100)}
        write_events(folder / "events.out.tfevents.1700000001.host.1.1", {"val/novel/miou": values})
        write_tiles(folder / "tiles/novel", self.tiles, own)


def labels_of(slug: str) -> dict[str, str]:
    return dict(part.split("=", 1) for part in slug.split(","))


def values_of(slug: str) -> dict[str, Any]:
    return {f"model.{heading}": yaml.safe_load(label) for heading, label in labels_of(slug).items()}


def made_up_counts(
    level: float, episodes: int, noise: float, rng: np.random.Generator, manifest: int = 0
) -> tuple[np.ndarray, EpisodeTable]:
    """Episodes of the mean IoU `level`. How hard an episode is depends on the manifest alone, so models share it."""
    hard = 0.15 * np.random.default_rng(manifest).standard_normal(episodes)
    iou = np.clip(level + hard + noise * rng.standard_normal(episodes), 0, 1)
    inner = np.round(iou * PIXELS).astype(np.int64)
    union = np.full(episodes, PIXELS)
    counts = np.stack([inner, union, 3 * union - (union - inner), 3 * union], 1)
    return counts, EpisodeTable(np.arange(episodes) % CLASSES, np.full(episodes, -1))


def write_counts(path: Path, counts: np.ndarray, table: EpisodeTable) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        lines = csv.writer(file)
        lines.writerow([*FACTS, *MEASURE.columns])
        for i, row in enumerate(counts.tolist()):
            lines.writerow([i, f"query-{i}", table.class_id[i], table.clip[i], 0, 1, *row])


def write_events(path: Path, scalars: Mapping[str, Mapping[int, float]], wall_time: float = 1.7e9) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        writer = RecordWriter(file)
        writer.write(Event(wall_time=wall_time, file_version="brain.Event:2").SerializeToString())
        for tag, values in scalars.items():
            for step, value in values.items():
                summary = Summary(value=[Summary.Value(tag=tag, simple_value=value)])
                event = Event(wall_time=wall_time + step, step=step, summary=summary)
                writer.write(event.SerializeToString())
        writer.flush()


def write_tiles(folder: Path, count: int, iou: float) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    listed = []
    for number in range(count):
        files = {}
        for k, caption in enumerate(("reference 1", "query", "truth", "prediction")):
            picture = Image.new("RGB", (192, 192), (60 * k, 90 + 20 * number, 160))
            ImageDraw.Draw(picture).ellipse((40, 40, 60 + int(90 * iou), 150), fill=(230, 120, 40 * k))
            files[caption] = f"{number}-{caption.replace(' ', '-')}.jpg"
            picture.save(folder / files[caption], quality=90)
        listed.append({"name": f"striped thing {number}", "iou": min(1.0, iou + 0.05 * number), "files": files})
    (folder / "tiles.json").write_text(json.dumps(listed), encoding="utf-8")
