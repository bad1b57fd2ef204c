"""What is said of a preparation where there is no terminal."""

from litgpt_warmstart.data.preparing.progress import Progress


def test_without_a_terminal_a_line_now_and_then_has_all_numbers(capsys, monkeypatch):
    monkeypatch.setattr(Progress, "SECONDS_BETWEEN_LINES", 0.0)
    progress = Progress(4_000_000, "text")
    progress.received(3_000_000)
    progress.correct_total(1_000_000)
    progress.advance(documents=1234, tokens=500_000, num_bytes=2_000_000)
    progress.close()
    first, second = capsys.readouterr().err.splitlines()
    assert first == "text: 0 of 4 MB | downloaded 3 MB | 0.0 MB/s | time left not known yet"
    assert second.startswith("text: 2 of 5 MB | 1,234 documents, 500,000 tokens, downloaded 3 MB | ")
    assert second.endswith(" s left") and "MB/s" in second


def test_what_was_done_before_does_not_count_as_speed(capsys, monkeypatch):
    progress = Progress(4_000_000, "text")
    monkeypatch.setattr(Progress, "SECONDS_BETWEEN_LINES", 0.0)
    progress.advance(documents=0, tokens=0, num_bytes=2_000_000)
    assert "| 0.0 MB/s | time left not known yet" in capsys.readouterr().err
