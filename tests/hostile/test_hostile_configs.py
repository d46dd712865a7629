"""Configs, manifests, result rows and weights' configs that something else wrote."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import harm
import pytest
from confined import check_bounded, check_refused, confined, nothing_new, plant
from streams import evaluate

from ldis_lightning import cli
from ldis_lightning.callbacks.clips import safe_name
from ldis_lightning.callbacks.predictions import file_name
from ldis_lightning.config_files import read_mapping, resolve_configs
from ldis_lightning.datamodules.evaluation_set import EvaluationSet, EvaluationSource
from ldis_lightning.datamodules.manifest import Manifest
from ldis_lightning.evaluation.rows import read_rows
from ldis_lightning.weights.loading import architecture


@pytest.fixture
def canary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return plant(tmp_path, monkeypatch)


# ---- Configs


def laughs(levels: int, each: int = 9) -> str:
    """A list of lists of lists, each the same again and again."""
    lines = ["a0: &a0 [x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * each)}]" for n in range(1, levels)]
    return "\n".join(lines)


def merges(levels: int) -> str:
    """A mapping that is merged from nine mappings, each merged from nine."""
    lines = ["m0: &m0 {x: 1}"]
    lines += [f"m{n}: &m{n} {{<<: [{', '.join([f'*m{n - 1}'] * 9)}]}}" for n in range(1, levels)]
    return "\n".join(lines)


def call(tag: str, arguments: str) -> str:
    return f"trainer: !!python/{tag} {arguments}"


TOUCH = "[\"touch '{canary}'\"]"
CONFIGS: dict[str, str | bytes] = {
    "a call": call("object/apply:os.system", TOUCH),
    "a call with keywords": call("object/apply:subprocess.Popen", "{args: [['touch', '{canary}']]}"),
    "an object": call("object/new:os.system", TOUCH),
    "an instance": call("object:tests.harm.Touches", "{path: '{canary}'}"),
    "a name": call("name:os.system", "''"),
    "a module": call("module:antigravity", "''"),
    "a tuple": call("tuple", "[1, 2]"),
    "a tag of its own": "trainer: !Ref x",
    "a tag with an escape": "trainer: !%1b%5b2J x",
    "a list of lists": laughs(12),
    "a list of lists, five hundred deep": laughs(500, 1),
    "a map of maps": "\n".join(
        ["m0: &m0 {x: 1}", *(f"m{n}: &m{n} {{a: *m{n - 1}, b: *m{n - 1}}}" for n in range(1, 40))]
    ),
    "merged maps": merges(12),
    "a list of itself": "a: &a [*a]",
    "a map of itself": "a: &a {b: *a}",
    "a merge of itself": "a: &a {<<: *a}",
    "a key of itself": "a: &a {? *a : 1}",
    "100,000 brackets": "a: " + "[" * 100_000,
    "100,000 braces": "a: " + "{" * 100_000,
    "30,000 maps in each other": "a: " + "{a: " * 30_000,
    "100,000 keys": "? " * 50_000,
    "sixty levels": "a: " + "[" * 60 + "]" * 60,
    "a megabyte": "a: " + "x" * 2**20,
    "a number without end": "a: " + "9" * 5000,
    "a number of minutes without end": "a: 1" + ":1" * 60_000,
    "a date that is none": "a: 2001-99-99",
    "keys of one hash": "a: {" + ", ".join(f"{n * (2**61 - 1)}: 0" for n in range(1, 5000)) + "}",
    "a key that is a list": "? [a]\n: b",
    "zeros": bytes(1000),
    "UTF-16": "a: b".encode("utf-16"),
    "no text": b"\xff\xfe\xfa",
    "a pickle": harm.pickled(Path("canary")),
    "a list": "- a",
    "a word": "a",
    "nothing": "",
    "two documents": "a: 1\n---\nb: 2",
    "extends itself": "extends: hostile.yaml",
    "extends itself by another path": "extends: sub/../hostile.yaml",
    "extends itself by a link": "extends: link.yaml",
    "extends one that extends it": "extends: other.yaml",
    "extends a file that is none": "extends: ../../../../../../../../etc/passwd",
    "extends a device": "extends: /dev/zero",
    "extends a pipe": "extends: pipe.yaml",
    "extends a folder": "extends: sub",
    "extends a list": "extends: [a, b]",
    "extends an endless name": "extends: " + "x" * 10_000,
    "extends a name with a line break": 'extends: "a\\nb"',
    "extends a command": 'extends: "pipe:touch canary"',
    "extends an address": "extends: http://127.0.0.1:1/x.yaml",
}


@pytest.mark.parametrize("content", CONFIGS.values(), ids=CONFIGS.keys())
def test_configs(tmp_path: Path, canary: Path, content: str | bytes) -> None:
    path = tmp_path / "hostile.yaml"
    (tmp_path / "sub").mkdir()
    (tmp_path / "link.yaml").symlink_to(path)
    (tmp_path / "other.yaml").write_text("extends: hostile.yaml")
    os.mkfifo(tmp_path / "pipe.yaml")
    path.write_bytes(content.replace("{canary}", str(canary)).encode() if isinstance(content, str) else content)
    with nothing_new(tmp_path, canary):
        outcome = confined(lambda: (resolve_configs(["--config", str(path)]), read_mapping(path)))
    check_refused(outcome, ".yaml", "/dev/zero", "sub", "xxxx", "pipe:", "http:", "passwd")


@pytest.mark.parametrize("name", ["/dev/zero", "pipe.yaml", "-", "/proc/self/mem", "x" * 10_000, "a\0b", "~/x", "."])
def test_names_of_configs(tmp_path: Path, canary: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    os.mkfifo(tmp_path / "pipe.yaml")
    with nothing_new(tmp_path, canary):
        outcome = confined(lambda: resolve_configs(["--config", name]))
    check_refused(outcome, name[:100], repr(name))


@pytest.mark.parametrize(
    ("command", "name"),
    [("fit", "a call"), ("test", "a list of lists"), ("sweep", "a call"), ("convert", "extends itself by a link")],
)
def test_commands(tmp_path: Path, canary: Path, capfd: Any, command: str, name: str) -> None:
    """The whole command: status 2, and one line that names the file."""
    path = tmp_path / "hostile.yaml"
    (tmp_path / "link.yaml").symlink_to(path)
    path.write_text(str(CONFIGS[name]).replace("{canary}", str(canary)))
    (tmp_path / "weights.pt").write_bytes(b"")
    options = ["weights.pt", "--out", "out", "--config"] if command == "convert" else ["--config"]
    if command == "convert":
        options[0], options[2] = str(tmp_path / "weights.pt"), str(tmp_path / "out")

    def run() -> None:
        raise SystemExit(cli.main([command, *options, str(path)]))

    with nothing_new(tmp_path, canary):
        outcome = confined(run)
    check_bounded(outcome)
    assert (outcome.error, outcome.message) == ("SystemExit", "2"), outcome
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and ".yaml" in lines[0], lines


# ---- Manifests


def manifest(**changes: Any) -> Callable[[Path, Path], None]:
    """A manifest with other content, and a hash that fits it."""

    def write(path: Path, folder: Path) -> None:
        content = json.loads(path.read_text())
        episodes = content["episodes"]
        episodes |= {name[8:]: value for name, value in changes.items() if name.startswith("episode_")}
        content |= {name: value for name, value in changes.items() if not name.startswith("episode_")}
        path.write_text(json.dumps(content))
        try:
            content.pop("hash")
            from ldis_lightning.datamodules.manifest import _from_content

            path.write_text(json.dumps({**content, "hash": _from_content(content).hash}))
        except Exception:
            return  # it is refused for its content, before its hash

    return write


def text(data: str) -> Callable[[Path, Path], object]:
    return lambda path, folder: path.write_text(data)


MANIFESTS: dict[str, Callable[[Path, Path], object]] = {
    "nested": text("[" * 10**6),
    "nested episodes": text('{"format": "ldis_lightning manifest", "version": 1, "episodes": ' + "[" * 10**5),
    "an endless number": text('{"format": "ldis_lightning manifest", "version": ' + "9" * 10**5 + "}"),
    "a pickle": lambda path, folder: path.write_bytes(harm.pickled(folder / "canary")),
    "nothing": text(""),
    "a row that there is not": manifest(episode_query=[10**9, 0]),
    "a row of 2**70": manifest(episode_query=[2**70, 0]),
    "a row before the first": manifest(episode_query=[-1, 0]),
    "a row that is a text": manifest(episode_query=["0", "1"]),
    "a row that is a list": manifest(episode_query=[[0], [1]]),
    "a row that is a fraction": manifest(episode_query=[0.5, 1]),
    "a reference that there is not": manifest(episode_references=[[10**9], [0]]),
    "a reference that is a text": manifest(episode_references=["ab", "cd"]),
    "no references": manifest(episode_references=[[], []]),
    "a class that there is not": manifest(episode_class_id=[7, 7]),
    "a class of 2**70": manifest(episode_class_id=[2**70, 2**70]),
    "a seed that is a text": manifest(episode_seed=["a", "b"]),
    "a seed of -1": manifest(episode_seed=[-1, -1]),
    "columns that do not fit": manifest(episode_seed=[0]),
    "clips that there are not": manifest(clip=[10**9, -5]),
    "a clip that is a text": manifest(clip=["a", "b"]),
    "10**12 runs": manifest(runs=10**12),
    "runs that do not divide it": manifest(runs=7),
    "a size of 10**9": manifest(score_size=10**9),
    "a size that is a text": manifest(score_size="64"),
    "a protocol that is a class": manifest(protocol="os.system"),
    "a protocol that is a list": manifest(protocol=["OnePass"]),
    "settings that are a list": manifest(settings=["a"]),
    "settings of another protocol": manifest(settings={"fold": "a"}),
    "rules that are none": manifest(rules=None),
    "classes that are none": manifest(classes={"a": "cat"}),
    "another index": manifest(index_hash="0" * 64),
}


@pytest.mark.parametrize("write", MANIFESTS.values(), ids=MANIFESTS.keys())
def test_manifests(tmp_path: Path, canary: Path, write: Callable[[Path, Path], object]) -> None:
    sample = (harm.jpeg(), harm.label_map(), harm.SIZE)
    folder = harm.data_set(tmp_path / "set", {"a": sample, "b": sample})
    path = tmp_path / "hostile.json"
    EvaluationSet.open(EvaluationSource(str(folder))).manifest.save(path)
    write(path, tmp_path)

    def use() -> None:
        Manifest.load(path)
        evaluate(EvaluationSource(str(folder), manifest=str(path)))

    with nothing_new(tmp_path, canary):
        outcome = confined(use)
    check_refused(outcome, "hostile.json")


# ---- Result rows

ROWS: dict[str, bytes] = {
    "nested": b"[" * 10**6,
    "nested in a row": b'{"set": ' + b"[" * 10**6,
    "an endless number": b'{"references": ' + b"9" * 10**6 + b"}",
    "a pickle": harm.pickled(Path("canary")),
    "no text": b"\xff\xfe",
    "a list": b"[]",
    "another object": b"{}",
    "zeros": bytes(10**5),
}


@pytest.mark.parametrize("data", ROWS.values(), ids=ROWS.keys())
def test_result_rows(tmp_path: Path, canary: Path, data: bytes) -> None:
    path = tmp_path / "results.jsonl"
    path.write_bytes(data)
    with nothing_new(tmp_path, canary):
        outcome = confined(lambda: read_rows([tmp_path]))
    check_refused(outcome, "results.jsonl")


# ---- Configs of weights

ARCHITECTURES: dict[str, str] = {
    "nested": "[" * 10**6,
    "an endless number": '{"a": ' + "9" * 10**6 + "}",
    "a list": "[]",
    "no text": "\ud800",
    "nothing": "",
}


@pytest.mark.parametrize("content", ARCHITECTURES.values(), ids=ARCHITECTURES.keys())
def test_architectures(tmp_path: Path, canary: Path, content: str) -> None:
    folder = tmp_path / "weights"
    folder.mkdir()
    (folder / "config.json").write_bytes(content.encode("utf-8", "surrogatepass"))
    (folder / "diffusion_pytorch_model.bin").write_bytes(harm.zip_of({}))
    with nothing_new(tmp_path, canary):
        outcome = confined(lambda: architecture(str(folder), None, "model.unet"))
    check_refused(outcome, "config.json", "diffusion_pytorch_model.bin")


# ---- Names that files are made of


@pytest.mark.parametrize(
    "name", ["../../x", "/etc/passwd", "a/b", "..", ".", "a\0b", "a\nb", "C:\\x", "\x1b[2J", "-rf"]
)
def test_names_stay_in_their_folder(tmp_path: Path, name: str) -> None:
    """Keys of samples and names of classes and clips become names of files that `ldis predict` writes."""
    for made in (file_name(name, "cat"), file_name("key", name), safe_name(name) + ".mp4"):
        assert (tmp_path / made).parent == tmp_path and made.isprintable() and made not in (".", "..")
        (tmp_path / made).touch()


def test_the_number_of_cases() -> None:
    """As docs/reliability.md states it."""
    assert (len(CONFIGS), len(MANIFESTS), len(ROWS), len(ARCHITECTURES)) == (49, 32, 8, 5)
