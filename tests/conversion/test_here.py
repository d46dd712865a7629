"""`${here}` in a config, and the way from a training run to a converted folder to its scores."""

import json
from pathlib import Path

import pytest
import yaml
from cli_support import read_results, tiny, write_config

from ldis_lightning.cli import main
from ldis_lightning.config_files import read_mapping, resolve_configs


def test_here_is_the_folder_of_the_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my parts: #1").mkdir()
    path = tmp_path / "my parts: #1" / "a.yaml"
    path.write_text("model: {path: '${here}/unet', list: [1.5, '${here}']}  # beside ${here}\nlr: 1.0e-4\n")
    folder = str(path.parent)
    expected = {"model": {"path": f"{folder}/unet", "list": [1.5, folder]}, "lr": 1e-4}
    assert read_mapping(path) == expected
    monkeypatch.chdir(path.parent)
    assert read_mapping(Path("a.yaml")) == expected
    args, named = resolve_configs(["--config", "a.yaml", "--x", "1"])
    assert json.loads(args[1]) == expected
    assert args[0::2] == ["--config", "--x"] and named == [Path("a.yaml")]


def test_a_config_is_found_beside_the_one_that_extends_it_and_has_its_own_folder(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner/base.yaml").write_text("path: ${here}")
    (tmp_path / "top.yaml").write_text("extends: ${here}/inner/base.yaml\nother: 1")
    args, _ = resolve_configs([f"--config={tmp_path / 'top.yaml'}"])
    assert json.loads(args[1]) == {"path": str(tmp_path / "inner")}
    assert json.loads(args[3])["other"] == 1


def test_a_config_without_here_stays_a_path(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("lr: 1")
    assert resolve_configs(["--config", str(tmp_path / "a.yaml")])[0] == ["--config", str(tmp_path / "a.yaml")]


def test_a_link_to_a_config_has_the_links_folder(tmp_path: Path) -> None:
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs/1234").write_text("path: ${here}")
    (tmp_path / "config.yaml").symlink_to(tmp_path / "blobs/1234")  # as in the hub's cache
    assert read_mapping(tmp_path / "config.yaml") == {"path": str(tmp_path)}


def test_a_converted_run_scores_as_its_checkpoint(
    in_miniature_world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fit", "--config", "configs/quickstart.yaml", *tiny(tmp_path)]) == 0
    (checkpoint,) = tmp_path.rglob("last.ckpt")
    out = tmp_path / "model"
    assert main(["convert", str(checkpoint), "--out", str(out)]) == 0
    assert f"{out}: " in capsys.readouterr().out
    config = yaml.safe_load((out / "config.yaml").read_text(encoding="utf-8"))
    assert config["data"] == {"image_size": 64}
    assert "${here}" in (out / "config.yaml").read_text(encoding="utf-8") and str(tmp_path) not in json.dumps(config)

    moved = out.rename(tmp_path / "elsewhere")
    sets = {"novel": {"shards": "data/synthetic/images/novel", "min_pixels": 32}}
    logger = {"class_path": "TensorBoardLogger", "init_args": {"save_dir": str(tmp_path / "test"), "name": "test"}}
    callbacks = [{"class_path": "ResultTable"}, {"class_path": "ResultRows"}]
    trainer = {"accelerator": "cpu", "callbacks": callbacks, "logger": logger, "limit_test_batches": 2}
    data = {"evaluation": sets, "eval_batch_size": 2}
    alone = write_config(tmp_path / "sets.yaml", {"trainer": trainer, "data": data})
    assert main(["test", "--config", str(moved / "config.yaml"), "--config", alone]) == 0
    assert list((tmp_path / "test").rglob("results.jsonl"))
    found, expected = read_results(tmp_path / "test"), read_results(tmp_path / "runs")
    assert found["test/novel/miou"] == pytest.approx(expected["test/novel/miou"])
