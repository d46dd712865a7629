import csv
import io
import subprocess
import sys
from pathlib import Path

import made_up_rows
import pytest
from made_up_rows import fold, row

from ldis_lightning.cli import main
from ldis_lightning.evaluation.published import PUBLISHED


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The test runs in a folder with the rows of two runs in `runs`."""
    monkeypatch.chdir(tmp_path)
    first = [row(score=0.6161), row(treatment="Swapped()", score=0.1, set="coco_swapped"), row(episodes=7, score=0.99)]
    second = [*(fold(n, domain="strict") for n in range(4)), row(checkpoint_sha256="d" * 64, score=0.64)]
    made_up_rows.write(tmp_path / "runs/ldis1/version_0/results.jsonl", *first)
    made_up_rows.write(tmp_path / "runs/ldis1/version_1/results.jsonl", *second)
    return tmp_path


def shown(args: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """What `ldis results` prints."""
    capsys.readouterr()
    assert main(["results", *args]) == 0
    return capsys.readouterr().out


def refused(args: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The message with which `ldis results` refuses."""
    capsys.readouterr()
    assert main(["results", *args]) == 2
    output = capsys.readouterr()
    assert output.out == "" and output.err.startswith("error: ") and output.err.count("\n") == 1
    return output.err


# ---- On the screen


def test_table(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = shown([], capsys)
    assert max(map(len, out.splitlines())) <= 100
    lines = [" ".join(line.split()) for line in out.splitlines()]
    for expected in [
        "COCO, 1 reference, mIoU in % data set coco2014, protocol ldis",
        "domain method mIoU 95% interval episodes notes",
        "in-domain LDIS1 #1 64.0 [48.0, 53.0] 4000 FB-IoU 70.0",
        "LDIS-1 62.6 reported",
        "LDIS1 #2 61.6 [48.0, 53.0] 4000 FB-IoU 70.0",
        "training-free PerSAM 25.5 reported",
        "control LDIS1 #2 10.0 [48.0, 53.0] 4000 Swapped, in-domain",
        "incomplete LDIS1 #2 99.0 [48.0, 53.0] 7 7 of 4000 episodes, in-domain",
        "COCO-20i, 1 reference, mIoU in % data set coco2014, protocol hsnet-coco, folds f0 to f3",
        "domain method f0 f1 f2 f3 mean 95% interval episodes notes",
        "strict SANSA 57.7 61.7 62.8 58.5 60.2 paper",
        "LDIS1 #2 40.0 50.0 60.0 70.0 55.0 4000",
    ]:
        assert expected in lines
    assert any(line.startswith("#1 last.ckpt sha256 dddddddddddd, runs/ldis1/version_1, 2026-01-02") for line in lines)
    assert any(line.startswith("#2 as #1: last.ckpt sha256 cccccccccccc, runs/ldis1/version_1") for line in lines)
    assert any(line.startswith("paper published, as in the tables of DiffewS") for line in lines)
    assert any(line.startswith("reported published, for the paper of LDIS") for line in lines)


def test_rows_of_other_episodes_are_warned_of(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "do not compare" not in shown([], capsys)
    path = made_up_rows.write(results / "more.jsonl", row(manifest_hash="b" * 64, set="[red]other"))
    out = shown(["runs", str(path)], capsys)
    assert "Rows with different letters were scored on different episodes: do not compare them." in out
    assert "set [red]other, manifest bbbbbbbb" in out  # a name is no markup
    assert "episodes A" in out and "episodes B" in out


def test_published_rows_can_be_left_out_or_printed_alone(
    results: Path, capsys: pytest.CaptureFixture[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    alone = shown(["--no-published"], capsys)
    assert "SANSA" not in alone and "arXiv" not in alone and "LDIS1" in alone
    assert "PASCAL-5i" not in shown([], capsys)
    assert "PASCAL-5i" in shown(["--published"], capsys)
    published = shown([str(tmp_path_factory.mktemp("empty")), "--published"], capsys)
    assert "published rows alone" in published and "LDIS1" not in published and "interval" not in published


def test_a_wide_model_does_not_break_the_table(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    long = ", ".join(f"Component{n}(setting={n})" for n in range(20))
    path = made_up_rows.write(results / "more.jsonl", row(model=f"LDIS1({long})"), row(model="LDIS1"))
    assert max(map(len, shown([str(path)], capsys).splitlines())) <= 100


# ---- As files


def test_markdown(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = shown(["--format", "markdown"], capsys)
    assert "### COCO, 1 reference, mIoU in %" in out
    assert (
        "| domain | method | mIoU | 95% interval | episodes | notes |\n| --- | --- | ---: | ---: | ---: | --- |" in out
    )
    assert "| **in-domain** | **LDIS1 #1** | **64.0** | **[48.0, 53.0]** | **4000** | **FB-IoU 70.0** |" in out
    assert "| in-domain | LDIS-1 | 62.6 |  |  | reported |" in out
    assert "- paper: published, as in the tables of DiffewS" in out
    tables = [line for line in out.splitlines() if line.startswith("|")]
    assert {line.count("|") for line in tables} == {7, 11}


def test_markdown_of_other_episodes_and_of_bars_in_names(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = row(manifest_hash="b" * 64, treatment="Own|Shift()", score=0.2)
    path = made_up_rows.write(results / "more.jsonl", row(), row(manifest_hash="b" * 64), other)
    out = shown(["--format", "markdown", str(path)], capsys)
    assert "- B: manifest bbbbbbbb" in out
    assert "Own\\|Shift" in out


def read_csv(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_csv_has_every_number_once(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = read_csv(shown(["--format", "csv", "--published"], capsys))
    published = [line for line in lines if line["published"] == "1"]
    assert len([line for line in published if line["fold"] in ("", "mean")]) == len(PUBLISHED)
    assert len([line for line in published if line["fold"] in "0123" and line["fold"]]) == 4 * 5
    ours = [line for line in lines if line["published"] == "0"]
    assert len(ours) == 8 + 1  # the rows, and the mean of the folds
    (best,) = [line for line in ours if line["score"] == "64.0"]
    assert best["checkpoint_sha256"] == "d" * 64 and best["manifest"] == "a" * 64 and best["low"] == "48.0"
    assert best["file"] == "runs/ldis1/version_1/results.jsonl" and best["version"] == "0.2.0" and best["commit"] == ""
    folds = [(line["fold"], line["score"], line["domain"]) for line in ours if line["benchmark"] == "COCO-20i"]
    assert folds == [(str(n), f"{40.0 + 10 * n}", "strict") for n in range(4)] + [("mean", "55.0", "strict")]
    assert {line["score"] for line in ours if line["comparable"] == "no"} == {"10.0", "99.0"}


@pytest.mark.parametrize("form", ["table", "markdown", "csv"])
def test_out(form: str, results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    printed = shown(["--format", form], capsys)
    assert shown(["--format", form, "--out", "new/folder/results.txt"], capsys) == "new/folder/results.txt\n"
    assert Path("new/folder/results.txt").read_text(encoding="utf-8") == printed


# ---- Mistakes


def test_no_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    assert "no result rows in `runs`: `ldis test --config configs/benchmark.yaml" in refused([], capsys)
    Path("runs").mkdir()
    assert "no result rows in `runs`" in refused([], capsys)
    Path("a").mkdir()
    assert "no result rows in `a`, `runs`" in refused(["a", "runs"], capsys)


def test_a_missing_path_a_broken_line_and_wrong_options(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "`run` does not exist" in refused(["run"], capsys)
    assert "invalid choice: 'html'" in refused(["--format", "html"], capsys)
    assert "unknown option `--foo`" in refused(["--foo"], capsys)
    path = Path("runs/ldis1/version_0/results.jsonl")
    path.write_text(path.read_text()[:-50])
    assert f"{path}, line 3 is no JSON" in refused([], capsys)


def test_the_command_does_not_wait_for_torch() -> None:
    code = (
        "import sys; from ldis_lightning.cli import main\n"
        "try: main(['results', '--published'])\n"
        "finally: print('torch' in sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.splitlines()[-1] == "False"
