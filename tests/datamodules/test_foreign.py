"""Indexing shards that something else wrote: whole ones, cut ones and hostile ones."""

import io
import json
import tarfile

import numpy as np
import pytest
from shard_samples import jpg, png, tar

from ldis_lightning.datamodules import foreign
from ldis_lightning.datamodules.foreign import index_folder
from ldis_lightning.datamodules.index import ShardIndex
from ldis_lightning.datamodules.shards import ShardWriter
from ldis_lightning.errors import UserError
from ldis_lightning.imaging import pictures

WHOLE = {"a.jpg": jpg(seed=1), "a.png": png((0, 3)), "b.jpg": jpg(seed=2), "b.png": png((0, 4))}


def test_our_own_shards_get_the_same_columns_back(tmp_path):
    with ShardWriter(tmp_path / "set", "tiny", {1: "cat", 2: "dog"}, max_samples_per_shard=2) as writer:
        writer.add_image("dir/a", jpg(), png((0, 1)))
        writer.add_clip("walk", [(jpg(seed=frame), png((0, 2))) for frame in range(3)])
        writer.add_image("b", jpg(), png((1, 2)))
    before = json.loads((tmp_path / "set" / "index.json").read_text())
    (tmp_path / "set" / "index.json").unlink()
    index_folder(tmp_path / "set", name="tiny")
    assert json.loads((tmp_path / "set" / "index.json").read_text()) == before


def test_foreign_samples_of_all_spellings(tmp_path):
    members = {"./x/": b"", "./x/a.jpeg": jpg(seed=1), "./x/a.txt": b"a caption", "./x/a.png": png((0, 3))}
    members |= {"B.JPG": jpg(seed=2), "B.PNG": png((0, 4)), "B.json": b"[]", "._B.jpg": b"left by a Mac", "README": b""}
    members |= {"v1.2/c.007.jpg": jpg(seed=3), "v1.2/c.007.png": png((0, 4)), "d.cls": b"3"}
    tar(tmp_path / "set" / "x-1.tar", members)
    index = index_folder(tmp_path / "set", classes={4: "hat"})
    assert [index.key(row) for row in range(len(index))] == ["./x/a", "B", "v1.2/c.007"]
    assert index.frame.tolist() == [-1, -1, 7]
    assert (index.clip_names, index.name, index.classes) == (["v1.2/c"], "set", {3: "class 3", 4: "hat"})
    offset, length = index.image_span[1]
    assert (tmp_path / "set" / "x-1.tar").read_bytes()[offset : offset + length] == jpg(seed=2)


def test_names_survive_a_second_indexing_and_new_ones_win(tmp_path):
    tar(tmp_path / "x.tar", WHOLE)
    index_folder(tmp_path, name="things", classes={3: "cup", 4: "hat"})
    again = index_folder(tmp_path, classes={4: "cap"})
    assert (again.name, again.classes) == ("things", {3: "cup", 4: "cap"})
    (tmp_path / "index.json").write_text("{")
    assert index_folder(tmp_path).classes == {3: "class 3", 4: "class 4"}


def previous(folder, **values) -> None:
    """Change the header of the index that is there."""
    header = json.loads((folder / "index.json").read_text())
    (folder / "index.json").write_text(json.dumps(header | values))


def test_names_survive_an_index_of_an_earlier_version(tmp_path):
    tar(tmp_path / "x.tar", WHOLE)
    index_folder(tmp_path, name="things", classes={3: "cup", 4: "hat"})
    previous(tmp_path, version=2, columns={})
    again = index_folder(tmp_path)
    assert (again.name, again.classes) == ("things", {3: "cup", 4: "hat"})


@pytest.mark.parametrize(
    "values",
    [
        {"classes": ["cup"]},
        {"classes": {"x": "cup", "0": "cup", "255": "cup", "70000": "cup", "3": 3, "4": "\x1b[2J"}},
        {"name": ["things"], "classes": None},
        {"name": "\n", "columns": 3, "shards": {}},
        {"version": 10**30},
    ],
)
def test_a_damaged_index_does_not_keep_from_making_a_new_one(tmp_path, values):
    tar(tmp_path / "set" / "x.tar", WHOLE)
    index_folder(tmp_path / "set")
    previous(tmp_path / "set", **values)
    again = index_folder(tmp_path / "set")
    assert (again.name, again.classes) == ("set", {3: "class 3", 4: "class 4"})


def test_damaged_columns_do_not_keep_from_making_a_new_index(tmp_path):
    tar(tmp_path / "x.tar", WHOLE)
    before = index_folder(tmp_path, classes={3: "cup"})
    for column in next(tmp_path.glob("index-*")).iterdir():
        column.write_bytes(b"rotten")
    assert index_folder(tmp_path).hash == before.hash


@pytest.mark.parametrize("description", [b"{", b'{"class_ids": [3], "class_names": []}', b"[" * 9999, b"3", b"\xff"])
def test_json_of_any_kind_does_no_harm(tmp_path, description):
    tar(tmp_path / "x.tar", {"a.json": description, **WHOLE})
    assert index_folder(tmp_path).classes == {3: "class 3", 4: "class 4"}


def test_every_cut_at_a_block_is_refused_and_nothing_is_lost_without_notice(tmp_path):
    whole = tar(tmp_path / "whole" / "x.tar", WHOLE)
    data, spans = whole.read_bytes(), list(foreign._members(whole))
    end = -(-(spans[-1].offset + spans[-1].size) // 512) * 512 + 1024  # with the two blocks that end a tar
    path = tmp_path / "x.tar"
    refused = 0
    for length in range(0, len(data), 512):
        path.write_bytes(data[:length])
        try:
            found = index_folder(tmp_path)
        except UserError as error:
            assert str(path) in str(error)
            refused += 1
        else:  # what was cut off is the padding behind the end
            assert length >= end
            assert found.image_span.tolist() == index_folder(whole.parent).image_span.tolist()
    assert refused == end // 512 == 12


def test_a_flipped_bit_in_any_byte_of_a_header_is_refused_or_changes_nothing(tmp_path):
    path = tar(tmp_path / "x.tar", WHOLE)
    data, members = path.read_bytes(), list(foreign._members(path))
    tried = 0
    for member in members:
        for place in range(member.offset - 512, member.offset):
            flipped = bytearray(data)
            flipped[place] ^= 1 << place % 8
            path.write_bytes(flipped)
            tried += 1
            try:
                found = list(foreign._members(path))
            except UserError as error:
                assert "x.tar" in str(error)
            else:
                assert found == members
    assert tried == 4 * 512


def test_every_cut_is_found_and_names_the_shard_and_the_last_key(tmp_path):
    whole = tar(tmp_path / "whole" / "x.tar", WHOLE)
    data = whole.read_bytes()
    with tarfile.open(whole) as archive:
        end = max(member.offset_data + member.size for member in archive)
    data_end = -(-end // 512) * 512
    for length in range(0, data_end + 1, 64):
        path = tmp_path / "cut" / "x.tar"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data[:length])
        with pytest.raises(UserError, match=r"cut/x\.tar.*") as error:
            index_folder(path.parent)
        if length > 512:
            assert any(name in str(error.value) for name in WHOLE), f"cut at {length}: {error.value}"
        assert not (path.parent / "index.json").exists()


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("a.png", "a in .*x.tar has no mask"),
        ("b.jpg", "b in .*x.tar has no image"),
        ("b.png", "b in .*x.tar has no mask"),
    ],
)
def test_incomplete_samples(tmp_path, missing, message):
    tar(tmp_path / "x.tar", {name: data for name, data in WHOLE.items() if name != missing})
    with pytest.raises(UserError, match=message):
        index_folder(tmp_path)


def test_an_incomplete_frame_of_a_clip(tmp_path):
    tar(tmp_path / "x.tar", {"c.0.jpg": jpg(), "c.0.png": png(), "c.1.jpg": jpg()})
    with pytest.raises(UserError, match=r"frame 1 of c in .* has no mask"):
        index_folder(tmp_path)


def test_a_damaged_header_in_the_middle_is_not_taken_for_the_end(tmp_path):
    path = tar(tmp_path / "x.tar", WHOLE)
    data = bytearray(path.read_bytes())
    with tarfile.open(path) as archive:
        data[archive.getmember("b.jpg").offset + 150] ^= 255  # in the header's checksum
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"damaged after a\.png"):
        index_folder(tmp_path)


@pytest.mark.parametrize("name", ["../a.jpg", "/a.jpg", "x/../../a.jpg", "a\n.jpg"])
def test_names_that_point_elsewhere_are_refused(tmp_path, name):
    tar(tmp_path / "x.tar", {name: jpg(), **WHOLE})
    with pytest.raises(UserError, match=r"x\.tar"):
        index_folder(tmp_path)


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_members_that_are_no_files_are_refused(tmp_path, kind):
    tar(tmp_path / "x.tar", {})
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        info = tarfile.TarInfo("a.jpg")
        info.type, info.linkname = kind, "/etc/passwd"
        archive.addfile(info)
    with pytest.raises(UserError, match=r"a\.jpg in .*x\.tar is (a link|no ordinary file)"):
        index_folder(tmp_path)


def extended(kind: bytes, claimed: int, data: bytes = b"") -> bytes:
    """A header that claims to be followed by so many bytes, of a pax or GNU extension, and what follows."""
    info = tarfile.TarInfo("long")
    info.type, info.size = kind, claimed
    return info.tobuf(tarfile.GNU_FORMAT) + data + bytes(-len(data) % 512)


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK])
@pytest.mark.parametrize("claimed", [2**18 + 1, 2**33, 2**62])
def test_headers_of_absurd_size_are_not_read(tmp_path, kind, claimed):
    whole = tar(tmp_path / "x.tar", WHOLE).read_bytes()
    with (tmp_path / "x.tar").open("wb") as stream:
        stream.write(extended(kind, claimed))
        if claimed == 2**33:  # as long as it says, in a file that takes no room
            stream.seek(claimed, 1)
        stream.write(whole)
    with pytest.raises(UserError, match=r"x\.tar .*a header claims \d+ bytes"):
        index_folder(tmp_path)


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME])
def test_endless_chains_of_headers_are_refused(tmp_path, kind):
    name = b"30 comment=aaaaaaaaaaaaaaaaaa\n" if kind != tarfile.GNUTYPE_LONGNAME else b"a.jpg\0"
    (tmp_path / "x.tar").write_bytes(extended(kind, len(name), name) * 5000)
    with pytest.raises(UserError, match=r"x\.tar is cut short or damaged after its beginning"):
        index_folder(tmp_path)


def test_global_headers_do_not_pile_up(tmp_path):
    parts = []
    for number in range(40):
        text = b"comment%03d=" % number + b"a" * 600
        record = b"%d %s\n" % (len(text) + 7, text)
        member = tarfile.TarInfo(f"{number}.txt").tobuf()
        parts.append(extended(tarfile.XGLTYPE, len(record), record) + member)
    (tmp_path / "x.tar").write_bytes(b"".join(parts) + bytes(1024))
    with pytest.raises(UserError, match=r"x\.tar is cut short or damaged after 1\d\.txt"):
        index_folder(tmp_path)


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_long_names_of_reasonable_size_are_read(tmp_path, form):
    key = "/".join(["a" * 50] * 40)
    with tarfile.open(tmp_path / "x.tar", "w", format=form) as archive:
        for ending, data in (("jpg", WHOLE["a.jpg"]), ("png", WHOLE["a.png"])):
            info = tarfile.TarInfo(f"{key}.{ending}")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    assert index_folder(tmp_path).key(0) == key


def test_tars_joined_into_one_are_refused(tmp_path):
    whole = tar(tmp_path / "x.tar", WHOLE).read_bytes()
    (tmp_path / "x.tar").write_bytes(whole + tar(tmp_path / "y.tar", {"c.jpg": jpg(), "c.png": png()}).read_bytes())
    (tmp_path / "y.tar").unlink()
    with pytest.raises(UserError, match=r"x\.tar goes on after the end mark behind b\.png"):
        index_folder(tmp_path)


@pytest.mark.parametrize("folder", ["pipe:cat x.tar", "pipe:/data", "simplecache::http://x/set", "file:///data/set"])
def test_commands_and_addresses_are_no_folders(tmp_path, folder):
    for make in (index_folder, ShardIndex.open):
        with pytest.raises(UserError, match=folder.split(":", 1)[0]):
            make(folder)


def test_pickles_and_postscript_are_never_opened(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (tmp_path / "boom").touch, ()

    import pickle

    bomb = pickle.dumps(Bomb())
    endings = ("pkl", "pyd", "pth", "npy", "pickle", "pkl.gz", "py", "jpg.gz", "png.pkl", "json.gz", "eps", "npz")
    tar(tmp_path / "x.tar", {**{f"a.{ending}": bomb for ending in endings}, **WHOLE})
    assert len(index_folder(tmp_path)) == 2
    assert not (tmp_path / "boom").exists()
    tar(tmp_path / "x.tar", {**WHOLE, "c.jpg": b"%!PS-Adobe-3.0 EPSF-3.0\n", "c.png": png()})
    with pytest.raises(UserError, match=r"image of c in .*x\.tar cannot be read as JPEG"):
        index_folder(tmp_path)


def test_pictures_and_members_over_the_bounds_are_refused(tmp_path, monkeypatch):
    tar(tmp_path / "x.tar", WHOLE)
    with monkeypatch.context() as patch, pytest.raises(UserError, match=r"a in .*x\.tar has 16 x 12 pixels"):
        patch.setattr(pictures, "MAX_PIXELS", 100)
        index_folder(tmp_path)
    monkeypatch.setattr(foreign, "MAX_PICTURE_BYTES", 100)
    with pytest.raises(UserError, match=r"a\.jpg in .*x\.tar has \d+ bytes"):
        index_folder(tmp_path)


def test_masks_of_another_size_name_shard_and_key(tmp_path):
    tar(tmp_path / "x.tar", {**WHOLE, "c.jpg": jpg((9, 9)), "c.png": png()})
    with pytest.raises(UserError, match=r"mask of c in .*x\.tar is 16 x 12 pixels, but its image 9 x 9"):
        index_folder(tmp_path)


def test_keys_that_occur_twice(tmp_path):
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        for name in ("a.jpg", "a.png", "a.jpg"):
            info = tarfile.TarInfo(name)
            info.size = len(data := WHOLE[name])
            archive.addfile(info, io.BytesIO(data))
    with pytest.raises(UserError, match="second image"):
        index_folder(tmp_path)
    tar(tmp_path / "x.tar", {**WHOLE, "a.0.jpg": jpg(), "a.0.png": png()})
    with pytest.raises(UserError, match="both an image and a clip"):
        index_folder(tmp_path)


def test_a_shard_that_lies_there_twice(tmp_path):
    for name in ("x.tar", "y.tar"):
        tar(tmp_path / name, WHOLE)
    with pytest.raises(UserError, match=r"y\.tar and x\.tar are the same"):
        index_folder(tmp_path)


def test_folders_without_shards_or_samples(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        index_folder(tmp_path / "typo")
    with pytest.raises(UserError, match=r"holds no \.tar shards"):
        index_folder(tmp_path)
    (tmp_path / "x.tar.gz").touch()
    with pytest.raises(UserError, match="compressed"):
        index_folder(tmp_path)
    tar(tmp_path / "y.tar", {"a.webp": b"", "a.cls": b""})
    with pytest.raises(UserError, match=r"end in \.cls, \.webp"):
        index_folder(tmp_path)


def test_a_compressed_tar_in_disguise(tmp_path):
    with tarfile.open(tmp_path / "x.tar", "w:gz") as archive:
        archive.addfile(tarfile.TarInfo("a.jpg"))
    with pytest.raises(UserError, match=r"x\.tar"):
        index_folder(tmp_path)


def test_an_index_of_something_else_is_not_overwritten(tmp_path):
    tar(tmp_path / "x.tar", WHOLE)
    (tmp_path / "index.json").write_text('{"version": 2, "shards": []}')
    with pytest.raises(UserError, match="something else wrote it"):
        index_folder(tmp_path)
    assert (tmp_path / "index.json").read_text() == '{"version": 2, "shards": []}'


def test_noise_is_refused_not_crashed_on(tmp_path):
    rng = np.random.default_rng(0)
    whole = tar(tmp_path / "x.tar", WHOLE).read_bytes()
    outcomes = set()
    for _ in range(150):
        data = bytearray(whole)
        for position in rng.integers(0, len(data) // 2, 3):
            data[position] = rng.integers(256)
        (tmp_path / "x.tar").write_bytes(data)
        try:
            index_folder(tmp_path)
            outcomes.add("indexed")
        except UserError as error:
            assert "x.tar" in str(error)
            outcomes.add("refused")
    assert outcomes == {"indexed", "refused"}


def test_what_was_indexed_opens(tmp_path):
    tar(tmp_path / "x.tar", WHOLE)
    assert index_folder(tmp_path).hash == ShardIndex.open(tmp_path).hash
