"""Files of tokens are compared with their SHA-256 in the background, once while size and time stay as they are."""

import os
from pathlib import Path

import pytest

from litgpt_warmstart import files
from litgpt_warmstart.data import checking
from litgpt_warmstart.data.checking import ChunkCheck
from litgpt_warmstart.errors import UserError
from litgpt_warmstart.files import file_sha256


@pytest.fixture
def read(monkeypatch, tmp_path) -> list[str]:
    """Names of the files that are hashed, each in its turn; what is remembered is kept apart."""
    found: list[str] = []
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(checking, "file_sha256", lambda path: (found.append(path.name), file_sha256(path))[1])
    return found


@pytest.fixture
def sha256(tmp_path) -> dict[Path, str]:
    paths = [tmp_path / "a.bin", tmp_path / "b.bin"]
    for path in paths:
        path.write_bytes(path.name.encode() * 100)
    return {path: file_sha256(path) for path in paths}


def looked_at(sha256: dict[Path, str], trusting: bool = True) -> ChunkCheck:
    check = ChunkCheck(sha256, "data", trusting)
    check.begin()
    check.raise_if_bad(wait=True)
    return check


def test_what_was_found_good_is_not_read_again_until_its_size_or_time_changes(sha256, read):
    for _ in range(3):
        looked_at(sha256)
    assert read == ["a.bin", "b.bin"]
    first, second = sha256
    os.utime(second, ns=(1, 1))
    looked_at(sha256)
    assert read == ["a.bin", "b.bin", "b.bin"]
    looked_at({first: sha256[first], second: sha256[second]})
    assert len(read) == 3


def test_a_file_that_is_not_as_it_was_is_told_and_remembered_as_nothing(sha256, read):
    first, second = sha256
    second.write_bytes(b"c" * second.stat().st_size)
    files._sha256.cache_clear()
    for _ in range(2):
        with pytest.raises(UserError, match="b.bin' is not as it was prepared .*prepare the data again"):
            looked_at(sha256)
    second.unlink()
    with pytest.raises(UserError, match="b.bin' cannot be read .No such file"):
        looked_at(sha256)


def test_a_bit_that_flips_while_size_and_time_stay_is_found_without_trust_and_then_remembered(sha256, read):
    looked_at(sha256)
    second = list(sha256)[1]
    stat, content = second.stat(), second.read_bytes()
    second.write_bytes(bytes([content[0] ^ 1]) + content[1:])
    os.utime(second, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    files._sha256.cache_clear()
    looked_at(sha256)  # a run, which trusts
    for trusting in (False, True):
        with pytest.raises(UserError, match="b.bin' is not as it was prepared .*: prepare .* train anew what has read"):
            looked_at(sha256, trusting)


def test_without_a_place_to_remember_it_looks_each_time(sha256, read, tmp_path):
    (tmp_path / "cache").write_text("a file where a folder should be")
    for _ in range(2):
        looked_at(sha256)
    assert read == ["a.bin", "b.bin"] * 2
