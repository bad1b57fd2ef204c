"""What an experiment takes, told before it begins: every run counted once, nothing trained."""

import pytest

from litgpt_warmstart.commands import warmstart_ablations, warmstart_grid_search, warmstart_successive
from litgpt_warmstart.data import StdlibText
from litgpt_warmstart.method.flops import hoffmann_flops_per_token
from litgpt_warmstart.run.spec import EvalArgs, TrainArgs
from litgpt_warmstart.study.cost import costs, told_costs
from litgpt_warmstart.study.outcomes import StudyRun
from litgpt_warmstart.study.runner import carry_out


@pytest.fixture
def settings(stdlib_path, tmp_path):
    return dict(out_dir=tmp_path / "study", data=StdlibText(stdlib_path), precision="32-true", compile=False, lr=0.02,
                logger_name="csv", eval=EvalArgs(interval=100, max_iters=4))  # fmt: skip


def test_costs_are_those_of_the_runs_that_have_not_ended(make_spec):
    runs = [StudyRun(f"seed-{seed}", make_spec(f"seed-{seed}", seed=seed)) for seed in (1, 2, 3)]
    carry_out(runs[:1], say=lambda line: None)
    found, spec = costs(runs).iloc[0], runs[0].spec
    tokens = 2 * 4 * 4 * 64  # runs, steps, sequences, block
    assert (found["runs"], found["finished"], found["tokens"]) == (3, 1, tokens)
    assert found["hoffmann_flops"] == tokens * hoffmann_flops_per_token(spec.config, spec.block_size)
    assert not runs[1].spec.out_dir.exists()
    assert told_costs(costs(runs[:1])).splitlines()[-2].split()[:5] == ["in", "all", "1", "1", "0"]


def test_a_planned_study_trains_nothing_and_counts_bases_and_runs_from_scratch(settings, tiny, tmp_path, capsys):
    warmstart_ablations.setup(
        base=tiny[16], target=tiny[48], arms=[dict(shrink=[0.4, 1.0])], seeds="1,2", base_tokens_per_param=0.05,
        tokens_per_param=0.02, plan="tokens", train=TrainArgs(global_batch_size=4, micro_batch_size=4), **settings,
    )  # fmt: skip
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    counted = {row[0]: row[3:5] for row in rows if row and row[0] in ("neox-16", "neox-48")}
    assert counted == {"neox-16": ["1", "0"], "neox-48": ["6", "0"]}
    assert not (tmp_path / "study").exists()


def test_a_chain_is_planned_with_its_run_from_scratch(settings, tiny, tmp_path, capsys):
    train = TrainArgs(global_batch_size=4, micro_batch_size=4)
    warmstart_successive.setup(scales=[tiny[16], tiny[48]], tokens_per_param=0.05, plan="time", train=train, **settings)
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    counted = {row[0]: row for row in rows if row and row[0] in ("neox-16", "neox-48")}
    assert counted["neox-16"][3:5] == ["1", "0"] and counted["neox-48"][3:5] == ["2", "0"]
    assert (
        int(counted["neox-48"][-3].replace(",", "")) > 0  # tokens/s
    )
    assert not (tmp_path / "study").exists()


def test_grids_of_several_scales_are_planned_together_and_searched_each_in_a_folder_of_its_own(
    settings, tiny, tmp_path, capsys
):
    del settings["lr"]
    settings |= dict(target=f"{tiny[16]},{tiny[48]}", lrs="0.01,0.02", batch_sizes="4", seeds="1",
                     train=TrainArgs(max_tokens=512, micro_batch_size=4))  # fmt: skip
    warmstart_grid_search.setup(plan="tokens", **settings)
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [row[:1] + row[2:6] for row in rows if row and row[0] in ("neox-16", "neox-48")] == [
        ["neox-16", "4", "2", "0", "1,024"],
        ["neox-48", "4", "2", "0", "1,024"],
    ]
    assert not (tmp_path / "study").exists()
    warmstart_grid_search.setup(**settings)
    for name in ("neox-16", "neox-48"):
        assert (tmp_path / "study" / name / "best/lit_model.pth").is_file()
        assert (tmp_path / "study" / name / "grid_search.csv").is_file()
