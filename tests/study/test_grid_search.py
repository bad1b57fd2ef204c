"""Grid search: equal budgets, the winner's record, divergence, going on."""

import math
import shutil
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from types import SimpleNamespace

import pandas
import pytest
import yaml

from litgpt_warmstart.commands import warmstart, warmstart_grid_search
from litgpt_warmstart.errors import UserError
from litgpt_warmstart.run.checkpoint import read_header
from litgpt_warmstart.run.spec import EvalArgs, TrainArgs
from litgpt_warmstart.study.grid_search import at_the_edge, mean_losses, results, table, varied, winner
from litgpt_warmstart.study.outcomes import Outcome, StudyRun
from tests.study.conftest import rows


def outcome(first: float, last: float, status: str = "finished") -> Outcome:
    return Outcome(status, first_val_loss=first, val_loss=last)


def test_a_cell_is_the_mean_over_seeds_and_diverged_if_one_seed_is_not_finite_or_ends_above_its_start():
    factors = [dict(lr=lr, batch_size=4, seed=seed) for lr in (0.1, 1.0, 10.0) for seed in (1, 2)]
    spec = SimpleNamespace(config=SimpleNamespace(padded_vocab_size=512))
    runs = [StudyRun(f"{f['lr']}-{f['seed']}", spec, f) for f in factors]
    ended = [outcome(8, 5), outcome(8, 6), outcome(8, 8.5), outcome(8, 4), outcome(8, 9, "diverged"), outcome(8, 3)]
    losses = mean_losses(results(runs, {run.name: o for run, o in zip(runs, ended, strict=True)}))
    assert losses.loc[0.1, 4] == 5.5 and math.isnan(losses.loc[1.0, 4]) and math.isnan(losses.loc[10.0, 4])
    assert winner(losses) == (0.1, 4)
    text = table(losses, (0.1, 4)).to_string()
    assert "5.5000 <" in text and text.count("diverged") == 2


def test_a_winner_at_the_edge_is_told_and_one_inside_is_not():
    losses = pandas.DataFrame({4: [3.0, 2.0, 2.5]}, [1.0, 2.0, 3.0])
    assert at_the_edge(losses, winner(losses)) is None
    assert "1 is the smallest of --lrs" in at_the_edge(losses, (1.0, 4))


def test_what_is_varied_beside_learning_rate_and_batch_has_a_grid_each():
    found = varied({"optimizer": ["AdamW", "Muon"], "beta2": [0.9, 0.99]}, "NAdam")
    assert list(found) == [f"{name}-beta2-{beta2}" for name in ("AdamW", "Muon") for beta2 in (0.9, 0.99)]
    assert found["Muon-beta2-0.99"] == {"class_path": "Muon", "init_args": {"betas": [0.9, 0.99]}}
    assert varied({}, "NAdam") == {"": "NAdam"}
    assert varied({"optimizer.eps": 1e-6}, "NAdam")["eps-1e-06"]["init_args"] == {"eps": 1e-6}
    with pytest.raises(UserError, match="--vary has no 'shrink': choose from optimizer, beta2, optimizer.ARGUMENT"):
        varied({"shrink": 0.4}, "AdamW")
    for wrong, told in ({"beta2": 2}, "beta2 2 must"), ({"optimizer": 3}, "--opt"), ({"optimizer.lr": 1}, "a learning"):
        with pytest.raises(UserError, match=f"^--vary: {told}"):
            varied(wrong, "AdamW")


def test_grids_of_several_optimizers_lie_in_their_folders(arguments, tmp_path, capsys):
    small = dict(lrs="0.01", batch_sizes=2, vary={"beta2": [0.9, 0.99]}, plan="tokens", out_dir=tmp_path)
    warmstart_grid_search.setup(**arguments | small)
    assert "Grid search at neox-16 with beta2-0.99: 1 learning rates" in capsys.readouterr().out


@pytest.fixture(scope="module")
def arguments(tiny, settings) -> dict:
    """A grid of six cells."""
    train = TrainArgs(max_tokens=1700, micro_batch_size=2)
    return settings | dict(target=tiny[16], lrs="0.01,0.03,1e6", batch_sizes=[2, 4], seeds=1, train=train)


@pytest.fixture(scope="module")
def searched(arguments, tmp_path_factory) -> tuple[Path, str]:
    """The folder of the six cells, and what was printed."""
    folder, printed = tmp_path_factory.mktemp("searched") / "grid", StringIO()
    with redirect_stdout(printed):
        warmstart_grid_search.setup(out_dir=folder, **arguments)
    return folder, printed.getvalue()


@pytest.fixture
def grid(searched, tmp_path) -> Path:
    """A copy of that folder."""
    return shutil.copytree(searched[0], tmp_path / "grid")


def read(folder: Path) -> list[dict[str, str]]:
    return rows(folder / "grid_search.csv")


def test_a_grid_trains_every_cell_on_the_same_tokens_and_warmstart_reads_its_winner(searched, tiny, tmp_path):
    grid, printed = searched
    cells = read(grid)
    assert len(cells) == 6
    finished = [row for row in cells if row["status"] == "finished"]
    assert {row["tokens"] for row in finished} == {"1536"}  # 1,700 in whole steps of 2 and of 4 x 64
    assert {row["lr"] for row in cells if row["status"] == "diverged"} == {"1000000.0"}
    best = min(finished, key=lambda row: float(row["val_loss"]))
    record = read_header(grid / "best").record
    assert (record.base_lr, record.global_batch_size) == (float(best["lr"]), int(best["batch_size"]))
    assert record.training["grid_search"]["run"] == best["run"]
    assert (grid / "grid_search.png").stat().st_size > 10_000
    assert f"Best: lr {float(best['lr']):g}, batch {best['batch_size']}" in printed
    warmstart.setup(
        base=grid / "best", target=tiny[48], out_dir=tmp_path / "warm", compile=False, logger_name="csv",
        precision="32-true", train=TrainArgs(max_steps=1), eval=EvalArgs(max_iters=2),
    )  # fmt: skip
    grown = yaml.safe_load((tmp_path / "warm" / "final" / "warmstart.yaml").read_text())
    assert grown["base_lr"] == record.base_lr and grown["global_batch_size"] == record.global_batch_size


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (dict(lrs=""), "--lrs is empty"),
        (dict(lrs="fast"), "--lrs fast: give float values"),
        (dict(lrs=[-1]), "must be above 0"),
        (dict(batch_sizes=[7, 11, 13]), "has no whole steps of every batch size (7, 11, 13)"),
        (dict(train=TrainArgs(global_batch_size=4)), "give --batch_sizes"),
        (dict(train=TrainArgs(max_time=5)), "--train.max_time is not for a study"),
        (dict(target=None), "--target is missing"),
        (dict(lrs="nan"), "must be above 0"),
        (dict(lrs="inf"), "must be above 0"),
        (dict(eval=EvalArgs(initial_validation=False)), "--eval.initial_validation false would leave"),
        (dict(executor="ray", cpus_per_run=0), "--cpus_per_run must be 1 or more"),
        (dict(lrs=[1e6], batch_sizes=4, train=TrainArgs(max_tokens=512)), "every cell of the grid diverged"),
    ],
)
def test_what_a_grid_cannot_do_is_one_line(arguments, tmp_path, refused, changes, told):
    assert told in refused(warmstart_grid_search.setup, **(arguments | dict(out_dir=tmp_path / "grid") | changes))


def test_a_better_winner_of_an_earlier_grid_is_kept(arguments, grid, capsys):
    before = read_header(grid / "best").record
    warmstart_grid_search.setup(**(arguments | dict(lrs=1e-5, batch_sizes=4, out_dir=grid)))
    kept = f"best/ keeps lr {before.base_lr:g}, batch {before.global_batch_size} of an earlier grid here"
    assert kept in capsys.readouterr().out
    assert read_header(grid / "best").record == before


def test_the_folder_of_a_run_is_refused(arguments, base, refused):
    told = refused(warmstart_grid_search.setup, out_dir=base.parent, **arguments)
    assert "is the folder of a run: choose another for the study" in told
