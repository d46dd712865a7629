"""What the runs of a sweep will cost, before anything runs and without data.

Models are built on PyTorch's meta device, where tensors have shapes and no values, so a network at paper scale takes as
long as a tiny one.
"""

import json
import math
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from statistics import fmean
from types import SimpleNamespace
from typing import Any

import torch
from jsonargparse import Namespace
from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch import Tensor

from ldis_lightning.benchmarks.flops import count
from ldis_lightning.lightning_cli import LDISParser
from ldis_lightning.parse_errors import import_object
from ldis_lightning.sweeps.plan import Plan
from ldis_lightning.sweeps.progress import duration
from ldis_lightning.sweeps.records import Record
from ldis_lightning.sweeps.runs import State

CHEAP = ("pseudo_mask", "post_mask", "optimizer", "schedule", "weight")
"""Parts of a model, and parameters of parts, on which its operations do not depend."""
PREFIXES = ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


@dataclass(frozen=True)
class ModelCost:
    """Of a model; None where that cannot be told, such as before its weights are there.

    Attributes:
        trained, parameters: numbers of parameters that the optimiser gets, and of all.
        calls: of the denoiser for one query.
        train_flops, test_flops: floating point operations for one episode, all tokens of the references attended to.
    """

    trained: int | None = None
    parameters: int | None = None
    calls: int | None = None
    train_flops: float | None = None
    test_flops: float | None = None


@dataclass(frozen=True)
class Estimate:
    """Of one run of a point.

    Attributes:
        steps: of the optimiser; None where epochs are counted, or nothing is trained.
        batch: episodes of a step.
        episodes: that its test scores; None where only the data tell.
        at_least: whether further sets are tested whole, so that there are more.
    """

    model: ModelCost
    steps: int | None
    batch: int
    episodes: int
    at_least: bool

    @property
    def flops(self) -> float | None:
        """Of training, and of the test as far as its episodes are known."""
        train, test = self.model.train_flops, self.model.test_flops
        if train is None or test is None or self.steps is None:
            return None
        return self.steps * self.batch * train + self.episodes * test


def estimates(plan: Plan) -> list[Estimate]:
    """What a run of each point costs, in the order of the plan's points."""
    known: dict[str, ModelCost] = {}
    found = []
    for config in plan.configs:
        data = config["data"]
        key = json.dumps([_costly(config["model"]), data["image_size"], data["references"]], default=str)
        if key not in known:
            known[key] = model_cost(plan.parser, config)
        found.append(_estimate(config, known[key], trains=not plan.sweep.shared_training))
    return found


def _costly(model: Any) -> Any:
    """A model's config without what has no weights and takes next to no time: to count takes a second a model."""
    if not isinstance(model, dict):
        return model
    return {key: _costly(value) for key, value in model.items() if key not in CHEAP}


def _estimate(config: Mapping[str, Any], model: ModelCost, trains: bool) -> Estimate:
    trainer, data = config["trainer"], config["data"]
    steps = trainer.get("max_steps") if trains else 0
    sets = {
        name: source
        for name, source in (data.get("evaluation") or {}).items()
        if data.get("only") is None or name in data["only"]
    }
    limited = [source.get("episodes") for source in sets.values()]
    batch = data["batch_size"] * (trainer.get("accumulate_grad_batches") or 1)
    episodes = sum(number for number in limited if number)
    return Estimate(model, steps if steps is not None and steps >= 0 else None, batch, episodes, None in limited)


def model_cost(parser: LDISParser, config: Mapping[str, Any]) -> ModelCost:
    """Build the model of a config without memory for its weights, and count. What cannot be built or counted so, such
    as a model whose files are not there, has None for it."""
    try:
        parsed: Any = parser.parse_object({"model": deepcopy(config["model"]), "trainer": {"logger": False}})
        if spec := parsed.model.init_args.get("scheduler"):  # with values, which some compute with while they are built
            kind: Any = import_object(spec.class_path)
            parsed.model.init_args.scheduler = kind(**spec.init_args)
        with torch.device("meta"):
            built: Any = parser.instantiate_classes(Namespace(model=parsed.model))
    except Exception:  # of any library that reads weights
        return ModelCost()
    model = built.model.to("meta")  # what it took from the scheduler too
    trained = {id(parameter) for parameter in model.trainable_parameters()}
    sizes = {id(parameter): parameter.numel() for parameter in model.parameters()}
    data = config["data"]
    batch = _episode(data["image_size"], data["references"])
    return ModelCost(
        trained=sum(size for key, size in sizes.items() if key in trained),
        parameters=sum(sizes.values()),
        calls=_calls(model),
        train_flops=_or_none(lambda: count(lambda: model.train().training_loss(batch)["loss"].backward())),
        test_flops=_or_none(partial(_test_flops, model.eval(), batch)),
    )


def _episode(side: int, references: int) -> dict[str, Any]:
    """A batch of one episode without values."""
    with torch.device("meta"):
        return {
            "query_image": torch.zeros(1, 3, side, side),
            "query_mask": torch.zeros(1, side, side, dtype=torch.uint8),
            "reference_image": torch.zeros(1, references, 3, side, side),
            "reference_mask": torch.zeros(1, references, side, side, dtype=torch.uint8),
            "class_id": torch.zeros(1, dtype=torch.int64),
            "valid": torch.ones(1, dtype=torch.bool),
            "seed": torch.zeros(1, dtype=torch.int64),
        }


class _NoScheduler:
    """Lets a sampler ask its network as often as told, and computes nothing: a scheduler's own operations are next to
    none, and most need values."""

    init_noise_sigma = 1.0

    def set_timesteps(self, steps: int, device: torch.device) -> None:
        self.timesteps = torch.zeros(steps, dtype=torch.int64, device=device)

    def scale_model_input(self, latent: Tensor, timestep: Tensor) -> Tensor:
        return latent

    def step(self, prediction: Tensor, timestep: Tensor, latent: Tensor) -> SimpleNamespace:
        return SimpleNamespace(prev_sample=latent)


@torch.no_grad()
def _test_flops(model: Any, batch: dict[str, Any]) -> float:
    """Of one query. Sampling is counted for one and for two steps, of which all others follow."""
    if not hasattr(model, "scheduler"):
        return count(lambda: model.logits(batch))
    steps, counted = _sampling_steps(model), []
    model.scheduler = _NoScheduler()
    for model.steps in (1, 2):
        counted.append(count(lambda: model.logits(batch)))
    return counted[0] + (steps - 1) * (counted[1] - counted[0])


def _sampling_steps(model: Any) -> int:
    """How often a sampler asks the network: `steps` times, with schedulers of second order more often."""
    model.scheduler.set_timesteps(model.steps)
    return len(model.scheduler.timesteps)


def _calls(model: Any) -> int | None:
    """Calls of the U-Net for a query: of LDIS-n one a step, three where it is guided."""
    if not hasattr(model, "unet"):
        return None
    steps = _sampling_steps(model) if hasattr(model, "scheduler") else 1
    return steps * (3 if getattr(getattr(model, "guidance", None), "needed", False) else 1)


def _or_none(compute: Callable[[], float]) -> float | None:
    try:
        return compute()
    except Exception:  # an operation that needs values
        return None


# ---- Time


def hours(plan: Plan, found: list[Estimate]) -> list[float | None]:
    """Hours that one run of each point will take: the mean of its finished runs, else those of the others scaled by
    operations (by steps where these are not known); None while nothing has finished."""
    measured = []
    for point in plan.points:
        runs = [run for run in plan.runs if run.point is point and run.state() is State.DONE]
        seconds = [taken for run in runs if (taken := Record.read(run.folder).seconds) > 0]
        measured.append(fmean(seconds) / 3600 if seconds else None)
    return [own if own is not None else _scaled(i, measured, found) for i, own in enumerate(measured)]


def _scaled(i: int, measured: list[float | None], found: list[Estimate]) -> float | None:
    pairs = [(found[k], value) for k, value in enumerate(measured) if value is not None]
    for size in (lambda one: one.flops, lambda one: one.steps):
        own = size(found[i])
        rates = [value / amount for one, value in pairs if (amount := size(one))]
        if own and rates and len(rates) == len(pairs):
            return own * fmean(rates)
    return fmean(value for _, value in pairs) if pairs else None


# ---- For people


def print_estimates(console: Console, plan: Plan, found: list[Estimate]) -> None:
    """A row a point, and what all that is not done will take."""
    times = hours(plan, found)
    states = {run: run.state() for run in plan.runs}
    text = f"{len(plan.runs)} runs in {plan.out}: {len(plan.points)} points x {len(plan.sweep.seeds)} seeds"
    _say(console, text)
    table = Table(title="each run", title_justify="left")
    for heading in ("point", "runs"):
        table.add_column(heading, overflow="fold")
    headings = ("steps", "tested", "trained", "FLOP", "time")
    for heading in headings:
        table.add_column(heading, justify="right")
    for point, one, time in zip(plan.points, found, times, strict=True):
        own = [state.value for run, state in states.items() if run.point is point]
        shown = ", ".join(f"{own.count(value)} {value}" for value in dict.fromkeys(own))
        baseline = " (baseline)" if point is plan.baseline else ""
        table.add_row(Text(point.slug + baseline), shown, *_cells(one, time))
    console.print(table)
    for run in plan.trainings:
        _say(console, f"{run.name}: shared by all points, {run.state().value}")
    for line in _summary(plan, found, times, states):
        _say(console, line)


def _cells(one: Estimate, time: float | None) -> list[str]:
    tested = f"{one.episodes}{' + sets' if one.at_least else ''}" if one.episodes else "sets"
    return [
        f"{one.steps} x {one.batch}" if one.steps is not None else f"epochs x {one.batch}",
        tested if one.model.calls is None else f"{tested} x {one.model.calls}",
        f"{amount(one.model.trained)} of {amount(one.model.parameters)}" if one.model.trained is not None else "-",
        ("> " if one.at_least and one.flops is not None else "") + amount(one.flops),
        duration(3600 * time) if time is not None else "-",
    ]


def _summary(plan: Plan, found: list[Estimate], times: list[float | None], states: dict[Any, State]) -> list[str]:
    left = [plan.points.index(run.point) for run, state in states.items() if run.point and state is not State.DONE]
    lines = []
    flops = [found[i].flops for i in left]
    if left and None not in flops:
        lines.append(f"operations in all that is left: {amount(math.fsum(one for one in flops if one))} (FLOP)")
    if any(one.at_least for one in found):
        lines.append("sets without `episodes` are tested whole; how many these are only the data say")
    if any(one.model.calls for one in found):
        lines.append("tested: episodes x calls of the U-Net for each")
    lines.append("trained: parameters that the optimiser gets, of all; steps: of training x episodes of each")
    known = [times[i] for i in left]
    if not left:
        lines.append("everything is done")
    elif None in known:
        lines.append("how long it takes is known when the first run has finished")
    else:
        total = math.fsum(one for one in known if one)
        lines.append(f"running time of all that is left: about {duration(3600 * total)}, from finished runs")
    if plan.sweep.budget is not None:
        spent = sum(Record.read(run.folder).seconds for run in (*plan.trainings, *plan.runs))
        lines.append(f"budget: {duration(3600 * plan.sweep.budget)}, of which {duration(spent)} are spent")
    return lines


def amount(number: float | None) -> str:
    """`860M`, `2.52M`, `1.3P`; `-` for None."""
    if number is None:
        return "-"
    size, prefix = next(((size, prefix) for size, prefix in PREFIXES if number >= size), (1.0, ""))
    return f"{number / size:.3g}{prefix}"


def _say(console: Console, text: str) -> None:
    console.print(text, highlight=False, markup=False, soft_wrap=True)
