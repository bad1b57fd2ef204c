"""Numbers are what they are said to be: the optimizer that was typed, one count of compute, the batch in the record."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from tests.guards.conftest import STEP, Command, training

BETAS = [0.9, 0.999]
ADAMW = {"class_path": "torch.optim.AdamW", "init_args": {"betas": BETAS, "weight_decay": 0.0}}
FORMS = {
    "class_path and init_args": ("--optimizer.class_path", "torch.optim.AdamW", "--optimizer.init_args.betas",
                                 "[0.9,0.999]"),
    "class_path and the argument": ("--optimizer.class_path", "AdamW", "--optimizer.betas", "[0.9,0.999]"),
    "a name and the argument": ("--optimizer", "AdamW", "--optimizer.betas", "[0.9,0.999]"),
    "a name and init_args": ("--optimizer", "torch.optim.AdamW", "--optimizer.init_args.betas", "[0.9,0.999]"),
    "the argument first": ("--optimizer.betas", "[0.9,0.999]", "--optimizer", "AdamW"),
    "the argument alone": ("--optimizer.betas", "[0.9,0.999]"),
    "init_args as a whole": ("--optimizer", "AdamW", "--optimizer.init_args", '{"betas": [0.9, 0.999]}'),
    "JSON": ("--optimizer", '{"class_path": "torch.optim.AdamW", "init_args": {"betas": [0.9, 0.999]}}'),
    "JSON, flat": ("--optimizer", '{"class_path": "AdamW", "betas": [0.9, 0.999]}'),
    "the class's module": ("--optimizer", "torch.optim.adamw.AdamW", "--optimizer.betas", "[0.9,0.999]"),
    "the class's own default too": ("--optimizer", '{"class_path": "AdamW", "betas": [0.9, 0.999], "eps": 1.0e-08}'),
    "YAML": {"class_path": "torch.optim.AdamW", "init_args": {"betas": BETAS}},
    "YAML, flat": {"class_path": "AdamW", "betas": BETAS},
    "YAML, no class": {"init_args": {"betas": BETAS}},
}  # fmt: skip
"""Ways to say AdamW with betas of 0.9 and 0.999; mappings stand in a config file."""


@pytest.fixture
def train(command: Command, models, from_text, tmp_path):
    """Train two steps with options, a config file's among them, and return the folder and what was printed."""

    def run(name: str, *options: object, in_file: dict | None = None, steps: int = 2) -> tuple[Path, str]:
        file = tmp_path / "config.yaml"
        file.write_text(yaml.safe_dump(in_file or {"seed": 42}))
        words = training(models[16], tmp_path / name, "--config", file, "--lr", 0.01, *from_text, steps=steps)
        told = command("warmstart_scratch", *words, *options)
        assert told.status == 0, told.err
        return tmp_path / name, told.out

    return run


def optimizer_of(run: Path) -> tuple[dict, dict, dict]:
    """An optimizer in hyperparameters.yaml, in the record, and what it really was."""
    told = yaml.safe_load((run / "final/hyperparameters.yaml").read_text())["optimizer"]
    recorded = yaml.safe_load((run / "final/warmstart.yaml").read_text())["training"]["optimizer"]
    state = torch.load(run / "final/training_state.pth", weights_only=True)["optimizer"]
    return told, recorded, state["param_groups"][0]


@pytest.mark.parametrize("form", FORMS)
def test_every_spelling_of_an_optimizer_trains_writes_and_prints_the_same(train, form):
    given = FORMS[form]
    run, out = train("run", in_file={"optimizer": given}) if isinstance(given, dict) else train("run", *given)
    told, recorded, used = optimizer_of(run)
    assert told == recorded == ADAMW
    assert list(used["betas"]) == BETAS and used["weight_decay"] == 0.0 and used["eps"] == 1e-8
    assert "AdamW, betas [0.9, 0.999], weight_decay 0.0" in out


@pytest.mark.parametrize(
    "given",
    [("--optimizer", "AdamW", "--optimizer.amsgrad", "true"), ("--optimizer.init_args.amsgrad", "true"),
     ("--optimizer", "{class_path: AdamW, init_args: {amsgrad: true}}")],
)  # fmt: skip
def test_a_flag_that_says_true_is_no_text(train, given):
    run, _ = train("run", *given)
    told, recorded, used = optimizer_of(run)
    assert told == recorded and told["init_args"]["amsgrad"] is True and used["amsgrad"] is True


def test_an_argument_that_does_not_go_with_the_fused_step_leaves_it_out(train):
    run, _ = train("run", "--optimizer", "{class_path: AdamW, init_args: {foreach: true}}")
    assert optimizer_of(run)[0]["init_args"]["foreach"] is True


def test_a_name_in_a_file_stays_where_a_flag_gives_an_argument(train):
    run, _ = train("run", "--optimizer.betas", "[0.8,0.9]", in_file={"optimizer": "Adam"})
    assert optimizer_of(run)[0] == {"class_path": "torch.optim.Adam",
                                    "init_args": {"betas": [0.8, 0.9], "weight_decay": 0.0}}  # fmt: skip
    given = {"class_path": "NAdam", "init_args": {"betas": BETAS, "momentum_decay": 0.002}}
    run, _ = train("other", "--optimizer.init_args.betas", "[0.8,0.9]", in_file={"optimizer": given})
    told, _, used = optimizer_of(run)
    assert told["class_path"] == "torch.optim.NAdam" and told["init_args"]["momentum_decay"] == 0.002
    assert list(used["betas"]) == [0.8, 0.9]


def test_without_an_argument_an_optimizer_is_ours(train):
    run, out = train("run")
    told, recorded, used = optimizer_of(run)
    assert told == recorded == {"class_path": "torch.optim.AdamW",
                                "init_args": {"betas": [0.9, 0.95], "weight_decay": 0.0}}  # fmt: skip
    assert list(used["betas"]) == [0.9, 0.95] and "AdamW, betas [0.9, 0.95], weight_decay 0.0" in out


def test_a_small_number_without_a_dot_is_a_number(train):
    run, _ = train("run", "--optimizer.eps", "1e-6")  # YAML 1.1 takes it for text
    assert optimizer_of(run)[2]["eps"] == 1e-6


def test_resuming_compares_what_was_resolved(command: Command, train, models, from_text):
    run, _ = train("run", *FORMS["a name and the argument"])
    words = training(models[16], run, "--lr", 0.01, "--resume", "true", *from_text, steps=3)
    told = command("warmstart_scratch", *words)
    assert told.status == 1 and "optimizer was AdamW, betas [0.9, 0.999]" in told.err, told.err
    assert "now AdamW, betas [0.9, 0.95]" in told.err
    told = command("warmstart_scratch", *words, *FORMS["JSON"])
    assert told.status == 0, told.err


@pytest.mark.parametrize(
    "recorded", ["AdamW", {"class_path": "torch.optim.AdamW", "init_args": {"eps": 1e-8}}, {"class_path": "AdamW"}]
)
def test_a_record_of_the_first_landing_is_resumed(command: Command, train, models, from_text, recorded):
    """It kept the optimizer as it was typed."""
    run, _ = train("run")
    record = run / "final/warmstart.yaml"
    content = yaml.safe_load(record.read_text())
    content["training"]["optimizer"] = recorded
    record.write_text(yaml.safe_dump(content))
    words = training(models[16], run, "--lr", 0.01, "--resume", "true", *from_text, steps=3)
    told = command("warmstart_scratch", *words)
    assert told.status == 0, told.err


@pytest.fixture(scope="module")
def compared(base, models, from_text, tmp_path_factory) -> Path:
    """A folder with a run from scratch and a warmstart beside it, both to the end."""
    folder = tmp_path_factory.mktemp("compared")
    from tests.guards.conftest import shell

    often = ("--eval.interval", 1, "--seed", 7, *from_text)
    for name, words in (
        ("scratch", ("warmstart_scratch", "--mup_base", base)),
        ("warm", ("warmstart", "--base", base)),
    ):
        told = shell(*words, *training(models[48], folder / name, *often, steps=6))
        assert told.status == 0, told.err
    return folder


def test_the_comparison_and_the_report_tell_the_same_compute_under_one_name(command: Command, compared, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "litgpt_warmstart", "warmstart_report", compared / "scratch", compared / "warm",
         "--out_dir", tmp_path / "pair", "--picture", tmp_path / "picture.png"],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = re.search(r"scratch (\S+) Hoffmann FLOPs, warmstart (\S+), with the base's own training (\S+) \((\d+)%\)",
                      done.stdout)  # fmt: skip
    assert found, done.stdout
    scratch, _, whole, share = map(float, found.groups())
    records = {
        name: yaml.safe_load((compared / name / "final/warmstart.yaml").read_text()) for name in ("scratch", "warm")
    }
    assert scratch <= records["scratch"]["hoffmann_flops"] * 1.01
    told = command("warmstart_report", compared, "--out_dir", tmp_path / "page")
    assert told.status == 0, told.err
    with_base = re.search(r"With the base's compute counted, at a speed-up in Hoffmann FLOPs of ([\d.]+)", told.out)
    assert with_base, told.out
    assert float(with_base[1]) == pytest.approx(100 / share, rel=0.02)
    assert whole == pytest.approx(share / 100 * scratch, rel=0.02)


def test_wherever_compute_is_told_its_count_is_named(command: Command, compared, base, models, from_text, tmp_path):
    plan = command("warmstart_plan", "--base", base, "--target", models[48], "--measure", "false", "--seed", 7,
                   "--train.max_steps", 2, *from_text)  # fmt: skip
    chain = command("warmstart_successive", "--scales", f"{models[16]},{models[48]}", "--lr", 0.01, "--plan", "tokens",
                    "--train.global_batch_size", 8, "--tokens_per_param", 1, "--out_dir", tmp_path / "chain",
                    *from_text)  # fmt: skip
    report = command("warmstart_report", compared, "--out_dir", tmp_path / "page")
    page = (tmp_path / "page/index.html").read_text()
    shown = re.sub(r"<[^>]+>", " ", re.sub(r"<svg.*?</svg>", " ", page, flags=re.S))
    tables = "".join(path.read_text() for path in (tmp_path / "page/tables").glob("*.csv"))
    for told in (plan.out, chain.out, report.out, shown, tables):
        assert "FLOPs" not in re.sub(r"Hoffmann FLOPs|FLOPs, Hoffmann|FLOPs are Hoffmann|FLOPs \(Hoffmann", "", told)
    assert "Hoffmann FLOPs" in plan.out and "Hoffmann FLOPs" in chain.out and "Hoffmann FLOPs" in report.out


@pytest.fixture
def measured(command: Command, models, from_text, tmp_path, monkeypatch):
    """Run with a micro-batch that is looked up or measured, from a batch of 12, and return its record and output."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def run(name: str) -> tuple[dict, str]:
        sized = ("--train.global_batch_size", 12, "--train.max_tokens", 120 * 12 * 64)
        words = ("--target", models[16], "--out_dir", tmp_path / name, "--lr", 0.01, *sized, *STEP, *from_text)
        told = command("warmstart_scratch", *words, "--train.max_time", 0.2)
        assert told.status == 0, told.err
        return yaml.safe_load((tmp_path / name / "final/warmstart.yaml").read_text()), told.out

    return run


def test_a_cached_micro_batch_is_believed_only_where_it_divides_the_batch(measured, tmp_path):
    record, out = measured("first")
    cache = tmp_path / "cache/litgpt_warmstart/micro_batch.json"
    (key,) = json.loads(cache.read_text())
    assert "tokens/s by size" in out
    cache.write_text(json.dumps({key: 2}))
    record, out = measured("known")
    assert record["training"]["micro_batch_size"] == 2 and "measured before" in out
    for number, wrong in enumerate((5, 0, -2, True, 2.0, "2", None, [2], 12 * 10**9)):
        cache.write_text(json.dumps({key: wrong}))
        record, out = measured(f"wrong-{number}")
        assert "tokens/s by size" in out, wrong
        assert 12 % record["training"]["micro_batch_size"] == 0
        assert record["tokens"] == record["step_count"] * 12 * 64
    for damaged in (b"[1]", b"{", b"\xff", 4000 * b"["):
        cache.write_bytes(damaged)
        assert "tokens/s by size" in measured(f"damaged-{damaged[:1].hex()}")[1]
        shutil.rmtree(tmp_path / f"damaged-{damaged[:1].hex()}")
