"""Successive warmstarts: 16 -> 32 -> 64 keeps its muP base, reads no token twice, and has one lineage."""

import shutil
from pathlib import Path

import pytest
from litgpt.config import Config
from litgpt.utils import save_config

from litgpt_warmstart.commands import warmstart_scratch, warmstart_successive
from litgpt_warmstart.method.flops import hoffmann_flops_per_token
from litgpt_warmstart.method.schedule import Schedule
from litgpt_warmstart.run.checkpoint import read_header
from litgpt_warmstart.run.spec import TrainArgs
from tests.conftest import losses, neox
from tests.study.conftest import rows

WIDTHS = (16, 32, 64)


@pytest.fixture(scope="module")
def scales(tmp_path_factory) -> list[str]:
    """Config files of heads of 8, two layers, block size 64."""
    paths = []
    for n_embd in WIDTHS:
        folder = tmp_path_factory.mktemp(f"width-{n_embd}")
        save_config(neox(n_embd, n_embd // 8, vocab_size=4096, padded_vocab_size=4096), folder)
        paths.append(str(folder / "model_config.yaml"))
    return paths


@pytest.fixture(scope="module")
def arguments(scales, settings) -> dict:
    train = TrainArgs(global_batch_size=4)
    return settings | dict(scales=scales, lr=0.02, tokens_per_param=0.01, train=train)


@pytest.fixture(scope="module")
def chain(arguments, tmp_path_factory) -> Path:
    out_dir = tmp_path_factory.mktemp("chain")
    warmstart_successive.setup(out_dir=out_dir, **arguments)
    return out_dir


def test_a_chain_keeps_its_mup_base_reads_no_token_twice_and_has_one_lineage(chain):
    records = [read_header(chain / f"{i}-neox-{w}" / "final").record for i, w in enumerate(WIDTHS, start=1)]
    assert [record.mup_base_config["n_embd"] for record in records] == [16, 16, 16]
    assert [record.width_mult for record in records] == [1, 2, 4]
    assert [record.base_lr for record in records] == [0.02] * 3
    spans = [(record.data.start_token, record.data.stop_token) for record in records]
    assert spans[0][0] == 0 and all(b[0] == a[1] for a, b in zip(spans, spans[1:], strict=False))
    assert [a.name for a in records[2].lineage] == ["neox-16", "neox-32"]
    assert records[2].lineage[:1] == records[1].lineage
    assert [a.growth and a.growth.shrink for a in records[2].lineage] == [None, 0.4]
    assert records[2].growth.shrink == 0.4


def test_grow_at_is_one_wsd_schedule_over_the_whole_lineage(scales, settings, tmp_path):
    train = TrainArgs(global_batch_size=4, lr_warmup_steps=3, max_norm=1.0)
    own = settings | dict(scales=scales[:2], lr=0.02, tokens_per_param=0.04, train=train, scratch=False)
    warmstart_successive.setup(out_dir=tmp_path, grow_at=0.6, **own)
    folders = [tmp_path / "1-neox-16", tmp_path / "2-neox-32"]
    records = [read_header(folder / "final").record for folder in folders]
    steps = [record.step_count for record in records]
    whole = sum(steps)
    assert whole == int(0.04 * records[1].parameters) // (4 * 64) and steps[0] == round(0.6 * whole)
    assert [record.training["schedule"]["name"] for record in records] == ["warmup", "wsd"]
    schedule = Schedule.of("wsd", train, whole)
    rates = [rate for folder in folders for rate in losses(folder, "learning_rate")]
    assert rates == pytest.approx([0.02 * schedule(step) for step in range(whole)])
    assert records[1].data.start_token == records[0].data.stop_token


def test_grow_at_takes_what_a_budget_of_flops_is_good_for(scales, settings, tmp_path, capsys):
    flops = [hoffmann_flops_per_token(Config.from_file(path), 64) for path in scales[:2]]
    own = settings | dict(
        scales=scales[:2], lr=0.02, train=TrainArgs(global_batch_size=4), plan="tokens", scratch=False
    )
    budget = 20_000 * (0.7 * flops[0] + 0.3 * flops[1])
    warmstart_successive.setup(out_dir=tmp_path, grow_at="0.7", max_flops=budget, **own)
    told = capsys.readouterr().out
    assert "14,080" in told and "5,888" in told  # 78 steps of 256 tokens: 55 and 23
    own = own | dict(scales=scales)
    warmstart_successive.setup(out_dir=tmp_path, grow_at=[0.5, 0.75], max_flops=1e12, **own)


@pytest.fixture(scope="module")
def half(scales, settings, tmp_path_factory) -> Path:
    """A base of 6 steps of 4 x 64 tokens."""
    out_dir = tmp_path_factory.mktemp("half")
    train = TrainArgs(global_batch_size=4, max_steps=6, save_interval=3, cooldown_steps=2)
    warmstart_scratch.setup(target=scales[0], out_dir=out_dir, lr=0.02, train=train, schedule="wsd", **settings)
    return out_dir


def test_grow_at_takes_a_base_as_the_first_share_of_the_schedule(half, scales, settings, tmp_path):
    train = TrainArgs(global_batch_size=4, cooldown_fraction=0.25)
    own = {name: value for name, value in settings.items() if name != "data"}
    base = half / "step-00000003"  # before its own cooldown, from step 4 on
    shared = dict(scales=scales[1:2], base=base, train=train, scratch=False)
    warmstart_successive.setup(out_dir=tmp_path, grow_at=0.25, **own | shared)
    record = read_header(tmp_path / "1-neox-32/final").record
    assert record.step_count == 9 and record.training["schedule"]["cooldowns"] == [[6, 9]]
    assert (record.base_lr, record.data.start_token) == (0.02, read_header(base).record.data.stop_token)


@pytest.mark.parametrize(
    ("folder", "changes", "line"),
    [
        ("final", {}, "whose rate has come down (wsd"),
        ("step-00000003", dict(train=TrainArgs(global_batch_size=2)), "has 4 as sequences a step, and this chain 2"),
        ("step-00000003", dict(moments="carried", optimizer="Adam"), "this run has Adam, betas [0.9, 0.95]"),
        ("step-00000003", dict(lr=0.01), "has 0.02 as learning rate, and this chain 0.01: take the base's"),
        ("step-00000003", dict(max_flops=1e9), "give the budget: leave --max_flops out"),
        ("step-00000003", dict(tokens_per_param=0.1), "give the budget: leave --tokens_per_param out"),
        ("step-00000003", dict(train=TrainArgs(lr_warmup_steps=1)), "its warmup was the base's"),
        ("step-00000003", dict(grow_at="0.1,0.5"), "--grow_at 0.1, 0.5: give one share for each of 1 growths"),
    ],
)
def test_a_base_that_is_no_first_part_of_one_schedule_is_refused(
    refused, half, scales, settings, tmp_path, folder, changes, line
):
    own = {name: value for name, value in settings.items() if name != "data"}
    given = dict(scales=scales[1:2], base=half / folder, grow_at=0.25, out_dir=tmp_path / "out") | changes
    assert line in refused(warmstart_successive.setup, **own | given)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        (dict(schedule="cosine"), "--grow_at trains one wsd schedule over all stages, which --schedule cosine is none"),
        (dict(schedule="constant"), "--schedule constant is none of"),
        (dict(grow_at="0.5,0.7"), "--grow_at 0.5, 0.7: give one share for each of 1 growths"),
        (dict(grow_at=1.0), "--grow_at 1: give shares of all tokens between 0 and 1"),
        (dict(grow_at="soon"), "--grow_at soon: give numbers with commas"),
        (dict(grow_at=0.9), "falls into the warmup of 0 steps or the cooldown"),
        (dict(compute_split="0.5,0.5"), "leave --compute_split out"),
        (dict(grow_at=None, max_flops=1e12), "--max_flops is divided by --compute_split or --grow_at"),
    ],
)
def test_what_grow_at_cannot_follow_is_refused(refused, scales, settings, tmp_path, changes, line):
    train = TrainArgs(global_batch_size=2)
    own = settings | dict(scales=scales[:2], lr=0.02, tokens_per_param=0.04, train=train, grow_at=0.6)
    assert line in refused(warmstart_successive.setup, **own | dict(out_dir=tmp_path / "out") | changes)
    assert not (tmp_path / "out").exists()


def test_its_table_counts_tokens_and_flops_over_the_lineage(chain):
    last = {row["stage"]: row for row in rows(chain / "successive.csv")}
    assert list(last) == ["1-neox-16", "2-neox-32", "3-neox-64", "scratch"]
    tokens, flops = 0, 0.0
    for name in list(last)[:3]:
        own = read_header(chain / name / "final")
        tokens += own.record.tokens
        flops += own.record.tokens * hoffmann_flops_per_token(own.config, 64)
        assert int(last[name]["lineage_tokens"]) == tokens
        assert float(last[name]["lineage_flops"]) == pytest.approx(flops)
    # From scratch with the compute of the whole chain, up to a step.
    step = 4 * 64 * hoffmann_flops_per_token(own.config, 64)
    assert flops - step < float(last["scratch"]["lineage_flops"]) <= flops
    assert (chain / "successive.png").stat().st_size > 10_000
    before, after = (losses(chain / name, "val_loss") for name in ("1-neox-16", "2-neox-32"))
    assert after[0] > before[-1]  # the growth shows as a spike


def test_the_same_command_goes_on_and_a_longer_chain_starts_from_what_there_is(chain, arguments, capsys):
    warmstart_successive.setup(out_dir=chain, **arguments)
    assert "4 of 4 runs have ended before" in capsys.readouterr().out


def test_a_chain_may_start_from_a_checkpoint(chain, scales, arguments, tmp_path):
    base = chain / "1-neox-16" / "final"
    given = dict(scales=scales[2:], base=base, out_dir=tmp_path, scratch=False, lr=None, data=None)
    warmstart_successive.setup(**(arguments | given))
    record = read_header(tmp_path / "1-neox-64" / "final").record
    assert (record.mup_base_config["n_embd"], record.base_lr, record.lineage[0].path) == (16, 0.02, str(base))
    assert [*dict.fromkeys(row["stage"] for row in rows(tmp_path / "successive.csv"))] == ["base", "1-neox-64"]


def test_a_base_that_was_never_validated_is_left_out_of_the_table(chain, scales, arguments, tmp_path):
    shutil.copytree(chain / "1-neox-16", tmp_path / "base")
    table = tmp_path / "base/metrics.csv"
    lines = [line for line in rows(table) if not line["val_loss"]]
    table.write_text("\n".join(",".join(line) for line in (lines[0].keys(), *(line.values() for line in lines))) + "\n")
    given = dict(scales=scales[2:], base=tmp_path / "base/final", out_dir=tmp_path / "chain", scratch=False)
    warmstart_successive.setup(**(arguments | given | dict(lr=None, data=None)))
    found = rows(tmp_path / "chain/successive.csv")
    assert {row["stage"] for row in found} == {"1-neox-64"} and float(found[0]["lineage_flops"]) > 0


def test_compute_that_a_base_without_a_record_does_not_tell_is_not_told(chain, scales, arguments, tmp_path, capsys):
    base = shutil.copytree(chain / "1-neox-16/final", tmp_path / "base")
    (base / "warmstart.yaml").unlink()
    given = dict(scales=scales[2:], base=base, out_dir=tmp_path / "chain")
    warmstart_successive.setup(**(arguments | given))
    told = capsys.readouterr().out.split("Hoffmann FLOPs in all")[-1]
    assert "What the training before this chain took is not known: no comparison by compute." in told
    assert "nan" not in told


def test_the_run_from_scratch_has_the_bases_compute_too(chain, scales, arguments, tmp_path, capsys):
    base = tmp_path / "moved"  # away from its metrics.csv, as a grid's best/
    shutil.copytree(chain / "2-neox-32" / "final", base)
    given = dict(scales=scales[2:], base=base, mup_base=scales[0], out_dir=tmp_path / "chain", lr=None, data=None)
    warmstart_successive.setup(**(arguments | given))
    spent = sum(read_header(chain / name / "final").record.hoffmann_flops for name in ("1-neox-16", "2-neox-32"))
    grown, scratch = (read_header(tmp_path / "chain" / name / "final") for name in ("1-neox-64", "scratch"))
    step = 4 * 64 * hoffmann_flops_per_token(grown.config, 64)
    stop = read_header(base).record.data.stop_token
    for record in (grown.record, scratch.record):  # the named muP base is the record's: its rate, after its tokens
        assert record.base_lr == 0.02 and record.data.start_token == stop
    whole = spent + grown.record.hoffmann_flops
    assert whole - step < scratch.record.hoffmann_flops <= whole
    assert f"At {whole:.3g} Hoffmann FLOPs the chain's validation loss is" in capsys.readouterr().out
    first = next(row for row in rows(tmp_path / "chain/successive.csv") if row["stage"] == "1-neox-64")
    assert float(first["lineage_flops"]) == pytest.approx(spent)


def test_a_chain_may_grow_in_depth_and_then_in_width_and_stays_one_lineage(scales, arguments, tmp_path):
    deep = []
    for n_embd in WIDTHS[:2]:
        sizes = dict(vocab_size=4096, padded_vocab_size=4096, n_layer=6, name=f"deep-{n_embd}")
        (tmp_path / str(n_embd)).mkdir()
        save_config(neox(n_embd, n_embd // 8, **sizes), tmp_path / str(n_embd))
        deep.append(str(tmp_path / str(n_embd) / "model_config.yaml"))
    chain = [scales[0], *deep]
    warmstart_successive.setup(
        **arguments | dict(scales=chain, out_dir=tmp_path / "chain", scratch=False, operator="stack,pad")
    )
    last = read_header(tmp_path / "chain/3-deep-32/final").record
    assert [ancestor.name for ancestor in last.lineage] == ["neox-16", "deep-16"]
    assert (last.mup_base_config["n_layer"], last.width_mult, last.branch_divisor) == (2, 2, 3)
    ends = [use.stop_token for use in last.data_uses]
    assert [use.start_token for use in last.data_uses] == [0, *ends[:-1]]


def test_compute_is_split_as_asked(scales, arguments, tmp_path):
    given = dict(scales=scales[:2], out_dir=tmp_path, compute_split="0.25,0.75", max_flops=4e9, scratch=False)
    warmstart_successive.setup(**(arguments | given))
    for name, share in (("1-neox-16", 0.25), ("2-neox-32", 0.75)):
        header = read_header(tmp_path / name / "final")
        spent, step = header.record.hoffmann_flops, 4 * 64 * hoffmann_flops_per_token(header.config, 64)
        assert share * 4e9 - step < spent <= share * 4e9


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (dict(scales=None), "--scales is missing"),
        (dict(scales="5M"), "is a chain of one"),
        (dict(scales="22M,5M"), "comes after 'warmstart-22m' (n_embd 192; a --base comes first) but is not wider"),
        (dict(scales="5M,22M,22M"), "comes after 'warmstart-22m'"),
        (dict(scales="5M,6M"), "unknown scale '6M'"),
        (dict(compute_split="0.5,0.6"), "give shares above 0 that add up to 1"),
        (dict(compute_split="1"), "has 1 shares for 2 stages"),
        (dict(compute_split="a,b"), "give numbers with commas"),
        (dict(max_flops=1e12), "give one of them too"),
        (dict(train=TrainArgs(max_tokens=5)), "give --tokens_per_param"),
        (dict(shrink=2.0), "--shrink must lie in [0, 1]"),
        (dict(operator="pad,tile"), "--operator has 2 for 1 growths: give one, or one for each"),
        (dict(operator="pat"), "--operator 'pat' is none of pad, tile"),
        (dict(operator="stack"), "--operator stack grows the depth"),
        (dict(operator="tile", scales="5M,10M"), "--operator tile does not fit: rope_n_elem 6 is 4"),
    ],
)
def test_what_a_chain_cannot_do_is_one_line(arguments, tmp_path, refused, changes, told):
    given = arguments | dict(scales="5M,22M", tokens_per_param=1, out_dir=tmp_path / "no") | changes
    assert told in refused(warmstart_successive.setup, **given)
    assert not (tmp_path / "no").exists()
