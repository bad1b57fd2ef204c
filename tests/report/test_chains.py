"""Chains: the compute of a whole lineage, one answer over seeds, two ways to one scale side by side."""

import shutil

import pytest

from litgpt_warmstart.report.chains import (
    at_equal_compute_of,
    beside_verdict,
    chain_path,
    chain_verdict,
    chains,
    over_seeds,
    parent,
    way_labels,
)
from litgpt_warmstart.report.compare import compare_all
from litgpt_warmstart.report.runs import find
from litgpt_warmstart.report.write import write_report
from tests.report.conftest import FLOPS_PER_TOKEN, PER_STEP


def rows(make_run) -> dict[str, dict]:
    return {row["run"]: row for row in find([make_run.folder]).rows()}


def test_a_parent_is_told_by_its_weights(study):
    found = rows(study)
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


def linked(ways):
    runs = find([ways.folder])
    return chains(runs, compare_all(runs))


def test_a_chain_is_compared_at_the_compute_of_its_whole_lineage(make_run):
    base = make_run("base", [9.0, 8.0, 7.0], width=16, steps=12)
    mid = make_run("mid", [6.0, 5.0, 4.0, 3.0], shrink=0.6, base=base)
    make_run("end", [5.0, 4.0, 3.0, 2.0], width=96, shrink=0.4, base=mid, start_token=9)
    make_run("big", [8.0, 5.0, 4.0, 3.0], width=96, steps=60)
    (chain,) = linked(make_run)
    assert [run["run"] for run in chain.stages] == ["base", "mid", "end"]
    assert chain.scratch and chain.scratch["run"] == "big" and chain.finished
    before = PER_STEP * (12 * FLOPS_PER_TOKEN[16] + 40 * FLOPS_PER_TOKEN[48])
    assert chain.flops == pytest.approx(before + 40 * PER_STEP * FLOPS_PER_TOKEN[96])
    assert chain.flops_to_scratch_loss == pytest.approx(before + 27 * PER_STEP * FLOPS_PER_TOKEN[96])  # loss 3 at 27
    assert chain.share == pytest.approx(chain.flops_to_scratch_loss / (60 * PER_STEP * FLOPS_PER_TOKEN[96]))


def test_chains_that_differ_in_their_seeds_are_one_group(ways):
    groups = over_seeds(linked(ways))
    assert sorted((len(group[0].stages), [c.stages[-1]["seed"] for c in group]) for group in groups) == [
        (2, [1, 2, 3]),
        (3, [1, 2, 3]),
    ]


def test_ways_of_other_compute_or_other_settings_are_not_compared(ways, make_run):
    base = make_run.folder / "base"
    for name, changes in (("long", dict(steps=2 * DIRECT_STEPS)), ("hot", dict(steps=DIRECT_STEPS, base_lr=0.5))):
        make_run(name, [6.0, 5.0, 4.0, 3.5], width=96, seed=1, shrink=0.9, base=base, **changes)
        make_run(f"scratch-{name}", [8.0, 6.0, 5.0, 3.4], width=96, seed=1, **changes)
    assert len(at_equal_compute_of(linked(ways))) == 1


def test_the_compute_before_a_chain_counts_though_its_run_is_not_given(ways):
    with_base = {chain.stages[-1]["run"]: chain.flops for chain in linked(ways) if len(chain.stages) == 3}
    shutil.rmtree(ways.folder / "base")
    without = {chain.stages[-1]["run"]: chain.flops for chain in linked(ways) if len(chain.stages) == 2}
    assert without == pytest.approx(with_base)
    assert chain_path(linked(ways)[0]).startswith("neox-16 (0.001M) → neox-")


def test_a_chains_answer_is_the_mean_over_seeds_with_its_interval(ways):
    group = next(group for group in over_seeds(linked(ways)) if len(group[0].stages) == 3)
    told = chain_verdict(group)
    assert "validation loss is 3.1000; from scratch it is 3.4000" in told and "means over 3 seeds" in told
    half = 4.303 * 0.1 / 3**0.5
    assert f"Difference: -0.3000 ({-0.3 - half:+.4f} to {-0.3 + half:+.4f})" in told
    assert "The chain reached that loss after" in told


def test_two_ways_of_equal_compute_are_compared_seed_by_seed(ways):
    ((a, b),) = at_equal_compute_of(linked(ways))
    assert {len(a[0].stages), len(b[0].stages)} == {2, 3} and a[0].flops == pytest.approx(b[0].flops, rel=0.05)
    assert "neox-48 (0.0102M) → neox-96 (0.041M) is ahead" in beside_verdict(a, b)
    assert "means over 3 seeds" in beside_verdict(a, b)


def test_one_seed_has_no_interval_and_no_winner(make_run):
    base = make_run("base", [9.0, 7.0], width=16, steps=10)
    mid = make_run("mid", [6.0, 4.0], shrink=0.4, base=base, steps=20)
    make_run("end", [5.0, 4.0, 3.0], width=96, shrink=0.4, base=mid, steps=30)
    make_run("direct", [6.0, 5.0, 3.5], width=96, shrink=0.4, base=base, steps=DIRECT_STEPS)
    make_run("scratch", [8.0, 6.0, 3.4], width=96, steps=DIRECT_STEPS + 2)
    sections = write_report([make_run.folder], make_run.folder.parent / "report")
    page = " ".join(answer for section in sections for answer in section.answers)
    told = page.partition("of the whole lineage the last validation losses are ")[2]
    first, second = told[:6], told[11:17]
    assert {first, second} == {"3.0000", "3.5000"}
    assert f"difference {float(first) - float(second):+.4f} (no interval: one seed): not told apart" in told
    (table,) = sections[1].tables
    assert list(table.frame["run"]) == ["base", "direct", "scratch", "base", "mid", "end", "scratch"]
    assert [figure.name for figure in sections[1].figures] == ["successive-1"]


def test_chains_that_share_a_run_from_scratch_have_no_interval(ways):
    for seed in (2, 3):
        shutil.rmtree(ways.folder / f"scratch-{seed}")
    groups = [group for group in over_seeds(linked(ways)) if len(group[0].stages) == 3]
    assert sorted(len(group) for group in groups) == [1, 2]
    told = [chain_verdict(group) for group in groups]
    assert all("no interval: one seed" in words and "over" not in words.partition("tokens per")[2] for words in told)
    assert sum("from scratch with another seed it is" in words for words in told) == 1


def test_ways_over_the_same_scales_are_told_apart_by_how_they_grew(ways, make_run):
    for seed in (1, 2, 3):
        make_run(
            f"whole-{seed}", [6.0, 5.0, 4.0, 3.6], width=96, seed=seed, shrink=1.0, base=make_run.folder / "base",
            steps=DIRECT_STEPS,
        )  # fmt: skip
    pairs = [(a, b) for a, b in at_equal_compute_of(linked(ways)) if len(a[0].stages) == len(b[0].stages) == 2]
    ((a, b),) = pairs
    labels = way_labels(a[0], b[0])
    assert labels[0] != labels[1] and "shrink 1" in " ".join(labels)
    assert beside_verdict(a, b).endswith(f"{next(w for w in labels if 'shrink 0.4' in w)} is ahead.")
