"""Miniatures of the public data sets as their owners distribute them, under the names that the documentation uses."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from scipy import sparse
from scipy.io import savemat

import ldis_lightning.datamodules

HEIGHT, WIDTH = 24, 32
DATAMODULES = Path(str(ldis_lightning.datamodules.__file__)).parent


def write_benchmark_trees(folder: Path) -> None:
    """All of them: `VOCdevkit`, `benchmark_RELEASE`, `COCO`, `DAVIS`, `DAVIS-2017`, `VSPW_480p`, `fewshot_data`.

    Every class of PASCAL and COCO is on at least two validation pictures, so that every fold has episodes.
    """
    write_voc(folder / "VOCdevkit" / "VOC2012")
    write_sbd(folder / "benchmark_RELEASE" / "dataset")
    write_coco(folder / "COCO")
    write_davis2016(folder / "DAVIS")
    write_davis2017(folder / "DAVIS-2017")
    write_vspw(folder / "VSPW_480p")
    write_fss1000(folder / "fewshot_data")


def write_voc(root: Path) -> None:
    for split, names in {"train": _names("2007_", 6), "val": _names("2008_", 20)}.items():
        _write_lines(root / "ImageSets" / "Segmentation" / f"{split}.txt", names)
        for i, name in enumerate(names):
            labels = stripes(*(1 + (i + step) % 20 for step in (0, 1, 7)), 255)
            write_picture(root / "JPEGImages" / f"{name}.jpg", i)
            write_mask(root / "SegmentationClass" / f"{name}.png", labels, palette=True)


def write_sbd(root: Path) -> None:
    for split, names in {"train": _names("2009_", 4), "val": _names("2008_", 2)}.items():
        _write_lines(root / f"{split}.txt", names)
        for i, name in enumerate(names):
            write_picture(root / "img" / f"{name}.jpg", i)
            labels = stripes(1 + i, 2 + i)
            boundaries = np.empty((20, 1), object)
            for number in range(20):
                boundaries[number, 0] = sparse.csc_matrix(labels == number + 1)
            present = np.unique(labels[labels > 0])[:, None]
            truth = {"Boundaries": boundaries, "Segmentation": labels, "CategoriesPresent": present}
            (root / "cls").mkdir(exist_ok=True)
            savemat(root / "cls" / f"{name}.mat", {"GTcls": truth}, do_compression=True)


def write_coco(root: Path) -> None:
    numbers = [n for n in range(1, 91) if n not in (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)]  # COCO's 80 category ids
    categories = [{"id": n, "name": f"thing {n}", "supercategory": "x"} for n in numbers]
    for split in ("train", "val"):
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for i, number in enumerate(numbers):
            name = f"COCO_{split}2014_{i + 1:012d}.jpg"
            images.append({"id": i + 1, "file_name": name, "height": HEIGHT, "width": WIDTH})
            write_picture(root / f"{split}2014" / name, i)
            for shift, category in enumerate((number, numbers[(i + 1) % 80])):
                left = 2 + 14 * shift
                box = [left, 2, left + 10, 2, left + 10, 20, left, 20]
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": i + 1,
                        "category_id": category,
                        "iscrowd": 0,
                        "area": 180,
                        "bbox": [left, 2, 10, 18],
                        "segmentation": [box],
                    }
                )
        content = {"info": {}, "images": images, "annotations": annotations, "categories": categories}
        path = root / "annotations" / f"instances_{split}2014.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content), encoding="utf-8")


def write_davis2016(root: Path) -> None:
    for split, clips in {"train": ("bear", "bus"), "val": ("camel", "cows")}.items():
        lines = []
        for clip in clips:
            for frame in range(4):
                image, mask = f"JPEGImages/480p/{clip}/{frame:05d}.jpg", f"Annotations/480p/{clip}/{frame:05d}.png"
                write_picture(root / image, frame)
                write_mask(root / mask, np.roll(stripes(0, 255, 0), frame, axis=1))
                lines.append(f"/{image} /{mask}")
        _write_lines(root / "ImageSets" / "480p" / f"{split}.txt", lines)


def write_davis2017(root: Path) -> None:
    _write_lines(root / "ImageSets" / "2017" / "val.txt", ["dogs", "gold-fish"])
    for clip in ("dogs", "gold-fish"):
        for frame in range(4):
            write_picture(root / "JPEGImages" / "480p" / clip / f"{frame:05d}.jpg", frame)
            labels = np.roll(stripes(0, 1, 2), frame, axis=1)
            write_mask(root / "Annotations" / "480p" / clip / f"{frame:05d}.png", labels, palette=True)


def write_vspw(root: Path) -> None:
    names = {"others": "0", **{f"class_{number}": str(number) for number in range(1, 125)}}
    root.mkdir(parents=True)
    (root / "label_num_dic_final.json").write_text(json.dumps(names), encoding="utf-8")
    for split, clips in {"train": ("1_a", "2_b"), "val": ("3_c", "4_d"), "test": ("5_e",)}.items():
        _write_lines(root / f"{split}.txt", list(clips))
        for clip in clips:
            for frame in range(4):
                write_picture(root / "data" / clip / "origin" / f"{frame:08d}.jpg", frame)
                labels = np.roll(stripes(0, 5, 124, 255), frame, axis=1)
                write_mask(root / "data" / clip / "mask" / f"{frame:08d}.png", labels)


def write_fss1000(root: Path) -> None:
    (list_of_names,) = DATAMODULES.rglob("fss1000_test.txt")
    lines = list_of_names.read_text(encoding="utf-8").splitlines()
    for name in [line for line in lines if not line.startswith("#")][:3]:
        for number in range(1, 11):
            write_picture(root / name / f"{number}.jpg", number)
            mask = np.repeat(stripes(0, 255, 0)[..., None], 3, axis=2)
            write_mask(root / name / f"{number}.png", mask)


def stripes(*labels: int) -> np.ndarray:
    """(HEIGHT, WIDTH) uint8 in which the labels stand in equal stripes, left to right."""
    return np.tile(np.array(labels, np.uint8)[np.arange(WIDTH) * len(labels) // WIDTH], (HEIGHT, 1))


def write_picture(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)


def write_mask(path: Path, pixels: np.ndarray, palette: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(pixels)
    if palette:
        image.putpalette([channel for number in range(256) for channel in (number, number * 7 % 256, 255 - number)])
    image.save(path)


def _names(prefix: str, count: int) -> list[str]:
    return [f"{prefix}{number:06d}" for number in range(count)]


def _write_lines(path: Path, lines: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
