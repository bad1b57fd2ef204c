"""Wrong input of any kind is one line that names it, a status that is not 0, and a disk as it was."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml

from tests.guards.conftest import STEP, Command, contents, shell

BATCH = ("--train.global_batch_size", "8", "--train.micro_batch_size", "4", "--train.max_steps", "2")
WARM = ("warmstart", "--base", "BASE", "--target", "WIDE", "--out_dir", "out", *BATCH, *STEP)
SCRATCH = ("warmstart_scratch", "--target", "WIDE", "--lr", "0.01", "--out_dir", "out", *BATCH, *STEP, "DATA")
GROW = ("warmstart_grow", "--base", "BASE", "--target", "WIDE", "--out_dir", "out")
PLAN = ("warmstart_plan", "--base", "BASE", "--target", "WIDE", "--measure", "false", *BATCH)
GRID = ("warmstart_grid_search", "--target", "NARROW", "--lrs", "0.01", "--batch_sizes", "8", "--out_dir", "out",
        "--train.max_tokens", "2048", "--train.micro_batch_size", "4", *STEP, "DATA")  # fmt: skip
CHECK = ("warmstart_coord_check", "--base", "BASE", "--widths", "16,32", "--steps", "1", "--num_seeds", "1",
         "--out_dir", "out")  # fmt: skip
CHAIN = ("warmstart_successive", "--scales", "NARROW,WIDE", "--lr", "0.01", "--plan", "tokens", "--out_dir", "out",
         "--tokens_per_param", "1", "--train.global_batch_size", "8", "DATA")  # fmt: skip
ABLATE = ("warmstart_ablations", "--base", "BASE", "--target", "WIDE", "--plan", "tokens", "--out_dir", "out",
          "--tokens_per_param", "1", "--train.global_batch_size", "8", "DATA")  # fmt: skip
EXPORT = ("warmstart_export", "--checkpoint_dir", "BASE", "--out_dir", "out")

Row = tuple[Sequence[str], str]

NUMBERS: list[Row] = [
    ((*WARM, "--seed", "-1"), "--seed -1: seeds lie in 0 … 4294967295"),
    ((*WARM, "--seed", "4294967296"), "--seed 4294967296: seeds lie in"),
    ((*SCRATCH, "--seed", "-1"), "--seed -1"),
    ((*GROW, "--seed", "4294967296"), "--seed 4294967296"),
    ((*PLAN, "--seed", "-1"), "--seed -1"),
    ((*GRID, "--seeds", "1,-1"), "--seeds -1"),
    ((*GRID, "--seeds", "1,one"), "--seeds"),
    ((*ABLATE, "--seeds", "4294967296"), "--seeds 4294967296"),
    ((*ABLATE, "--base_seed", "-1"), "--base_seed -1"),
    ((*CHECK, "--seed", "4294967295", "--num_seeds", "2"), "4294967296: seeds lie in"),
    ((*CHECK, "--seed", "-1"), "--seed -1"),
    ((*CHAIN, "--seed", "-1"), "--seed -1"),
    ((*WARM, "--data", "StdlibText", "--data.seed", "-1"), "seed"),
    ((*WARM, "--data", "TinyLlama", "--data.seed", "-1"), "--data.seed -1"),
    (("warmstart_prepare_data", "--text_dir", "TEXTS", "--data_path", "made", "--seed", "-1"), "--seed -1"),
    ((*WARM, "--shrink", "nan"), "shrink"),
    ((*WARM, "--shrink", "1.5"), "--shrink must lie in [0, 1], got 1.5"),
    ((*WARM, "--perturb", "inf"), "perturb"),
    ((*WARM, "--lr", "nan"), "lr"),
    ((*WARM, "--lr", "-1"), "--lr must be above 0"),
    ((*WARM, "--tokens_per_param", "inf"), "tokens_per_param"),
    ((*SCRATCH, "--tokens_per_param", "1e305"), "--tokens_per_param"),
    ((*WARM, "--train.max_tokens", "1" + 30 * "0"), "--train.max_tokens is too large"),
    ((*WARM, "--train.max_norm", "nan"), "max_norm"),
    ((*WARM, "--train.global_batch_size", "0"), "--train.global_batch_size must be above 0"),
    ((*WARM, "--train.global_batch_size", "6"), "is no multiple of --train.micro_batch_size 4"),
    ((*WARM, "--eval.max_iters", "-1"), "--eval.max_iters must be above 0"),
    ((*WARM, "--track", "0"), "--track must be above 0"),
    ((*GRID, "--lrs", "0.01,nan"), "--lrs"),
    ((*GRID, "--lrs", "0"), "--lrs"),
    ((*GRID, "--batch_sizes", "8.5"), "--batch_sizes"),
    ((*GRID, "--cpus_per_run", "0"), "--cpus_per_run"),
    ((*GRID, "--executor", "ray", "--cpus_per_run", "0"), "--cpus_per_run must be 1 or more"),
    ((*GRID, "--executor", "ray", "--gpus_per_run", "-1"), "--gpus_per_run lie in [0, 1]"),
    ((*CHECK, "--widths", "16,0"), "--widths"),
    ((*CHECK, "--widths", "16,1000000000000"), "--widths"),
    ((*CHECK, "--steps", "0"), "--steps must be above 0"),
    ((*CHECK, "--num_seeds", "1000000000"), "--num_seeds"),
    ((*CHECK, "--shrink", "0.4,nan"), "--shrink"),
    ((*CHECK, "--batch_size", "1" + 30 * "0"), "--batch_size"),
    ((*CHAIN, "--max_flops", "nan", "--compute_split", "0.5,0.5"), "max_flops"),
    ((*CHAIN, "--max_flops", "-1", "--compute_split", "0.5,0.5"), "--max_flops must be above 0"),
    ((*CHAIN, "--compute_split", "0.5,nan"), "--compute_split"),
    ((*CHAIN, "--compute_split", "half,half"), "--compute_split"),
    ((*ABLATE, "--base_tokens_per_param", "-1"), "--base_tokens_per_param must be above 0"),
    ((*ABLATE, "--arms", "[{shrink: [0.4, .nan]}]"), "shrink"),
    ((*ABLATE, "--arms", "[{shrink: much}]"), "shrink"),
    ((*ABLATE, "--arms", "[{tokens_per_param: -1}]"), "tokens_per_param"),
    ((*ABLATE, "--name", "../beside"), "--name"),
]

CONFIGS: list[tuple[object, str]] = [
    ({"n_embd": 0}, "n_embd is 0: give a number above 0"),
    ({"n_embd": -48}, "n_embd is -48"),
    ({"n_embd": "abc"}, "n_embd is 'abc': give a whole number"),
    ({"n_embd": 1.5}, "n_embd is 1.5"),
    ({"n_embd": True}, "n_embd is True"),
    ({"n_embd": None}, "n_embd is None"),
    ({"n_embd": 1e30}, "n_embd is 1e+30"),
    ({"n_embd": 10**12}, "no model is that large"),
    ({"n_head": 0}, "n_head is 0"),
    ({"n_head": 5}, "n_embd 48 is no multiple of n_head 5"),
    ({"n_query_groups": 3}, "n_head 4 is no multiple of n_query_groups 3"),
    ({"n_layer": -1}, "n_layer is -1"),
    ({"head_size": 0}, "head_size is 0"),
    ({"vocab_size": 0}, "vocab_size is 0"),
    ({"padded_vocab_size": "many"}, "padded_vocab_size is 'many'"),
    ({"block_size": -64}, "block_size is -64"),
    ({"rotary_percentage": 1.5}, "rotary_percentage is 1.5"),
    ({"rotary_percentage": -0.5}, "rotary_percentage is -0.5"),
    ({"norm_eps": "small"}, "norm_eps is 'small'"),
    ({"norm_class_name": "BatchNorm"}, "norm_class_name is 'BatchNorm': give one of LayerNorm, RMSNorm"),
    ({"mlp_class_name": "os.system"}, "mlp_class_name is 'os.system'"),
    ({"no_such": 1}, "it has no field 'no_such'"),
    ({"name": "../../up"}, "name is '../../up': folders are called by it"),
    ({"name": "/tmp/up"}, "name is '/tmp/up'"),
    ({"name": "a\nb"}, "folders are called by it"),
    ({"name": "a" * 300}, "folders are called by it"),
    (b"[1, 2]", "it holds no names and values"),
    (b"", "it holds no names and values"),
    (b"n_embd: [", "is not a LitGPT model_config.yaml"),
    (b"n_embd: 48\nn_head: 4: 5\n", "is not a LitGPT model_config.yaml"),
    (b"name: \xff\xfe\n", "is not a LitGPT model_config.yaml"),
    (5000 * b"[", "is not a LitGPT model_config.yaml"),
]

OPTIMIZERS: list[tuple[Sequence[str], str]] = [
    (("--optimizer", "SGD"), "normalize the gradient entry by entry"),
    (("--optimizer", "SparseAdam"), "normalize the gradient entry by entry"),
    (("--optimizer", "LBFGS"), "entry by entry"),
    (("--optimizer", "Adafactor"), "entry by entry"),
    (("--optimizer", "NoSuch"), "no optimizer 'NoSuch'"),
    (("--optimizer", "AdmaW"), "did you mean AdamW?"),
    (("--optimizer.btas", "[0.9, 0.95]"), "did you mean betas?"),
    (("--optimizer", "no.such.Class"), "no optimizer 'no.such.Class'"),
    (("--optimizer", "AdamW", "--optimizer.no_such", "1"), "has no argument 'no_such'"),
    (("--optimizer.betas", "[0.9]"), "betas is [0.9]"),
    (("--optimizer.betas", "[0.9,1.5]"), "Invalid beta parameter"),
    (("--optimizer.eps", "nan"), "eps"),
    (("--optimizer.weight_decay", "-1"), "weight_decay"),
    (("--optimizer.lr", "0"), "--lr must be above 0"),
]


@pytest.fixture
def refused(base: Path, models: dict[int, Path], texts: Path, from_text: tuple[str, ...], tmp_path: Path,
            command: Command):  # fmt: skip
    """Give a command in an empty folder and return the one line that it ends with; nothing is written."""
    known = {"BASE": base, "RUN": base.parent, "NARROW": models[16], "WIDE": models[48], "TEXTS": texts,
             "NARROW,WIDE": f"{models[16]},{models[48]}"}  # fmt: skip
    here = tmp_path / "here"

    def call(*words: object, run=command) -> str:
        here.mkdir(exist_ok=True)
        before = contents(tmp_path), contents(base.parent), contents(models[16].parent.parent)
        typed = [part for word in words for part in (from_text if word == "DATA" else [known.get(word, word)])]
        told = run(*typed, cwd=here)
        assert told.status != 0, told.out
        assert len(told.error_lines) == 1, told.err
        assert (contents(tmp_path), contents(base.parent), contents(models[16].parent.parent)) == before
        return told.error_lines[0]

    return call


@pytest.mark.parametrize(("words", "said"), NUMBERS, ids=lambda part: part[:40] if isinstance(part, str) else part[0])
def test_a_number_out_of_bounds_is_one_line(refused, words, said):
    assert said in refused(*words)


@pytest.mark.parametrize(("content", "said"), CONFIGS, ids=lambda part: str(part)[:40])
def test_a_model_config_that_is_none_is_one_line_as_target_and_as_mup_base(refused, models, tmp_path, content, said):
    path = tmp_path / "wrong.yaml"
    if isinstance(content, dict):
        content = yaml.safe_dump(yaml.safe_load(models[48].read_text()) | content).encode()
    path.write_bytes(content)
    assert said in refused(*GROW, "--target", path)
    assert said in refused(*GROW, "--mup_base", path)


@pytest.mark.parametrize(("words", "said"), OPTIMIZERS, ids=lambda part: " ".join(part) if part[0] == "-" else "")
def test_an_optimizer_that_cannot_be_is_one_line(refused, words, said):
    assert said in refused(*WARM, *words)


@pytest.mark.parametrize(
    "content",
    [b"seed: [", b"seed: 1\n  lr: 2\n", b"\xff\xfe\x00seed: 1", b"- 1\n- 2\n", b"seed: {a: 1}\n", b"no_such: 1\n",
     b"train: {no_such: 1}\n", b"train: 5\n", b"seed: 2024-02-30\n", 3000 * b"["],
    ids=lambda content: content[:12].decode(errors="replace"),
)  # fmt: skip
def test_a_config_file_that_is_broken_is_one_line(refused, tmp_path, content):
    (tmp_path / "wrong.yaml").write_bytes(content)
    for words in (WARM, GROW):
        refused(*words, "--config", tmp_path / "wrong.yaml")


def test_files_that_are_none_are_one_line(refused, tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    file = tmp_path / "file"
    file.write_text("mine")
    for words, said in (
        ((*GROW, "--target", folder), "model_config.yaml"),
        ((*GROW, "--target", "/dev/zero"), "/dev/zero"),
        ((*GROW, "--target", "no/such.yaml"), "no/such.yaml"),
        ((*GROW, "--config", folder), str(folder)),
        ((*GROW, "--config", "no/such.yaml"), "no/such.yaml"),
        ((*GROW, "--config", ""), "config"),
        ((*GROW, "--config", "/dev/zero"), "/dev/zero"),
        ((*GROW, "--base", file), "--base"),
        ((*GROW, "--out_dir", file), "--out_dir"),
        ((*GROW, "--out_dir", file / "below"), "--out_dir"),
        ((*EXPORT, "--out_dir", file), "--out_dir"),
        ((*EXPORT, "--out_dir", file / "below"), "--out_dir"),
        ((*PLAN, "--json", folder), "--json"),
        ((*PLAN, "--json", file / "below"), "--json"),
        ((*WARM, "--out_dir", file), "--out_dir"),
        ((*WARM, "--resume", file), "--resume"),
        ((*CHECK, "--out_dir", file), "--out_dir"),
        ((*GRID, "--out_dir", file), "--out_dir"),
        (("warmstart_report", folder, "--out_dir", file), str(folder)),
        (("warmstart_report", "RUN", "--out_dir", file), "--out_dir"),
        (("warmstart_report", file), str(file)),
    ):
        assert said in refused(*words), words


def test_five_of_them_in_processes_of_their_own(refused, models, tmp_path):
    wrong = tmp_path / "model_config.yaml"
    wrong.write_text(models[48].read_text().replace("n_head: 4", "n_head: 0"))
    (tmp_path / "wrong.yaml").write_text("seed: [")
    for words, said in (
        ((*WARM, "--seed", "-1"), "seeds lie in"),
        ((*GROW, "--target", wrong), "n_head is 0"),
        ((*WARM, "--optimizer", "SparseAdam"), "entry by entry"),
        ((*GROW, "--config", tmp_path / "wrong.yaml"), "wrong.yaml"),
        ((*GROW, "--out_dir", ""), "--out_dir is empty"),
    ):
        assert said in refused(*words, run=shell)
