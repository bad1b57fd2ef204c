"""Learning rates over width: the runs, what they share, going on and adding to them."""

import shutil
from pathlib import Path

import pytest
from litgpt.utils import save_config

from litgpt_warmstart.commands import warmstart_lr_transfer, warmstart_scratch
from litgpt_warmstart.run.checkpoint import read_header
from litgpt_warmstart.run.spec import EvalArgs, TrainArgs
from tests.conftest import assert_same_weights, losses, neox
from tests.study.conftest import rows


@pytest.fixture(scope="module")
def scales(tmp_path_factory) -> list[str]:
    """Model files of widths 16, 32 and 64, two layers each."""
    paths = []
    for n_embd, n_head in ((16, 2), (32, 4), (64, 4)):
        folder = tmp_path_factory.mktemp(f"width-{n_embd}")
        save_config(neox(n_embd, n_head, vocab_size=4096, padded_vocab_size=4096), folder)
        paths.append(str(folder / "model_config.yaml"))
    return paths


@pytest.fixture(scope="module")
def arguments(scales, settings) -> dict:
    """A scan of two scales, two learning rates and one seed: 2 + 2 + 2 runs of 3 steps of 4 x 64."""
    train = TrainArgs(max_tokens=800, global_batch_size=4, micro_batch_size=4)
    return settings | dict(scales=scales[:2], lrs="0.01,0.03", seeds=1, train=train)


@pytest.fixture(scope="module")
def scanned(arguments, tmp_path_factory) -> Path:
    """The folder of that scan."""
    folder = tmp_path_factory.mktemp("scanned") / "scan"
    warmstart_lr_transfer.setup(**arguments, out_dir=folder)
    return folder


def test_every_run_reads_the_same_tokens_and_its_rate_is_given_at_the_first_scale(scanned):
    table = rows(scanned / "lr_transfer.csv")
    assert {row["tokens"] for row in table} == {"768"}  # 800 in whole steps
    assert [row["run"] for row in table] == [
        *("neox-16-lr-0.01-seed-1", "neox-16-lr-0.03-seed-1"),
        *("neox-32-mup-lr-0.01-seed-1", "neox-32-mup-lr-0.03-seed-1"),
        *("neox-32-sp-lr-0.01-seed-1", "neox-32-sp-lr-0.03-seed-1"),
    ]
    records = {row["run"]: read_header(scanned / "runs" / row["run"] / "final").record for row in table}
    reads = {(use.fingerprint, use.start_token, use.stop_token, use.order_seed) for r in records.values()
             for use in r.data_uses}  # fmt: skip
    assert len(reads) == 1
    bases = {name: records[f"neox-32-{name}-lr-0.01-seed-1"].mup_base_config["n_embd"] for name in ("mup", "sp")}
    assert bases == {"mup": 16, "sp": 32}  # whose rates are divided by width_mult 2 and by 1


@pytest.mark.parametrize("parametrization", ["mup", "sp", "completep"])
def test_at_the_base_every_parametrization_trains_the_same_run_to_the_bit(
    arguments, scanned, tmp_path, parametrization
):
    how = {name: value for name, value in arguments.items() if name not in ("scales", "lrs", "seeds")}
    out_dir = tmp_path / "run"
    warmstart_scratch.setup(
        **how, target=arguments["scales"][0], parametrization=parametrization, lr=0.03, seed=1, out_dir=out_dir
    )
    shared = scanned / "runs/neox-16-lr-0.03-seed-1"
    assert_same_weights(out_dir / "final", shared / "final")
    assert losses(out_dir, "val_loss") == losses(shared, "val_loss")


def test_a_scan_goes_on_and_another_scale_is_added_to_it(arguments, scales, scanned, tmp_path, capsys):
    folder = shutil.copytree(scanned, tmp_path / "scan")
    shutil.rmtree(folder / "runs/neox-32-mup-lr-0.03-seed-1")
    warmstart_lr_transfer.setup(**arguments, out_dir=folder)
    assert "5 of 6 runs have ended before" in capsys.readouterr().out
    before = {row["run"]: row["val_loss"] for row in rows(folder / "lr_transfer.csv")}
    assert before == {row["run"]: row["val_loss"] for row in rows(scanned / "lr_transfer.csv")}
    warmstart_lr_transfer.setup(
        **arguments | dict(scales=[scales[0], scales[2]], parametrizations="mup", out_dir=folder)
    )
    assert "2 of 4 runs have ended before" in capsys.readouterr().out
    after = {row["run"]: row["val_loss"] for row in rows(folder / "lr_transfer.csv")}
    assert before.items() < after.items()
    assert after.keys() - before.keys() == {f"neox-64-mup-lr-{lr}-seed-1" for lr in ("0.01", "0.03")}
    shutil.rmtree(folder / "runs/neox-32-sp-lr-0.01-seed-1")  # a run that is gone is no more of it
    warmstart_lr_transfer.setup(**arguments | dict(parametrizations="mup", out_dir=folder))
    assert len(rows(folder / "lr_transfer.csv")) == len(after) - 1


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (dict(scales=None), "--scales is missing: give the models whose learning rates are compared"),
        (dict(scales=[0]), "--scales has 1 of the two widths or more that are compared"),
        (dict(scales=[0, 0]), "--scales must grow from each to the next, got n_embd 16, 16"),
        (dict(scales=[1, 0]), "--scales must grow from each to the next, got n_embd 32, 16"),
        (dict(scales=[0, "vocabulary"]), "padded_vocab_size"),
        (dict(scales=[0, "layers"]), "'neox-16' has n_layer 2, 'neox-48' has 3: over width all have the same"),
        (dict(scales=[0, "block"]), "has parallel_residual True, target 'neox-48' has False"),
        (dict(scales=[0, "short"]), "--train.max_seq_length 64 is above the model's 32"),
        (dict(scales=[0, "same"]), "--scales has two models called 'neox-16': give one another name"),
        (dict(scales=[0, "absent"]), "absent/model_config.yaml"),
        (dict(parametrizations="mup,sp,mup"), "--parametrizations has mup twice: leave one out"),
        (dict(parametrizations="mup,ntk"), "--parametrizations has no 'ntk': choose from sp, mup, completep"),
        (dict(parametrizations=""), "--parametrizations is empty"),
        (dict(lrs=0.01), "--lrs 0.01: one learning rate shows no optimum: give several"),
        (dict(lrs="0.01,0.01"), "--lrs 0.01: one learning rate shows no optimum: give several"),
        (dict(lrs="0,0.01"), "--lrs must be above 0"),
        (dict(lrs=[0.01, -0.03]), "--lrs must be above 0"),
        (dict(lrs="nan,0.01"), "--lrs must be above 0"),
        (dict(lrs="0.01,inf"), "--lrs must be above 0"),
        (dict(lrs="fast"), "--lrs fast: give float values"),
        (dict(seeds="-1"), "--seeds -1: seeds lie in"),
        (dict(train=TrainArgs(global_batch_size=4)), "--train.max_tokens is missing"),
        (dict(train=TrainArgs(max_steps=3)), "--train.max_steps is not for a study"),
        (dict(eval=EvalArgs(final_validation=False)), "--eval.final_validation false would leave"),
    ],
)
def test_what_a_scan_cannot_do_is_one_line(arguments, scales, refused, tmp_path, changes, told):
    others = dict(
        vocabulary=dict(vocab_size=96, padded_vocab_size=96), layers=dict(n_layer=3),
        block=dict(parallel_residual=False), short=dict(block_size=32), same=dict(name="neox-16"),
    )  # fmt: skip
    paths = dict(enumerate(scales)) | {"absent": str(tmp_path / "absent/model_config.yaml")}
    for name, other in others.items():
        (tmp_path / name).mkdir()
        save_config(neox(48, 4, **dict(vocab_size=4096, padded_vocab_size=4096) | other), tmp_path / name)
        paths[name] = str(tmp_path / name / "model_config.yaml")
    if isinstance(changes.get("scales"), list):
        changes = dict(scales=[paths[scale] for scale in changes["scales"]])
    assert told in refused(warmstart_lr_transfer.setup, **arguments | dict(out_dir=tmp_path / "out") | changes)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (dict(train=TrainArgs(max_tokens=1600, global_batch_size=4)), "with tokens 768, now 1536: choose another"),
        (dict(train=TrainArgs(max_tokens=800, global_batch_size=2)), "with train.global_batch_size 4, now 2"),
        (dict(scales=[1, 2]), "holds learning rates given at neox-16, now at neox-32: choose another --out_dir"),
    ],
)
def test_nothing_else_is_added_to_a_scan(arguments, scales, scanned, refused, changes, told):
    changes = changes | dict(scales=[scales[number] for number in changes.get("scales", (0, 1))], lrs="0.02,0.05")
    assert told in refused(warmstart_lr_transfer.setup, **arguments | dict(out_dir=scanned) | changes)


def test_a_checkpoints_folder_is_no_scale_whose_own_muP_base_would_be_taken(arguments, scales, scanned, refused):
    folder = str(scanned / "runs/neox-16-lr-0.01-seed-1/final")
    told = refused(warmstart_lr_transfer.setup, **arguments | dict(scales=[folder, scales[1]], out_dir=scanned))
    assert "is a checkpoint's folder: give its model_config.yaml" in told
