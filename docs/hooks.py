"""What the site needs beside `mkdocs.yml`: the package's folders under the names that they are imported by."""

import shutil
import tempfile
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.plugins import event_priority

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("callbacks", "datamodules")
"""Imported and installed as `ldis_lightning.callbacks` and so on, although they lie beside that package here."""

_tree: tempfile.TemporaryDirectory | None = None


@event_priority(100)  # before mkdocstrings takes note of its settings
def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Have the API pages read a copy of the sources, laid out as they are installed; nothing is imported."""
    global _tree
    _tree = tempfile.TemporaryDirectory(prefix="ldis-docs-")
    config.plugins["mkdocstrings"].config["handlers"]["python"]["paths"] = [_tree.name]
    return config


def on_pre_build(config: MkDocsConfig) -> None:
    """Copy the sources, anew for each build of `mkdocs serve`."""
    assert _tree is not None
    package = Path(_tree.name) / "ldis_lightning"
    shutil.rmtree(package, ignore_errors=True)
    ignore = shutil.ignore_patterns("__pycache__", "*.safetensors")
    shutil.copytree(ROOT / "ldis_lightning", package, ignore=ignore)
    for name in FOLDERS:
        shutil.copytree(ROOT / name, package / name, ignore=ignore)
