"""Which files are read, how they are cut, and what is told of damaged ones."""

import gzip
import io
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from litgpt_warmstart.data.preparing import sources
from litgpt_warmstart.data.preparing.sources import documents, folder_source, format_of, parts_of, split_of
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


def read(path: Path, column: str = "text") -> list[str | None]:
    """All documents of a file, part by part."""
    parts = [part for part, _ in parts_of(path, path.name, column)]
    return [text for part in parts for texts in documents(path, path.name, part, column) for text in texts]


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
    assert len(parts_of(tmp_path / "a.parquet", "a.parquet", "text")) > 10
    assert len(parts_of(tmp_path / "b.jsonl", "b.jsonl", "text")) > 10


@settings(deadline=None)
@given(st.lists(st.text(max_size=40), max_size=30), st.integers(1, 200), st.booleans())
def test_parts_of_lines_read_each_document_once_in_order(tmp_path_factory, found, part_bytes, last_newline):
    path = tmp_path_factory.mktemp("lines") / "a.jsonl"
    path.write_bytes(jsonl(found) if last_newline else jsonl(found)[:-1])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sources, "PART_BYTES", part_bytes)
        assert read(path) == found


@settings(deadline=None)
@given(st.text(st.sampled_from("abc \n\xe9\u6f22\U0001f468"), max_size=400), st.integers(4, 50), st.integers(1, 200))
def test_the_pieces_of_a_text_file_are_its_text(tmp_path_factory, text, piece_bytes, part_bytes):
    path = tmp_path_factory.mktemp("pieces") / "a.txt"
    path.write_text(text, encoding="utf-8", newline="")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sources, "PIECE_BYTES", piece_bytes)
        patch.setattr(sources, "PART_BYTES", part_bytes)
        found = read(path)
    assert "".join(found) == text
    assert all(len(piece.encode()) <= piece_bytes + 3 for piece in found)


@settings(deadline=None)
@given(st.text(st.sampled_from("abc \n\xe9\u6f22"), max_size=400), st.integers(4, 50), st.integers(1, 200))
def test_pieces_of_a_size_that_is_asked_for_are_the_text_too(tmp_path_factory, text, asked, piece_bytes):
    path = tmp_path_factory.mktemp("pieces") / "a.txt"
    path.write_text(text, encoding="utf-8", newline="")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sources, "PIECE_BYTES", piece_bytes)
        lists = list(documents(path, path.name, sources.Part(0, None), "text", asked))
    assert "".join(piece for pieces in lists for piece in pieces) == text
    assert all(len(piece.encode()) <= asked + 3 for pieces in lists for piece in pieces)
    assert all(sum(len(piece.encode()) for piece in pieces) <= max(asked, piece_bytes) + 3 for pieces in lists)


def test_half_a_surrogate_pair_becomes_a_replacement_character(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "a\\ud83db"}\n{"text": "\\ud83d\\ude00"}\n')
    assert read(tmp_path / "a.jsonl") == ["a\ufffdb", "\U0001f600"]


PLAIN = io.BytesIO()
pq.write_table(pa.table({"text": ["x" * 40, "\xe9" * 40]}), PLAIN, compression="none", use_dictionary=False)
NOT_UTF8 = PLAIN.getvalue().replace(b"\xc3\xa9" * 40, b"\xff" * 80)
BAD = {
    "no such column": ("a.parquet", parquet(["x"], "content"), "no column 'text', only meta, content: pass --column"),
    "no such key": ("a.jsonl", b'{"content": "x"}\n', "no key 'text' at byte 0, only content: pass --column"),
    "numbers": ("a.jsonl", b'{"text": 3}\n', "is no text: pass --column"),
    "no JSON": ("a.jsonl", b'{"text": "a"}\n{"text\n', "no JSON object in the line at byte 14"),
    "a list": ("a.jsonl", b"[1]\n", "no JSON object in the line at byte 0"),
    "corrupt parquet": ("a.parquet", b"PAR1 and then nothing", "is no parquet file or damaged"),
    "damaged parquet": ("a.parquet", b"PAR1" + b"\0" * 300 + parquet(["x" * 300])[304:], "is damaged"),
    "damaged gzip": ("a.jsonl.gz", gzip.compress(jsonl(["x" * 9999]))[:-30], "is damaged"),
    "damaged zstd": ("a.jsonl.zst", b"nothing of the kind", "is damaged"),
    "damaged text in parquet": ("a.parquet", NOT_UTF8, "has a row that is not UTF-8"),
    "half a character in JSON": ("a.jsonl", b'{"text": "\xed\xa0\xbd"}\n', "no JSON object in the line at byte 0"),
    "an empty parquet file": ("a.parquet", b"", "is no parquet file or damaged"),
    "not UTF-8": ("a.txt", b"caf\xe9 cr\xe8me", "is not UTF-8 at byte 3: convert it"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_files_are_told_in_one_line(case, tmp_path):
    name, content, told = BAD[case]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError) as error:
        read(tmp_path / name)
    assert told in str(error.value) and f"'{name}'" in str(error.value) and "\n" not in str(error.value)


def test_a_folder_is_refused_where_there_is_nothing_to_train_on(tmp_path):
    with pytest.raises(UserError, match="is no folder"):
        folder_source(tmp_path / "nope", None)
    with pytest.raises(UserError, match=r"has no .parquet, .jsonl or .txt files"):
        folder_source(tmp_path, None)
    (tmp_path / "validation.jsonl").write_text(json.dumps({"text": "x"}))
    with pytest.raises(UserError, match="no training files, only val ones such as 'validation.jsonl'"):
        folder_source(tmp_path, None)
    (tmp_path / "train.jsonl").write_text(json.dumps({"text": "x"}))
    (tmp_path / ".hidden.jsonl").write_text("")
    assert [file.name for file in folder_source(tmp_path, None)] == ["train.jsonl", "validation.jsonl"]
    with pytest.raises(UserError, match=r"match --files 'en/\*'"):
        folder_source(tmp_path, "en/*")


def test_of_several_formats_one_is_text_unless_a_pattern_says_otherwise(tmp_path):
    for name in ("data/train.parquet", "LICENSE.txt", "dataset_infos.json", "extra.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    names = [[file.name for file in folder_source(tmp_path, pattern)] for pattern in (None, "*.jsonl", "*")]
    assert names[0] == ["data/train.parquet"] and names[1] == ["extra.jsonl"] and len(names[2]) == 4
    (tmp_path / "data/train.parquet").unlink()
    assert [file.name for file in folder_source(tmp_path, None)] == ["extra.jsonl"]


def test_links_to_folders_are_followed_once(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/b.txt").write_text("b")
    folder = tmp_path / "text"
    folder.mkdir()
    (folder / "a.txt").write_text("a")
    (folder / "link").symlink_to(tmp_path / "elsewhere")
    (folder / "loop").symlink_to(folder)
    (tmp_path / "elsewhere/back").symlink_to(folder)
    assert {Path(file.name).name for file in folder_source(folder, None)} == {"a.txt", "b.txt"}
