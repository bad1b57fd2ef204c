"""Chains: the compute of a whole lineage, one answer over seeds, two ways to one scale side by side."""

import shutil

import pytest

from litgpt_warmstart.report.chains import (
    Chain,
    at_equal_compute,
    beside_verdict,
    chain_verdict,
    chains,
    finished,
    over_seeds,
    parent,
)  # fmt: skip
from litgpt_warmstart.report.compare import compare_all
from litgpt_warmstart.report.runs import find
from litgpt_warmstart.report.write import write_report
from tests.report.conftest import FLOPS_PER_TOKEN, PER_STEP


def test_a_parent_is_told_by_its_weights(study):
    found = {run.name: run for run in find([study.folder]).runs}
    assert parent(found["warm-1"], [found["base"]]) is found["base"]
    (study.folder / "base/final/lit_model.pth").write_bytes(b"trained again, as it happens")
    assert parent(found["warm-1"], [found["base"]]) is None


DIRECT_STEPS = 30 + round(20 * FLOPS_PER_TOKEN[48] / FLOPS_PER_TOKEN[96])


@pytest.fixture
def ways(make_run):
    """16 -> 48 -> 96 ends at 3.0, 3.1, 3.2 where 16 -> 96 ends at 3.5 and scratch at 3.4, 3.4, 3.4."""
    base = make_run("base", [9.0, 8.0, 7.0], width=16, steps=10)
    for seed in (1, 2, 3):
        mid = make_run(f"mid-{seed}", [6.0, 5.0, 4.0], seed=seed, shrink=0.4, base=base, steps=20)
        make_run(f"end-{seed}", [5.0, 4.0, 3.4, 2.9 + seed / 10], width=96, seed=seed, shrink=0.4, base=mid, steps=30)
        make_run(f"direct-{seed}", [6.0, 5.0, 4.0, 3.5], width=96, seed=seed, shrink=0.4, base=base, steps=DIRECT_STEPS)
        make_run(f"scratch-{seed}", [8.0, 6.0, 5.0, 3.4], width=96, seed=seed, steps=DIRECT_STEPS + 2)
    return make_run


def linked(ways) -> list[Chain]:
    found = find([ways.folder])
    return chains(found, compare_all(found))


def groups(ways, stages: int) -> list[list[Chain]]:
    return [group for group in over_seeds(linked(ways)) if len(group[0].stages) == stages]


def test_a_chain_is_compared_at_the_compute_of_its_whole_lineage(make_run):
    base = make_run("base", [9.0, 8.0, 7.0], width=16, steps=12)
    mid = make_run("mid", [6.0, 5.0, 4.0, 3.0], shrink=0.6, base=base)
    make_run("end", [5.0, 4.0, 3.0, 2.0], width=96, shrink=0.4, base=mid, start_token=9)
    make_run("big", [8.0, 5.0, 4.0, 3.0], width=96, steps=60)
    (chain,) = linked(make_run)
    assert [run.name for run in chain.runs] == ["base", "mid", "end", "big"] and finished(chain)
    before = PER_STEP * (12 * FLOPS_PER_TOKEN[16] + 40 * FLOPS_PER_TOKEN[48])
    assert chain.flops == pytest.approx(before + 40 * PER_STEP * FLOPS_PER_TOKEN[96])
    reached = before + 27 * PER_STEP * FLOPS_PER_TOKEN[96]  # loss 3 at 27
    assert chain.share == pytest.approx(reached / (60 * PER_STEP * FLOPS_PER_TOKEN[96]))


def test_chains_that_differ_in_their_seeds_are_one_group(ways):
    for stages in (2, 3):
        (group,) = groups(ways, stages)
        assert [chain.end.seed for chain in group] == [1, 2, 3]


def test_ways_of_other_compute_or_other_settings_are_not_compared(ways, make_run):
    base = make_run.folder / "base"
    for name, changes in (("long", dict(steps=2 * DIRECT_STEPS)), ("hot", dict(steps=DIRECT_STEPS, base_lr=0.5))):
        make_run(name, [6.0, 5.0, 4.0, 3.5], width=96, seed=1, shrink=0.9, base=base, **changes)
        make_run(f"scratch-{name}", [8.0, 6.0, 5.0, 3.4], width=96, seed=1, **changes)
    assert len(at_equal_compute(over_seeds(linked(ways)))) == 1


def test_the_compute_before_a_chain_counts_though_its_run_is_not_given(ways):
    with_base = {chain.end.name: chain.flops for chain in linked(ways) if len(chain.stages) == 3}
    shutil.rmtree(ways.folder / "base")
    without = {chain.end.name: chain.flops for chain in linked(ways) if len(chain.stages) == 2}
    assert without == pytest.approx(with_base)
    assert linked(ways)[0].path.startswith("neox-16 (0.001M) → neox-")


def test_a_chains_answer_is_the_mean_over_seeds_with_its_interval(ways):
    (group,) = groups(ways, 3)
    told, half = chain_verdict(group), 4.303 * 0.1 / 3**0.5
    assert "validation loss is 3.1000 (mean of 3 seeds); from scratch" in told and "it is 3.4000 (mean of" in told
    assert f"difference -0.3000 ({-0.3 - half:+.4f} to {-0.3 + half:+.4f})" in told
    assert "It reached that loss with 3 of 3 seeds: a speed-up of" in told


def test_two_ways_of_equal_compute_are_compared_seed_by_seed(ways):
    (seeds,) = at_equal_compute(over_seeds(linked(ways)))
    for a, b in seeds:
        assert {len(a.stages), len(b.stages)} == {2, 3} and a.flops == pytest.approx(b.flops, rel=0.05)
    told = beside_verdict(seeds)
    assert "neox-48 (0.0102M) → neox-96 (0.041M) is ahead" in told and "(mean of 3 seeds)" in told


def test_one_seed_has_no_interval_and_no_winner(make_run):
    base = make_run("base", [9.0, 7.0], width=16, steps=10)
    mid = make_run("mid", [6.0, 4.0], shrink=0.4, base=base, steps=20)
    make_run("end", [5.0, 4.0, 3.0], width=96, shrink=0.4, base=mid, steps=30)
    make_run("direct", [6.0, 5.0, 3.5], width=96, shrink=0.4, base=base, steps=DIRECT_STEPS)
    make_run("scratch", [8.0, 6.0, 3.4], width=96, steps=DIRECT_STEPS + 2)
    sections = write_report([make_run.folder], make_run.folder.parent / "report")
    page = " ".join(answer for section in sections for answer in section.answers)
    told = page.partition("of the lineage the last validation loss is ")[2]
    first, second = told[:6], told[11:17]
    assert {first, second} == {"3.0000", "3.5000"}
    assert f"difference {float(first) - float(second):+.4f} (no interval: one seed), not told apart" in told
    (table,) = sections[1].tables
    assert list(table.frame["run"]) == ["base", "direct", "scratch", "base", "mid", "end", "scratch"]
    assert [figure.name for figure in sections[1].figures] == ["successive-1"]


def test_chains_that_share_a_run_from_scratch_have_no_interval(ways):
    for seed in (2, 3):
        shutil.rmtree(ways.folder / f"scratch-{seed}")
    told = [chain_verdict(group) for group in groups(ways, 3)]
    assert sorted(len(group) for group in groups(ways, 3)) == [1, 2]
    assert all("no interval: one seed" in words and "(mean of" not in words for words in told)
    assert sum("from scratch with another seed" in words for words in told) == 1


def test_ways_over_the_same_scales_are_told_apart_by_how_they_grew(ways, make_run):
    for seed in (1, 2, 3):
        make_run(
            f"whole-{seed}", [6.0, 5.0, 4.0, 3.6], width=96, seed=seed, shrink=1.0, base=make_run.folder / "base",
            steps=DIRECT_STEPS,
        )  # fmt: skip
    (told,) = map(beside_verdict, at_equal_compute(groups(ways, 2)))
    first, _, second = told.partition(":")[0].partition(" beside ")
    assert {first[-10:], second[-10:]} == {"shrink 0.4", ", shrink 1"}
    assert told.endswith(f"{first if first.endswith('0.4') else second} is ahead.")
