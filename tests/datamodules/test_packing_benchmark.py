import re

from packed import stripes, write_picture, write_png

from ldis_lightning.cli import main


def test_the_benchmark_prints_a_ratio_to_its_baseline(tmp_path, capsys):
    for clip in ("a", "b"):
        for frame in range(2):
            write_picture(tmp_path / f"SRC/JPEGImages/{clip}/{frame}.jpg")
            write_png(tmp_path / f"SRC/Annotations/{clip}/{frame}.png", stripes(0, 1))
    assert main(["bench", "pack", str(tmp_path / "SRC"), "--runs", "2", "--out", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-3].startswith("8 files, ")
    assert lines[-2].endswith(" 1.00 of the baseline's speed") and "copy + sha256" in lines[-2]
    assert re.search(r"ldis data pack +[0-9.]+ s .* [0-9.]+ of the baseline's speed", lines[-1])
    assert not list(tmp_path.glob("ldis-bench-*"))
    assert main(["bench", "pak"]) == 2
    assert "`ldis bench` has no command `pak`; did you mean `pack`?" in capsys.readouterr().err
    assert main(["bench", "--help"]) == 0 and "packing a tree" in capsys.readouterr().out
