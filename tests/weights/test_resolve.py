import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path

import huggingface_hub
import pytest
import stable_diffusion
from huggingface_hub import constants
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

from ldis_lightning.errors import UserError
from ldis_lightning.weights import known, resolve
from ldis_lightning.weights.known import SAFETENSORS, STABLE_DIFFUSION, TORCH, KnownFile, KnownPart
from ldis_lightning.weights.resolve import check_hash, check_known

KEY = "model.denoiser.path"


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stable_diffusion.write_stable_diffusion(tmp_path_factory.mktemp("pipeline"))


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, Path], Path]:
    """An empty cache of a hub that cannot be reached, and what puts a pipeline there."""
    cache = tmp_path / "hub"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def put(hub_id: str, pipeline: Path) -> Path:
        repository = cache / f"models--{hub_id.replace('/', '--')}"
        snapshot = repository / "snapshots" / "0123"
        shutil.copytree(pipeline, snapshot)
        (repository / "refs").mkdir()
        (repository / "refs/main").write_text("0123")
        return snapshot

    return put


def publish(monkeypatch: pytest.MonkeyPatch, pipeline: Path, **changes: object) -> None:
    """Let a pipeline's U-Net be Stable Diffusion's as it was published."""
    weights = (pipeline / "unet" / SAFETENSORS).read_bytes()
    file = KnownFile(**{"size": len(weights), "sha256": hashlib.sha256(weights).hexdigest(), **changes})  # pyright: ignore
    monkeypatch.setattr(known, "PARTS", (KnownPart(STABLE_DIFFUSION, "unet", {SAFETENSORS: file}, {}, 0),))


def test_a_local_folder_and_its_subfolder(pipeline: Path) -> None:
    assert resolve(str(pipeline), "unet", KEY) == pipeline / "unet"
    assert resolve(str(pipeline / "unet"), None, KEY) == pipeline / "unet"


@pytest.mark.parametrize("source", ["/nowhere/at/all", "a/b/c", "./models", "~/nowhere", "models/"])
def test_a_missing_folder_is_not_looked_for_on_the_hub(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *_, **__: pytest.fail("asked the hub"))
    with pytest.raises(UserError, match=rf"^model\.denoiser\.path: there is no folder '{source}'"):
        resolve(source, "unet", KEY)


def test_a_folder_without_what_it_needs(pipeline: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no config\.json; name a folder in diffusers' format, and its subfolder"):
        resolve(str(pipeline), None, KEY)
    shutil.copy(pipeline / "unet/config.json", tmp_path)
    with pytest.raises(UserError, match=rf"has neither {SAFETENSORS} nor {TORCH}"):
        resolve(str(tmp_path), None, KEY)


def test_a_truncated_file_is_named_before_it_is_loaded(pipeline: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(pipeline / "unet", tmp_path / "unet"))
    whole = (folder / SAFETENSORS).read_bytes()
    (folder / SAFETENSORS).write_bytes(whole[:-1000])
    message = rf"{SAFETENSORS}: has {len(whole) - 1000} bytes, but the tensors that it lists need {len(whole)}"
    with pytest.raises(UserError, match=message):
        resolve(str(folder), None, KEY)


def test_the_cache_is_used_first(hub: Callable, pipeline: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot = hub("owner/model", pipeline)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *_, **__: pytest.fail("asked the hub"))
    assert resolve("owner/model", "unet", KEY) == snapshot / "unet"


@pytest.mark.parametrize("cached", STABLE_DIFFUSION)
@pytest.mark.parametrize("asked", [STABLE_DIFFUSION[0], STABLE_DIFFUSION[-1]])
def test_a_mirror_in_the_cache_stands_in(
    hub: Callable, pipeline: Path, monkeypatch: pytest.MonkeyPatch, asked: str, cached: str
) -> None:
    publish(monkeypatch, pipeline)
    snapshot = hub(cached, pipeline)
    assert resolve(asked, "unet", KEY) == snapshot / "unet"


def test_mirrors_are_asked_in_order(hub: Callable, pipeline: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def download(hub_id: str, filename: str, subfolder: str) -> str:
        asked.append(f"{hub_id}: {filename}")
        if hub_id != "second/mirror":
            raise OSError("404")
        if filename == SAFETENSORS:
            raise EntryNotFoundError("only the older format")
        return str(pipeline / subfolder / filename)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    found = resolve("deleted/model", "unet", KEY, mirrors=["first/mirror", "second/mirror", "third/mirror"])
    assert found == pipeline / "unet"
    assert asked == [
        "deleted/model: config.json",
        "first/mirror: config.json",
        "second/mirror: config.json",
        f"second/mirror: {SAFETENSORS}",
        f"second/mirror: {TORCH}",
    ]


def test_without_a_network_the_message_says_what_to_do(hub: Callable) -> None:
    with pytest.raises(UserError) as caught:
        resolve(STABLE_DIFFUSION[-1], "unet", KEY)
    message = str(caught.value)
    for part in (
        "model.denoiser.path: there is no folder",
        "the hub cannot be reached",
        "hf download stable-diffusion-v1-5/stable-diffusion-v1-5 --include 'unet/*' --local-dir FOLDER",
        "sd-legacy/stable-diffusion-v1-5",
        "unet/diffusion_pytorch_model.safetensors, 3438167540 bytes, sha256 19da7aaa4b88",
    ):
        assert part in message


def test_an_unreachable_hub_is_asked_once(hub: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def download(hub_id: str, filename: str, subfolder: str) -> str:
        asked.append(hub_id)
        raise LocalEntryNotFoundError("no connection")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    with pytest.raises(UserError, match="the hub cannot be reached"):
        resolve(STABLE_DIFFUSION[0], "unet", KEY)
    assert asked == [STABLE_DIFFUSION[0]]


def test_a_published_file_of_another_size(hub: Callable, pipeline: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(monkeypatch, pipeline, size=5, sha256="00ff")
    hub(STABLE_DIFFUSION[0], pipeline)
    with pytest.raises(
        UserError, match=r"has \d+ bytes, but the published file is another one \(5 bytes, sha256 00ff\)"
    ):
        resolve(STABLE_DIFFUSION[0], "unet", KEY)


def test_an_altered_file_of_the_right_size(hub: Callable, pipeline: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(monkeypatch, pipeline)
    path = hub(STABLE_DIFFUSION[0], pipeline) / "unet" / SAFETENSORS
    resolve(STABLE_DIFFUSION[0], "unet", KEY)  # remembered as right
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    found = hashlib.sha256(content).hexdigest()
    with pytest.raises(
        UserError, match=rf"is not the published file: its sha256 is {found}, expected \d+ bytes, sha256"
    ):
        resolve(STABLE_DIFFUSION[0], "unet", KEY)


def test_a_hash_is_computed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = tmp_path / "weights"
    path.write_bytes(b"weights")
    right = hashlib.sha256(b"weights").hexdigest()
    assert check_hash(path, "00") == right
    assert check_hash(path, right) is None
    monkeypatch.setattr(hashlib, "file_digest", lambda *_: pytest.fail("hashed again"))
    assert check_hash(path, right) is None


def test_a_cache_that_cannot_be_written_only_costs_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cache").write_text("a file, where a folder is needed")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "weights").write_bytes(b"weights")
    assert check_hash(tmp_path / "weights", hashlib.sha256(b"weights").hexdigest()) is None


def test_what_is_not_known_is_not_checked(tmp_path: Path) -> None:
    (tmp_path / "weights").write_bytes(b"weights")
    check_known(tmp_path / "weights", KnownFile(), KEY)
