import re

import numpy as np
import pytest
from PIL import Image
from tiny_sets import write_clips

from ldis_lightning.datamodules import photo_like
from ldis_lightning.datamodules.geometry import RandomCrop
from ldis_lightning.datamodules.stream_baselines import Cut, File, folder_loader
from ldis_lightning.datamodules.stream_benchmark import main
from ldis_lightning.errors import UserError

QUICK = ["--pictures", "20", "--turns", "1", "--seconds", "0.01", "--size", "24"]


def rows(text: str) -> dict[str, list[float]]:
    """Name of a contender -> the numbers behind it."""
    found = re.findall(r"^  (\S.*?)  +([0-9].*)$", text, re.MULTILINE)
    return {name: [float(n) for n in re.findall(r"[0-9.]+", numbers)] for name, numbers in found}


def test_it_prints_rates_and_ratios_to_its_baselines(capsys):
    assert main([*QUICK, "--height", "48", "--width", "80", "--references", "2"]) == 0
    printed = capsys.readouterr().out
    assert "20 JPEGs of 48 x 80 pixels" in printed and "2 reference(s)" in printed
    table = rows(printed)
    assert list(table) == ["decoding alone", "webdataset", "folder", "ldis"]
    for column, name in ((-3, "decoding alone"), (-2, "webdataset"), (-1, "folder")):
        assert table[name][column] == 1
        assert table["ldis"][column] == pytest.approx(table["ldis"][0] / table[name][0], abs=0.02, rel=0.02)
    assert table["ldis"][4] == pytest.approx(table["ldis"][3] / 3, abs=1), "episodes of three pictures"
    shares = dict(re.findall(r"(\w[\w ]*) (-?[0-9.]+)%", printed.split("shares of ldis: ")[1]))
    assert list(shares) == ["crc", "read", "decode", "label map", "cut", "collate", "plan", "rest"]
    assert sum(map(float, shares.values())) == pytest.approx(100, abs=1)
    assert all(float(share) >= 0 for share in shares.values())


def test_it_takes_a_data_set_and_workers(tmp_path, capsys):
    write_clips(tmp_path / "set", [[[1, 2], [1], [2]], [[1], [2], [2, 1]]] * 3)
    assert main([*QUICK, "--folder", str(tmp_path / "set"), "--workers", "1"]) == 0
    printed = capsys.readouterr().out
    assert "18 JPEGs of 16 x 16 pixels" in printed and "\n1 workers\n" in printed
    with pytest.raises(UserError, match="there is no such folder"):
        main([*QUICK, "--folder", str(tmp_path / "missing")])


def test_the_baselines_cut_what_our_crop_cuts(tmp_path):
    _, labels = photo_like.draw(np.random.default_rng(0), 96, 160)
    file = File(tmp_path / "a.png", tmp_path / "b.png", np.unique(labels[labels > 0]).tolist())
    Image.fromarray(np.repeat(labels[..., None], 3, axis=-1)).save(file.image)
    Image.fromarray(labels).save(file.mask)
    batch = next(iter(folder_loader([file], Cut(64, RandomCrop(ratio=(1.5, 1.5), max_cover=1)), 1, 1, 0)))
    assert batch["query_image"].shape == (1, 3, 64, 64) and batch["reference_image"].shape == (1, 1, 3, 64, 64)
    mask, shown = batch["query_mask"][0], batch["query_image"][0, 0]
    class_id = int(batch["class_id"])
    inside = shown[mask == 1].float()
    assert set(mask.unique().tolist()) <= {0, 1}
    assert len(inside) and (inside == class_id).float().mean() > 0.5, "the picture shows its labels: they lie together"


def test_drawn_pictures_are_like_photographs():
    jpg, png = photo_like.encoded(np.random.default_rng(0), 480, 854)
    assert 60_000 < len(jpg) < 100_000
    assert len(png) < len(jpg)
