"""Which metrics the test of a config will log, as far as that can be told before it runs."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ldis_lightning.datamodules.protocols import PROTOCOLS, OnePass
from ldis_lightning.errors import UserError
from ldis_lightning.evaluation.measures import Measure
from ldis_lightning.parse_errors import import_object
from ldis_lightning.suggestions import did_you_mean, some
from ldis_lightning.sweeps.labels import arguments

OURS = ("ldis_lightning.", "lightning.")
"""Packages of which it is known what they log."""


def check_metric(metric: str, config: Mapping[str, Any]) -> None:
    """Refuse a metric that no test of the config logs.

    Args:
        metric: e.g. `test/novel/miou`.
        config: complete, as the parser dumps it.

    Raises:
        UserError: it is none of those that the evaluation sets and callbacks log, and no component of the user's own
            could log it.
    """
    data = config.get("data") or {}
    sets = {name: source for name, source in (data.get("evaluation") or {}).items() if _is_used(name, data)}
    stage, _, rest = metric.partition("/")
    name, _, score = rest.rpartition("/")
    if stage == "test" and name in sets and (_scores(sets[name]) is None or _logs_unknown(config)):
        return
    known = list(known_metrics(config))
    if metric in known:
        return
    near = [candidate for candidate in known if candidate.startswith(f"test/{name}/") or candidate.endswith(score)]
    hint = did_you_mean(metric, near or known) or did_you_mean(metric, known)
    listed = some(known, 12) if known else "nothing, since `data.evaluation` has no sets"
    raise UserError(f"sweep.metric: no run logs `{metric}`{hint}; a test of this config logs {listed}")


def known_metrics(config: Mapping[str, Any]) -> Iterator[str]:
    """The keys of what will be in `results.json`, as far as they can be told."""
    data = config.get("data") or {}
    ceilings = list(_ceilings(config))
    for name, source in (data.get("evaluation") or {}).items():
        if not _is_used(name, data):
            continue
        for score in _scores(source) or ():
            yield f"test/{name}/{score}"
        if any(of is None or name in of for of in ceilings):
            yield f"test/{name}/ceiling"


def _is_used(name: str, data: Mapping[str, Any]) -> bool:
    return data.get("only") is None or name in data["only"]


def _scores(source: Mapping[str, Any]) -> tuple[str, ...] | None:
    """The names of the scores of an evaluation set; None if only opening its data would tell."""
    protocol: Any = import_object((source.get("protocol") or {}).get("class_path") or "")
    if protocol is None and source.get("manifest"):
        protocol = _protocol_of_manifest(Path(source["manifest"]))
    elif protocol is None and not source.get("protocol"):
        protocol = OnePass
    measure = getattr(protocol, "measure", None)
    return measure.names if isinstance(measure, Measure) else None


def _protocol_of_manifest(path: Path) -> Any:
    try:
        return PROTOCOLS.get(json.loads(path.read_text(encoding="utf-8"))["protocol"])
    except (OSError, ValueError, KeyError, TypeError):  # whatever is wrong with it, opening it will say
        return None


def _ceilings(config: Mapping[str, Any]) -> Iterator[list[str] | None]:
    """The sets of each `Ceiling` among the callbacks; None for all."""
    for callback in callbacks_of(config):
        if callback["class_path"].rpartition(".")[2] == "Ceiling":
            yield arguments(callback).get("sets")


def _logs_unknown(config: Mapping[str, Any]) -> bool:
    """Whether a model or a callback is somebody's own, which may log anything."""
    components = [config.get("model") or {}, *callbacks_of(config)]
    return any(not str(one.get("class_path", OURS[0])).startswith(OURS) for one in components)


def callbacks_of(config: Mapping[str, Any]) -> list[dict[str, Any]]:
    """`trainer.callbacks`, of which there may be none, one or a list."""
    callbacks = (config.get("trainer") or {}).get("callbacks") or []
    return callbacks if isinstance(callbacks, list) else [callbacks]
