"""warmstart_plan --max_flops: pairs of scales for one budget."""

import json

import pytest

from litgpt_warmstart.commands import warmstart_plan
from litgpt_warmstart.errors import UserError
from litgpt_warmstart.method.flops import hoffmann_flops_per_token
from litgpt_warmstart.method.growth import Growth
from litgpt_warmstart.method.scales import resolve_config
from litgpt_warmstart.run.budget import DELTAS, propose


@pytest.mark.parametrize("max_flops", [1e17, 1e18, 1e20])
def test_each_proposal_takes_the_budget_and_grows_at_05_to_08_of_the_tokens(max_flops):
    found = propose(max_flops, Growth(), None)
    assert found and {one.delta for one in found} <= set(DELTAS)
    for one in found:
        base, target = (hoffmann_flops_per_token(resolve_config(name), 1024) for name in (one.base, one.target))
        assert one.base_tokens * base + one.target_tokens * target == pytest.approx(max_flops, rel=1e-4)
        assert one.base_tokens / (one.base_tokens + one.target_tokens) == pytest.approx(one.delta, rel=1e-4)
        assert one.loss_if_tokens < one.loss_if_loss and one.tokens_per_param >= 1
        assert one.reliable == (one.growth <= 2.5)
        no_worse = one.loss_if_loss <= one.scratch_loss
        assert no_worse or one.delta == min(DELTAS)  # the largest share that does no worse than from scratch
    assert [one.reliable for one in found] == sorted((one.reliable for one in found), reverse=True)
    best = [one.loss_if_tokens for one in found if one.reliable]
    assert best == sorted(best)


def test_a_larger_budget_proposes_larger_models():
    first = [propose(flops, Growth(), None)[0].target for flops in (3e15, 1e18)]
    sizes = [resolve_config(name).n_embd for name in first]
    assert sizes[0] < sizes[1]


def test_the_command_prints_what_to_type_and_keeps_it(tmp_path, capsys):
    path = tmp_path / "plan.json"
    warmstart_plan.setup(max_flops=1e18, json=path)
    told = capsys.readouterr().out.splitlines()
    assert told[0] == "For 1e+18 Hoffmann FLOPs, the base's included, by scales of Table 1:"
    (command,) = (line for line in told if "litgpt warmstart_successive --scales" in line)
    assert command.startswith("Take the first: litgpt warmstart_successive --scales ") and "--grow_at 0." in command
    held = json.loads(path.read_text())
    assert all(("--mup_base 5M" in one.command) == (one.base == "35M") for one in propose(1e18, Growth(), None))
    assert held["max_flops"] == 1e18 and held["proposals"][0]["limits"]["tokens"] >= 0.5
    warmstart_plan.setup(max_flops=2e18, json=path, operator="tile")  # it is a plan, and is replaced
    assert "Take the first, with the same options of growth: litgpt warmstart_successive" in capsys.readouterr().out


def test_bad_input_is_one_line(base, refused):
    with pytest.raises(UserError, match=r"--max_flops 1e\+10 is too small for any pair of scales: 5M -> 10M"):
        propose(1e10, Growth(), None)
    for given, told in (
        (dict(max_flops=1e10), "is too small for any pair"),
        (dict(max_flops=0.0), "--max_flops must be above 0"),
        (dict(max_flops=1e18, base=base), "leave --base and --target out"),
        (dict(max_flops=1e18, growth="quiet", operator="stack"), "no pair of them grows by --operator stack"),
        (dict(max_flops=1e18, target="70M"), "leave --base and --target out"),
    ):
        assert told in refused(warmstart_plan.setup, **given)
