"""The transports of a process, over fsspec's file systems."""

import os
import threading
from typing import Any

import fsspec
import fsspec.asyn
import fsspec.config

from ldis_lightning.datamodules.remote.address import Address
from ldis_lightning.datamodules.remote.object_store import ObjectStore
from ldis_lightning.datamodules.remote.transport import Limits, Transport
from ldis_lightning.datamodules.remote.web import Web
from ldis_lightning.errors import UserError, first_line

_EXTRAS = {"s3": "pip install 'ldis-lightning[s3]'", "gs": "pip install gcsfs", "gcs": "pip install gcsfs"}


def transport_for(address: Address, limits: Limits) -> Transport:
    """The transport of an address in this process.

    Raises:
        UserError: the package for the protocol is missing or wrongly configured.
    """
    filesystem = _filesystem(address.protocol, limits.stall_seconds)
    return Web(filesystem) if address.protocol in ("http", "https") else ObjectStore(filesystem)


_filesystems: dict[tuple[int, str, float], Any] = {}  # process, protocol, stall
_lock = threading.Lock()


def _filesystem(protocol: str, stall_seconds: float) -> Any:
    """fsspec's asynchronous file system, one for each process: connections and loops cannot be shared by forks.

    Those of the parent stay in the table after a fork: closing them would pull the sockets out from under it.
    """
    key = (os.getpid(), protocol, stall_seconds)
    with _lock:
        if key not in _filesystems:
            try:
                options = _options(protocol, stall_seconds)
                filesystem: Any = fsspec.filesystem(protocol, skip_instance_cache=True, **options)
                filesystem.retries = 1  # attempts of s3fs
                _filesystems[key] = filesystem
            except ImportError as error:
                extra = _EXTRAS.get(protocol, "pip install 'fsspec[http]'")
                raise UserError(f"{protocol}:// needs a package that is not installed: {extra}") from error
            except (TypeError, ValueError) as error:
                raise UserError(
                    f"{protocol}:// cannot be set up ({first_line(error)}): look at FSSPEC_{protocol.upper()} and "
                    "fsspec's configuration files."
                ) from error
        return _filesystems[key]


def _options(protocol: str, stall_seconds: float) -> dict[str, Any]:
    """Options of our own, below those of the user's fsspec configuration: retries are the cache's, bounded in time."""
    seconds = max(1, round(stall_seconds))
    botocore = {"connect_timeout": seconds, "read_timeout": seconds, "retries": {"total_max_attempts": 1}}
    ours: dict[str, dict[str, Any]] = {
        "http": {"client_kwargs": {"trust_env": True}},  # proxies and ~/.netrc
        "https": {"client_kwargs": {"trust_env": True}},
        "s3": {"config_kwargs": botocore},
    }
    configured = fsspec.config.conf.get(protocol, {})
    return {name: {**values, **configured.get(name, {})} for name, values in ours.get(protocol, {}).items()}


def _after_fork() -> None:
    global _lock
    _lock = threading.Lock()  # a thread of the parent may have held it
    fsspec.asyn.reset_lock()  # and this one, which fsspec itself forgets


os.register_at_fork(after_in_child=_after_fork)
