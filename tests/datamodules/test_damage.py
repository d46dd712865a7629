"""What training does about damaged samples: policies, substitutes, and the list of what was found."""

import json
import logging
import multiprocessing
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from jsonargparse import ArgumentParser
from lightning.pytorch.loggers import CSVLogger
from recorder import Recorder, datamodule, digests, trainer
from rotten import flip, ruin
from tiny_sets import mixed_contents, write_images

from ldis_lightning.datamodules.damage import (
    ATTEMPTS,
    LEDGER,
    DamagedSample,
    DamagePolicy,
    Ledger,
    Quarantine,
    Raise,
    Substitutes,
)
from ldis_lightning.datamodules.episodes import EpisodeDataModule
from ldis_lightning.datamodules.source import Episode
from ldis_lightning.errors import UserError

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create", "ignore:The `srun` command")

WARNINGS = "ldis_lightning.datamodules.damage"


def damage(key: str = "k", shard: str = "/data/a.tar") -> DamagedSample:
    return DamagedSample(Path(shard), key, "its bytes are others")


# ---- Policies and substitutes


class NumberedPlan:
    """The substitute at attempt a of position p is query 100 p + a, with three references."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, int]] = []

    def substitute(self, position: int, attempt: int) -> Episode:
        self.asked.append((position, attempt))
        return Episode(100 * position + attempt, (1, 2, 3), 1, attempt, 1)


def read_without(*damaged: int) -> Any:
    """Reads episodes as the number of their query; these are damaged."""

    def read(episode: Episode) -> int:
        if episode.query in damaged:
            raise damage(str(episode.query)) from ValueError("the decoder's own words")
        return episode.query

    return read


FIRST = Episode(0, (8, 9), 1, 7, 1)


def test_a_whole_episode_stays() -> None:
    plan = NumberedPlan()
    assert Substitutes(Quarantine(), plan).read(FIRST, 5, read_without()) == (FIRST, 0, [])
    assert plan.asked == []


def test_the_first_substitute_that_can_be_read() -> None:
    plan = NumberedPlan()
    episode, content, found = Substitutes(Quarantine(), plan).read(FIRST, 5, read_without(0, 501, 502))
    assert (episode.query, content) == (503, 503)
    assert episode.references == (1, 2)  # as many as the episode had, whose place it takes
    assert [one.key for one in found] == ["0", "501", "502"]
    assert plan.asked == [(5, 1), (5, 2), (5, 3)]
    assert all(one.__traceback__ is None and one.__cause__ is None for one in found)


def test_where_all_substitutes_are_damaged() -> None:
    plan = NumberedPlan()
    with pytest.raises(UserError, match=r"^0 in /data/a\.tar: .* All 10 episodes .*`ldis data verify /data`") as caught:
        Substitutes(Quarantine(), plan).read(FIRST, 5, read_without(0, *range(501, 600)))
    assert plan.asked == [(5, attempt) for attempt in range(1, ATTEMPTS + 1)]
    assert "\n" not in str(caught.value)


def test_raise_stops_at_once() -> None:
    plan = NumberedPlan()
    with pytest.raises(DamagedSample, match="its bytes are others"):
        Substitutes(Raise(), plan).read(FIRST, 5, read_without(0))
    assert plan.asked == []


class OnlyOld(DamagePolicy):
    """A user's own: puts up with what is known to be old."""

    def replaces(self, damage: DamagedSample) -> bool:
        return damage.key == "0"


def test_a_policy_of_ones_own() -> None:
    substitutes = Substitutes(OnlyOld(), NumberedPlan())
    assert substitutes.read(FIRST, 5, read_without(0))[0].query == 501
    with pytest.raises(DamagedSample, match="501"):
        substitutes.read(FIRST, 5, read_without(0, 501))
    with pytest.raises(NotImplementedError, match="OnlyNamed must implement replaces"):
        type("OnlyNamed", (DamagePolicy,), {})().replaces(damage())


def test_what_is_no_sample_s_fault_is_not_replaced() -> None:
    def read(episode: Episode) -> int:
        raise UserError("/data/a.tar cannot be read: Permission denied.")

    with pytest.raises(UserError, match="Permission denied"):
        Substitutes(Quarantine(), NumberedPlan()).read(FIRST, 5, read)


def test_policies_travel_to_workers() -> None:
    assert pickle.loads(pickle.dumps(Quarantine(3))).budget == 3
    again = pickle.loads(pickle.dumps(damage("x")))
    assert (again.shard, again.key, again.reason, str(again)) == (
        Path("/data/a.tar"), "x", "its bytes are others", str(damage("x")),
    )  # fmt: skip


def parse(**data: Any) -> EpisodeDataModule:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(EpisodeDataModule, "data")
    return parser.instantiate(parser.parse_object({"data": data})).data


def test_configs_name_policies() -> None:
    assert isinstance(parse(damage={"class_path": "Raise"}).damage, Raise)
    assert parse(damage={"class_path": "Quarantine", "init_args": {"budget": 3}}).damage.budget == 3
    own = parse(damage={"class_path": f"{OnlyOld.__module__}.OnlyOld"}).damage
    assert type(own).__name__ == "OnlyOld" and own.budget is None
    default = parse().damage
    assert isinstance(default, Quarantine) and default.budget == 16
    with pytest.raises(UserError, match=r"data\.damage\.budget is -1"):
        Quarantine(-1)


# ---- The list


def lines_of(file: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_each_sample_is_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "run" / LEDGER
    ledger, other_rank = Ledger(file, 16), Ledger(file, 16)
    with caplog.at_level(logging.WARNING, WARNINGS):
        for one in (damage("a"), damage("b"), damage("a"), damage("a", "/data/other.tar")):
            ledger.note(one)
        other_rank.note(damage("b"))
        other_rank.note(damage("c"))
        Ledger(file, 16).note(damage("c"))  # of a resumed run
    assert [record.getMessage() for record in caplog.records] == [
        "damaged sample 1 of at most 16, left out of training: a in /data/a.tar: its bytes are others",
        "damaged sample 2 of at most 16, left out of training: b in /data/a.tar: its bytes are others",
        "damaged sample 3 of at most 16, left out of training: a in /data/other.tar: its bytes are others",
        "damaged sample 4 of at most 16, left out of training: c in /data/a.tar: its bytes are others",
    ]
    assert [(entry["shard"], entry["key"]) for entry in lines_of(file)] == [
        ("/data/a.tar", "a"), ("/data/a.tar", "b"), ("/data/other.tar", "a"), ("/data/a.tar", "c"),
    ]  # fmt: skip
    assert ledger.entries() == lines_of(file)  # what the other rank found included


@pytest.mark.parametrize("named", [True, False])
def test_above_the_budget_training_stops(tmp_path: Path, named: bool) -> None:
    file = tmp_path / LEDGER if named else None
    ledger = Ledger(file, 2)
    ledger.note(damage("a"))
    ledger.note(damage("b"))
    with pytest.raises(UserError) as caught:
        ledger.note(damage("c"))
    message = str(caught.value)
    assert message.startswith("3 samples are damaged, and data.damage.budget is 2.") and "\n" not in message
    assert "`ldis data verify /data`" in message and message.endswith("or raise data.damage.budget.")
    assert (f"{file} lists them" in message) == named
    with pytest.raises(UserError, match=r"3 samples.*budget is 2"):
        (Ledger(file, 2) if file else ledger).note(damage("b"))  # a run that was stopped does not go on unchanged
    with pytest.raises(UserError, match=r"4 samples.*budget is 2"):
        ledger.note(damage("d"))
    if file is not None:
        with pytest.raises(UserError, match=r"5 samples.*budget is 3"):
            Ledger(file, 3).note(damage("e"))
        Ledger(file, 6).note(damage("f"))
    with pytest.raises(UserError, match=r"1 samples.*budget is 0"):
        Ledger(None, 0).note(damage())
    Ledger(None, None).note(damage())


def test_a_resumed_run_that_writes_elsewhere_goes_on_counting(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    earlier = Ledger(tmp_path / "one", 2)
    earlier.note(damage("a"))
    caplog.clear()
    kept: list[Any] = [*earlier.entries(), "garbage", {"shard": 3}, None]
    second_rank = Ledger(tmp_path / "two", 2, kept, writes_earlier=False)
    assert not (tmp_path / "two").exists()
    resumed = Ledger(tmp_path / "two", 2, kept)
    assert lines_of(tmp_path / "two") == earlier.entries()
    resumed.note(damage("a"))
    second_rank.note(damage("a"))
    assert caplog.records == []
    resumed.note(damage("b"))
    with pytest.raises(UserError, match="3 samples"):
        second_rank.note(damage("c"))
    assert len(Ledger(tmp_path / "two", 2, kept).entries()) == len(lines_of(tmp_path / "two")) == 3


def test_a_line_that_was_cut_short(tmp_path: Path) -> None:
    file = tmp_path / LEDGER
    file.write_text(f'{json.dumps({"shard": "s", "key": "a", "reason": "r"})}\n3\n[]\n{{"shard": "s", "ke\n')
    ledger = Ledger(file, 2)
    ledger.note(damage("b", "s"))
    assert [entry["key"] for entry in ledger.entries()] == ["a", "b"]


def test_a_list_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file/quarantine\.jsonl cannot be written"):
        Ledger(tmp_path / "file" / LEDGER, 2).note(damage())
    with pytest.raises(UserError, match="cannot be read"):
        Ledger(tmp_path, 2)


def _note_many(file: Path, rank: int) -> None:
    ledger = Ledger(file, None)
    for number in range(100):
        ledger.note(DamagedSample(Path("s" * 200), f"{rank}-{number}", "r" * 200))


def test_ranks_write_whole_lines(tmp_path: Path) -> None:
    file = tmp_path / LEDGER
    ranks = [multiprocessing.get_context("fork").Process(target=_note_many, args=(file, rank)) for rank in range(4)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(60)
    assert len({entry["key"] for entry in lines_of(file)}) == len(lines_of(file)) == 400


# ---- In a stream


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Keys of the samples that were logged."""
    damaged: list[Any] = [record.args for record in caplog.records if record.name == WARNINGS]
    return [args[-1].key for args in damaged]


@pytest.fixture(scope="module")
def rotten(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, set[str]]:
    """A folder, and the keys of its damaged samples: 6 of 30."""
    index = write_images(tmp_path_factory.mktemp("images") / "set", mixed_contents(30))
    return index.folder, ruin(index, 0.2)


def run_of(folder: Path, runs: Path, version: int = 0, **settings: Any) -> tuple[Recorder, Any]:
    """Train for 12 steps, three epochs of pictures; the model, and its trainer."""
    model = Recorder()
    logger = CSVLogger(runs, "", version)
    run = trainer(logger=logger, max_steps=12, limit_val_batches=0, log_every_n_steps=1)
    run.fit(model, datamodule(folder, **settings))
    return model, run


def test_training_does_without_damaged_samples(
    rotten: tuple[Path, set[str]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder, damaged = rotten
    data = datamodule(folder, batches_per_epoch=15)
    data.setup("fit")
    batches: list[Any] = list(data.train_dataloader())
    metas = [meta for batch in batches for meta in batch["meta"]]
    seen = {key for meta in metas for key in (meta["query_key"], *meta["reference_keys"])}
    assert len(metas) == 60 and not seen & damaged
    assert all("damaged" not in batch for batch in batches)
    assert set(told(caplog)) == damaged
    assert all(len(batch["class_id"]) == len(batch["seed"]) == 4 for batch in batches)
    caplog.clear()
    model, _ = run_of(folder, tmp_path)
    assert model.trained == [digests(data.to_model_range(batch)) for batch in batches[:12]]
    listed = lines_of(tmp_path / "version_0" / LEDGER)
    assert {entry["key"] for entry in listed} <= damaged and len(listed) == len(told(caplog)) > 0


def test_a_resumed_run_is_the_same_and_tells_nothing_twice(
    rotten: tuple[Path, set[str]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _, run = run_of(rotten[0], tmp_path / "whole")
    run.save_checkpoint(tmp_path / "twelve.ckpt")
    listed = lines_of(tmp_path / "whole/version_0" / LEDGER)
    caplog.clear()
    for version in (0, 1):  # into the same folder, and into another
        resumed = Recorder()
        logger = CSVLogger(tmp_path / "whole", "", version)
        more = trainer(logger=logger, max_steps=16, limit_val_batches=0, log_every_n_steps=1)
        more.fit(resumed, datamodule(rotten[0]), ckpt_path=str(tmp_path / "twelve.ckpt"))
        assert len(resumed.trained) == 4
        after = lines_of(tmp_path / f"whole/version_{version}" / LEDGER)
        assert after[: len(listed)] == listed
        assert len({entry["key"] for entry in after}) == len(after)
    assert not set(told(caplog)) & {entry["key"] for entry in listed}
    with pytest.raises(UserError, match=r"whole/version_2/quarantine\.jsonl lists them"):
        again = trainer(logger=CSVLogger(tmp_path / "whole", "", 2), max_steps=40, limit_val_batches=0)
        small = datamodule(rotten[0], damage=Quarantine(len(listed) - 1))
        again.fit(Recorder(), small, ckpt_path=str(tmp_path / "twelve.ckpt"))


def test_the_budget_stops_a_run(rotten: tuple[Path, set[str]], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"3 samples are damaged.*version_0/quarantine\.jsonl lists them"):
        run_of(rotten[0], tmp_path, damage=Quarantine(2))
    assert len(lines_of(tmp_path / "version_0" / LEDGER)) == 3


def test_without_a_logger_there_is_no_file(
    rotten: tuple[Path, set[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    trainer(max_steps=8, limit_val_batches=0).fit(Recorder(), datamodule(rotten[0]))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("stage", ["validate", "test"])
def test_evaluation_stops_at_damage(rotten: tuple[Path, set[str]], stage: str, workers: int) -> None:
    data = datamodule(rotten[0], num_workers=workers)
    data.setup(stage)
    loaders = data.val_dataloader() if stage == "validate" else data.test_dataloader()
    with pytest.raises(UserError) as caught:
        list(loaders[0])
    assert any(str(caught.value).startswith(f"{key} in ") or f" {key} in " in str(caught.value) for key in rotten[1])


@pytest.mark.parametrize("workers", [0, 2])
def test_a_missing_shard_is_no_damage(tmp_path: Path, workers: int) -> None:
    index = write_images(tmp_path / "set", mixed_contents(12))
    data = datamodule(index.folder, num_workers=workers)
    data.setup("fit")
    for path in index.shard_paths:
        path.unlink()
    with pytest.raises(UserError, match=r"\.tar cannot be read: No such file"):
        list(data.train_dataloader())


@pytest.mark.parametrize("workers", [0, 2])
def test_a_data_set_of_rot_alone_stops(tmp_path: Path, workers: int) -> None:
    index = write_images(tmp_path / "set", mixed_contents(12))
    for row in range(len(index)):
        flip(index, row)
    data = datamodule(index.folder, num_workers=workers)
    data.setup("fit")
    with pytest.raises(UserError, match=r"All 10 episodes .*ldis data verify"):
        list(data.train_dataloader())


SCRIPT = """
import sys
from pathlib import Path
from lightning.pytorch.loggers import CSVLogger
from recorder import Recorder, datamodule, trainer

if __name__ == "__main__":
    run = trainer(logger=CSVLogger(sys.argv[2]), devices=2, strategy="ddp", max_steps=12, limit_val_batches=0)
    run.fit(Recorder(), datamodule(Path(sys.argv[1]), num_workers=1))
"""


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_two_ranks_share_one_list(rotten: tuple[Path, set[str]], tmp_path: Path) -> None:
    (tmp_path / "run.py").write_text(SCRIPT)
    here = Path(__file__).parent
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(here.parents[1]), str(here)])}
    command = [sys.executable, str(tmp_path / "run.py"), str(rotten[0]), str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr
    (file,) = tmp_path.rglob(LEDGER)
    alone, _ = run_of(rotten[0], tmp_path / "alone")
    assert len(alone.trained) == 12
    listed, expected = lines_of(file), lines_of(tmp_path / "alone/version_0" / LEDGER)
    assert {entry["key"] for entry in listed} == {entry["key"] for entry in expected}
    assert done.stderr.count("left out of training") == len(listed)
