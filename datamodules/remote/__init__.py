"""Data sets at an address, `https://host/path/set` or `s3://bucket/set`, read through a cache on this machine.

Names are looked up when they are first used: a run on local data needs no network library.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ldis_lightning.datamodules.remote.cache import ShardCache
    from ldis_lightning.datamodules.remote.prefetch import Prefetch, needs_of_plan
    from ldis_lightning.datamodules.remote.remote_index import RemoteShardIndex, open_index

__all__ = ["Prefetch", "RemoteShardIndex", "ShardCache", "needs_of_plan", "open_index"]
_HOMES = ("cache", "remote_index", "prefetch")


def __getattr__(name: str) -> Any:
    if name in __all__:
        for home in _HOMES:
            module = import_module(f"{__name__}.{home}")
            if hasattr(module, name):
                return getattr(module, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
