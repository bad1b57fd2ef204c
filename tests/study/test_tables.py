"""CSV files and pictures, whole or not at all."""

import csv

import pytest

from litgpt_warmstart.errors import UserError
from litgpt_warmstart.report.tables import write_csv
from litgpt_warmstart.study.tables import picture


def test_a_csv_has_the_first_rows_columns_and_empty_cells_for_none(tmp_path):
    write_csv(tmp_path / "new" / "a.csv", [dict(x=1, y=None), dict(x=2, y=0.5)])
    with (tmp_path / "new" / "a.csv").open() as file:
        assert list(csv.DictReader(file)) == [{"x": "1", "y": ""}, {"x": "2", "y": "0.5"}]
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="choose another --out_dir"):
        write_csv(tmp_path / "file" / "a.csv", [dict(x=1)])


def test_a_picture_that_fails_leaves_the_old_one(tmp_path):
    path = tmp_path / "a.png"
    with picture(path, panels=2) as axes:
        assert len(axes) == 2
    old = path.read_bytes()
    with pytest.raises(ZeroDivisionError), picture(path):
        1 / 0  # noqa: B018
    assert path.read_bytes() == old and [p.name for p in tmp_path.iterdir()] == ["a.png"]
