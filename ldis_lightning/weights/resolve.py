"""From what a config names, a local folder or a hub id, to files on this machine that are known to be whole."""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

from ldis_lightning.errors import UserError
from ldis_lightning.weights.known import SAFETENSORS, TORCH, KnownFile, known_part
from ldis_lightning.weights.reading import check_whole

CONFIG = "config.json"


def resolve(source: str, subfolder: str | None, key: str, mirrors: Sequence[str] | None = None) -> Path:
    """A local folder with `config.json` and weights in diffusers' format, checked to be whole.

    A hub id is looked for in the hub's cache first, itself and its mirrors, and then asked of the hub, one after the
    other. Every file's length is checked against what its own header says. Files of a published part
    (`ldis_lightning.weights.known`) that came from the hub are also checked by size, and by sha256: once on a machine,
    until the file changes (`check_hash`).

    Args:
        source: a local folder or a hub id.
        subfolder: folder inside it, e.g. `unet`.
        key: config key that names it, for messages.
        mirrors: hub ids with the same files; None for those that are known.

    Raises:
        UserError: nothing is to be had there, or what is there is not whole; it says what was expected and what to do.
    """
    local = Path(source).expanduser() / (subfolder or "")
    if Path(source).expanduser().is_dir():
        _check_folder(local, key)
        return local
    if _is_a_path(source):
        raise UserError(f"{key}: there is no folder '{source}'.")
    part = known_part(source, subfolder)
    others = mirrors if mirrors is not None else (part.ids if part else ())
    ids = (source, *(other for other in others if other != source))
    folder = _from_cache(ids, subfolder) or _from_hub(ids, subfolder, key)
    weights = _check_folder(folder, key)
    if part is not None and weights.name in part.files:
        check_known(weights, part.files[weights.name], key)
    return folder


def weights_file(folder: Path) -> Path | None:
    """The file of weights in a folder of diffusers' format."""
    return next((folder / name for name in (SAFETENSORS, TORCH) if (folder / name).is_file()), None)


def check_known(path: Path, known: KnownFile, key: str) -> None:
    """Compare a file with what is known of it, by size and by sha256.

    Raises:
        UserError: it is another one; the message names both.
    """
    size = path.stat().st_size
    if known.size not in (None, size):
        raise UserError(
            f"{key}: {path} has {size} bytes, but the published file is another one ({known}); get it again."
        )
    if known.sha256 is not None and (found := check_hash(path, known.sha256)):
        raise UserError(
            f"{key}: {path} is not the published file: its sha256 is {found}, expected {known}; get it again."
        )


def check_hash(path: Path, sha256: str) -> str | None:
    """None if the file has that hash, else the hash that it has.

    An empty file in the cache folder remembers a match until the file's size or time changes: hashing 3.4 GB takes
    seconds, and every rank of every run would wait for it.
    """
    state = path.stat()
    name = hashlib.sha256(f"{path.resolve()} {state.st_size} {state.st_mtime_ns} {sha256}".encode()).hexdigest()
    remembered = cache_folder() / "verified" / name
    if remembered.exists():
        return None
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != sha256:
        return found
    try:
        remembered.parent.mkdir(parents=True, exist_ok=True)
        remembered.touch()
    except OSError:  # a home that cannot be written only costs time
        pass
    return None


def cache_folder() -> Path:
    """Where this package keeps what it can always make again: $XDG_CACHE_HOME/ldis, by default ~/.cache/ldis."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "ldis"


def _is_a_path(source: str) -> bool:
    """Whether it cannot be a hub id, which is `name` or `owner/name`."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(source)
    except HFValidationError:
        return True
    return False


def _check_folder(folder: Path, key: str) -> Path:
    """The file of weights of a folder that has all that it needs."""
    if not (folder / CONFIG).is_file():
        raise UserError(f"{key}: '{folder}' has no {CONFIG}; name a folder in diffusers' format, and its subfolder.")
    weights = weights_file(folder)
    if weights is None:
        raise UserError(f"{key}: '{folder}' has neither {SAFETENSORS} nor {TORCH}.")
    check_whole(weights, key)
    return weights


def _from_cache(ids: Sequence[str], subfolder: str | None) -> Path | None:
    """A folder of the hub's cache that has config and weights of one of the ids."""
    from huggingface_hub import try_to_load_from_cache

    prefix = f"{subfolder}/" if subfolder else ""
    for hub_id in ids:
        config = try_to_load_from_cache(hub_id, f"{prefix}{CONFIG}")
        if isinstance(config, str) and weights_file(Path(config).parent):
            return Path(config).parent
    return None


def _from_hub(ids: Sequence[str], subfolder: str | None, key: str) -> Path:
    """Download config and weights of the first id that has them."""
    from huggingface_hub.errors import LocalEntryNotFoundError

    reasons = []
    for hub_id in ids:
        try:
            return _download(hub_id, subfolder)
        except LocalEntryNotFoundError:  # the hub itself cannot be reached: nor can it be for another id
            reasons.append("the hub cannot be reached")
            break
        except Exception as error:  # the errors of its network clients have no class in common
            reasons.append(f"{hub_id}: {type(error).__name__}")
    raise UserError(
        f"{key}: there is no folder '{ids[0]}' here, and as a hub id it cannot be had ({'; '.join(reasons)}). "
        f"{_what_to_do(ids, subfolder, key)}"
    )


def _download(hub_id: str, subfolder: str | None) -> Path:
    """Raises what huggingface_hub does."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    config = hf_hub_download(hub_id, CONFIG, subfolder=subfolder)
    try:
        hf_hub_download(hub_id, SAFETENSORS, subfolder=subfolder)
    except LocalEntryNotFoundError:
        raise
    except EntryNotFoundError:
        hf_hub_download(hub_id, TORCH, subfolder=subfolder)
    return Path(config).parent


def _what_to_do(ids: Sequence[str], subfolder: str | None, key: str) -> str:
    """How to come by the files without the hub, and what they must be."""
    part = known_part(ids[0], subfolder)
    best, *others = part.ids if part else ids
    where = f"{subfolder}/" if subfolder else ""
    expected = f" Expected: {where}{SAFETENSORS}, {part.files[SAFETENSORS]}." if part else ""
    mirrors = f" (or {', '.join(others)})" if others else ""
    return (
        f"Where there is a network: `hf download {best} --include '{where}*' --local-dir FOLDER`{mirrors}; copy FOLDER "
        f"here and set {key} to it.{expected}"
    )
