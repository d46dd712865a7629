"""The `ldis data` command, through its `main`."""

import json
import subprocess
import sys

import pytest
from PIL import Image
from shard_samples import jpg, png, tar, tree

from ldis_lightning.datamodules.commands import class_names, main
from ldis_lightning.datamodules.index import ShardIndex
from ldis_lightning.errors import UserError


@pytest.fixture
def src(tmp_path):
    return str(tree(tmp_path / "zoo", {"walk": 3, "run": 2}))


def test_pack_show_verify(src, tmp_path, capsys):
    out, sheet = str(tmp_path / "set"), tmp_path / "sheet.png"
    names = "1=lion, 2=tiger"
    (tmp_path / "zoo/JPEGImages/walk/notes.txt").touch()
    assert main(["pack", "clips", src, "--out", out, "--class_names", names, "--name", "cats"]) == 0
    text = capsys.readouterr().out
    assert "cats: 5 frames of 2 clips, 2 classes, 1 shard" in text
    assert (
        "lion" in text
        and "left out: 1 files in JPEGImages that are no .jpg" in text
        and f"ldis data show {out}" in text
    )
    assert ShardIndex.open(out).classes == {1: "lion", 2: "tiger"}
    assert main(["show", out, "--out", str(sheet), "--episodes", "2", "--classes", "2"]) == 0
    assert Image.open(sheet).format == "PNG"
    assert main(["verify", out]) == 0
    assert ShardIndex.open(out).hash in capsys.readouterr().out


def test_pack_options_reach_the_packer(src, tmp_path):
    arguments = ["pack", "clips", src, "--out", str(tmp_path / "set"), "--as", "images", "--clips", "walk", "--binary"]
    assert main(arguments) == 0
    index = ShardIndex.open(tmp_path / "set")
    assert (index.kind, len(index), index.classes) == ("images", 3, {1: "class 1"})
    with pytest.raises(UserError, match="--overwrite"):
        main(arguments)
    assert main([*arguments, "--overwrite"]) == 0


def test_index(tmp_path, capsys):
    tar(tmp_path / "set" / "x.tar", {"a.jpg": jpg(), "a.png": png(), "b.jpg": jpg(), "b.png": png()})
    assert main(["index", str(tmp_path / "set"), "--class_names", "1=hat"]) == 0
    assert "set: 2 frames, 1 classes" in capsys.readouterr().out
    assert ShardIndex.open(tmp_path / "set").classes == {1: "hat"}


def test_synth_writes_the_world_with_the_arguments_given(tmp_path):
    sizes = [
        "--train_images",
        "3",
        "--test_images",
        "2",
        "--train_clips",
        "0",
        "--test_clips",
        "0",
        "--things",
        "2",
        "3",
    ]
    assert main(["synth", "--out", str(tmp_path / "world"), "--seed", "5", *sizes]) == 0
    assert len(ShardIndex.open(tmp_path / "world" / "images" / "train")) == 3
    recorded = json.loads((tmp_path / "world" / "world.json").read_text())
    assert (recorded["seed"], recorded["things"]) == (5, [2, 3])
    with pytest.raises(UserError, match="other settings"):
        main(["synth", "--out", str(tmp_path / "world"), *sizes])


def test_many_classes_are_cut_to_the_most_frequent(tmp_path, capsys):
    from ldis_lightning.datamodules.shards import ShardWriter

    with ShardWriter(tmp_path / "set", "many", {200: "unseen"}) as writer:
        for number in range(30):
            writer.add_image(f"i{number}", jpg(), png((7, 100 + number)))
    main(["show", str(tmp_path / "set"), "--out", str(tmp_path / "sheet.png")])
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split()[:4] == ["7", "class", "7", "30"]
    assert lines[21] == "  and 12 classes in fewer frames, 1 of them in none"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["synht"], "no command `synht`; did you mean `synth`"),
        (["pack", "dvis"], "no command `dvis`; did you mean `davis`"),
        (["pack", "coco_json"], "no command `coco_json`; did you mean `coco-json`"),
        (["pack", "my_lab.nothing", "SRC", "--out", "X"], "`my_lab.nothing` cannot be imported .*PYTHONPATH"),
        (
            ["pack", "json.decoder", "SRC", "--out", "X"],
            "`json.decoder` is no packer: it has no SUMMARY, add_arguments",
        ),
        (["pack", "clips", "SRC", "--ot", "X"], "unknown option `--ot`; did you mean `--out`"),
        (["pack", "clips", "SRC", "--out", "X", "--skip-unlabelled"], "did you mean `--skip_unlabelled`"),
        (["pack", "clips", "SRC"], "required: --out"),
        (["pack", "clips", "SRC", "--out", "X", "--as", "mages"], "invalid choice: 'mages'"),
        (["pack", "clips", "SRC", "--out", "X", "--clips"], "--clips: expected at least one argument"),
        (["synth", "--out", "X", "--seed", "one"], "--seed: `one` is no whole number from 0 on"),
        (["synth", "--out", "X", "--train_images=-3"], "--train_images: `-3` is no whole number"),
        (["synth", "--out", "X", "--train"], "unknown option `--train`"),
        (["index"], "required: DIR"),
        (["index", "typo"], "typo: there is no such folder"),
        (["show", "typo"], "typo: there is no such folder"),
        (["show", "typo", "--episodes", "0"], "--episodes: `0` is no whole number from 1 on"),
        (["pack", "clips", "SRC", "--out", "X", "--workers", "0"], "--workers: `0` is no whole number from 1 on"),
        (["stats", "typo"], "typo: there is no such folder"),
        (["verify", "typo"], "typo: there is no such folder"),
        (["verify", "a", "b"], "unrecognized arguments: b"),
    ],
)
def test_mistakes_are_one_line(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message) as error:
        main(arguments)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


def test_a_sheet_that_cannot_be_written(src, tmp_path):
    main(["pack", "clips", src, "--out", str(tmp_path / "set")])
    for out in ("sheet.doc", "no/such/folder/sheet.png", "set"):
        with pytest.raises(UserError, match="--out"):
            main(["show", str(tmp_path / "set"), "--out", str(tmp_path / out)])


@pytest.mark.parametrize("arguments", [[], ["--help"], ["pack", "--help"], ["pack"]])
def test_listings(arguments, capsys):
    assert main(arguments) == (0 if "--help" in arguments else 2)
    assert "commands:" in capsys.readouterr().out


@pytest.mark.parametrize(
    "command", [["synth"], ["pack", "clips"], ["pack", "davis"], ["index"], ["show"], ["stats"], ["verify"]]
)
def test_help_imports_nothing_that_takes_long(command):
    code = (
        "import sys; from ldis_lightning.datamodules.commands import main; "
        f"status = main({[*command, '--help']}); assert status == 0, status; "
        "heavy = {'torch', 'webdataset', 'lightning', 'matplotlib'} & set(sys.modules); assert not heavy, heavy"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    assert f"usage: ldis data {' '.join(command)}" in run.stdout


def test_class_names_inline_and_from_files(tmp_path):
    assert class_names("") == {}
    assert class_names("1=sky,2 = tall building,") == {1: "sky", 2: "tall building"}
    for name, text in {"a.yaml": "1: sky\n2: 'no'\n", "a=b.json": '{"1": "sky", "2": "no"}'}.items():
        (tmp_path / name).write_text(text)
        assert class_names(str(tmp_path / name)) == {1: "sky", 2: "no"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("names.yml", "no file names.yml"),
        ("sky=1", "`sky=1` is not of the form 1=sky"),
        ("1=sky,building", "`building` is not"),
        ("1=sky,1=road", "named twice"),
        ("1=", "blank name"),
        ("0=none", "class ids are 1 to 65534"),
        ("²=none", "not of the form"),
    ],
)
def test_class_names_that_are_none(text, message, src, tmp_path):
    with pytest.raises(UserError, match=message):
        main(["pack", "clips", src, "--out", str(tmp_path / "set"), "--class_names", text])
    assert not (tmp_path / "set").exists()


@pytest.mark.parametrize(
    "text", ["[sky]", "{", "1: no", "sky: 1", "1: {a: b}", "!!python/object/apply:os.getcwd []", "\x00"]
)
def test_files_of_class_names_that_are_none(text, tmp_path):
    (tmp_path / "names.yaml").write_text(text)
    with pytest.raises(UserError, match=r"names\.yaml"):
        class_names(str(tmp_path / "names.yaml"))
