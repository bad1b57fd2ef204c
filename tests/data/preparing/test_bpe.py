"""A tokenizer of one's own: of the size asked for, lossless, trained once."""

import pytest
from litgpt.tokenizer import Tokenizer

from litgpt_warmstart.commands import warmstart_prepare_data
from litgpt_warmstart.data import PreparedText
from litgpt_warmstart.data.preparing.bpe import train_bpe, training_texts


@pytest.fixture
def text_dir(tmp_path, texts):
    folder = tmp_path / "text"
    folder.mkdir()
    for number in range(5):
        (folder / f"{number}.txt").write_text("\n".join(texts[number::5]), encoding="utf-8", newline="")
    return folder


def test_a_preparation_trains_its_tokenizer_once_and_prepares_with_it(text_dir, tmp_path, capsys, refused):
    settings = dict(text_dir=text_dir, tokenizer_vocab_size=300, data_path=tmp_path / "data/tiny")
    warmstart_prepare_data.setup(**settings)
    assert "vocabulary 300" in capsys.readouterr().out
    folder = tmp_path / "data/tiny-tokenizer"
    written = (folder / "tokenizer.json").stat().st_mtime_ns
    tokenizer = Tokenizer(tmp_path / "data/tiny")
    assert tokenizer.vocab_size == 300
    text = "def naïve(x):\n\treturn '本'"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert PreparedText(tmp_path / "data/tiny").is_prepared

    warmstart_prepare_data.setup(**settings)  # and again
    assert "Already prepared" in capsys.readouterr().out
    told = refused(warmstart_prepare_data.setup, **settings | dict(tokenizer_vocab_size=301))
    assert "has 300 tokens, not 301" in told
    assert (folder / "tokenizer.json").stat().st_mtime_ns == written
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == ["tiny", "tiny-tokenizer"]


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (dict(tokenizer="somewhere"), "tokenizer_vocab_size is for text_dir"),
        (dict(text_dir=None, repo_id="someone/something"), "tokenizer_vocab_size is for text_dir"),
        (dict(text_dir=None), "tokenizer_vocab_size is for text_dir"),
        (dict(tokenizer_vocab_size=256), "at least 257 tokens"),
        (dict(tokenizer_vocab_size=100_000), "too short for 100,000 tokens"),
    ],
)
def test_what_cannot_be_trained_is_refused_and_leaves_nothing(settings, told, text_dir, tmp_path, refused):
    settings = dict(text_dir=text_dir, tokenizer_vocab_size=300, data_path=tmp_path / "data/tiny") | settings
    assert told in refused(warmstart_prepare_data.setup, **settings)
    assert not list(tmp_path.glob("data/*"))


def test_of_much_text_each_part_gives_its_share_whatever_the_sizes_of_files(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("tiny\n")
    (tmp_path / "b.txt").write_text("".join(f"line {number}\n" for number in range(200_000)))
    monkeypatch.setattr("litgpt_warmstart.data.preparing.write.PORTION_BYTES", 400_000)
    monkeypatch.setattr("litgpt_warmstart.data.preparing.bpe.TEXT_BYTES", 500_000)
    texts = list(training_texts(tmp_path, None, "text"))
    assert texts[0] == "tiny\n" and "line 199999" not in texts[-1]
    assert 500_000 <= sum(map(len, texts)) < 500_000 + 6 * 70_000  # whole documents, of 64 KiB, from each of 6 parts
    monkeypatch.setattr("litgpt_warmstart.data.preparing.bpe.TEXT_BYTES", 10**9)
    assert "".join(training_texts(tmp_path, None, "text")) == "".join(
        (tmp_path / name).read_text() for name in ("a.txt", "b.txt")
    )


def test_nothing_is_trained_for_a_preparation_that_is_refused(text_dir, refused):
    assert "lies within text_dir" in refused(
        warmstart_prepare_data.setup, text_dir=text_dir, tokenizer_vocab_size=300, data_path=text_dir / "prepared"
    )
    assert sorted(path.name for path in text_dir.iterdir()) == [f"{number}.txt" for number in range(5)]


def test_a_damaged_tokenizer_is_told_in_one_line_and_a_bare_dot_is_a_folder(text_dir, tmp_path, monkeypatch, refused):
    (tmp_path / "here").mkdir()
    (tmp_path / "here-tokenizer").mkdir()
    (tmp_path / "here-tokenizer/tokenizer.json").write_text("{")
    monkeypatch.chdir(tmp_path / "here")
    told = refused(warmstart_prepare_data.setup, text_dir=text_dir, tokenizer_vocab_size=300, data_path=".")
    assert "tokenizer.json' is damaged (" in told


def test_the_same_text_gives_the_same_tokenizer(texts, tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
        train_bpe(texts, 400, tmp_path / name)
    assert (tmp_path / "a/tokenizer.json").read_bytes() == (tmp_path / "b/tokenizer.json").read_bytes()
