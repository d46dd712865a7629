"""TensorBoard's HParams view of a sweep, asked through TensorBoard's own plugin."""

import json
from pathlib import Path
from typing import Any

import pytest
from made_up_sweep import MadeUp
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.plugins.base_plugin import TBContext
from tensorboard.plugins.hparams.hparams_plugin import HParamsPlugin
from werkzeug.test import Client

from ldis_lightning.sweeps.hparams import FILE
from ldis_lightning.sweeps.report import write

POINTS = {"mask=None,rank=2": 0.3, "mask=Alpha,rank=2": 0.5, "mask=Alpha,rank=8": 0.6}


def ask(folder: Path, route: str, request: dict[str, Any]) -> Any:
    """What the plugin answers its page in the browser."""
    multiplexer = EventMultiplexer().AddRunsFromDirectory(str(folder))
    multiplexer.Reload()
    provider = MultiplexerDataProvider(multiplexer, str(folder))
    plugin = HParamsPlugin(TBContext(data_provider=provider, logdir=str(folder), multiplexer=multiplexer))
    application: Any = plugin.get_plugin_apps()[route]
    answer = Client(application).post("/", json={"experimentName": "", **request})
    assert answer.status_code == 200, answer.text
    return json.loads(answer.text)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return MadeUp(POINTS, seeds=(0, 1)).write(tmp_path / "sweep")


def test_the_sessions_and_their_metrics(folder: Path) -> None:
    sweep = write(folder).sweep
    experiment = ask(folder, "/experiment", {})
    infos = {info["name"]: info for info in experiment["hparamInfos"]}
    assert set(infos) == {"mask", "rank"}
    assert infos["mask"]["type"] == "DATA_TYPE_STRING" and infos["rank"]["type"] == "DATA_TYPE_FLOAT64"
    assert set(infos["mask"]["domainDiscrete"]) == {"None", "Alpha"} and set(infos["rank"]["domainDiscrete"]) == {
        2.0,
        8.0,
    }
    metrics = [info["name"]["tag"] for info in experiment["metricInfos"]]
    assert metrics[0] == "test/novel/miou" and len(metrics) == 6

    request = {
        "allowedStatuses": ["STATUS_SUCCESS", "STATUS_UNKNOWN"],
        "colParams": [{"metric": {"tag": "test/novel/miou", "group": ""}, "order": "ORDER_DESC"}],
        "aggregationType": "AGGREGATION_AVG",
        "startIndex": 0,
        "sliceSize": 100,
    }
    groups = ask(folder, "/session_groups", request)["sessionGroups"]
    assert [group["name"] for group in groups] == sorted(POINTS, key=lambda slug: -POINTS[slug])
    for group in groups:
        mask, rank = (part.split("=")[1] for part in group["name"].split(","))
        assert group["hparams"] == {"mask": mask, "rank": float(rank)}
        runs = sweep.runs_of(group["name"])
        (mean,) = [value["value"] for value in group["metricValues"] if value["name"]["tag"] == "test/novel/miou"]
        assert mean == pytest.approx(sum(run.metrics["test/novel/miou"] for run in runs) / 2, rel=1e-6)
        names = {session["name"] for session in group["sessions"]}
        assert names == {f"points/{group['name']}/seed-{seed}" for seed in (0, 1)}
        for session, run in zip(sorted(group["sessions"], key=lambda s: s["name"]), runs, strict=True):
            values = {value["name"]["tag"]: value["value"] for value in session["metricValues"]}
            assert values == pytest.approx(dict(run.metrics), rel=1e-6) and session["status"] == "STATUS_SUCCESS"


def test_writing_twice_changes_nothing(folder: Path) -> None:
    write(folder)
    files = {path: path.stat().st_mtime_ns for path in folder.rglob(FILE)}
    assert len(files) == 6
    write(folder)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob(FILE)} == files


def test_the_reports_curves_do_not_read_it(folder: Path) -> None:
    write(folder)
    page = (folder / "report.html").read_text()
    write(folder)
    assert (folder / "report.html").read_text() == page
    run = folder / "points/mask=None,rank=2/seed-0"
    assert [path.name for path in write(folder).sweep.runs["mask=None,rank=2", 0].event_files] == sorted(
        path.name for path in run.glob("events*") if path.name != FILE
    )


def test_an_unfinished_run_is_no_session(folder: Path) -> None:
    (folder / "points/mask=None,rank=2/seed-1/results.json").unlink()
    write(folder)
    assert len(list(folder.rglob(FILE))) == 5
