"""Training and testing on data sets at an address, from the datamodule and from the command line."""

from pathlib import Path
from typing import Any

import local_server as bad
import pytest
from cli_support import tiny
from local_server import quick, served
from recorder import datamodule, digests
from tiny_sets import mixed_contents, write_images

from ldis_lightning.cli import main
from ldis_lightning.datamodules import EpisodeDataModule
from ldis_lightning.datamodules.evaluation_set import EvaluationSource
from ldis_lightning.datamodules.source import TrainingSource

pytestmark = pytest.mark.timeout(180)


def seen(data: EpisodeDataModule) -> tuple[list[list[str]], list[list[str]]]:
    """Digests of two passes of training, and of validation."""
    data.setup("fit")
    try:
        loader = data.train_dataloader()
        trained = [digests(batch) for _ in range(2) for batch in loader]
        evaluated: list[Any] = data.val_dataloader()  # of one set
        return trained, [digests(batch) for batch in evaluated[0]]
    finally:
        data.teardown("fit")


@pytest.mark.parametrize(
    ("workers", "start_method"), [(0, None), (2, "fork"), pytest.param(2, "spawn", marks=pytest.mark.slow)]
)
def test_batches_from_an_address_are_those_from_a_folder(
    workers: int, start_method: str | None, tmp_path: Path
) -> None:
    folder = write_images(tmp_path / "served" / "set", mixed_contents(30)).folder
    expected = seen(datamodule(folder))
    with served(tmp_path / "served") as server:
        server.scripts["*"].extend([bad.status(503), bad.short(100), bad.well, bad.reset(200)])
        address = f"{server.url}/set"
        remote = seen(
            datamodule(
                folder,
                train=TrainingSource(address),
                evaluation={"all": EvaluationSource(address)},
                cache=quick(str(tmp_path / "cache")),
                num_workers=workers,
                start_method=start_method,
            )
        )
        assert not server.scripts["*"]  # all of it has happened
    assert remote == expected


def test_the_command_line_trains_from_an_address_and_says_when_it_is_gone(
    in_miniature_world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = f"{{class_path: ShardCache, init_args: {{folder: {tmp_path / 'cache'}, retries: 1, pause_seconds: 0.01}}}}"
    options = ["fit", "--config", "configs/quickstart.yaml", *tiny(tmp_path), "--data.prepare", "null"]
    with served(in_miniature_world / "data/synthetic/images") as server:
        sets = f"{{novel: {{shards: {server.url}/novel, min_pixels: 32}}}}"
        options += ["--data.train.shards", f"{server.url}/train", "--data.evaluation", sets, "--data.cache", cache]
        assert main(options) == 0
        fetched = len(server.requests)
        assert fetched > 4  # two headers, their columns, shards
        assert main(options) == 0
        assert not any(request.name.endswith(".tar") for request in server.requests[fetched:])  # they were kept
        assert main([*options, "--data.train.shards", f"{server.url}/trian"]) == 2
    shown = capsys.readouterr().err
    assert f"{server.url}/trian" in shown and "Traceback" not in shown
    assert (tmp_path / "runs").is_dir()
