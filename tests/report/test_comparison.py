"""The comparison of a warmstart with the run from scratch."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from litgpt_warmstart.commands import warmstart, warmstart_scratch
from litgpt_warmstart.errors import UserError
from litgpt_warmstart.report.comparison import compare, verdict
from litgpt_warmstart.report.groups import check_comparable
from litgpt_warmstart.report.old_runs import Run
from litgpt_warmstart.run.record import Record
from litgpt_warmstart.run.spec import TrainArgs


@pytest.fixture(scope="module")
def runs(base, tiny, tiny_settings, tmp_path_factory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("runs")
    shared = dict(target=tiny[48], train=TrainArgs(max_steps=8), **tiny_settings)
    warmstart_scratch.setup(mup_base=str(base), out_dir=folder / "scratch", **shared)
    warmstart.setup(base=base, out_dir=folder / "warm", **shared)
    return folder / "scratch", folder / "warm"


def test_it_prints_a_table_a_verdict_and_the_command_and_draws_a_picture(runs, capsys):
    compare(*runs)
    told = capsys.readouterr().out
    assert "tokens per parameter" in told and "from scratch  warmstart" in told
    assert "The warmstart was:" in told
    assert [line.split()[0] for line in told.splitlines()[3:6]] == ["0", "2,048", "4,096"]
    assert "The warmstart" in told
    assert (runs[0].parent / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_the_verdict_counts_the_bases_compute_and_the_warmstarts_own_tokens(runs):
    scratch, warm = (Run.read(out_dir) for out_dir in runs)
    tokens = scratch.record.tokens
    assert "Too few validations" in verdict(replace(scratch, val_losses=scratch.val_losses[:3]), warm)
    scratch.val_losses[:] = [(tokens * i / 4, 8.0 - i / 4) for i in range(5)]
    warm.val_losses[:] = [(tokens * i / 4, 8.0 - i / 2) for i in range(5)]
    own, base_flops = scratch.record.hoffmann_flops / 2, warm.record.lineage[0].hoffmann_flops
    told = verdict(scratch, warm)
    assert f"after {tokens / 2:,.0f} of {tokens:,} tokens: 50%" in told
    assert f"({(own + base_flops) / scratch.record.hoffmann_flops:.0%})" in told
    scratch.val_losses[:] = [(tokens * i / 4, loss) for i, loss in enumerate([8.0, 7.0, 6.5, 7.25, 7.0])]
    assert f"after {tokens / 2:,.0f} of {tokens / 4:,.0f} tokens: 200%" in verdict(scratch, warm)
    unknown = replace(warm.record, lineage=(replace(warm.record.lineage[0], hoffmann_flops=0, tokens=0),))
    assert "what the base's own training took is not known" in verdict(scratch, replace(warm, record=unknown))
    warm.val_losses[:] = [(0, 8.0), (128, 7.9), (256, 7.8), (512, 7.5)]
    assert "did not reach" in verdict(scratch, warm) and "in 512 tokens" in verdict(scratch, warm)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (dict(data=dict(fingerprint="x")), "their data differs"),
        (dict(data=dict(start_token=1)), "their first token differs"),
        (dict(base_lr=1.0), "their learning rate differs"),
        (dict(global_batch_size=1), "their batch size differs"),
    ],
)
def test_what_must_be_the_same_is_checked(runs, change, told):
    scratch, warm = (Run.read(out_dir) for out_dir in runs)
    if "data" in change:
        change = dict(data=replace(warm.record.data, **change["data"]))
    with pytest.raises(UserError, match=told):
        check_comparable(scratch, replace(warm, record=replace(warm.record, **change)))


def test_an_unfinished_run_from_scratch_is_refused_and_other_seeds_are_told(runs, tmp_path, capsys):
    scratch, warm = (Path(shutil.copytree(run, tmp_path / run.name)) for run in runs)
    record = Record.load(scratch / "final/warmstart.yaml")
    replace(record, training={**record.training, "seed": 7}).save(scratch / "final/warmstart.yaml")
    compare(scratch, warm)
    assert "The runs have different seeds, 7 and 42." in capsys.readouterr().out
    lines = (scratch / "metrics.csv").read_text().splitlines()
    (scratch / "metrics.csv").write_text("\n".join(lines[:-2]) + "\n")
    with pytest.raises(SystemExit):
        compare(scratch, warm)
    assert "is not finished: step 7 of 8" in capsys.readouterr().err


def test_runs_that_cannot_be_compared_are_refused_by_name(runs, base, tmp_path, capsys):
    for first, second, told in (
        (base.parent, runs[1], "their model differs"),
        (runs[0], base.parent, "is no warmstart"),
        (runs[1], runs[1], "is no run from scratch (muP)"),
        (runs[0], tmp_path, "holds no finished run"),
    ):
        with pytest.raises(SystemExit):
            compare(first, second)
        assert told in capsys.readouterr().err
