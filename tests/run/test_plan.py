"""A plan says what a run will take, warns where growth that large seldom pays, and touches nothing."""

import itertools
import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from jsonargparse import ArgumentParser, set_parsing_settings
from litgpt.data import TextFiles

from litgpt_warmstart.commands import warmstart_plan
from litgpt_warmstart.data import SlimPajama6B, prepared_text
from litgpt_warmstart.data.preparing import hub
from litgpt_warmstart.method.flops import matmul_flops_per_token
from litgpt_warmstart.method.growth import Growth, check_growable
from litgpt_warmstart.method.limits import limits
from litgpt_warmstart.method.scales import SCALES, resolve_config
from litgpt_warmstart.run import plan as run_plan
from litgpt_warmstart.run import tuning
from litgpt_warmstart.run.checkpoint import Header, read_header
from litgpt_warmstart.run.plan import base_figures, duration, make_plan, parameter_count, route
from litgpt_warmstart.run.record import Record
from litgpt_warmstart.run.resolve import resolve
from litgpt_warmstart.run.spec import RunArgs, TrainArgs
from tests.conftest import llama, neox

ROOT = Path(__file__).parents[2]

NAMES = [scale.short_name for scale in SCALES]


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


def planned(base: Path, target: str, capsys, tmp_path: Path, **changes) -> tuple[str, dict]:
    """What the command prints, and its JSON."""
    file = tmp_path / "plan.json"
    capsys.readouterr()
    arguments = dict(measure=False, compile=False, precision="32-true") | changes
    warmstart_plan.setup(base=base, target=target, json=file, **arguments)
    return capsys.readouterr().out, json.loads(file.read_text())


def table_plan(base: str, target: str, tmp_path: Path, **changes) -> dict:
    """A plan for base -> target of Table 1, with the paper's settings; data that is not prepared."""
    header = Header(tmp_path, resolve_config(base), None)
    arguments = dict(mup_base=base, data=SlimPajama6B(tmp_path / "none"), precision="32-true") | changes
    spec = resolve("warmstart", target, header, Growth(), tmp_path, RunArgs(**arguments), {})
    return make_plan(spec, header, measured=False)[1]


def test_a_warmstarts_config_file_is_a_plans_too():
    paths = [*(ROOT / "configs" / "warmstart").glob("*.yaml")]
    assert paths
    for path in paths:
        set_parsing_settings(docstring_parse_attribute_docstrings=True)
        parser = ArgumentParser(exit_on_error=False)
        parser.add_function_arguments(warmstart_plan.setup)
        assert parser.parse_path(str(path)).target


def test_a_plan_says_what_the_run_then_records(warm, base, tiny, tiny_settings, capsys, tmp_path):
    train = TrainArgs(max_steps=3, micro_batch_size=4)
    told, plan = planned(base, tiny[48], capsys, tmp_path, train=train)
    record = Record.load(warm(train=train, data=None) / "final/warmstart.yaml")
    target, source, ancestor = plan["target"], plan["base"], record.lineage[0]
    for name in ("name", "parameters", "tokens", "matmul_flops", "hoffmann_flops"):
        assert target[name] == getattr(record, name), name
        assert source[name] == getattr(ancestor, name), name
    assert record.hoffmann_flops > record.matmul_flops > 0 and ancestor.hoffmann_flops > 0
    assert plan["steps"] == record.step_count and plan["width_growth"] == 3
    blocks = tiny_settings["data"]
    assert plan["tokens_left"] == (blocks.num_blocks("train", 64) - 10 * 8) * 64
    assert f"{target['parameters']:,} parameters" in told and "time was not measured" in told


def test_a_plan_for_the_papers_pair_has_the_counts_worked_out_by_hand(tmp_path):
    plan = table_plan("5M", "70M", tmp_path)
    base, target = plan["base"], plan["target"]
    assert (base["parameters"], target["parameters"]) == (4_998_912, 70_426_624)
    assert plan["parameter_growth"] == pytest.approx(14.0884, abs=1e-4) and plan["width_growth"] == 512 / 48
    assert plan["tokens_per_step"] == 64 * 1024 and plan["steps"] == 20 * 70_426_624 // (64 * 1024) == 21_492
    assert target["tokens"] == 21_492 * 64 * 1024 and 19.99 < plan["tokens_per_param"] <= 20
    assert target["hoffmann_flops"] == target["tokens"] * 460_947_456
    assert target["matmul_flops"] == target["tokens"] * matmul_flops_per_token(resolve_config("70M"), 1024)
    assert plan["state_bytes"] == 70_426_624 * 16  # fp32 weight, gradient, two moments
    assert base["tokens"] is base["matmul_flops"] is base["hoffmann_flops"] is None  # no record tells
    assert table_plan("5M", "70M", tmp_path, precision="bf16-true")["state_bytes"] == 70_426_624 * 8


# --- growth that large --------------------------------------------------------------------------------------------


def test_growth_of_14x_at_20_tokens_per_parameter_is_warned_of_with_the_stages_instead(tmp_path):
    plan = table_plan("5M", "70M", tmp_path)
    assert plan["route"] == ["5M", "10M", "22M", "35M", "70M"]
    assert plan["warnings"] == [
        "growth by 14.1x in parameters at 20 tokens per parameter seldom pays: arXiv 2605.13405 found about 2x per step"
        " the most reliable, and the gains largest below 20 tokens per parameter; by stages instead: 5M -> 10M -> 22M"
        " -> 35M -> 70M (2.1x, 2.1x, 1.6x, 2.0x)",
    ]


@pytest.mark.parametrize(("base", "target"), itertools.pairwise(NAMES))
def test_growth_by_about_twice_is_not_warned_of(tmp_path, base, target):
    plan = table_plan(base, target, tmp_path, lr=0.01, train=TrainArgs(global_batch_size=64))
    assert plan["warnings"] == plan["route"] == [] and 1.5 < plan["parameter_growth"] < 2.2


def test_large_growth_below_20_tokens_per_parameter_is_not_warned_of(tmp_path):
    for tokens, warned in ((19.0, 0), (20.0, 1), (30.0, 1)):
        plan = table_plan("5M", "70M", tmp_path, tokens_per_param=tokens)
        assert len(plan["warnings"]) == warned, tokens


def test_routes_over_table_1_are_those_nearest_to_twice():
    expected = {
        ("5M", "22M"): "5M 10M 22M",
        ("5M", "35M"): "5M 10M 22M 35M",
        ("10M", "35M"): "10M 22M 35M",
        ("10M", "70M"): "10M 22M 35M 70M",
        ("22M", "70M"): "22M 35M 70M",
        ("35M", "70M"): "35M 70M",
    }
    for (base, target), stages in expected.items():
        found = route(resolve_config(base), resolve_config(target))
        assert [config.name for config in found] == [resolve_config(name).name for name in stages.split()]


@settings(max_examples=10)
@given(classes=st.sampled_from([4096, 50304]), width=st.integers(2, 20), factor=st.integers(2, 30))
@example(4096, 2, 2)
def test_a_routes_stages_can_be_grown_from_one_another_and_its_worst_growth_is_no_worse_than_at_once(
    classes, width, factor
):
    vocabulary = dict(n_layer=6, vocab_size=classes, padded_vocab_size=classes)
    source, target = (neox(16 * n, n, **vocabulary) for n in (width, width * factor))
    way = route(source, target)
    sizes = [parameter_count(config) for config in way]
    for (one, two), (small, large) in zip(itertools.pairwise(way), itertools.pairwise(sizes), strict=True):
        check_growable(one, two)
        assert one.n_embd < two.n_embd
        assert abs(math.log(large / small / 2)) <= max(1e-9, abs(math.log(sizes[-1] / sizes[0] / 2)))
    assert way[0] is source and way[-1] is target


def test_where_no_scale_is_of_the_same_kind_there_is_no_route():
    source, target = llama(16, 4), llama(512, 16)
    assert route(source, target) == (source, target)
    told = run_plan.growth_warning(40.0, 20.0, (source, target))
    assert told.endswith("no scale of Table 1 makes nearer steps. Compare it with a run from scratch")


# --- what the base has cost ---------------------------------------------------------------------------------------


def test_the_bases_flops_are_its_whole_lineages_and_unknown_where_a_record_lacks_them(warm, base):
    header = read_header(base)
    own = header.record
    older = replace(own, hoffmann_flops=0)
    assert base_figures(replace(header, record=older)) == base_figures(header)  # its config and block size tell
    grown = read_header(warm(train=TrainArgs(max_steps=1)) / "final")
    figures, last = base_figures(grown), grown.record
    assert figures.tokens == own.tokens + last.tokens
    assert figures.matmul_flops == own.matmul_flops + last.matmul_flops
    assert figures.hoffmann_flops == own.hoffmann_flops + last.hoffmann_flops
    ancestor = last.lineage[0]
    for lacking, tokens, hoffmann in (
        (replace(ancestor, hoffmann_flops=0), figures.tokens, None),
        (replace(ancestor, tokens=0), None, None),
    ):
        found = base_figures(replace(grown, record=replace(last, lineage=(lacking,))))
        assert (found.tokens, found.hoffmann_flops) == (tokens, hoffmann)


# --- nothing is touched -------------------------------------------------------------------------------------------


def test_data_that_is_not_prepared_is_neither_downloaded_nor_prepared(base, tiny, tmp_path, capsys, monkeypatch):
    for module, name in ((prepared_text, "prepare"), (hub, "tokenizer_files")):
        monkeypatch.setattr(module, name, lambda *_: pytest.fail("fetched"))
    monkeypatch.chdir(tmp_path)
    train = TrainArgs(max_steps=2)
    told, plan = planned(base, tiny[48], capsys, tmp_path, data=SlimPajama6B(), train=train)
    assert plan["tokens_left"] is None and "SlimPajama6B is not prepared here" in told
    told, plan = planned(base, tiny[48], capsys, tmp_path, data=TextFiles(tmp_path / "none"), train=train)
    assert plan["tokens_left"] is None and "TextFiles does not tell" in told
    assert [path.name for path in tmp_path.iterdir()] == ["plan.json"]


def test_a_measured_plan_leaves_no_file_behind(base, tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(run_plan, "LEAST_SECONDS", 0.0)
    monkeypatch.chdir(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in base.rglob("*")}
    warmstart_plan.setup(base=base, target=tiny[48], compile=False, train=TrainArgs(max_steps=2))
    assert not list(tmp_path.iterdir()) and {p: p.stat().st_mtime_ns for p in base.rglob("*")} == before
    assert "GB at the measured peak" in capsys.readouterr().out


def test_a_budget_beyond_the_data_is_warned_of_with_what_is_left(base, tiny, capsys, tmp_path):
    told, plan = planned(base, tiny[48], capsys, tmp_path, train=TrainArgs(max_tokens=10**9))
    assert plan["warnings"][0].startswith("the run would be refused: the data is too short: ") and "Warning: " in told
    assert f"{plan['tokens_left']:,} left of" in plan["warnings"][0]


# --- the measurement ----------------------------------------------------------------------------------------------


def test_a_measured_step_is_its_micro_batches_and_its_update_and_the_run_is_its_steps(
    base, tiny, capsys, tmp_path, monkeypatch
):
    times = iter([5.0, 2.0, 3.0, *([2.0, 2.5, 1.0] * 10)])  # first, warm, warm update; then two micro-batches, update
    monkeypatch.setattr(run_plan, "LEAST_SECONDS", 0.0)

    def seconds(work, device):
        work()
        return next(times)

    monkeypatch.setattr(run_plan, "_timed", seconds)
    train = TrainArgs(max_steps=7, micro_batch_size=2, max_time=10.0)
    told, plan = planned(base, tiny[48], capsys, tmp_path, train=train, measure=True)
    found = plan["measurement"]
    assert (found["micro_batch_seconds"], found["update_seconds"], found["compile_seconds"]) == (2.25, 1.0, 0.0)
    assert found["step_seconds"] == 4 * 2.25 + 1.0 and found["run_seconds"] == 70.0
    assert found["tokens_per_sec"] == 8 * 64 / 10.0 and found["micro_batches"] == 4
    assert plan["warnings"] == ["--train.max_time 10 ends the run after about 14% of its tokens"]
    assert "70 s for 7 steps of 10 s" in told and "micro-batch 2 (as asked)" in told


def test_a_measurement_runs_the_targets_own_step_and_its_memory_is_at_least_the_state(base, tiny, capsys, tmp_path):
    train = TrainArgs(max_steps=7)
    _, plan = planned(base, tiny[48], capsys, tmp_path, train=train, measure=True)
    found = plan["measurement"]
    assert found["step_seconds"] > found["micro_batch_seconds"] > 0 and found["micro_batch_size"] == 4
    assert found["matmul_flops_per_sec"] / found["tokens_per_sec"] == pytest.approx(
        plan["target"]["matmul_flops"] / plan["target"]["tokens"]
    )
    assert found["peak_bytes"] > plan["state_bytes"] + 10**8


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="no peak can be forgotten here")
def test_memory_of_trials_is_not_in_the_peak(base, tiny, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(run_plan, "LEAST_SECONDS", 0.0)
    monkeypatch.setattr(tuning, "TRIAL_SECONDS", 0.0)
    monkeypatch.setattr(tuning, "WORTH", 0)
    peaks = []
    for gibibytes in (0, 1):

        def measured(*_, gibibytes: int = gibibytes) -> float:
            torch.ones(gibibytes * 2**28)
            return 1.0

        monkeypatch.setattr(tuning, "_seconds_per_sequence", measured)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / f"cache-{gibibytes}"))
        _, plan = planned(base, tiny[48], capsys, tmp_path, train=TrainArgs(max_steps=7), measure=True)
        assert "tokens/s by size" in plan["measurement"]["choices"]
        peaks.append(plan["measurement"]["peak_bytes"])
    assert peaks[1] < peaks[0] + 2**29


def test_memory_that_ends_is_one_line(base, tiny, tmp_path, monkeypatch, capsys, refused):
    def fail(*_):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(run_plan, "_timed", fail)
    train = TrainArgs(max_steps=2, micro_batch_size=4)
    told = refused(planned, base, tiny[48], capsys, tmp_path, train=train, measure=True)
    assert "too small for a micro-batch of 4" in told


@pytest.mark.slow
def test_the_peak_is_within_a_quarter_of_a_short_runs(stdlib_path, tmp_path):
    out = tmp_path / "plan.json"
    script = ROOT / "benchmarks/plan.py"
    arguments = ["--target", "22M", "--steps", "2", "--rounds", "1", "--data_path", stdlib_path, "--out", out]
    subprocess.run([sys.executable, script, *arguments], check=True)
    assert 0.75 < json.loads(out.read_text())["memory_ratio"]["median"] < 1.25


def test_durations_are_in_units_that_a_reader_takes_in():
    assert [duration(s) for s in (3.0, 119.0, 120.0, 7200.0, 5e5)] == ["3 s", "119 s", "2.0 minutes", "2.0 hours",
                                                                    "5.8 days"]  # fmt: skip


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_a_plan_of_several_devices_says_what_each_has_and_sends(base, tiny, tiny_settings, capsys, tmp_path, strategy):
    settings = {name: tiny_settings[name] for name in ("data", "precision")} | dict(strategy=strategy, devices=4)
    train = TrainArgs(global_batch_size=32, micro_batch_size=2, max_steps=2)  # 2 micro-batches of a device
    rate = dict(interconnect_gb_per_sec=0.001)
    told, figures = planned(base, tiny[48], capsys, tmp_path, train=train, num_nodes=2, **rate, **settings)
    parameters = 2 * 4096 * 48 + 2 * 48 + 2 * (12 * 48 * 48 + 13 * 48)
    blocks = parameters - 2 * 4096 * 48 - 2 * 48
    found = figures["devices"]
    assert found["devices"] == 8 and found["strategy"] == strategy and figures["target"]["parameters"] == parameters
    if strategy == "ddp":
        assert found["state_bytes"] == 16 * parameters and found["gathered_bytes"] == 0
        assert found["sent_bytes_per_step"] == round(2 * 7 / 8 * 4 * parameters)
    else:
        assert found["state_bytes"] == 2 * parameters
        assert found["gathered_bytes"] == 4 * (2 * (parameters - blocks) + 3 * blocks // 2)
        assert found["sent_bytes_per_step"] == round(2 * 7 / 8 * 4 * (2 * parameters + blocks))
    assert found["sent_seconds_per_step"] == pytest.approx(found["sent_bytes_per_step"] / 1e6)
    assert f"Devices: 8, {strategy} (as asked); each has" in told


def test_a_budget_that_the_base_has_had_already_is_told_without_a_rate():
    (line,) = run_plan.savings_lines(limits((100, 300), (2_000, 500), (1_200.0, 900.0)))
    assert line == "Growth can save all of so short a training, but the base's took 1.3 times its compute"
