"""The `ldis` command: every shipped config runs, and every mistake is one clear message."""

import hashlib
import json
import os
import signal
import subprocess
import sys
from contextlib import redirect_stdout
from pathlib import Path

import pytest
import yaml
from cli_support import provide_weights_and_data, read_results, tiny, tiny_paper_scale, write_config

from ldis_lightning import __version__
from ldis_lightning.cli import COMMANDS, main, user_message
from ldis_lightning.config_files import packaged_configs, with_parents
from ldis_lightning.errors import UserError

QUICKSTART = ["fit", "--config", "configs/quickstart.yaml"]


def has_model(path: Path) -> bool:
    contents = (yaml.safe_load(file.read_text(encoding="utf-8")) for file in with_parents(path))
    return any("class_path" in content.get("model", {}) for content in contents)


CONFIGS = packaged_configs()
FIT_CONFIGS = [name for name, path in CONFIGS.items() if has_model(path)]
OVERLAYS = [name for name in CONFIGS if name not in FIT_CONFIGS]


def run_failing(args: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Run `ldis` with a mistake; the message, after checking that it is all there is to see of it."""
    capsys.readouterr()
    status = main(args)
    output = capsys.readouterr()
    assert status == 2
    assert "Traceback" not in output.out + output.err
    (message,) = [line for line in output.err.splitlines() if line.startswith("error: ")]
    return message.removeprefix("error: ")


# ---- The dispatcher


def test_help_names_every_command_and_imports_nothing_heavy() -> None:
    code = (
        "import sys; from ldis_lightning.cli import main; s = main(['--help']); print('torch' in sys.modules); exit(s)"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert all(name in shown for name in COMMANDS)
    assert shown.splitlines()[-1] == "False"


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"ldis {__version__}\n"


def test_no_command_shows_the_help_and_fails(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "usage: ldis" in capsys.readouterr().out


def test_misspelt_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert "there is no command `swep`; did you mean `sweep`?" in run_failing(["swep"], capsys)


def test_ctrl_c_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(args: list[str]) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("ldis_lightning.cli._run", interrupted)
    assert main(["fit"]) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_ctrl_c_in_training_is_one_line(
    in_miniature_world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    on_interrupt = signal.getsignal(signal.SIGINT)
    options = ["--trainer.callbacks+", "cli_support.PressCtrlC"]
    try:
        assert main(["fit", "--config", "configs/autoencoder_tiny.yaml", *tiny(tmp_path), *options]) == 130
    finally:
        signal.signal(signal.SIGINT, on_interrupt)  # Lightning leaves it ignored
    output = capsys.readouterr()
    assert output.err.splitlines()[-1] == "interrupted"
    assert "Traceback" not in output.err and "graceful" not in output.err


def test_bugs_keep_their_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(args: list[str]) -> int:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr("ldis_lightning.cli._run", broken)
    with pytest.raises(ZeroDivisionError):
        main(["fit"])


def test_mistakes_found_by_data_workers_lose_their_traceback() -> None:
    inner = "Caught UserError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n  File x\n"
    assert (
        user_message(UserError(f"{inner}ldis_lightning.errors.UserError: the mask is missing")) == "the mask is missing"
    )
    assert user_message(RuntimeError("something else")) is None


# ---- Configs


@pytest.mark.parametrize("name", FIT_CONFIGS)
def test_every_config_trains_and_validates(name: str, in_miniature_world: Path, tmp_path: Path) -> None:
    provide_weights_and_data(in_miniature_world)
    options = [*tiny(tmp_path), *tiny_paper_scale(name, tmp_path)]
    assert main(["fit", "--config", name, *options, "--score_after_fit", "false"]) == 0


@pytest.mark.parametrize("name", OVERLAYS)
def test_every_overlay_fits_the_quickstart(name: str) -> None:
    from ldis_lightning.lightning_cli import parse_fit

    parse_fit(["--config", "configs/quickstart.yaml", "--config", name])


@pytest.fixture(scope="module")
def fitted(miniature_world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny run of an ablation's config, which extends the quickstart; `shown.txt` has its output."""
    folder = tmp_path_factory.mktemp("fitted")
    with pytest.MonkeyPatch.context() as patch, (folder / "shown.txt").open("w") as shown, redirect_stdout(shown):
        patch.chdir(miniature_world)
        assert main(["fit", "--config", "configs/ablation_masking.yaml", *tiny(folder)]) == 0
    return folder


def test_fit_ends_with_its_score(fitted: Path) -> None:
    shown = (fitted / "shown.txt").read_text(encoding="utf-8")
    assert all(word in shown for word in ("mIoU", "novel", ".png", "results.json"))
    assert "test/novel/miou" in read_results(fitted)


def test_a_saved_config_stands_alone_and_its_checkpoint_can_be_tested(
    fitted: Path, in_miniature_world: Path, tmp_path: Path
) -> None:
    (checkpoint,) = fitted.rglob("last.ckpt")
    (saved,) = fitted.rglob("config.yaml")
    assert yaml.safe_load(saved.read_text(encoding="utf-8"))["extends"] is None
    options = ["--config", str(saved), "--ckpt_path", str(checkpoint), "--trainer.logger.save_dir", str(tmp_path)]
    assert main(["test", *options]) == 0
    assert read_results(tmp_path) == pytest.approx(read_results(fitted), nan_ok=True)


def test_a_config_without_a_model_takes_that_of_the_checkpoints_run(
    fitted: Path, in_miniature_world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (checkpoint,) = fitted.rglob("last.ckpt")
    sets = {"novel": {"shards": "data/synthetic/images/novel", "min_pixels": 32}}
    callbacks = [{"class_path": "ResultTable"}, {"class_path": "ResultRows"}]
    logger = {"class_path": "TensorBoardLogger", "init_args": {"save_dir": str(tmp_path), "name": "test"}}
    trainer = {"accelerator": "cpu", "callbacks": callbacks, "logger": logger, "enable_progress_bar": False}
    sets_alone = write_config(tmp_path / "sets.yaml", {"trainer": trainer, "data": {"evaluation": sets}})
    assert main(["test", "--config", sets_alone, "--ckpt_path", str(checkpoint)]) == 0
    assert "Test metric" not in capsys.readouterr().out  # Lightning's own table, beside ours
    (path,) = tmp_path.rglob("results.jsonl")
    (row,) = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert row["episodes"] == row["expected"] == 12
    assert row["domain"] == "strict"  # the checkpoint says what it was trained on
    assert row["checkpoint_sha256"] == hashlib.sha256(checkpoint.read_bytes()).hexdigest()
    lost = tmp_path / "elsewhere" / "last.ckpt"
    lost.parent.mkdir()
    lost.write_bytes(checkpoint.read_bytes())
    message = run_failing(["test", "--config", sets_alone, f"--ckpt_path={lost}"], capsys)
    assert f"the run of {lost} has left no" in message
    assert "no config names a model: add `--ckpt_path`" in run_failing(["test", "--config", sets_alone], capsys)


def test_hyperparameters_of_a_checkpoint_do_not_override_the_command_line(fitted: Path) -> None:
    from ldis_lightning.lightning_cli import LDISCLI

    (checkpoint,) = fitted.rglob("last.ckpt")
    options = ["--config", "configs/quickstart.yaml", "--ckpt_path", str(checkpoint), "--model.optimizer.lr", "0.5"]
    config = LDISCLI("fit", options, run=False).config["fit"]
    assert config.model.init_args.optimizer.init_args.lr == 0.5


def test_one_batch_is_not_all_of_them() -> None:
    # `int | float` and `float | int` are one to the cache of typing: who writes one first decides what `1` becomes, and
    # 1.0 means all batches. So Lightning must be imported early, and only a process of its own can tell.
    code = (
        "from ldis_lightning.lightning_cli import parse_fit\n"
        "options = ['--config', 'configs/quickstart.yaml', '--trainer.limit_val_batches', '1']\n"
        "print(repr(parse_fit(options)[1].trainer.limit_val_batches))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "1"


def test_the_seed_reaches_the_data() -> None:
    from ldis_lightning.lightning_cli import parse_fit

    _, config = parse_fit(["--config", "configs/quickstart.yaml", "--seed_everything", "7"])
    assert config.data.seed == 7


def test_a_later_config_wins_and_extends_is_relative_to_its_file(tmp_path: Path) -> None:
    from ldis_lightning.lightning_cli import parse_fit

    write_config(
        tmp_path / "base.yaml", {"extends": "configs/quickstart.yaml", "data": {"batch_size": 4, "references": 3}}
    )
    child = write_config(tmp_path / "child.yaml", {"extends": "base.yaml", "data": {"batch_size": 8}})
    _, config = parse_fit(["--config", child])
    assert (config.data.batch_size, config.data.references, config.data.image_size) == (8, 3, 64)


# ---- Mistakes: one clear message each

MISTAKES = {
    "option": (
        ["--trainer.max_step", "3"],
        "unknown option `--trainer.max_step`; did you mean `--trainer.max_steps`?",
    ),
    "abbreviation": (["--trainer.max_epoch", "3"], "did you mean `--trainer.max_epochs`?"),
    "option without its group": (["--max_steps", "3"], "did you mean `--trainer.max_steps`?"),
    "option of the data": (["--data.batchsize", "3"], "did you mean `--data.batch_size`?"),
    "option of an evaluation set": (
        ["--data.evaluation", "{novel: {shard: x}}"],
        "EvaluationSource has no parameter `shard`; did you mean `shards`?",
    ),
    "option of the training data": (
        ["--data.train", "{shard: x}"],
        "TrainingSource has no parameter `shard`; did you mean `shards`?",
    ),
    "option of a mixture": (
        ["--data.train", "{a: {shards: x, wait: 2}, b: {shards: y}}"],
        "TrainingSource has no parameter `wait`; did you mean `weight`?",
    ),
    "missing option of a mixture": (["--data.train", "{a: {weight: 2}}"], "data.train: `shards` is missing"),
    "set left out": (["--data.only", "[nowel]"], "there is no set `nowel`; did you mean `novel`?"),
    "option of the model": (
        ["--model.instrution", "x"],
        "LDIS1 has no parameter `instrution`; did you mean `instruction`?",
    ),
    "option deep inside": (
        ["--model.instruction.pre_maks", "AlphaChannel"],
        "model.instruction: InstructionExtractor has no parameter `pre_maks`; did you mean `pre_mask`?",
    ),
    "class deep inside": (
        ["--model.instruction.pre_mask", "AlphaChanel"],
        "model.instruction.pre_mask: there is no PreMask called `AlphaChanel`; did you mean `AlphaChannel`?",
    ),
    "class of another kind": (
        ["--model.instruction.pre_mask", "CrossAttentionMask"],
        "model.instruction.pre_mask: there is no PreMask called `CrossAttentionMask`",
    ),
    "model": (["--model", "LDIS2"], "there is no LightningModule called `LDIS2`; did you mean `LDIS"),
    "callback": (["--trainer.callbacks+", "Preview"], "did you mean `Previews`?"),
    "type": (["--trainer.max_steps", "many"], "trainer.max_steps: expected int, got `many`"),
    "checkpoint": (["--ckpt_path", "nowhere.ckpt"], "the checkpoint `nowhere.ckpt` does not exist"),
    "config": (
        ["--config", "configs/quikstart.yaml"],
        "config `configs/quikstart.yaml` does not exist; did you mean `configs/quickstart.yaml`?",
    ),
    "config flag without a config": (["--config"], "`--config` needs the path of a YAML file after it"),
}


@pytest.mark.parametrize(("options", "expected"), MISTAKES.values(), ids=MISTAKES.keys())
def test_a_mistake_on_the_command_line(options: list[str], expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert expected in run_failing([*QUICKSTART, *options], capsys)


CONFIG_MISTAKES = {
    "key": (
        "trainer:\n  max_step: 3\n",
        "unknown key `trainer.max_step` ({}, line 2); did you mean `trainer.max_steps`?",
    ),
    "group": ("trianer:\n  max_steps: 3\n", "unknown key `trianer` ({}, line 1); did you mean `trainer`?"),
    "parameter": (
        "model:\n  init_args:\n    pseudo_maks: Vanilla\n",
        "model: LDIS1 has no parameter `pseudo_maks` ({}, line 3); did you mean `pseudo_mask`?",
    ),
    "class": (
        "model:\n  init_args:\n    pseudo_mask: Vanila\n",
        "model.pseudo_mask: there is no PseudoMask called `Vanila` ({}, line 3); did you mean `Vanilla`?",
    ),
    "value": ("data:\n  batch_size: some\n", "data.batch_size: expected int, got `some` ({}, line 2)"),
    "syntax": ("data: [\n", "config `{}` is not valid YAML"),
    "empty": ("", "config `{}` must hold `key: value` lines, but it is empty"),
    "parent": ("extends: nothing.yaml\n", "config `nothing.yaml` does not exist"),
    "loop": ("extends: mistake.yaml\n", "extends itself"),
}


@pytest.mark.parametrize(("text", "expected"), CONFIG_MISTAKES.values(), ids=CONFIG_MISTAKES.keys())
def test_a_mistake_in_a_config(text: str, expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "mistake.yaml"
    path.write_text(text, encoding="utf-8")
    assert expected.format(path) in run_failing([*QUICKSTART, "--config", str(path)], capsys)


def test_fit_without_a_config(capsys: pytest.CaptureFixture[str]) -> None:
    assert "--config configs/quickstart.yaml" in run_failing(["fit"], capsys)


@pytest.mark.skipif("__import__('torch').cuda.is_available()", reason="this machine has what the test asks for")
def test_a_gpu_where_there_is_none(
    in_miniature_world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for accelerator in ("gpu", "cuda"):
        message = run_failing([*QUICKSTART, *tiny(tmp_path), "--trainer.accelerator", accelerator], capsys)
        assert "not available on this machine; use `--trainer.accelerator auto`" in message


def test_a_missing_data_folder(in_miniature_world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    missing = tmp_path / "nothing"
    assert str(missing) in run_failing([*QUICKSTART, *tiny(tmp_path), "--data.train.shards", str(missing)], capsys)


def test_a_shard_folder_without_an_index(
    in_miniature_world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "foreign"
    folder.mkdir()
    (folder / "shard-00000.tar").write_bytes(b"")
    message = run_failing([*QUICKSTART, *tiny(tmp_path), "--data.train.shards", str(folder)], capsys)
    assert str(folder) in message
    assert "ldis data index" in message


@pytest.mark.parametrize("workers", [0, 1])
def test_a_mask_of_the_wrong_size(
    workers: int, in_miniature_world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from io import BytesIO

    import numpy as np
    from PIL import Image
    from webdataset.writer import TarWriter

    folder = tmp_path / "wrong"
    folder.mkdir()
    jpg = BytesIO()
    Image.new("RGB", (64, 64)).save(jpg, "JPEG")
    png = BytesIO()
    Image.fromarray(np.ones((32, 32), np.uint8)).save(png, "PNG")
    with TarWriter(str(folder / "shard-00000.tar")) as writer:
        for key in ("one", "two"):
            writer.write({"__key__": key, "jpg": jpg.getvalue(), "png": png.getvalue()})
    if main(["data", "index", str(folder)]) == 2:  # found when indexing
        assert "64" in capsys.readouterr().err
        return
    options = ["--data.train.shards", str(folder), "--data.num_workers", str(workers)]
    assert "64" in run_failing([*QUICKSTART, *tiny(tmp_path), *options], capsys)


def test_a_mistake_in_a_process_of_its_own(tmp_path: Path) -> None:
    config = "configs/autoencoder_tiny.yaml"
    command = [sys.executable, "-m", "ldis_lightning", "fit", "--config", config, "--data.batch_size", "0"]
    root = str(Path(__file__).resolve().parents[1])
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": root}, timeout=280
    )
    assert done.returncode == 2
    assert "error: data.batch_size is 0" in done.stderr
    assert "Traceback" not in done.stderr + done.stdout
