"""Two data sets on a local server, for the tests of what reads them."""

from pathlib import Path

from local_server import LocalServer
from tiny_sets import mixed_contents, write_clips, write_images

from ldis_lightning.datamodules.remote import RemoteShardIndex, ShardCache, open_index


def write_packed(folder: Path) -> Path:
    """Two data sets, `images` and `clips`."""
    write_images(folder / "images", mixed_contents(40))
    write_clips(folder / "clips", [[[1], [1, 2], [2]], [[3, 4], [3]], [[2, 3]] * 5])
    return folder


def opened(server: LocalServer, cache: ShardCache, name: str = "images") -> RemoteShardIndex:
    index = open_index(f"{server.url}/{name}", cache)
    assert isinstance(index, RemoteShardIndex)
    return index
