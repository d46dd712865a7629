"""The same seed gives the same batches on any number of workers and ranks, and after any interruption."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from recorder import Recorder, datamodule, digests, trainer
from tiny_sets import mixed_contents, write_images

from ldis_lightning.datamodules.pairing import AcrossImages, WithinClip
from ldis_lightning.datamodules.source import TrainingSource
from ldis_lightning.errors import UserError

pytestmark = pytest.mark.filterwarnings(
    "ignore:This DataLoader will create"
)  # more workers than this machine has cores


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("images") / "set", mixed_contents(30)).folder


@pytest.fixture(scope="module")
def expected(folder: Path) -> list[list[str]]:
    """Digests of the first 15 batches."""
    data = datamodule(folder, batches_per_epoch=15)
    data.setup("fit")
    return [digests(batch) for batch in data.train_dataloader()]


@pytest.mark.parametrize(("workers", "start_method"), [(2, "fork"), (4, "fork"), (2, "spawn"), (4, "spawn")])
def test_workers_do_not_matter(folder: Path, expected: list, workers: int, start_method: str) -> None:
    data = datamodule(folder, num_workers=workers, start_method=start_method)
    data.setup("fit")
    loader = data.train_dataloader()
    passes = [[digests(batch) for batch in loader] for _ in range(3)]
    data.teardown("fit")
    assert passes == [expected[:5], expected[5:10], expected[10:]]


def test_workers_do_not_matter_in_evaluation(folder: Path) -> None:
    found = []
    for settings in ({}, {"num_workers": 3, "start_method": "fork"}, {"eval_batch_size": 7}):
        data = datamodule(folder, **{"eval_batch_size": 4, **settings})
        data.setup("validate")
        loader: list[Any] = data.val_dataloader()  # of one set
        found.append([digest for batch in loader[0] for digest in digests(batch)])
    assert found[0] == found[1] == found[2]
    assert len(found[0]) == 30


def test_the_global_random_state_neither_matters_nor_changes(folder: Path, expected: list) -> None:
    torch.manual_seed(5)
    state = torch.get_rng_state()
    data = datamodule(folder)
    data.setup("fit")
    assert [digests(batch) for batch in data.train_dataloader()] == expected[:5]
    assert torch.equal(torch.get_rng_state(), state)


def test_lightning_trains_on_the_stream(folder: Path, expected: list) -> None:
    model = Recorder()
    trainer(max_steps=12, val_check_interval=2).fit(model, datamodule(folder, val_episodes=10, eval_batch_size=4))
    assert len(model.trained) == 12
    assert [len(set(step)) for step in model.trained] == [4] * 12
    assert len(model.validated) == 5 * 3  # after steps 2 and 4 of the epochs of five, ten episodes in batches of four
    assert model.validated[:3] == model.validated[3:6]
    again = Recorder()  # neither validation nor epochs matter
    trainer(max_steps=12, limit_val_batches=0).fit(again, datamodule(folder, batches_per_epoch=100))
    assert again.trained == model.trained


@pytest.mark.parametrize("stop", [3, 5, 6, 10])  # inside and at the end of epochs of five batches
@pytest.mark.parametrize(
    "validation",
    [
        {"limit_val_batches": 0},
        {},  # after each epoch
        {"val_check_interval": 4, "check_val_every_n_epoch": None},  # by steps
    ],
)
def test_a_resumed_run_sees_what_an_uninterrupted_one_sees(
    folder: Path, tmp_path: Path, stop: int, validation: dict[str, Any]
) -> None:
    settings = {"max_steps": 12, **validation}
    whole = Recorder()
    saving = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=stop, save_top_k=-1)
    trainer([saving], **settings).fit(whole, datamodule(folder))
    resumed = Recorder()
    trainer(**settings).fit(resumed, datamodule(folder), ckpt_path=str(tmp_path / f"step={stop}.ckpt"))
    assert resumed.trained == whole.trained[stop:]


def test_resuming_with_other_epochs_workers_and_in_the_same_trainer(folder: Path, tmp_path: Path) -> None:
    whole = Recorder()
    trainer(max_steps=14, limit_val_batches=0).fit(whole, datamodule(folder))
    first = Recorder()
    run = trainer(max_steps=7, limit_val_batches=0)
    run.fit(first, datamodule(folder))
    run.save_checkpoint(tmp_path / "seven.ckpt")
    other = Recorder()
    data = datamodule(folder, batches_per_epoch=4, num_workers=2)
    trainer(max_steps=14, limit_val_batches=0).fit(other, data, ckpt_path=str(tmp_path / "seven.ckpt"))
    assert first.trained + other.trained == whole.trained
    unrelated = Recorder()
    trainer(max_steps=2, limit_val_batches=0).fit(unrelated, data)  # a new run begins at the beginning
    assert unrelated.trained == whole.trained[:2]


def test_a_step_that_failed_is_repeated(folder: Path, tmp_path: Path) -> None:
    whole = Recorder()
    trainer(max_steps=8, limit_val_batches=0).fit(whole, datamodule(folder))
    failing = Recorder(fail_at=3)
    run = trainer(max_steps=8, limit_val_batches=0)
    with pytest.raises(RuntimeError, match="the power is gone"):
        run.fit(failing, datamodule(folder, num_workers=1))
    run.save_checkpoint(tmp_path / "emergency.ckpt")
    resumed = Recorder()
    trainer(max_steps=8, limit_val_batches=0).fit(
        resumed, datamodule(folder), ckpt_path=str(tmp_path / "emergency.ckpt")
    )
    assert failing.trained + resumed.trained == whole.trained


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"batch_size": 8}, "batch_size was 4 and is 8"),
        ({"seed": 1}, "seed was 0 and is 1"),
        ({"references": 2}, "references was 1 and is 2"),
        ({"pairing": AcrossImages(), "classes": [1, 2]}, r"train.classes was None and is \[1, 2\]"),
    ],
)
def test_another_plan_is_refused_in_training_only(folder: Path, tmp_path: Path, changed: dict, message: str) -> None:
    rules = {name: changed.pop(name) for name in ("pairing", "classes") if name in changed}
    run = trainer(max_steps=2, limit_val_batches=0)
    run.fit(Recorder(), datamodule(folder))
    run.save_checkpoint(tmp_path / "two.ckpt")
    data = datamodule(folder, train=TrainingSource(str(folder), **rules), **changed)
    with pytest.raises(UserError, match=message):
        trainer(max_steps=4, limit_val_batches=0).fit(Recorder(), data, ckpt_path=str(tmp_path / "two.ckpt"))
    trainer().test(Recorder(), data, ckpt_path=str(tmp_path / "two.ckpt"), verbose=False)


def test_an_equal_plan_in_another_folder_is_the_same(folder: Path, tmp_path: Path) -> None:
    elsewhere = datamodule(write_images(tmp_path / "copy", mixed_contents(30)).folder)
    here = datamodule(folder, train=TrainingSource(str(folder), pairing=AcrossImages()))
    other = datamodule(folder, train=TrainingSource(str(folder), pairing=WithinClip()))
    for data in (elsewhere, here):
        data.setup("fit")
    assert elsewhere.state_dict() == here.state_dict()
    with pytest.raises(UserError, match="WithinClip"):
        other.setup("fit")


def test_two_ranks_share_the_batches_of_one(folder: Path, tmp_path: Path) -> None:
    model, data = Recorder(), datamodule(folder, eval_batch_size=3)
    trainer(max_steps=7, val_check_interval=3).fit(model, data)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, str(Path(__file__).with_name("recorder.py")), str(folder), str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr
    ranks = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in range(2)]
    together = [
        [episode for pair in zip(one, other, strict=True) for episode in pair]
        for one, other in zip(ranks[0]["trained"], ranks[1]["trained"], strict=True)
    ]
    assert together == model.trained

    assert len(ranks[0]["validated"]) == len(ranks[1]["validated"])
    scored = [
        digest
        for rank in ranks
        for _, episodes, valid in rank["validated"]
        for digest, counts in zip(episodes, valid, strict=True)
        if counts
    ]
    assert sorted(scored) == sorted(digest for _, episodes, _ in model.validated for digest in episodes)
