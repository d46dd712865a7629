"""The runs of a sweep: a folder for each, with a config that stands alone and, when it is done, its results."""

import copy
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import Namespace

from ldis_lightning.errors import UserError
from ldis_lightning.lightning_cli import LDISParser
from ldis_lightning.suggestions import did_you_mean
from ldis_lightning.sweeps.grid import Point, Sweep, set_key
from ldis_lightning.sweeps.launchers import Job


@dataclass(frozen=True)
class Run:
    """A point at one seed.

    Attributes:
        folder: where it keeps everything: `point.yaml`, which any `ldis fit --config` takes, the log and the results.
        text: what `point.yaml` holds.
    """

    point: Point
    seed: int
    folder: Path
    text: str

    @property
    def name(self) -> str:
        """What progress calls it."""
        return f"{self.point.slug} seed {self.seed}"

    @property
    def job(self) -> Job:
        """How to run it."""
        return Job(self.name, ("fit", "--config", str(self.config)), self.folder / "log.txt")

    @property
    def config(self) -> Path:
        """A config that stands alone."""
        return self.folder / "point.yaml"

    @property
    def results(self) -> Path:
        """Written by `ResultTable` when the fitted weights have been scored."""
        return self.folder / "results.json"

    def is_done(self) -> bool:
        """Whether there are results of exactly this config."""
        return self.results.is_file() and self.config.is_file() and self.config.read_text(encoding="utf-8") == self.text

    def prepare(self) -> None:
        """Write the config and drop results of any other one."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.results.unlink(missing_ok=True)
        self.job.log.unlink(missing_ok=True)
        self.config.write_text(self.text, encoding="utf-8")

    def metrics(self) -> dict[str, float]:
        """The metrics of a finished run; what was not a number is NaN."""
        content = json.loads(self.results.read_text(encoding="utf-8"))
        return {name: math.nan if value is None else float(value) for name, value in content["metrics"].items()}

    def metrics_with(self, metric: str) -> dict[str, float]:
        """The metrics, which must include `metric`.

        Raises:
            UserError: they do not.
        """
        metrics = self.metrics()
        if metric not in metrics:
            names = ", ".join(metrics) or "nothing"
            raise UserError(
                f"sweep.metric: `{metric}` is not measured{did_you_mean(metric, metrics)}; {self.results} has {names}"
            )
        return metrics


def plan_runs(parser: LDISParser, base: Namespace, sweep: Sweep, points: Sequence[Point], out: Path) -> list[Run]:
    """The runs of all points at all seeds, seed by seed; every config is checked by the parser of `ldis fit`.

    Args:
        parser: the parser of `ldis fit`.
        base: the sweep's config as it read it.
        out: the sweep's folder.

    Raises:
        UserError: a point's config has an unknown key or a wrong value.
    """
    config = yaml.safe_load(parser.dump(base, skip_none=False, skip_validation=True))
    del config["sweep"]
    checked = [_checked(parser, config, point) for point in points]
    runs = []
    for seed in sweep.seeds:
        for point, own in zip(points, checked, strict=True):
            folder = out / "points" / point.slug / f"seed-{seed}"
            runs.append(Run(point, seed, folder, _text(own, point, seed, folder)))
    return runs


def _checked(parser: LDISParser, config: dict[str, Any], point: Point) -> dict[str, Any]:
    """The config with a point's values, complete with the defaults of the components that these name."""
    own = copy.deepcopy(config)
    for key, value in point.values.items():
        set_key(own, key, copy.deepcopy(value))
    complete = yaml.safe_load(parser.dump(parser.parse_object(own), skip_none=False))
    for key in ("sweep", "extends"):  # the one has been carried out here, the other when the config was read
        complete.pop(key, None)
    return complete


def _text(config: dict[str, Any], point: Point, seed: int, folder: Path) -> str:
    """The YAML of a run: the point's config with its seed, its folder and the scoring at the end."""
    logger = {
        "class_path": "lightning.pytorch.loggers.TensorBoardLogger",
        "init_args": {"save_dir": str(folder), "name": "", "version": ""},  # so that the folder is the run's log folder
    }
    own = {**config, "seed_everything": seed, "score_after_fit": True}
    own["trainer"] = {**config["trainer"], "default_root_dir": str(folder), "logger": logger}
    header = f"# {point.slug}, seed {seed}. Run it alone: ldis fit --config {folder / 'point.yaml'}\n"
    return header + yaml.safe_dump(own, sort_keys=False, allow_unicode=True)
