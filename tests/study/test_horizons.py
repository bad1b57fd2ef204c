"""The table of what is saved: against hand-made runs whose numbers can be done in the head."""

import math
from dataclasses import replace
from types import SimpleNamespace

import pandas
import pytest

from litgpt_warmstart.method.growth import Growth
from litgpt_warmstart.report.runs import Found, Run, find
from litgpt_warmstart.run.record import Ancestor
from litgpt_warmstart.study import horizons
from litgpt_warmstart.study.arms import Arm
from litgpt_warmstart.study.horizons import Trained, answers, best_scratch, section, shown
from tests.report.conftest import Maker
from tests.study.conftest import rows

PAPER = Arm("small", "large", Growth(), tokens_per_param=60.0)
SCRATCH = PAPER.scratch


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Run:
    """A run of 40,960 parameters with 512 tokens a step."""
    (run,) = find([Maker(tmp_path_factory.mktemp("runs"))("made", [9.0, 8.0], width=96)]).runs
    return run


def run(
    made: Run, arm: Arm, seed: int, losses: dict[float, float], cooled: dict[float, float] | None = None, **base: float
) -> Trained:
    """A run with losses at tokens per parameter; ``base`` has the tokens and FLOPs of a model of 10,000 parameters."""
    one = Trained(arm, made, pandas.Series())
    at = pandas.Series({float(one.tokens_at(place)): loss for place, loss in losses.items()})
    forks = {math.log(one.tokens_at(place)): loss for place, loss in (cooled or {}).items()}
    record = replace(made.record, lineage=(Ancestor("small", "", "0" * 64, 10_000),) * bool(base))
    own = replace(made, seed=seed, val_losses=at, record=record, **base)
    return Trained(arm, own, pandas.Series(forks, dtype=float))


def test_a_curve_is_told_at_equal_tokens_at_equal_compute_and_by_the_tokens_it_needs(made):
    scratch = [run(made, SCRATCH, seed, {0: 7.0, 20: 5.0 + less, 60: 3.0}) for seed, less in ((1, 0.1), (2, -0.1))]
    whole = scratch[0].tokens_at(20)
    base = dict(base_tokens=whole // 4, base_flops=whole * made.flops_per_token / 10)
    warm = [run(made, PAPER, seed, {0: 6.0, 20: 4.0 + less, 60: 2.0}, **base) for seed, less in ((1, 0.2), (2, -0.2))]
    names = {SCRATCH: "from scratch", PAPER: "paper"}
    first, second = answers([*scratch, *warm], names, [20], []).to_dict("records")
    assert (first["arm"], second["arm"], second["scratch"]) == ("from scratch", "paper", "from scratch")
    assert (first["loss"], second["loss"], second["scratch_loss"]) == pytest.approx((5, 4, 5))
    assert second["less_scratch"] == second["less_scratch_paired"] == pytest.approx(-1)
    # variances 0.02 and 0.08 of two each: sqrt(0.05) and 1.47 degrees of freedom, down to 1; pairs differ by 0.1 twice
    assert second["less_scratch_high"] + 1 == pytest.approx(12.706 * math.sqrt(0.05), rel=1e-4)
    assert second["less_scratch_paired_high"] + 1 == pytest.approx(12.706 * 0.1, rel=1e-4)
    # the base has taken a tenth of the compute: 0.9 of the way from 6 to 4
    assert second["at_equal_compute"] == pytest.approx(4.2 - 5, abs=1e-3)
    # 5 is reached after 1 / 1.8 and 1 / 2.2 of the way
    assert second["share"] == pytest.approx((1 / 1.8 + 1 / 2.2) / 2, rel=1e-3) and second["reached"] == 2
    assert second["saved_with_base"] == pytest.approx(second["saved"] - 0.1) == pytest.approx(0.9 - second["share"])
    assert second["limit_tokens"] == pytest.approx(0.25, rel=1e-3) and second["beyond"]
    assert second["limit_tokens_with_base"] == pytest.approx(0.15, rel=1e-3)
    assert math.isnan(first["share"]) and math.isnan(first["less_scratch"]) and not first["beyond"]
    text = shown(pandas.DataFrame([first, second])).to_string()
    assert "51% (2 of 2)" in text and "49%" in text and "39% beyond" in text and "5.0000" in text


def test_cooled_losses_are_interpolated_in_the_logarithm_of_tokens_and_told_only_between_horizons(made):
    scratch = run(made, SCRATCH, 1, {0: 9.0, 60: 8.0}, {5: 6.0, 20: 4.0, 60: 3.0})
    base = dict(base_tokens=256, base_flops=scratch.tokens_at(20) * made.flops_per_token / 2)
    warm = run(made, PAPER, 1, {0: 9.0, 60: 8.0}, {5: 5.0, 20: 3.0, 60: 2.0}, **base)
    names = {SCRATCH: "from scratch", PAPER: "paper"}
    found = answers([scratch, warm], names, [], [5, 20, 60]).query("arm == 'paper'").to_dict("records")
    assert [row["rate"] for row in found] == ["cooled"] * 3
    assert [row["less_scratch"] for row in found] == pytest.approx([-1, -1, -1])
    assert math.isnan(found[0]["less_scratch_low"])  # of one seed
    # the lineage's compute at 20: 10 of its own, half of the way from 5 to 20 in logarithms
    assert [row["at_equal_compute"] for row in found][1:] == pytest.approx([4 - 4, 2.17 - 3], abs=0.01)
    assert math.isnan(found[0]["at_equal_compute"])
    # scratch's 6 is above all that is known of the warmstart; its 4 lies half of the way from 5 to 20
    assert [row["share"] for row in found] == pytest.approx([math.nan, 0.5, 1 / 3], nan_ok=True, abs=1e-3)
    assert shown(pandas.DataFrame(found))["tokens"][0] == "-"


def test_nothing_is_saved_where_a_seed_never_comes_to_scratchs_loss(made):
    scratch = [run(made, SCRATCH, seed, {0: 7.0, 20: 5.0}) for seed in (1, 2)]
    warm = [run(made, PAPER, seed, {0: 6.0, 20: last}) for seed, last in ((1, 4.0), (2, 5.5))]
    row = answers([*scratch, *warm], {SCRATCH: "from scratch", PAPER: "paper"}, [20], []).iloc[1]
    assert row["share"] == pytest.approx(0.5, rel=1e-3) and row["reached"] == 1 and math.isnan(row["saved"])
    assert shown(row.to_frame().T)[["tokens", "saved", "with base"]].iloc[0].tolist() == ["50% (1 of 2)", "-", "-"]


def test_scratch_is_as_good_as_it_gets_at_each_horizon(made):
    slow, fast = (replace(SCRATCH, lr_factor=factor, tokens_per_param=20.0) for factor in (0.5, 2.0))
    trained = [
        run(made, SCRATCH, 1, {0: 7.0, 20: 5.0, 60: 3.0}), run(made, slow, 1, {0: 7.0, 20: 5.5}),
        run(made, fast, 1, {0: 7.0, 20: 4.5}), run(made, PAPER, 1, {0: 6.0, 20: 4.0, 60: 3.5}),
    ]  # fmt: skip
    names = {SCRATCH: "1", slow: "0.5", fast: "2", PAPER: "paper"}
    found = answers(trained, names, [20, 60], []).set_index(["arm", "tokens_per_param"])
    assert found.loc[("paper", 20), "scratch"] == "2" and found.loc[("paper", 60), "scratch"] == "1"
    assert found.loc[("paper", 20), "less_scratch"] == pytest.approx(-0.5)
    assert found.loc[("0.5", 20), "less_scratch"] == pytest.approx(1.0) and ("0.5", 60) not in found.index
    # a rate at which a seed has diverged is not the best
    losses = {SCRATCH: pandas.Series([5.0, 5.0]), fast: pandas.Series([4.0])}
    assert best_scratch(PAPER, losses) == SCRATCH
    wsd = replace(PAPER, schedule="wsd")
    assert best_scratch(wsd, losses) is None and not horizons.tells_of(wsd, 20)


def test_the_page_has_the_table_of_each_study(made, tmp_path):
    trained = [run(made, SCRATCH, 1, {0: 7.0, 60: 3.0}), run(made, PAPER, 1, {0: 6.0, 60: 2.5})]
    table = answers(trained, {SCRATCH: "from scratch", PAPER: "shrink 0.4"}, [60], [])
    table.to_csv(tmp_path / "one-horizons.csv", index=False)
    (tmp_path / "two-horizons.csv").write_text("arm,rate\nx\n")
    found: Found = SimpleNamespace(results={horizons.RESULTS: [tmp_path]})
    assert "damaged" in section(found).notes[0]
    (tmp_path / "two-horizons.csv").unlink()
    (part,) = section(found).parts
    assert part.tables[0].caption == "one" and part.tables[0].shown.equals(shown(table))
    assert len(rows(tmp_path / "one-horizons.csv")) == 2
    assert section(SimpleNamespace(results={horizons.RESULTS: []})) is None
