"""TensorBoard's HParams view of a sweep: which run had which values, and what its metrics came to.

Each finished run gets one more event file, whose name never changes: writing it again changes nothing. The seeds of a
point are one group of sessions, of which the view shows the mean.
"""

import importlib
import io
import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ldis_lightning.files import write_atomically
from ldis_lightning.sweeps.finished import FinishedRun, FinishedSweep
from ldis_lightning.sweeps.grid import Point

FILE = "events.out.tfevents.0000000000.hparams"
"""First of the run's event files by name, so that TensorBoard reads it before the curves."""
Value = str | float


def write_hparams(sweep: FinishedSweep, logged: Mapping[tuple[str, int], Sequence[str]]) -> list[Path]:
    """Write the file of every finished run whose content would change.

    Args:
        sweep: its runs.
        logged: tags of the scalars that a run's other event files have already, by slug and seed.

    Returns:
        What was written.
    """
    runs = [run for run in sweep.runs.values() if run.is_finished]
    values = {point.slug: hparams_of(sweep.points, point) for point in sweep.points}
    names = [name for name in _metrics(runs) if any(math.isfinite(run.metrics.get(name, math.nan)) for run in runs)]
    experiment = _experiment(sweep, list(values.values()), names)
    written = []
    for run in runs:
        missing = [name for name in names if name not in logged.get((run.point.slug, run.seed), ())]
        content = _content(run, experiment, values[run.point.slug], missing)
        path = run.folder / FILE
        if not path.is_file() or path.read_bytes() != content:
            write_atomically(path, partial(Path.write_bytes, data=content))
            written.append(path)
    return written


def hparams_of(points: Sequence[Point], point: Point) -> dict[str, Value]:
    """A point's labels, as numbers under headings that hold only numbers."""
    own: dict[str, Value] = {}
    for heading, label in point.labels.items():
        column = [_number(other.labels[heading]) for other in points if heading in other.labels]
        number = _number(label)
        own[heading] = label if number is None or None in column else number
    return own


def _number(label: str) -> float | None:
    try:
        number = float(label)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _protobuf(module: str) -> Any:
    """A module whose classes are made when it is imported, so that type checkers see none."""
    return importlib.import_module(module)


def _metrics(runs: Sequence[FinishedRun]) -> list[str]:
    return sorted({name for run in runs for name in run.metrics})


def _experiment(sweep: FinishedSweep, values: Sequence[Mapping[str, Value]], metrics: Sequence[str]) -> Any:
    """What the columns are: the same in every run, as the plugin asks the first that it finds."""
    api_pb2 = _protobuf("tensorboard.plugins.hparams.api_pb2")
    infos = []
    for heading in sweep.headings:
        column = list(dict.fromkeys(own[heading] for own in values if heading in own))
        is_number = all(isinstance(value, float) for value in column)
        info = api_pb2.HParamInfo(
            name=heading, type=api_pb2.DATA_TYPE_FLOAT64 if is_number else api_pb2.DATA_TYPE_STRING
        )
        info.domain_discrete.extend(column)
        infos.append(info)
    ordered = sorted(metrics, key=lambda name: name != sweep.metric)  # the first is what the view sorts by
    metric_infos = [api_pb2.MetricInfo(name=api_pb2.MetricName(tag=name)) for name in ordered]
    return api_pb2.Experiment(name=sweep.folder.name, hparam_infos=infos, metric_infos=metric_infos)


def _content(run: FinishedRun, experiment: Any, values: Mapping[str, Value], metrics: Sequence[str]) -> bytes:
    """The bytes of an event file; times are those of the results, so that they do not depend on when it is written."""
    from tensorboard.plugins.hparams import metadata
    from tensorboard.summary.writer.record_writer import RecordWriter

    api_pb2, plugin_data_pb2 = map(_protobuf, (f"tensorboard.plugins.hparams.{n}_pb2" for n in ("api", "plugin_data")))
    Event = _protobuf("tensorboard.compat.proto.event_pb2").Event
    Summary = _protobuf("tensorboard.compat.proto.summary_pb2").Summary

    time = (run.folder / "results.json").stat().st_mtime
    start = plugin_data_pb2.SessionStartInfo(group_name=run.point.slug, start_time_secs=time)
    for name, value in values.items():
        if isinstance(value, float):
            start.hparams[name].number_value = value
        else:
            start.hparams[name].string_value = value
    end = plugin_data_pb2.SessionEndInfo(status=api_pb2.STATUS_SUCCESS, end_time_secs=time)
    entries = []
    for tag, data in [
        (metadata.EXPERIMENT_TAG, plugin_data_pb2.HParamsPluginData(experiment=experiment)),
        (metadata.SESSION_START_INFO_TAG, plugin_data_pb2.HParamsPluginData(session_start_info=start)),
        (metadata.SESSION_END_INFO_TAG, plugin_data_pb2.HParamsPluginData(session_end_info=end)),
    ]:
        entries.append(
            Summary.Value(tag=tag, metadata=metadata.create_summary_metadata(data), tensor=metadata.NULL_TENSOR)
        )
    entries += [Summary.Value(tag=name, simple_value=run.metrics[name]) for name in metrics if name in run.metrics]
    stream = io.BytesIO()
    writer = RecordWriter(stream)
    writer.write(Event(wall_time=time, file_version="brain.Event:2").SerializeToString(deterministic=True))
    for entry in entries:
        event = Event(wall_time=time, step=0, summary=Summary(value=[entry]))
        writer.write(event.SerializeToString(deterministic=True))
    writer.flush()
    return stream.getvalue()
