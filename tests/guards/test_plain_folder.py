"""A checkpoint folder is plain LitGPT: other tools have the logits that were trained, whatever muP changed.

Heads grow from 8 to 12 between the models here, so that muP's attention scale is not LitGPT's.
"""

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml

from tests.guards.conftest import contents, training, write_model

BLOCKS = 4
"""Validation blocks of every run here."""


def last_val_loss(out_dir: Path) -> float:
    lines = [line.split(",") for line in (out_dir / "metrics.csv").read_text().splitlines()]
    column = lines[0].index("val_loss")
    return float([line[column] for line in lines[1:] if line[column]][-1])


def val_blocks(data: Path) -> torch.Tensor:
    """The stored tokens of the first validation blocks, shape (4, 65), as any reader of the format has them."""
    from litdata.streaming import StreamingDataset, TokensLoader

    stored = StreamingDataset(input_dir=str(data / "val"), item_loader=TokensLoader(block_size=65))
    return torch.stack([stored[i].long() for i in range(BLOCKS)])


def stock_logits(folder: Path, tokens: torch.Tensor) -> torch.Tensor:
    from litgpt.config import Config
    from litgpt.model import GPT

    model = GPT(Config.from_file(folder / "model_config.yaml")).eval()
    model.load_state_dict(torch.load(folder / "lit_model.pth", weights_only=True))
    with torch.no_grad():
        return model(tokens)


def loss(logits: torch.Tensor, targets: torch.Tensor) -> float:
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten()).item()


def close(a: torch.Tensor, b: torch.Tensor) -> bool:
    return bool((a - b).abs().max() <= 1e-5 * b.abs().max())


FAMILIES = {
    "gpt_neox": {},
    "llama": dict(norm_class_name="RMSNorm", mlp_class_name="LLaMAMLP", bias=False, parallel_residual=False,
                  rotary_percentage=1.0, n_query_groups=2),
}  # fmt: skip
FAMILIES["qwen3"] = dict(FAMILIES["llama"], norm_qk=True)
FAMILIES["qwen2"] = dict(FAMILIES["llama"], attn_bias=True)
FAMILIES["phi"] = dict(shared_attention_norm=True, lm_head_bias=True)
FAMILIES["olmo2"] = dict(FAMILIES["qwen3"], norm_qk_type="olmo2", post_attention_norm=True, post_mlp_norm=True,
                         norm_1=False, norm_2=False, n_query_groups=4)  # fmt: skip


@pytest.fixture
def grown(command, from_text, tmp_path, request):
    """The run folder of a warmstart, of a family and in a precision."""
    family, precision = request.param
    fields = FAMILIES[family]
    small = write_model(tmp_path / "small", 32, 4, intermediate_size=96, **fields)
    wide = write_model(tmp_path / "wide", 48, 4, intermediate_size=144, **fields)
    words = training(small, tmp_path / "base", "--lr", 0.02, *from_text, steps=6)
    assert command("warmstart_scratch", *words).status == 0
    words = training(wide, tmp_path / "run", "--base", tmp_path / "base/final", "--precision", precision, steps=6)
    told = command("warmstart", *words)
    assert told.status == 0, told.err
    return tmp_path / "run"


EVERY = [(family, "32-true") for family in FAMILIES]


@pytest.mark.parametrize("grown", EVERY, indirect=True, ids=lambda value: value[0])
def test_stock_litgpt_and_transformers_have_the_logits_that_were_trained(command, grown, data, request, tmp_path):
    """LitGPT's own conversion serves all but OLMo 2, of which it dies; the export serves all."""
    from litgpt.scripts.convert_lit_checkpoint import convert_lit_checkpoint
    from transformers import AutoModelForCausalLM

    family = request.node.callspec.params["grown"][0]
    final, blocks = grown / "final", val_blocks(data)
    config = yaml.safe_load((final / "model_config.yaml").read_text())
    assert config["attention_scores_scalar"] is None
    expected = stock_logits(final, blocks[:, :-1])
    assert loss(expected, blocks[:, 1:]) == pytest.approx(last_val_loss(grown), abs=2e-5)
    written = json.loads((final / "config.json").read_text())
    assert (written["hidden_size"], written["model_type"]) == (48, family)
    assert command("warmstart_export", "--checkpoint_dir", final, "--out_dir", tmp_path / "hf").status == 0
    folders = [tmp_path / "hf"]
    if family != "olmo2":
        converted = tmp_path / "converted"
        convert_lit_checkpoint(final, converted)
        torch.save(torch.load(converted / "model.pth"), converted / "pytorch_model.bin")  # as litgpt evaluate does
        shutil.copy(final / "config.json", converted)
        folders.append(converted)
    for folder in folders:
        model = AutoModelForCausalLM.from_pretrained(folder).eval()
        with torch.no_grad():
            assert close(model(blocks[:, :-1]).logits, expected), folder


@pytest.mark.parametrize("grown", [("gpt_neox", "32-true"), ("qwen3", "32-true")], indirect=True, ids=lambda v: v[0])
def test_going_on_is_exact_to_the_bit_though_rows_are_folded(command, grown, tmp_path):
    words = training(tmp_path / "wide/model_config.yaml", tmp_path / "cut", "--base", tmp_path / "base/final", steps=6)
    assert command("warmstart", *words, "--train.save_interval", 3).status == 0
    shutil.rmtree(tmp_path / "cut/final")
    assert command("warmstart", *words, "--resume", "true").status == 0
    one, two = (torch.load(run / "final/lit_model.pth") for run in (grown, tmp_path / "cut"))
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("grown", [("gpt_neox", "bf16-true")], indirect=True, ids=lambda v: v[0])
def test_folded_weights_are_fp32_also_after_a_run_in_bf16(command, grown, data, tmp_path):
    weights = torch.load(grown / "final/lit_model.pth")
    assert {weight.dtype for weight in weights.values()} == {torch.float32}
    words = training(tmp_path / "wide/model_config.yaml", grown, "--base", tmp_path / "base/final", "--precision",
                     "bf16-true", "--resume", "true", steps=8)  # fmt: skip
    told = command("warmstart", *words)
    assert told.status == 0 and "Resuming" in told.out, told.err


def test_a_scalar_of_another_programs_config_is_folded_exactly_once(command, base, from_text, data, tmp_path):
    """It counts while the checkpoint is read, and is gone from what is written."""
    foreign, blocks = tmp_path / "foreign", val_blocks(data)
    foreign.mkdir()
    shutil.copy(base / "lit_model.pth", foreign)
    shutil.copy(base / "tokenizer.json", foreign)
    shutil.copy(base / "tokenizer_config.json", foreign)
    config = yaml.safe_load((base / "model_config.yaml").read_text())
    (foreign / "model_config.yaml").write_text(yaml.safe_dump(config | {"attention_scores_scalar": 2}))
    expected = stock_logits(foreign, blocks[:, :-1])
    assert not close(expected, stock_logits(base, blocks[:, :-1]))
    sized = ("--lr", 1e-12, "--train.global_batch_size", 8, "--train.max_steps", 1, "--compile", "false")
    shared = ("--initial_checkpoint_dir", foreign, *sized, "--logger_name", "csv", "--eval.max_iters", 4, *from_text)
    for name, more in (("mup", ()), ("sp", ("--parametrization", "sp"))):
        assert command("warmstart_scratch", *shared, *more, "--out_dir", tmp_path / name).status == 0
        again = command("warmstart_scratch", "--initial_checkpoint_dir", tmp_path / name / "final", *shared[2:], *more,
                        "--out_dir", tmp_path / f"{name}-again")  # fmt: skip
        assert again.status == 0, again.err
        for run in (name, f"{name}-again"):
            final = tmp_path / run / "final"
            assert yaml.safe_load((final / "model_config.yaml").read_text())["attention_scores_scalar"] is None
            assert (stock_logits(final, blocks[:, :-1]) - expected).abs().max() <= 1e-4 * expected.abs().max()
            assert last_val_loss(tmp_path / run) == pytest.approx(loss(expected, blocks[:, 1:]), abs=1e-4)
    assert command("warmstart_export", "--checkpoint_dir", foreign, "--format", "litgpt", "--out_dir",
                   tmp_path / "plain").status == 0  # fmt: skip
    assert close(stock_logits(tmp_path / "plain", blocks[:, :-1]), expected)


@pytest.mark.parametrize("grown", [("gpt_neox", "32-true")], indirect=True, ids=lambda v: v[0])
def test_a_folder_of_version_0_1_whose_config_has_the_scalar_is_read_as_it_was(command, grown, data, tmp_path):
    """There the readout was folded, and the attention scale stood in model_config.yaml."""
    final, older, blocks = grown / "final", tmp_path / "older/final", val_blocks(data)
    expected = stock_logits(final, blocks[:, :-1])
    shutil.copytree(final, older)
    record = yaml.safe_load((older / "warmstart.yaml").read_text())
    scalar, state = record.pop("attention_scores_scalar"), torch.load(older / "training_state.pth")
    assert scalar == pytest.approx(12**2 / 8)
    del record["sha256"]
    (older / "warmstart.yaml").write_text(yaml.safe_dump(record | {"format_version": 2}))
    config = yaml.safe_load((older / "model_config.yaml").read_text())
    (older / "model_config.yaml").write_text(yaml.safe_dump(config | {"attention_scores_scalar": scalar}))
    weights = torch.load(older / "lit_model.pth")
    for name in [name for name in weights if ".attn.qkv." in name]:
        rows = state.pop(name)
        weights[name] = torch.cat((rows, weights[name][len(rows) :]))
    torch.save(weights, older / "lit_model.pth")
    torch.save(state, older / "training_state.pth")
    assert close(stock_logits(older, blocks[:, :-1]), expected)

    assert command("warmstart_export", "--checkpoint_dir", older, "--format", "litgpt", "--out_dir",
                   tmp_path / "plain").status == 0  # fmt: skip
    assert close(stock_logits(tmp_path / "plain", blocks[:, :-1]), expected)
    words = training(tmp_path / "wide/model_config.yaml", older.parent, "--base", tmp_path / "base/final", "--resume",
                     "true", steps=8)  # fmt: skip
    assert command("warmstart", *words).status == 0
    words = training(tmp_path / "wide/model_config.yaml", grown, "--base", tmp_path / "base/final", "--resume", "true",
                     steps=8)  # fmt: skip
    assert command("warmstart", *words).status == 0
    one, two = (torch.load(run / "lit_model.pth") for run in (final, older))
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("grown", [("gpt_neox", "32-true"), ("qwen3", "32-true")], indirect=True, ids=lambda v: v[0])
def test_another_mup_base_leaves_a_checkpoints_function_as_it_is(command, grown, tmp_path, request):
    """Its learning rates are other ones, and its attention scale while training; the first loss is the checkpoint's."""
    fields = FAMILIES[request.node.callspec.params["grown"][0]]
    other = write_model(tmp_path / "other", 64, 4, intermediate_size=192, **fields)  # heads of 16
    words = ("--initial_checkpoint_dir", grown / "final", "--mup_base", other, "--lr", 1e-12, "--compile", "false",
             "--train.max_steps", 1, "--train.global_batch_size", 8, "--eval.max_iters", 4, "--logger_name", "csv",
             "--out_dir", tmp_path / "again")  # fmt: skip
    told = command("warmstart_scratch", *words)
    assert told.status == 0, told.err
    assert last_val_loss(tmp_path / "again") == pytest.approx(last_val_loss(grown), abs=2e-5)


def test_configs_for_transformers_are_the_targets_own(command, base, models, tmp_path):
    """A base's config.json, of another size, is never copied; the end of a text is the tokenizer's."""
    mine = tmp_path / "mine"
    shutil.copytree(base, mine)
    (mine / "config.json").write_text('{"hidden_size": 4711, "model_type": "gpt2"}')
    (mine / "generation_config.json").write_text('{"eos_token_id": 4711}')
    told = command("warmstart_grow", "--base", mine, "--target", models[48], "--out_dir", tmp_path / "grown")
    assert told.status == 0, told.err
    tokenizer = json.loads((base / "tokenizer.json").read_text())
    special = {token["content"]: token["id"] for token in tokenizer["added_tokens"]}
    end = special[json.loads((base / "tokenizer_config.json").read_text())["eos_token"]]
    assert command("warmstart_export", "--checkpoint_dir", mine, "--out_dir", tmp_path / "hf").status == 0
    for folder, width in ((tmp_path / "grown", 48), (tmp_path / "hf", 16)):
        config = json.loads((folder / "config.json").read_text())
        assert (config["hidden_size"], config["vocab_size"], config["eos_token_id"]) == (width, 512, end)
        assert json.loads((folder / "generation_config.json").read_text())["eos_token_id"] == end
        assert "4711" not in "".join(p.read_text() for p in folder.iterdir() if p.suffix in (".json", ".yaml"))


def test_an_exported_model_stops_at_the_end_of_a_text(command, base, tmp_path):
    from transformers import AutoModelForCausalLM

    assert command("warmstart_export", "--checkpoint_dir", base, "--out_dir", tmp_path / "hf").status == 0
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    end = json.loads((tmp_path / "hf/config.json").read_text())["eos_token_id"]
    with torch.no_grad():
        model.get_output_embeddings().weight.zero_()  # every token is as likely as the end
    for seed in range(3):
        torch.manual_seed(seed)
        made = model.generate(torch.tensor([[5]]), max_new_tokens=60, do_sample=True, min_new_tokens=2)[0].tolist()
        assert made.count(end) <= 1 and (end not in made or made[-1] == end)
    with torch.no_grad():
        hidden = model(torch.tensor([[5]]), output_hidden_states=True).hidden_states[-1][0, -1]
        model.get_output_embeddings().weight[end] = 100 * hidden
    made = model.generate(torch.tensor([[5]]), max_new_tokens=60)[0].tolist()
    assert made == [5, end]


def test_flipped_bytes_are_refused_wherever_a_checkpoint_is_read(command, base_run, models, from_text, tmp_path):
    """lit_model.pth and training_state.pth: by --base, --resume, grow, export and plan; nothing is written."""
    for name in ("lit_model.pth", "training_state.pth"):
        run = tmp_path / name
        shutil.copytree(base_run, run)
        content = bytearray((run / "final" / name).read_bytes())
        content[len(content) // 2] ^= 4
        (run / "final" / name).write_bytes(content)
        for folder in run.glob("step-*"):
            shutil.rmtree(folder)
        base, before = run / "final", contents(tmp_path)
        for words in (
            ("warmstart", *training(models[48], tmp_path / "out", "--base", base)),
            ("warmstart_scratch", *training(models[48], tmp_path / "out", "--mup_base", base)),
            ("warmstart_scratch", *training(models[16], tmp_path / "out", "--initial_checkpoint_dir", base)),
            ("warmstart_grow", "--base", base, "--target", models[48], "--out_dir", tmp_path / "out"),
            ("warmstart_export", "--checkpoint_dir", base, "--out_dir", tmp_path / "out"),
            ("warmstart_plan", "--base", base, "--target", models[48], "--measure", "false"),
            ("warmstart_scratch", *training(models[16], run, "--lr", 0.02, *from_text, "--resume", base, steps=9)),
        ):
            told = command(*words)
            assert told.status == 1 and len(told.error_lines) == 1, told
            assert f"{name}' is not as it was saved" in told.err, told.err
        assert contents(tmp_path) == before
