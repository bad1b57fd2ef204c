"""The documents' figures are those of benchmarks/results."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


def test_the_tables_in_the_documents_are_made_from_the_results():
    done = subprocess.run([sys.executable, BENCHMARKS / "table.py", "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_table_replaces_what_stands_between_its_markers_and_nothing_else(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import table

    monkeypatch.setitem(table.TABLES, "train", lambda: "new")
    for before in ("", "old\n"):
        text = f"a\n<!-- train -->\n{before}<!-- /train -->\nb\n"
        assert table.filled(text, ("train",)) == "a\n<!-- train -->\nnew\n<!-- /train -->\nb\n"
    with pytest.raises(SystemExit, match="must stand there once"):
        table.filled("a\nb\n", ("train",))


@pytest.mark.parametrize("path", sorted((BENCHMARKS / "results").glob("*.json")), ids=lambda path: path.stem)
def test_every_result_says_device_versions_date_and_command(path):
    result = json.loads(path.read_text())
    assert result["device"] and result["date"] and result["command"].startswith("python benchmarks/")
    assert {"python", "torch", "litgpt"} <= result["versions"].keys()
