"""Databases that LMDB's own library wrote, and what it cannot have written."""

import struct

import lmdb
import numpy as np
import pytest

from wespeaker.data.lmdb import DamagedLmdbError, read_values


def write_database(folder, values, *, at_a_time=100):
    """Write key to value as WeSpeaker's make_lmdb.py does, in several commits; return data.mdb."""
    folder.mkdir(parents=True, exist_ok=True)
    database = lmdb.open(str(folder), map_size=1 << 30)
    items = list(values.items())
    for start in range(0, len(items), at_a_time):
        with database.begin(write=True) as transaction:
            for key, value in items[start : start + at_a_time]:
                transaction.put(key, value)
    database.close()
    return folder / "data.mdb"


def read_back(path):
    with open(path, "rb") as file:
        found = {}
        for key, offset, size in read_values(file):
            file.seek(offset)
            found[key] = file.read(size)
    return found


def some_values(count, *, largest, seed=0):
    rng = np.random.default_rng(seed)
    keys = [f"noise/free-sound/noise-{number:05d}.wav".encode() for number in rng.permutation(count)]
    return {key: rng.bytes(int(rng.integers(largest))) for key in keys}


@pytest.mark.parametrize(("count", "largest"), [(1, 10), (3, 100_000), (300, 9000), (5000, 40), (20_000, 60)])
def test_values_are_those_that_were_put(tmp_path, count, largest):
    values = some_values(count, largest=largest)
    found = read_back(write_database(tmp_path, values))
    assert found == values
    assert list(found) == sorted(values)


def test_what_was_replaced_and_deleted_is_not_seen(tmp_path):
    """The pages of earlier commits stay in the file."""
    values = some_values(400, largest=6000)
    write_database(tmp_path, values)
    changed = {key: value[::-1] for key, value in list(values.items())[:150]}
    path = write_database(tmp_path, changed, at_a_time=40)
    gone = list(values)[100:300]
    database = lmdb.open(str(tmp_path), map_size=1 << 30)
    with database.begin(write=True) as transaction:
        assert all(transaction.delete(key) for key in gone)
    database.close()
    left = values | changed
    assert read_back(path) == {key: left[key] for key in left if key not in gone}


def test_a_database_without_values(tmp_path):
    assert read_back(write_database(tmp_path, {})) == {}


@pytest.mark.parametrize("options", [{"dupsort": True}, {"integerkey": True}])
def test_databases_of_another_kind_are_refused(tmp_path, options):
    database = lmdb.open(str(tmp_path), max_dbs=2)
    inside = database.open_db(b"inside", **options)
    with database.begin(write=True, db=inside) as transaction:
        transaction.put(struct.pack("@N", 1), b"value")
    database.close()
    with pytest.raises(DamagedLmdbError, match="another kind of value"):
        read_back(tmp_path / "data.mdb")


def test_a_file_that_is_no_database(tmp_path):
    path = tmp_path / "data.mdb"
    for content in (b"", b"RIFF" * 2000, bytes(8192)):
        path.write_bytes(content)
        with pytest.raises(DamagedLmdbError, match=r"no head of a database of a 64-bit machine at byte 0"):
            read_back(path)


def test_a_copy_that_was_cut_short(tmp_path):
    path = write_database(tmp_path, some_values(300, largest=9000))
    data = path.read_bytes()
    for size in (100, 5000, len(data) // 3, len(data) // 2):
        path.write_bytes(data[:size])
        with pytest.raises(DamagedLmdbError):
            read_back(path)


def test_pages_in_a_circle_end(tmp_path):
    """A branch whose children are itself."""
    path = write_database(tmp_path, some_values(500, largest=60))
    data = bytearray(path.read_bytes())
    page_size = struct.unpack_from("<I", data, 40)[0]
    roots = [struct.unpack_from("<Q", data, page * page_size + 128)[0] for page in (0, 1)]
    for root in roots:
        end = struct.unpack_from("<H", data, root * page_size + 12)[0]
        for place in range(16, end, 2):
            node = root * page_size + struct.unpack_from("<H", data, root * page_size + place)[0]
            data[node : node + 6] = root.to_bytes(6, "little")
    path.write_bytes(data)
    with pytest.raises(DamagedLmdbError, match="comes twice"):
        read_back(path)
