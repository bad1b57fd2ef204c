"""Which files are read, how they are cut, and what is told of damaged ones."""

import gzip
import io
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from litgpt_warmstart.data.preparing import read as reading
from litgpt_warmstart.data.preparing.read import Part, documents, folder_files, format_of, split_of, zstd
from litgpt_warmstart.errors import UserError
from tests.data.conftest import jsonl, parquet


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("data/train-00000-of-00048-ab679b1cdf4f9ddc.parquet", "train"),
        ("data/validation-00000-of-00001.parquet", "val"),
        ("data/test-00000-of-00001.parquet", "test"),
        ("validation/chunk1/example_holdout_0.jsonl.zst", "val"),
        ("en/c4-validation.00000-of-00008.json.gz", "val"),
        ("dev.jsonl", "val"),
        ("test_corpus/train.txt", "train"),
        ("contest/valley.txt", "train"),  # words, not parts of words
        ("book.txt", "train"),
    ],
)
def test_the_words_of_a_path_decide_its_split(name, split):
    assert split_of(name) == split


@pytest.mark.parametrize(
    ("name", "form"),
    [("a.parquet", ".parquet"), ("a.jsonl", ".jsonl"), ("a.json.gz", ".json"), ("a.jsonl.zst", ".jsonl"),
     ("a.txt", ".txt"), ("a.txt.gz", ".txt"), ("a.parquet.gz", None), ("README.md", None), ("a.gz", None)],
)  # fmt: skip
def test_which_files_are_read(name, form):
    assert format_of(name) == form


def read(path: Path, count: int = 1, piece_bytes: int | None = None) -> list[str | None]:
    """All documents of a file, in a number of parts."""
    parts = [Part(path.name, number, count) for number in range(count)]
    return [text for part in parts for texts in documents(path, part, "text", piece_bytes) for text in texts]


def test_every_format_gives_its_documents_in_order(tmp_path, texts, small):
    for name, content in {
        "a.parquet": parquet(texts),
        "b.jsonl": jsonl(texts),
        "c.json.gz": gzip.compress(jsonl(texts[:100])) + gzip.compress(jsonl(texts[100:])),
    }.items():
        (tmp_path / name).write_bytes(content)
        assert read(tmp_path / name) == texts, name
    with pa.CompressedOutputStream(str(tmp_path / "d.jsonl.zst"), "zstd") as stream:
        stream.write(jsonl(texts))
    assert read(tmp_path / "d.jsonl.zst") == texts
    for name in ("a.parquet", "b.jsonl"):
        assert read(tmp_path / name, count=7) == texts, name


@given(st.lists(st.text(max_size=40), max_size=30), st.integers(1, 20), st.integers(1, 200), st.booleans())
def test_parts_of_lines_read_each_document_once_in_order(tmp_path_factory, found, count, block_bytes, last_newline):
    path = tmp_path_factory.mktemp("lines") / "a.jsonl"
    path.write_bytes(jsonl(found) if last_newline else jsonl(found)[:-1])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reading, "BLOCK_BYTES", block_bytes)
        assert read(path, count) == found


@given(
    st.text(st.sampled_from("abc \n\xe9\u6f22\U0001f468"), max_size=400),
    st.integers(4, 50), st.integers(1, 20), st.integers(1, 200),
)  # fmt: skip
def test_the_pieces_of_a_text_file_are_its_text(tmp_path_factory, text, piece_bytes, count, block_bytes):
    path = tmp_path_factory.mktemp("pieces") / "a.txt"
    path.write_text(text, encoding="utf-8", newline="")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reading, "BLOCK_BYTES", block_bytes)
        found, whole = read(path, count, piece_bytes), read(path, 1, piece_bytes)
        patch.setattr(reading, "BLOCK_BYTES", 10**6)
        assert whole == read(path, 1, piece_bytes), "pieces depend on what is read at once"
        patch.setattr(reading, "PIECE_BYTES", piece_bytes)
        assert whole == read(path)
    assert "".join(found) == "".join(whole) == text
    assert all(len(piece.encode()) <= piece_bytes for piece in found)


ROWS = [f'{{"text": "document {number}", "meta": {{"a": [1, 2.5, null]}}}}' for number in range(20)]
TEXTS = [f"document {number}" for number in range(20)]
DEEP = ROWS[3].replace("[1, 2.5, null]", "[" * 5000 + "]" * 5000)
SEVERAL_KINDS = [ROWS[n].replace("2.5", ["1e400", '"a"', "{}", "[]"][n % 4]) for n in range(20)]
LINES = "\n".join(ROWS).encode()


def long_window(content: bytes) -> bytes:
    """A frame that says it needs a window of 2 GB, as ``zstd --ultra -22 --long=31`` writes: a reader must allow it."""
    parameter = zstd.CompressionParameter
    writer = zstd.ZstdCompressor(options={parameter.window_log: 31, parameter.enable_long_distance_matching: 1})
    made = writer.compress(content[:50]) + writer.compress(content[50:]) + writer.flush()
    with pytest.raises(zstd.ZstdError):
        zstd.decompress(made)
    return made


FIELD_CASES = {
    "a byte order mark": ("a.jsonl", b"\xef\xbb\xbf" + LINES, TEXTS),
    "a deep column": ("a.jsonl", "\n".join([*ROWS[:3], DEEP, *ROWS[4:]]).encode(), TEXTS),
    "a deep column beside half a pair": (
        "a.jsonl", "\n".join([*ROWS[:3], DEEP, *ROWS[4:19], '{"text": "document 19", "x": "\\ud83d"}']).encode(), TEXTS
    ),
    "half a surrogate": ("a.jsonl", b'{"text": "a\\ud83db"}\n{"text": "\\ud83d\\ude00"}', ["a\ufffdb", "\U0001f600"]),
    "columns of several kinds": ("a.jsonl", "\n".join(SEVERAL_KINDS).encode(), TEXTS),
    "blank lines": ("a.jsonl", LINES.replace(b"\n", b"\r\n\r\n") + b"\n \n\n", TEXTS),
    "the last of two": ("a.jsonl", LINES.replace(b'{"text', b'{"text": "no", "text'), TEXTS),
    "a row without text": ("a.jsonl", LINES + b'\n{"text": null}', [*TEXTS, None]),
    "zeros after gzip": ("a.jsonl.gz", gzip.compress(LINES) + b"\0" * 1024, TEXTS),
    "two members of gzip": ("a.jsonl.gz", gzip.compress(LINES + b"\n") + gzip.compress(LINES), TEXTS * 2),
    "any window of zstandard": ("a.jsonl.zst", long_window(LINES), TEXTS),
    **{
        f"parquet of {kind}": ("a.parquet", parquet([*TEXTS, None], kind=kind), [*TEXTS, None])
        for kind in (pa.string_view(), pa.large_string(), pa.dictionary(pa.int32(), pa.string()))
    },
}  # fmt: skip


@pytest.mark.parametrize("case", FIELD_CASES)
def test_what_people_have_met_is_read(case, tmp_path, monkeypatch):
    name, content, expected = FIELD_CASES[case]
    (tmp_path / name).write_bytes(content)
    assert read(tmp_path / name) == expected
    monkeypatch.setattr(reading, "BLOCK_BYTES", 100)  # and shorter than a row
    assert read(tmp_path / name) == expected


PLAIN = io.BytesIO()
pq.write_table(pa.table({"text": ["x" * 40, "\xe9" * 40]}), PLAIN, compression="none", use_dictionary=False)
NOT_UTF8 = PLAIN.getvalue().replace(b"\xc3\xa9" * 40, b"\xff" * 80)
BAD = {
    "no such column": ("a.parquet", parquet(["x"], "content"), "no column 'text', only meta, content: pass --column"),
    "no such key": ("a.jsonl", b'{"content": "x"}\n', "no key 'text' at byte 0, only content: pass --column"),
    "no such key later": (
        "a.jsonl",
        LINES + b'\n{"x": 1}',
        f"no key 'text' at byte {len(LINES) + 1:,}, only x",
    ),
    "numbers": ("a.jsonl", b'{"text": 3}\n', "is no text: pass --column"),
    "no JSON": ("a.jsonl", b'{"text": "a"}\n{"text\n', "no JSON object in the line at byte 14"),
    "two objects in a line": ("a.jsonl", b'{"text": "a"}\n{"text": "b"} {"text": "c"}\n', "line at byte 14"),
    "an object over lines": ("a.jsonl", b'{\n"text": "a"\n}\n', "no JSON object in the line at byte 0"),
    "cut zstandard": ("a.jsonl.zst", zstd.compress(jsonl(["x" * 9999]))[:-5], "is damaged"),
    "a list": ("a.jsonl", b"[1]\n", "no JSON object in the line at byte 0"),
    "corrupt parquet": ("a.parquet", b"PAR1 and then nothing", "is damaged"),
    "damaged parquet": ("a.parquet", b"PAR1" + b"\0" * 300 + parquet(["x" * 300])[304:], "is damaged"),
    "damaged gzip": ("a.jsonl.gz", gzip.compress(jsonl(["x" * 9999]))[:-30], "is damaged"),
    "damaged zstd": ("a.jsonl.zst", b"nothing of the kind", "is damaged"),
    "damaged text in parquet": ("a.parquet", NOT_UTF8, "has a row that is not UTF-8 ('utf-8' codec"),
    "half a character in JSON": ("a.jsonl", b'{"text": "\xed\xa0\xbd"}\n', "no JSON object in the line at byte 0"),
    "an empty parquet file": ("a.parquet", b"", "is damaged"),
    "not UTF-8": ("a.txt", b"x\n" * 2000 + b"caf\xe9 cr\xe8me", "is not UTF-8 at byte 4,003"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_files_are_told_in_one_line(case, tmp_path):
    name, content, told = BAD[case]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError) as error:
        read(tmp_path / name)
    assert told in str(error.value) and f"'{name}'" in str(error.value) and "\n" not in str(error.value)
    assert "iconv" not in str(error.value) or name == "a.txt"


@pytest.mark.parametrize("name", ["a.parquet", "a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.txt"])
def test_a_file_that_cannot_be_read_is_not_called_damaged(name, tmp_path):
    with pytest.raises(UserError, match=f"{name}' cannot be read .No such file or directory.: mend that, and give"):
        list(documents(tmp_path / name, Part(name), "text"))


def test_a_folder_is_refused_where_there_is_nothing_to_train_on(tmp_path):
    with pytest.raises(UserError, match="is no folder"):
        folder_files(tmp_path / "nope", None)
    with pytest.raises(UserError, match=r"has no .parquet, .jsonl or .txt files"):
        folder_files(tmp_path, None)
    (tmp_path / "validation.jsonl").write_text(json.dumps({"text": "x"}))
    with pytest.raises(UserError, match="no training files, only val ones such as 'validation.jsonl'"):
        folder_files(tmp_path, None)
    (tmp_path / "train.jsonl").write_text(json.dumps({"text": "x"}))
    (tmp_path / ".hidden.jsonl").write_text("")
    assert [file.name for file in folder_files(tmp_path, None)] == ["train.jsonl", "validation.jsonl"]
    with pytest.raises(UserError, match=r"match --files 'en/\*'"):
        folder_files(tmp_path, "en/*")


def test_of_several_formats_one_is_text_unless_a_pattern_says_otherwise(tmp_path):
    for name in ("data/train.parquet", "LICENSE.txt", "dataset_infos.json", "extra.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    names = [[file.name for file in folder_files(tmp_path, pattern)] for pattern in (None, "*.jsonl", "*")]
    assert names[0] == ["data/train.parquet"] and names[1] == ["extra.jsonl"] and len(names[2]) == 4
    (tmp_path / "data/train.parquet").unlink()
    assert [file.name for file in folder_files(tmp_path, None)] == ["extra.jsonl"]


def test_links_to_folders_are_followed_once(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/b.txt").write_text("b")
    folder = tmp_path / "text"
    folder.mkdir()
    (folder / "a.txt").write_text("a")
    (folder / "link").symlink_to(tmp_path / "elsewhere")
    (folder / "loop").symlink_to(folder)
    (tmp_path / "elsewhere/back").symlink_to(folder)
    assert {Path(file.name).name for file in folder_files(folder, None)} == {"a.txt", "b.txt"}
