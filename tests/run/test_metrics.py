"""metrics.csv keeps what is valid over a resume and survives a cut-off line."""

import math

import pytest

from litgpt_warmstart.run.metrics import METRICS, Metrics, RowFile, ended_diverged, read_metrics


def opened(out_dir, resume_step=None) -> Metrics:
    file = RowFile(out_dir / "metrics.csv", METRICS, resume_step)
    return Metrics(file.kept, file)


def test_rows_are_read_back_and_absent_values_are_left_out(tmp_path):
    metrics = opened(tmp_path)
    metrics.write(step=1, tokens=8192, loss=2.5, seconds=0.5)
    assert read_metrics(tmp_path / "metrics.csv") == [dict(step=1, tokens=8192, loss=2.5, seconds=0.5)]
    assert (tmp_path / "metrics.csv").read_text().splitlines()[0] == METRICS.headers[0]


def test_resume_keeps_the_rows_up_to_its_step_and_goes_on_with_their_time(tmp_path):
    first = opened(tmp_path)
    for step in range(1, 6):
        first.write(step=step, tokens=step, loss=1.0, seconds=10.0 * step)
    with (tmp_path / "metrics.csv").open("a") as file:
        file.write("6,6,0.")  # killed while writing
    again = opened(tmp_path, resume_step=3)
    assert again.seconds == 30.0
    again.write(step=4, tokens=4, loss=2.0, seconds=41.0)
    assert [row["step"] for row in read_metrics(tmp_path / "metrics.csv")] == [1, 2, 3, 4]


def test_a_file_of_an_older_version_is_read_and_resumed_without_the_columns_it_lacks(tmp_path):
    path = tmp_path / "metrics.csv"
    path.write_text("step,tokens,loss,val_loss,learning_rate,tokens_per_sec,seconds,matmul_flops\n1,8,2.5,,,,0.5,96\n")
    before = [dict(step=1, tokens=8, loss=2.5, seconds=0.5, matmul_flops=96)]
    assert read_metrics(path) == before
    again = opened(tmp_path, resume_step=1)
    again.write(step=2, tokens=16, loss=2.0, seconds=1.0, matmul_flops=192, hoffmann_flops=300)
    assert read_metrics(path)[0] == before[0] and read_metrics(path)[1]["hoffmann_flops"] == 300


def test_an_unknown_column_raises(tmp_path):
    with pytest.raises(KeyError, match="perplexity"):
        opened(tmp_path).write(step=1, perplexity=3)


def test_a_missing_file_has_no_rows(tmp_path):
    assert read_metrics(tmp_path / "none.csv") == []


@pytest.mark.parametrize(
    ("first", "last", "diverged"),
    [
        (5.0, 5.2, True),  # above its first and ln 96 = 4.56
        (5.0, 5.04, False),
        (3.0, 4.6, False),
        (3.0, 4.7, True),
        (None, 99.0, False),  # of what it was before, nothing is known
        (None, math.nan, True),
        (5.0, math.inf, True),
        (5.0, None, False),
    ],
)
def test_a_run_has_diverged_that_ends_above_its_first_loss_and_a_uniform_guess(first, last, diverged):
    assert ended_diverged(first, last, 96) == diverged


def test_the_first_loss_is_the_first_validations_else_the_first_training_loss():
    rows = [dict(step=1, loss=5.5), dict(step=2, loss=5.0, val_loss=4.9)]
    assert Metrics([]).first_loss is None and Metrics(rows).first_loss == 5.5
    assert Metrics([dict(step=0, val_loss=5.6), *rows]).first_loss == 5.6
