"""What an experiment takes, told before it begins: every run counted once, nothing trained."""

from dataclasses import replace

import pytest

from litgpt_warmstart.commands import warmstart_ablations, warmstart_grid_search, warmstart_successive
from litgpt_warmstart.method.flops import hoffmann_flops_per_token
from litgpt_warmstart.run.spec import TrainArgs
from litgpt_warmstart.study.cost import costs, told_costs
from litgpt_warmstart.study.outcomes import StudyRun
from litgpt_warmstart.study.runner import carry_out

TRAIN = TrainArgs(global_batch_size=4, micro_batch_size=4)


@pytest.fixture
def planned(settings, tmp_path, capsys):
    """Plans a study, and gives what is told of each model: runs and finished ones, tokens, and so on."""

    def plan(command, **arguments: object) -> dict[str, list[str]]:
        command(**(settings | dict(out_dir=tmp_path / "study", plan="tokens", train=TRAIN) | arguments))
        assert not (tmp_path / "study").exists()
        lines = [line.split() for line in capsys.readouterr().out.splitlines()]
        return {line[0]: line[2:] for line in lines if line and line[0] in ("neox-16", "neox-48")}

    return plan


def test_costs_are_those_of_the_runs_that_have_not_ended(make_spec):
    runs = [StudyRun(f"seed-{seed}", make_spec(f"seed-{seed}", seed=seed)) for seed in (1, 2, 3)]
    carry_out(runs[:1], say=lambda line: None)
    found, spec = costs(runs).iloc[0], runs[0].spec
    tokens = 2 * 4 * 4 * 64  # runs, steps, sequences, block
    assert (found["runs"], found["finished"], found["tokens"]) == (3, 1, tokens)
    assert found["hoffmann_flops"] == tokens * hoffmann_flops_per_token(spec.config, spec.block_size)
    assert not runs[1].spec.out_dir.exists()
    assert told_costs(costs(runs[:1])).splitlines()[-2].split()[:5] == ["in", "all", "1", "1", "0"]


def test_flops_and_tokens_beyond_2_to_the_63_are_told_as_they_are(make_spec, tmp_path):
    spec = make_spec("long", max_steps=10**16, tokens_per_param=5e13)
    runs = [StudyRun(f"seed-{n}", replace(spec, out_dir=tmp_path / str(n))) for n in range(50)]
    found = costs(runs).iloc[0]
    assert found["tokens"] == 50 * spec.max_tokens > 2**63
    assert found["hoffmann_flops"] == 50 * spec.flops(spec.max_tokens)["hoffmann_flops"]
    last = told_costs(costs(runs), time=False).splitlines()[-2].split()
    assert last[:5] == ["in", "all", "50", "0", f"{found['tokens']:,}"] and float(last[5]) > 1e23


def test_a_planned_study_trains_nothing_and_counts_bases_and_runs_from_scratch(planned, tiny):
    found = planned(
        warmstart_ablations.setup, base=tiny[16], target=tiny[48], arms=[dict(shrink=[0.4, 1.0])], seeds="1,2",
        base_tokens_per_param=0.05, tokens_per_param=0.02, lr=0.02,
    )  # fmt: skip
    assert {model: row[1:3] for model, row in found.items()} == {"neox-16": ["1", "0"], "neox-48": ["6", "0"]}


def test_a_chain_is_planned_with_its_run_from_scratch_and_timed(planned, tiny):
    found = planned(
        warmstart_successive.setup, scales=[tiny[16], tiny[48]], tokens_per_param=0.05, lr=0.02, plan="time"
    )
    assert {model: row[1:3] for model, row in found.items()} == {"neox-16": ["1", "0"], "neox-48": ["2", "0"]}
    tokens, tokens_per_sec, seconds = (float(found["neox-48"][column].replace(",", "")) for column in (3, -3, -2))
    assert seconds == pytest.approx(tokens / tokens_per_sec, rel=0.01) and found["neox-48"][-1] == "s"


def test_grids_of_several_scales_are_planned_together_and_searched_each_in_a_folder_of_its_own(
    planned, settings, tiny, tmp_path
):
    grid = dict(target=f"{tiny[16]},{tiny[48]}", lrs="0.01,0.02", batch_sizes="4", seeds="1",
                train=TrainArgs(max_tokens=512, micro_batch_size=4))  # fmt: skip
    found = planned(warmstart_grid_search.setup, **grid)
    assert {model: row[:4] for model, row in found.items()} == dict.fromkeys(
        ("neox-16", "neox-48"), ["4", "2", "0", "1,024"]
    )
    warmstart_grid_search.setup(**settings, **grid, out_dir=tmp_path / "study")
    for name in ("neox-16", "neox-48"):
        assert (tmp_path / "study" / name / "best/lit_model.pth").is_file()
        assert (tmp_path / "study" / name / "grid_search.csv").is_file()
