import hashlib
import subprocess
from pathlib import Path

import pytest

from ldis_lightning import __version__
from ldis_lightning.evaluation import provenance
from ldis_lightning.evaluation.provenance import checkpoint_sha256, code_version


def test_hash_of_a_file_read_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "_CHUNK", 7)
    path = tmp_path / "last.ckpt"
    path.write_bytes(bytes(range(100)))
    assert checkpoint_sha256(path) == hashlib.sha256(bytes(range(100))).hexdigest()


def test_hash_of_a_directory_is_that_of_what_sha256sum_prints(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    for name, content in (("b/0.distcp", b"zero"), ("a.txt", b"first"), ("b/.metadata", b"")):
        (tmp_path / name).write_bytes(content)
    names = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file())
    printed = subprocess.run(["sha256sum", *names], cwd=tmp_path, capture_output=True, check=True).stdout
    assert checkpoint_sha256(tmp_path) == hashlib.sha256(printed).hexdigest()


def test_hash_of_a_directory_knows_the_names(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x")
    before = checkpoint_sha256(tmp_path)
    (tmp_path / "a").rename(tmp_path / "b")
    assert checkpoint_sha256(tmp_path) != before


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=n", "-c", "user.email=e@example.org"]
    command = ["git", *identity, "-C", str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout with a package of one committed file; the package's folder."""
    package = tmp_path / "repo" / "package"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    git(package.parent, "init", "-q")
    git(package.parent, "add", ".")
    git(package.parent, "commit", "-q", "-m", "first")
    return package


def test_commit_of_a_checkout(checkout: Path) -> None:
    commit = git(checkout, "rev-parse", "HEAD")
    assert code_version(checkout) == {"version": __version__, "commit": commit}
    git(checkout, "tag", "v1")  # a tag does not replace the hash
    assert code_version(checkout)["commit"] == commit
    (checkout / "__init__.py").write_text("changed = True\n")
    assert code_version(checkout)["commit"] == f"{commit} dirty"


def test_a_package_installed_in_a_foreign_checkout_has_no_commit(checkout: Path) -> None:
    installed = checkout / "venv" / "package"
    installed.mkdir(parents=True)
    (installed / "__init__.py").write_text("")
    assert code_version(installed) == {"version": __version__, "commit": None}


def test_no_git_at_all(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert code_version(checkout)["commit"] is None
