"""`ldis report`: its files, what a hostile folder can do to the page (nothing), and the page in a real browser."""

import json
import os
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml
from browser import CHROMIUM, visit
from made_up_sweep import MadeUp, write_tiles
from PIL import Image

from ldis_lightning.cli import main
from ldis_lightning.sweeps import pictures
from ldis_lightning.sweeps.report import write

GRID = {
    f"mask={mask},rank={rank}": 0.2 + 0.02 * rank + 0.1 * (mask == "Alpha")
    for mask in ("None", "Alpha")
    for rank in (2, 4, 8)
}
BASELINE = {"baseline": "mask=None,rank=2"}
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: apt-get install chromium")


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep of two axes with a baseline, one run of which has failed."""
    folder = MadeUp(GRID, plan=BASELINE).write(tmp_path_factory.mktemp("sweep") / "masking")
    failed = folder / "points/mask=Alpha,rank=8/seed-2"
    (failed / "results.json").unlink()
    (failed / "log.txt").write_text("step 17\nout of memory & <b>patience</b>\n")
    write(folder)
    return folder


class Texts(HTMLParser):
    """The visible texts and the tags of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.texts.append(data.strip())


def test_the_page_has_everything(grid: Path) -> None:
    page = Texts((grid / "report.html").read_text())
    text = " ".join(page.texts)
    for heading in (
        *("Results", "Differences to the baseline", "The metric over each axis", "The same queries under every point"),
        *("Learning curves", "Other evaluation sets", "Unfinished runs", "Run it again"),
    ):
        assert heading in page.texts, heading
    assert "Best of 6 points: Alpha, rank = 8" in text and "2 of 3" in text and "17 of 18" in text
    assert "out of memory & <b>patience</b>" in text and "started, but not finished" in text
    assert f"ldis fit --config '{grid}/points/mask=Alpha,rank=2/seed-0/point.yaml'" in text or (
        f"ldis fit --config {grid}/points/mask=Alpha,rank=2/seed-0/point.yaml" in text
    )
    pictures = [attributes["src"] or "" for tag, attributes in page.tags if tag == "img"]
    assert len(pictures) == 3 * (3 + 6) and all(source.startswith("data:image/jpeg;base64,") for source in pictures)
    assert sum(tag == "svg" for tag, _ in page.tags) == 1 + 2 + 2  # differences, axes, curves


def test_the_files_beside_it(grid: Path) -> None:
    assert len((grid / "results.csv").read_text().splitlines()) == 1 + 17
    assert (grid / "results.md").read_text().startswith("| mask | rank | test/novel/miou | difference to baseline |")
    assert sorted(path.name for path in grid.iterdir()) == [
        "points",
        "report.html",
        "results.csv",
        "results.md",
        "sweep.yaml",
    ]


def test_writing_again_gives_the_same_page(grid: Path) -> None:
    before = (grid / "report.html").read_bytes()
    write(grid)
    assert (grid / "report.html").read_bytes() == before


def test_the_command_prints_the_table_and_where_the_files_are(grid: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(grid), "--metric", "test/seen/miou", "--baseline", "mask=None,rank=8"]) == 0
    shown = capsys.readouterr().out
    assert "baseline" in shown and str(grid / "report.html") in shown.replace("\n", "")
    assert "seed 2: started, but not finished" in shown
    write(grid)


def test_mistakes_of_the_command(grid: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for args, expected in [
        ([str(tmp_path / "nowhere")], "is no folder"),
        ([str(tmp_path)], "no finished run"),
        ([], "required"),
        ([str(grid), "--metric", "test/novel/mio"], "did you mean `test/novel/miou`?"),
        ([str(grid), "--mode", "best"], "--mode"),
        ([str(grid), "--baseline", "rank=8"], "2 points are `rank=8`"),
    ]:
        assert main(["report", *args]) == 2
        assert expected in capsys.readouterr().err
    main(["--help"])
    assert "  report    " in capsys.readouterr().out


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_to(grid: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(grid, folder)
    folder.chmod(0o555)
    assert main(["report", str(folder)]) == 2
    assert "cannot write" in capsys.readouterr().err


HOSTILE = "</td><script>document.title='hacked'</script><img src=x onerror=\"document.title='hacked'\">"


def hostile_sweep(folder: Path) -> Path:
    """Every text that a folder can bring tries to become markup."""
    made = MadeUp({"mask=None": 0.3, "mask=Alpha": 0.4}, seeds=(0, 1), plan={"baseline": "mask=None"})
    made.write(folder)
    plan = yaml.safe_load((folder / "sweep.yaml").read_text())
    for point in plan["points"]:
        point["labels"] = {f"mask{HOSTILE}": point["labels"]["mask"] + HOSTILE + " $x$ {{ 7 * 7 }}"}
    (folder / "sweep.yaml").write_text(yaml.safe_dump(plan))
    run = folder / "points/mask=Alpha/seed-1"
    results = json.loads((run / "results.json").read_text())
    results["metrics"][f"test/{HOSTILE.replace('/', '')}/miou"] = 0.1
    (run / "results.json").write_text(json.dumps(results))
    tiles = json.loads((run / "tiles/novel/tiles.json").read_text())
    for path in folder.rglob("tiles.json"):
        path.write_text(json.dumps([{**tile, "name": HOSTILE} for tile in tiles]))
    (run / "point.yaml").write_text(f"# Run it alone: ldis fit {HOSTILE}\na: 1\n")
    failed = folder / "points/mask=None/seed-1"
    (failed / "results.json").write_text("{" + HOSTILE)
    (failed / "log.txt").write_text(HOSTILE)
    return folder


def test_nothing_in_a_hostile_folder_becomes_markup(tmp_path: Path) -> None:
    write(hostile_sweep(tmp_path / "sweep"))
    text = (tmp_path / "sweep/report.html").read_text()
    page = Texts(text)
    assert sum(tag == "script" for tag, _ in page.tags) == 1
    assert not [tag for tag, attributes in page.tags if any(name.startswith("on") for name in attributes)]
    assert not [a for tag, a in page.tags if tag == "img" and not (a["src"] or "").startswith("data:image/jpeg")]
    assert "{{ 7 * 7 }}" in text and text.count("&lt;script&gt;document.title") > 5


def test_pictures_are_made_anew_or_left_out(tmp_path: Path) -> None:
    folder = MadeUp({"mask=None": 0.3, "mask=Alpha": 0.4}, seeds=(0,), tiles=2).write(tmp_path)
    tiles = folder / "points/mask=Alpha/seed-0/tiles/novel"
    (tiles / "0-prediction.jpg").write_bytes(b"<svg onload=alert(1)>")
    Image.new("RGB", (2000, 1000)).save(tiles / "1-prediction.jpg", comment=b"secret" * 10)
    grid = pictures.query_grid(write(folder).sweep)
    assert grid is not None
    first, second = grid.lines[1][1]
    assert first is None and second is not None and (second.width, second.height) == (160, 80)
    listed = json.loads((tiles / "tiles.json").read_text())
    listed[0]["files"]["prediction"] = "../../../../../mask=None/seed-0/tiles/novel/0-prediction.jpg"
    (tiles / "tiles.json").write_text(json.dumps(listed))
    grid = pictures.query_grid(write(folder).sweep)
    assert grid is not None and grid.lines[1][1][0] is None  # a way out of the folder is no picture


def test_points_with_other_queries_are_not_mixed_in(tmp_path: Path) -> None:
    folder = MadeUp({"mask=None": 0.3, "mask=Alpha": 0.4}, seeds=(0,)).write(tmp_path)
    write_tiles(folder / "points/mask=Alpha/seed-0/tiles/novel", 2, 0.5)
    grid = pictures.query_grid(write(folder).sweep)
    assert grid is not None and [point.slug for point, _ in grid.lines] == ["mask=None"]
    assert grid.notes == ["Not shown, as it was scored on other queries: mask=Alpha."]


def test_the_pictures_of_a_page_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = MadeUp({f"rank={rank}": 0.3 for rank in range(5)}, seeds=(0,)).write(tmp_path)
    monkeypatch.setattr(pictures, "MOST_POINTS", 2)
    monkeypatch.setattr(pictures, "MOST_BYTES", 4000)
    grid = pictures.query_grid(write(folder).sweep)
    assert grid is not None and len(grid.lines) == 2
    assert "beyond the first 2: rank=2; rank=3; rank=4" in grid.notes[0] and "pictures are left out" in grid.notes[1]


def test_a_bare_folder_still_has_a_report(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.yaml").write_text("seed_everything: 3\n")
    (folder / "results.json").write_text('{"metrics": {"test/novel/miou": 0.5}}')
    report = write(tmp_path)
    assert report.rows[0].score == "0.500"
    assert "Learning curves" not in report.html.read_text()


# ---- In a browser

FACTS = {
    "title": "document.title",
    "pictures": "[...document.images].map(image => image.naturalWidth)",
    "figures": "[...document.querySelectorAll('figure svg')].map(svg => [svg.clientWidth, svg.clientHeight])",
    "rows": "document.querySelectorAll('#table tbody tr').length",
    "overflow": "document.documentElement.scrollWidth - document.documentElement.clientWidth",
    "scripts": "document.scripts.length",
    "text": "getComputedStyle(document.querySelector('figure svg text')).fill",
    "background": "getComputedStyle(document.body).backgroundColor",
    "font": "getComputedStyle(document.querySelector('figure svg text')).fontFamily",
    "injected": "document.querySelectorAll('td script, [onerror], img[src=x]').length",
}
SORTED = {
    "before": "[...document.querySelectorAll('#table tbody tr')].map(row => row.cells[1].textContent)",
    "click": "document.querySelectorAll('#table thead button')[2].click()",
    "after": "[...document.querySelectorAll('#table tbody tr')].map(row => parseFloat(row.cells[2].dataset.value))",
    "click again": "document.querySelectorAll('#table thead button')[2].click()",
    "turned": "[...document.querySelectorAll('#table tbody tr')].map(row => parseFloat(row.cells[2].dataset.value))",
}


@needs_browser
@pytest.mark.parametrize(("width", "dark"), [(1200, False), (1200, True), (390, False)])
def test_in_a_browser(grid: Path, width: int, dark: bool) -> None:
    path = grid / "report.html"
    seen = visit(path, FACTS, width, dark)
    assert seen.requests == [path.as_uri()]  # nothing but itself
    assert seen.problems == []
    assert seen.values["title"] == "masking: test/novel/miou"
    assert len(seen.values["pictures"]) == 27 and min(seen.values["pictures"]) > 0
    assert len(seen.values["figures"]) == 5 and all(w > 300 and h > 80 for w, h in seen.values["figures"])
    assert seen.values["rows"] == 6
    assert seen.values["overflow"] <= 0  # wide things scroll in their own frames
    ink, background = ((232, 234, 237), (20, 23, 26)) if dark else ((28, 32, 36), (255, 255, 255))
    assert (seen.values["text"], seen.values["background"]) == (f"rgb{ink}", f"rgb{background}")
    assert "system-ui" in seen.values["font"]


@needs_browser
def test_the_table_sorts_in_a_browser(grid: Path) -> None:
    values = visit(grid / "report.html", SORTED).values
    assert values["before"] == ["2", "4", "8"] * 2
    assert values["after"] == sorted(values["after"]) and values["turned"] == sorted(values["after"], reverse=True)


@needs_browser
def test_a_hostile_page_in_a_browser(tmp_path: Path) -> None:
    folder = hostile_sweep(tmp_path / "sweep")
    write(folder)
    seen = visit(folder / "report.html", FACTS, 390)
    assert seen.requests == [(folder / "report.html").as_uri()] and seen.problems == []
    assert seen.values["title"] == "sweep: test/novel/miou" and seen.values["injected"] == 0
    assert seen.values["scripts"] == 1 and seen.values["overflow"] <= 0
    assert min(seen.values["pictures"]) > 0


@needs_browser
def test_the_policy_stops_what_would_slip_through(tmp_path: Path) -> None:
    """The second line of defence, and proof that the test above would see a request or a script."""
    folder = MadeUp({"mask=None": 0.3}, seeds=(0,), tiles=0).write(tmp_path / "sweep")
    write(folder)
    path = folder / "report.html"
    injected = "<script>document.title = 'hacked'</script><img src='http://127.0.0.1:9/x.png'></main>"
    path.write_text(path.read_text().replace("</main>", injected))
    seen = visit(path, {"title": "document.title"})
    assert seen.values["title"] != "hacked"
    assert sum("Content Security Policy" in problem for problem in seen.problems) == 2
