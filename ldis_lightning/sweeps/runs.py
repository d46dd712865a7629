"""The runs of a sweep: a folder for each, with a config that stands alone, what state it is in, and its results."""

import enum
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ldis_lightning.checkpoint_files import checkpoints_in
from ldis_lightning.cli import INTERRUPTED_STATUS, PREEMPTED_STATUS
from ldis_lightning.errors import UserError
from ldis_lightning.evaluation.rows import FILE_NAME as ROWS
from ldis_lightning.resume import CHECKPOINTS, LAST
from ldis_lightning.suggestions import did_you_mean
from ldis_lightning.sweeps.grid import Point
from ldis_lightning.sweeps.launchers import Job
from ldis_lightning.sweeps.records import Record

Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""The quick one, where PyYAML was built with it."""
REPLACED = "replaced"
"""Where folders go whose config is no longer the run's."""
STOPPED = (None, 0, PREEMPTED_STATUS, INTERRUPTED_STATUS, -2, -15)
"""How a run ends that has not failed: not at all (the sweep was killed), well, or asked to by a signal."""


class State(enum.Enum):
    """What there is of a run; the value is what people read."""

    DONE = "done"
    HALF_DONE = "half done"
    FAILED = "failed"
    TO_DO = "to do"


@dataclass(frozen=True, eq=False)
class Run:
    """A point at one seed, or the training that the points of a seed share.

    Attributes:
        point: None for the shared training.
        folder: where it keeps everything: `point.yaml`, a config that stands alone, the log, checkpoints and results.
        text: what `point.yaml` holds.
        checkpoint: of the shared training, which a point then tests; None for a run that trains.
        nodes, processes: machines, and ranks on each of them.
    """

    point: Point | None
    seed: int
    folder: Path
    text: str
    checkpoint: Path | None = None
    nodes: int = 1
    processes: int = 1

    @property
    def name(self) -> str:
        """What progress calls it."""
        return f"{self.point.slug if self.point else 'training'} seed {self.seed}"

    @property
    def job(self) -> Job:
        """How to run it. Training goes on from its last checkpoint, and begins where there is none."""
        command, checkpoint = ("test", str(self.checkpoint)) if self.checkpoint else ("fit", LAST)
        arguments = (command, "--config", str(self.config), "--ckpt_path", checkpoint)
        return Job(self.name, arguments, self.folder / "log.txt", self.nodes, self.processes)

    @property
    def config(self) -> Path:
        """A config that stands alone."""
        return self.folder / "point.yaml"

    @property
    def results(self) -> Path:
        """Written by `ResultTable` when the weights have been scored."""
        return self.folder / "results.json"

    @property
    def last_checkpoint(self) -> Path:
        """Where training keeps its newest one."""
        return self.folder / CHECKPOINTS / "last.ckpt"

    # ---- State

    def state(self) -> State:
        """What there is of exactly this config. A run is done when its results and its rows are whole, whoever noticed;
        it has failed when it ended by itself with an error."""
        if not self._is_of_this_config():
            return State.TO_DO
        record = Record.read(self.folder)
        if self._is_complete(record):
            return State.DONE
        if record.status not in STOPPED:
            return State.FAILED
        return State.HALF_DONE if checkpoints_in(self.folder / CHECKPOINTS) else State.TO_DO

    def is_done(self) -> bool:
        """Whether there are results of exactly this config."""
        return self.state() is State.DONE

    def _is_complete(self, record: Record) -> bool:
        if self.point is None:
            return record.status == 0 and self.last_checkpoint.exists()
        return self.results.is_file() and (record.status == 0 or (self.folder / ROWS).is_file())

    def _is_of_this_config(self) -> bool:
        """Whether the folder is this run's, however its path is spelt."""
        if not self.config.is_file():
            return False
        old = self.config.read_text(encoding="utf-8")
        return old == self.text or _elsewhere(old) == _elsewhere(self.text)

    def check_config(self, holder: str) -> None:
        """Make sure that what still works in the folder does so for this config.

        Raises:
            UserError: it does not.
        """
        if not self._is_of_this_config():
            raise UserError(
                f"{holder} is still at work on {self.name} with another config; wait for it, end it (`scancel`), or "
                "give another `--out`"
            )

    # ---- Changing the folder

    def prepare(self, out: Path) -> Path | None:
        """Make the folder ready for a start. What another config has left there is set aside; what a test has left that
        did not come to its end is dropped.

        Args:
            out: the folder of the sweep.

        Returns:
            Where the old folder lies now, if it was set aside.
        """
        aside = None
        if self.folder.exists() and not self._is_of_this_config():
            aside = self._set_aside(out)
        self.folder.mkdir(parents=True, exist_ok=True)
        for path in (self.results, self.folder / ROWS):
            path.unlink(missing_ok=True)
        self.config.write_text(self.text, encoding="utf-8")
        return aside

    def _set_aside(self, out: Path) -> Path | None:
        if not self.config.is_file() and not any(self.folder.iterdir()):
            return None
        place = out / REPLACED / self.folder.relative_to(out)
        number = 1
        while (target := place.with_name(f"{place.name}-{number}")).exists():
            number += 1
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(self.folder, target)
        return target

    # ---- Results

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


def _elsewhere(text: str) -> Any:
    """A run's config without the paths of its folder, which can be spelt in many ways."""
    try:
        content = yaml.load(text, Loader)
    except yaml.YAMLError:
        return text
    if not isinstance(content, dict) or not isinstance(content.get("trainer"), dict):
        return content
    trainer = {key: value for key, value in content["trainer"].items() if key not in ("logger", "default_root_dir")}
    return {**content, "trainer": trainer}


def run_text(config: Mapping[str, Any], header: str, seed: int, folder: Path, score: bool = True) -> str:
    """The YAML of a run.

    Args:
        config: a point's, complete.
        header: a comment on top.
        seed: of the run.
        folder: of the run: its logger's, so that everything lies there.
        score: whether training ends with a test.
    """
    logger = {
        "class_path": "lightning.pytorch.loggers.TensorBoardLogger",
        "init_args": {"save_dir": str(folder), "name": "", "version": ""},  # so that the folder is the run's log folder
    }
    own = {**config, "seed_everything": seed, "score_after_fit": score}
    own["trainer"] = {**config["trainer"], "default_root_dir": str(folder), "logger": logger}
    return f"# {header}\n" + yaml.safe_dump(own, sort_keys=False, allow_unicode=True)
