"""The site of the documentation: it builds without a warning, loads nothing from elsewhere, its reference is whole."""

import re
from importlib import import_module
from pathlib import Path

import pytest
from mkdocs.commands.build import build
from mkdocs.config import load_config

ROOT = Path(__file__).resolve().parent.parent
LOADED = re.compile(
    r"""<(?:script|img|iframe|source|link)\b[^>]*?\s(?:src|href)\s*=\s*["']?((?:https?:)?//[^"'\s>]+)""", re.I
)
IN_STYLES = re.compile(r"""(?:url\(|@import)\s*["']?((?:https?:)?//[^"')\s]+)""", re.IGNORECASE)
PACKAGES = ("alignment", "callbacks", "datamodules", "instruction", "latent", "meta_architectures", "pipeline")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site. A warning of mkdocs or a plugin (a link to nowhere, a page without a place) ends the build."""
    folder = tmp_path_factory.mktemp("site")
    config = load_config(str(ROOT / "mkdocs.yml"), strict=True, site_dir=str(folder))
    config.plugins.run_event("startup", command="build", dirty=False)
    build(config)
    return folder


def test_nothing_is_loaded_from_other_hosts(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) > 20
    found = {page.name: LOADED.findall(page.read_text(encoding="utf-8")) for page in pages}
    found |= {style.name: IN_STYLES.findall(style.read_text(encoding="utf-8")) for style in site.rglob("*.css")}
    assert {name: addresses for name, addresses in found.items() if addresses} == {}


def test_what_is_looked_for_would_be_found() -> None:
    assert LOADED.findall('<script async src="https://cdn.example/x.js">') == ["https://cdn.example/x.js"]
    assert LOADED.findall("<link rel=stylesheet href=//fonts.example/x.css>") == ["//fonts.example/x.css"]
    assert LOADED.findall('<a href="https://example.org">') == []
    assert IN_STYLES.findall("@import 'https://a.example/a'; b{background:url(//b.example/b.png)}") == [
        "https://a.example/a",
        "//b.example/b.png",
    ]


@pytest.mark.parametrize("package", PACKAGES)
def test_reference_has_every_public_name(site: Path, package: str) -> None:
    module = import_module(f"ldis_lightning.{package}")
    text = (site / "api" / f"{package}.html").read_text(encoding="utf-8")
    missing = [name for name in module.__all__ if f'id="{module.__name__}.{name}"' not in text]
    assert missing == []


def test_reference_shows_what_a_docstring_says(site: Path) -> None:
    text = (site / "api" / "alignment.html").read_text(encoding="utf-8")
    (encode,) = re.findall(r'id="ldis_lightning\.alignment\.PseudoMask\.encode".*?(?=<h4)', text, re.DOTALL)
    for words in ("Parameters:", "(B, H, W) uint8, foreground where 1", "Returns:", "(B, 3, H, W) in [-1, 1]"):
        assert words in encode
    assert "UserError" in (site / "api" / "packing.html").read_text(encoding="utf-8")
