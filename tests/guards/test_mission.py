"""What this package is for, held from outside while everything behind it may move: commands, files, and stock LitGPT.

This file stays as it is. Its numbers were recorded on commit b846b63, by the same commands, and are not made anew:
where one fails, what is trained has changed. Nothing here names anything of ours but commands, their options, the
files that a user reads, and the modules that ``litgpt`` itself starts from (__main__, plugin).
"""

import csv
import io
import json
import math
import os
import re
import shutil
import site
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from statistics import mean

import numpy
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml

from tests.data.hub_server import Hub, Repository, serve
from tests.guards.conftest import Command, shell, training, write_model

ROOT = Path(__file__).parents[2]
RTOL = 1e-4
"""For another CPU's order of adding floats; b846b63 and its successors agree in every digit on one machine."""


# --- commands and their options -----------------------------------------------------------------------------------

TRAIN = (
    "train.save_interval train.log_interval train.global_batch_size train.micro_batch_size train.lr_warmup_steps"
    " train.lr_warmup_fraction train.epochs train.max_tokens train.max_steps train.max_time train.max_seq_length"
    " train.tie_embeddings train.max_norm train.min_lr train.cooldown_shape train.cooldown_steps"
    " train.cooldown_fraction train.cooldown_ends train.power_a train.power_b"
    " eval.interval eval.max_new_tokens eval.max_iters eval.initial_validation eval.final_validation"
    " eval.evaluate_example log.project log.run log.group log.teamspace log.metadata log.log_model log.save_logs"
    " log.checkpoint_name tokens_per_param schedule precision data optimizer devices num_nodes tokenizer_dir"
    " logger_name compile loss_impl track out_dir "
)
ONE = TRAIN + "lr mup_base resume overwrite seed "
MANY = TRAIN + "plan executor ray_address cpus_per_run gpus_per_run "
GROWTH = "base target shrink alignment perturb gains "
OPTIONS = {
    "warmstart": ONE + GROWTH,
    "warmstart_scratch": ONE + "target parametrization initial_checkpoint_dir",
    "warmstart_plan": ONE + GROWTH + "measure json",
    "warmstart_grow": GROWTH + "out_dir mup_base seed overwrite",
    "warmstart_grid_search": MANY + "target lrs batch_sizes seeds parametrization",
    "warmstart_ablations": MANY + "base target arms seeds base_tokens_per_param base_seed name lr",
    "warmstart_successive": MANY
    + "scales base shrink alignment perturb gains compute_split max_flops scratch mup_base lr seed",
    "warmstart_lr_transfer": MANY.replace("tokens_per_param", "") + "scales parametrizations lrs seeds",
    "warmstart_coord_check": "base target widths scales parametrizations shrink alignment perturb lr steps num_seeds"
    " seed data batch_size block_size tokenizer_dir out_dir overwrite",
    "warmstart_export": "checkpoint_dir out_dir format overwrite license push_to_hub private",
    "warmstart_fit": "out_dir schedule points from_tokens_per_param resamples seed",
    "warmstart_report": "out_dir",
    "warmstart_prepare_data": "repo_id revision text_dir files column val_fraction piece_bytes tokenizer"
    " tokenizer_vocab_size data_path seed num_workers",
}
"""Command -> options that a user may have typed."""
REFUSED = (
    "train.epochs train.tie_embeddings train.max_tokens train.max_steps train.max_time train.global_batch_size"
    " eval.evaluate_example eval.max_new_tokens eval.initial_validation eval.final_validation"
)
"""Of them those that some command takes and refuses in one line: these need not be in its --help."""


def named(told: str) -> set[str]:
    """The words of a --help in which commands are listed."""
    return set(re.split(r"[{},\s]+", told))


@pytest.mark.slow
def test_python_m_lists_the_commands_without_the_hook():
    told = shell("--help")
    assert told.status == 0 and OPTIONS.keys() <= named(told.out), told.err


@pytest.mark.parametrize("name", OPTIONS)
def test_each_command_has_the_options_that_it_had(command: Command, name):
    told = command(name, "--help")
    found = set(re.findall(r"^  --([\w.]+)", told.out, re.M))
    missing = set(OPTIONS[name].split()) - found
    assert told.status == 0 and missing <= set(REFUSED.split()), missing
    for option in missing:
        refused = command(name, f"--{option}", "false" if option.startswith("eval.") else "1", "--target", "5M")
        assert refused.status != 0 and len(refused.error_lines) == 1, refused.err
    assert "config" in found


# --- configs/ -----------------------------------------------------------------------------------------------------

CONFIGS = ROOT / "configs"
MODEL_FILES = sorted(CONFIGS.rglob("models/*.yaml"))
FILES = sorted(set(CONFIGS.rglob("*.yaml")) - set(MODEL_FILES))


def holds(printed: object, written: object) -> bool:
    """Whether all that a file says is among the printed arguments, where a class has its module before its name."""
    if isinstance(written, dict) and isinstance(printed, dict):
        return all(key in printed and holds(printed[key], value) for key, value in written.items())
    if isinstance(printed, dict):
        printed = printed.get("class_path")
    is_name = isinstance(written, str) and written.isidentifier()
    return printed == written or (is_name and str(printed).rpartition(".")[2] == written)


def test_there_are_as_many_configs_as_there_were():
    assert len(FILES) >= 48 and len(MODEL_FILES) >= 4
    assert {path.parent.name for path in FILES if "study" not in path.parts} >= {
        "warmstart", "warmstart_scratch", "warmstart_plan", "warmstart_grow", "warmstart_grid_search",
        "warmstart_ablations", "warmstart_successive", "warmstart_coord_check", "warmstart_prepare_data",
    }  # fmt: skip


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(CONFIGS).with_suffix("")))
def test_every_config_is_taken_by_its_command_and_nothing_of_it_is_lost(command: Command, path):
    """The command is the folder's name, or, in study/, what the file's second line says."""
    name = path.parent.name
    if "study" in path.relative_to(CONFIGS).parts:
        name, said = re.fullmatch(r"#   litgpt (\w+) --config (\S+)", path.read_text().splitlines()[1]).groups()
        assert ROOT / said == path
    told = command(name, "--config", path, "--print_config")
    assert told.status == 0, told.err
    written = yaml.safe_load(path.read_text())
    assert written and holds(yaml.safe_load(told.out), written), told.out


@pytest.mark.parametrize("path", MODEL_FILES, ids=lambda path: path.stem)
def test_every_model_is_one_of_litgpts(path):
    from litgpt.config import Config

    config = Config.from_file(path)
    assert config.n_embd == yaml.safe_load(path.read_text())["n_embd"] and config.n_embd % config.n_head == 0


# --- a wheel in a fresh environment, and LitGPT's own console script ------------------------------------------------

ENVIRONMENT = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV", "PYTHONHOME")}
ENVIRONMENT["JSONARGPARSE_DEPRECATION_WARNINGS"] = "off"
PLAIN_RUN = ("--eval.max_iters", 4, "--compile", "false", "--logger_name", "csv", "--train.max_steps", 3)


def run(*words: object, check: bool = True, cwd: Path | None = None) -> subprocess.CompletedProcess:
    """Run a program without anything of this process's environment that leads to the sources."""
    done = subprocess.run([str(w) for w in words], capture_output=True, text=True, env=ENVIRONMENT, cwd=cwd)
    assert done.returncode == 0 or not check, f"{words}\n{done.stdout}\n{done.stderr}"
    return done


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Our wheel, built from a copy of the sources."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    ignore = shutil.ignore_patterns(".*", "out", "data_", "dist", "__pycache__")
    shutil.copytree(ROOT / "litgpt_warmstart", source / "litgpt_warmstart", ignore=ignore)
    for name in ("pyproject.toml", "README.md", "LICENSE", "litgpt_warmstart.pth"):
        shutil.copy(ROOT / name, source)
    run(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", folder, source)
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def venv(tmp_path_factory) -> Path:
    """An empty virtual environment that sees the packages installed here, without their .pth files."""
    folder = tmp_path_factory.mktemp("venv")
    run(sys.executable, "-m", "venv", folder)
    packages = next(folder.glob("lib/python*/site-packages"))
    (packages / "zz_parent.pth").write_text("\n".join(site.getsitepackages()) + "\n")
    return folder


@pytest.fixture
def pip(venv) -> list[object]:
    """Begin of a command that installs into the environment."""
    return [venv / "bin/python", "-m", "pip", "install", "-q", "--no-deps", "--ignore-installed"]


@pytest.mark.slow
def test_a_users_two_lines_in_litgpts_own_script_from_a_wheel_to_a_text(venv, wheel, pip, models, from_text, tmp_path):
    """A base, a warmstart from it, and stock LitGPT's generate on what came out."""
    run(*pip, wheel, f"litgpt=={version('litgpt')}")
    litgpt, scratch, warm = venv / "bin/litgpt", tmp_path / "scratch", tmp_path / "warm"
    run(litgpt, "warmstart_scratch", "--target", models[16], "--lr", 0.01, "--train.global_batch_size", 4,
        *from_text, "--out_dir", scratch, *PLAIN_RUN, cwd=tmp_path)  # fmt: skip
    done = run(litgpt, "warmstart", "--base", scratch / "final", "--target", models[48], "--out_dir", warm, *PLAIN_RUN,
               cwd=tmp_path)  # fmt: skip
    assert "shrink 0.4, alignment heads" in done.stdout
    config = yaml.safe_load((warm / "final/model_config.yaml").read_text())
    assert config["n_embd"] == 48 and config["attention_scores_scalar"] is None
    stock = (venv / "bin/python", "-m", "litgpt", "generate")  # no hook there
    done = run(*stock, warm / "final", "--prompt", "def ", "--max_new_tokens", 5)
    assert re.search("^def .", done.stdout, re.M), done.stdout
    assert (venv / "bin/litgpt-warmstart").is_file()


@pytest.mark.slow
def test_litgpt_has_our_commands_through_install_upgrade_breakage_and_uninstall(venv, wheel, pip, tmp_path):
    packages = next(venv.glob("lib/python*/site-packages"))
    litgpt, stock = venv / "bin/litgpt", f"litgpt=={version('litgpt')}"
    ours = OPTIONS.keys()

    def listed() -> set[str]:
        done = run(litgpt, "--help")
        assert done.stderr == ""
        return ours & named(done.stdout)

    run(*pip, wheel)
    run(*pip, stock)  # litgpt after ours
    assert listed() == ours
    run(*pip, wheel)  # ours after litgpt
    assert listed() == ours
    assert "warmstart-70m" in run(litgpt, "pretrain", "list").stdout.split()
    for words in (["--shirnk", "1"], ["--shrink", "much"], ["--config", tmp_path / "missing.yaml"]):
        done = run(litgpt, "warmstart", *words, check=False)
        assert done.returncode == 2 and len(done.stderr.splitlines()) == 1, done.stderr
        assert done.stderr.startswith("litgpt warmstart: error: ")

    (packages / "litgpt_warmstart/plugin.py").write_text("raise ImportError('broken on purpose')\n")
    done = run(litgpt, "--help")
    assert "pretrain" in done.stdout and len(done.stderr.splitlines()) == 1 and "broken on purpose" in done.stderr

    run(venv / "bin/python", "-m", "pip", "uninstall", "-q", "-y", "litgpt-warmstart")
    assert listed() == set()
    assert not [p.name for p in packages.iterdir() if "warmstart" in p.name]

    run(*pip, "--no-build-isolation", "-e", ROOT)
    assert listed() == ours
    run(venv / "bin/python", "-m", "pip", "uninstall", "-q", "-y", "litgpt-warmstart")


@pytest.mark.slow
def test_other_python_processes_do_not_load_the_hook(venv, wheel, pip):
    run(*pip, wheel)
    done = run(venv / "bin/python", "-c", "import sys; print([m for m in sys.modules if 'warmstart' in m])")
    assert done.stdout.strip() == "[]"


# --- SlimPajama-6B from a Hub, and its chunks in stock LitGPT -------------------------------------------------------

COMMIT = "b5f90f419b7489cdba26fdbc8c022fcb5562f968"


@pytest.fixture(scope="module")
def documents(texts) -> dict[str, list[str]]:
    """Split -> documents of some 2,000 characters, all different."""
    found = [text[i : i + 2000] for path in sorted(texts.iterdir()) for text in (path.read_text(),)
             for i in range(0, len(text), 2000)]  # fmt: skip
    found = list(dict.fromkeys(text for text in found if text.isascii()))[:240]
    return {"val": found[:20], "test": found[20:40], "train": found[40:]}


@pytest.fixture(scope="module")
def slimpajama(documents, data, tmp_path_factory) -> tuple[Path, list[str], str]:
    """A folder with data/slimpajama-6b beneath, the Hub's requests, and what the preparation printed.

    The Hub has the dataset's layout, and a tokenizer whose folder is as sparse as GPT-2's.
    """

    def parquet(texts: list[str]) -> bytes:
        buffer = io.BytesIO()
        pq.write_table(pa.table({"meta": list(range(len(texts))), "text": texts}), buffer, row_group_size=20)
        return buffer.getvalue()

    hash_ = "0123456789abcdef"
    files = {f"data/train-{n:05d}-of-00003-{hash_}.parquet": parquet(documents["train"][n::3]) for n in range(3)}
    files[f"data/validation-00000-of-00001-{hash_}.parquet"] = parquet(documents["val"])
    files[f"data/test-00000-of-00001-{hash_}.parquet"] = parquet(documents["test"])
    files["README.md"] = b"# SlimPajama"
    tokenizer = (data / "tokenizer.json").read_bytes()
    end = json.loads(tokenizer)["added_tokens"][0]["id"]
    sparse = {"tokenizer.json": tokenizer, "tokenizer_config.json": b'{"model_max_length": 1024}',
              "generation_config.json": json.dumps({"eos_token_id": end}).encode()}  # fmt: skip
    served = Hub({"DKYoon/SlimPajama-6B": Repository(files, COMMIT)}, {"openai-community/gpt2": Repository(sparse)})
    folder = tmp_path_factory.mktemp("slimpajama")
    config = CONFIGS / "warmstart_prepare_data/slimpajama-6b.yaml"
    with serve(served) as hub:
        told = shell("warmstart_prepare_data", "--config", config, cwd=folder, HF_ENDPOINT=hub.url,
                     HF_HOME=str(folder / "home"), HF_TOKEN="hf_abc")  # fmt: skip
    assert told.status == 0, told.err
    return folder, [path for _, path, _ in hub.requests if "/datasets/" in path], told.out


def test_slimpajama_is_fetched_at_its_commit_and_the_command_to_train_is_told(slimpajama):
    folder, requests, out = slimpajama
    downloads = [path for path in requests if path.endswith(".parquet")]
    assert downloads and all(f"/resolve/{COMMIT}/data/" in path for path in downloads)
    assert all(f"/{COMMIT}" in path for path in requests), requests  # never "main", whose commit may be another
    assert list((folder / "home/hub").glob("datasets--DKYoon--SlimPajama-6B/snapshots/b5f90f*/data/*.parquet"))
    assert "Prepared 'data/slimpajama-6b': tokens: train " in out
    assert "Train on it with --data SlimPajama6B --data.data_path data/slimpajama-6b" in out


@pytest.mark.parametrize("split", ["train", "val"])
def test_chunks_hold_the_splits_documents_to_the_letter(slimpajama, documents, split):
    """Read by litdata and decoded by LitGPT, whatever the order; chunks may cut a few."""
    from litdata.streaming import StreamingDataset, TokensLoader
    from litgpt.tokenizer import Tokenizer

    prepared = slimpajama[0] / "data/slimpajama-6b"
    stored = StreamingDataset(input_dir=str(prepared / split), item_loader=TokensLoader(block_size=1))
    tokens, tokenizer = torch.tensor([int(stored[i]) for i in range(len(stored))]), Tokenizer(prepared)
    ends = (tokens == tokenizer.eos_id).nonzero().flatten().tolist()
    starts = [0, *(end + 1 for end in ends)]
    found = [tokenizer.decode(tokens[a:b]) for a, b in zip(starts, ends, strict=False)]
    assert len(found) == len(set(found)) and len(found) <= len(documents[split])
    assert len(set(found) & set(documents[split])) >= 0.9 * len(documents[split])


def test_slimpajama_is_what_is_trained_on_where_nothing_is_said(command: Command, models, slimpajama):
    told = command("warmstart_scratch", *training(models[16], "ours", "--lr", 0.02, steps=2), cwd=slimpajama[0])
    assert told.status == 0, told.err
    assert "SlimPajama6B" in told.out and (slimpajama[0] / "ours/final/tokenizer.json").is_file()


@pytest.mark.slow
def test_stock_litgpt_pretrains_on_the_chunks(slimpajama):
    words = ["pretrain", "pythia-14m", "--data", "LitData", "--data.data_path", "data/slimpajama-6b",
             "--data.split_names", "[train, val]", "--data.num_workers", 1, "--tokenizer_dir", "data/slimpajama-6b",
             "--train.max_tokens", 256, "--train.max_seq_length", 32, "--train.global_batch_size", 4,
             "--train.micro_batch_size", 4, "--eval.max_iters", 2, "--train.lr_warmup_steps", 1,
             "--out_dir", "stock", "--logger_name", "csv"]  # fmt: skip
    stock = subprocess.run(
        [sys.executable, "-m", "litgpt", *map(str, words)], cwd=slimpajama[0], capture_output=True, text=True,
        env={**os.environ, "TORCHDYNAMO_DISABLE": "1", "HF_HUB_OFFLINE": "1"}, timeout=300,
    )  # fmt: skip
    assert stock.returncode == 0, stock.stderr[-3000:]
    final = slimpajama[0] / "stock/final"
    assert (final / "lit_model.pth").is_file(), stock.stdout
    assert json.loads((final / "tokenizer_config.json").read_text())["eos_token"]


# --- the losses of 20 steps -----------------------------------------------------------------------------------------

EXPLICIT = '''
import numpy, torch
from litgpt.data import DataModule
from torch.utils.data import DataLoader

def blocks(number, first, seed):
    """Blocks of 65 tokens below 512, rare ones and frequent ones; half of them were said five tokens before."""
    drawn = numpy.random.RandomState(seed)
    found = (512 * drawn.random_sample((400, 65)) ** 3).astype("int64")
    said = drawn.random_sample(found.shape) < 0.5
    for i in range(5, 65):
        found[:, i] = numpy.where(said[:, i], found[:, i - 5], found[:, i])
    return torch.from_numpy(found[first : first + number])

class Explicit(DataModule):
    """160 blocks from ``first`` on, in steps of seven: 0, 7, ..., 154, 1, 8, ..."""
    def __init__(self, first: int = 0):
        super().__init__()
        self.first = first
    def connect(self, tokenizer=None, batch_size=1, max_seq_length=None):
        self.batch_size = batch_size
    def setup(self, stage=""):
        order = [i for start in range(7) for i in range(start, 160, 7)]
        self.train, self.val = blocks(160, self.first, 1)[order], blocks(4, 0, 2)
    def train_dataloader(self):
        return DataLoader(self.train, self.batch_size, shuffle=False)
    def val_dataloader(self):
        return DataLoader(self.val, self.batch_size, shuffle=False)
'''
"""A user's DataModule: what is read does not depend on anything of ours."""

LLAMA = dict(norm_class_name="RMSNorm", mlp_class_name="LLaMAMLP", bias=False, parallel_residual=False,
             rotary_percentage=1.0, n_query_groups=2)  # fmt: skip
SHAPES = {
    "32": (32, 4, {}),
    "64": (64, 4, {}),  # its heads are twice as large: heads are padded, attention has a scale
    "64, more heads": (64, 8, {}),
    "llama 32": (32, 4, LLAMA | dict(intermediate_size=96)),
    "llama 64": (64, 8, LLAMA | dict(intermediate_size=192)),
}
"""Name -> n_embd, n_head and what else differs."""

GROWN = ("--base", "base/final", "--data.first", 160)
RUNS = {
    "base": ("warmstart_scratch", "32", "--lr", 0.02),
    "scratch": ("warmstart_scratch", "64", "--mup_base", "base/final", "--data.first", 160),
    "sp": ("warmstart_scratch", "64", "--lr", 0.02, "--parametrization", "sp", "--data.first", 160),
    "warmstart": ("warmstart", "64", *GROWN),
    "shrink 0": ("warmstart", "64", *GROWN, "--shrink", 0),
    "more heads": ("warmstart", "64, more heads", *GROWN, "--shrink", 1, "--perturb", 0.1, "--gains", "copied"),
    "blocks": ("warmstart", "64", *GROWN, "--shrink", 0.8, "--alignment", "blocks", "--gains", "added"),
    "literal": ("warmstart", "64", *GROWN, "--shrink", 0.8, "--alignment", "literal", "--gains", "reset"),
    "cosine": ("warmstart", "64", *GROWN, "--schedule", "cosine", "--train.lr_warmup_steps", 5),
    "wsd": ("warmstart", "64", *GROWN, "--schedule", "wsd", "--train.lr_warmup_steps", 3, "--train.cooldown_steps", 8),
    "llama base": ("warmstart_scratch", "llama 32", "--lr", 0.02),
    "llama": ("warmstart", "llama 64", "--base", "llama base/final", "--data.first", 160),
}
"""Name -> command, target and options."""

LOSSES = {
    "base": [
        6.456304, 6.11196, 5.877737, 5.683065, 5.541097, 5.812614, 5.59757, 5.661657, 5.430754, 5.663584, 5.450387,
        5.792424, 5.5184, 5.523612, 5.80025, 5.568816, 5.616928, 5.842928, 5.444408, 5.620225,
    ],
    "scratch": [
        6.353819, 6.015467, 5.857928, 5.802189, 5.559118, 5.784615, 5.654276, 5.64011, 5.773867, 5.816421, 5.572292,
        5.77947, 5.699163, 5.723058, 5.435994, 5.782983, 5.847119, 5.533465, 5.475813, 5.523428,
    ],
    "sp": [
        6.457609, 5.97963, 5.861643, 5.907007, 5.678322, 5.970312, 5.891774, 5.797436, 5.919343, 5.944897, 5.609242,
        5.928038, 5.80985, 5.842915, 5.476644, 5.889889, 5.875033, 5.594502, 5.548101, 5.66812,
    ],
    "warmstart": [
        5.974225, 5.78775, 5.688826, 5.736049, 5.499852, 5.733184, 5.63858, 5.631747, 5.735578, 5.758866, 5.515591,
        5.686072, 5.651677, 5.644994, 5.393996, 5.748134, 5.790693, 5.526337, 5.450995, 5.498074,
    ],
    "more heads": [
        5.666944, 5.673426, 5.622988, 5.736254, 5.448356, 5.609369, 5.559616, 5.543012, 5.631455, 5.690588, 5.437253,
        5.715438, 5.633359, 5.644082, 5.343277, 5.71488, 5.787321, 5.486115, 5.425749, 5.493083,
    ],
    "blocks": [
        5.966533, 6.091085, 5.836285, 5.878417, 5.665295, 5.810414, 5.70773, 5.684318, 5.822715, 5.847143, 5.549695,
        5.777371, 5.673835, 5.750859, 5.459012, 5.844026, 5.880606, 5.560049, 5.493524, 5.568101,
    ],
    "literal": [
        5.722076, 5.779119, 5.694169, 5.7204, 5.56135, 5.706082, 5.642284, 5.617775, 5.723148, 5.727819, 5.484777,
        5.679595, 5.617396, 5.617385, 5.385569, 5.688203, 5.773439, 5.489128, 5.407515, 5.496455,
    ],
    "cosine": [
        5.974225, 6.017414, 5.879957, 5.732573, 5.507901, 5.684422, 5.56113, 5.5957, 5.698673, 5.765282, 5.536499,
        5.73246, 5.653605, 5.68543, 5.435609, 5.736373, 5.850412, 5.535162, 5.450847, 5.49889,
    ],
    "wsd": [
        5.974225, 6.017414, 5.837195, 5.689897, 5.451381, 5.691177, 5.596705, 5.616775, 5.701872, 5.784227, 5.559523,
        5.735361, 5.655611, 5.67652, 5.408093, 5.731554, 5.820124, 5.509423, 5.430917, 5.520036,
    ],
    "llama base": [
        6.42261, 6.068741, 5.822614, 5.564158, 5.551567, 5.764103, 5.576531, 5.653493, 5.401705, 5.667224, 5.439534,
        5.809984, 5.546754, 5.506361, 5.823231, 5.53812, 5.614683, 5.855207, 5.445624, 5.625578,
    ],
    "llama": [
        6.060779, 5.868824, 5.732518, 5.701779, 5.486143, 5.677906, 5.645029, 5.606523, 5.720416, 5.790258, 5.515413,
        5.766159, 5.653605, 5.668468, 5.392958, 5.713672, 5.801926, 5.534478, 5.434381, 5.525634,
    ],
}  # fmt: skip
LOSSES["shrink 0"] = LOSSES["scratch"]
"""Name -> training loss of each step, on b846b63."""

VAL_LOSSES = {
    "base": 5.689527, "scratch": 5.642104, "sp": 5.780353, "warmstart": 5.631851, "shrink 0": 5.642104,
    "more heads": 5.619850, "blocks": 5.675952, "literal": 5.632726, "cosine": 5.627036, "wsd": 5.648808,
    "llama base": 5.684694, "llama": 5.671485,
}  # fmt: skip
"""Name -> validation loss after the last step, on b846b63."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Where the DataModule and the runs are."""
    folder = tmp_path_factory.mktemp("mission")
    (folder / "explicit_blocks.py").write_text(EXPLICIT)
    return folder


@pytest.fixture
def trained(command: Command, folder, monkeypatch):
    """Gives the folder of a run, with the one of its base trained before it."""
    monkeypatch.syspath_prepend(folder)

    def train(name: str) -> Path:
        if not (folder / name / "final").is_dir():
            by, target, *options = RUNS[name]
            for other in RUNS:
                if f"{other}/final" in options:
                    train(other)
            n_embd, n_head, changes = SHAPES[target]
            model = write_model(folder / "models" / target, n_embd, n_head, **changes)
            words = training(model, name, "--data", "explicit_blocks.Explicit", *options, steps=20)
            told = command(by, *words, cwd=folder)
            assert told.status == 0, told.err
        return folder / name

    return train


def column(out_dir: Path, name: str) -> list[float]:
    with (out_dir / "metrics.csv").open() as file:
        return [float(row[name]) for row in csv.DictReader(file) if row[name]]


@pytest.mark.parametrize("name", RUNS)
def test_twenty_steps_have_the_losses_that_they_had(trained, name):
    out_dir = trained(name)
    assert column(out_dir, "loss") == pytest.approx(LOSSES[name], rel=RTOL)
    assert column(out_dir, "val_loss")[-1] == pytest.approx(VAL_LOSSES[name], rel=RTOL)


@pytest.mark.parametrize("name", RUNS)
def test_stock_litgpt_has_the_last_validation_loss(trained, folder, name):
    from litgpt.config import Config
    from litgpt.model import GPT

    final = trained(name) / "final"
    namespace: dict = {}
    exec(EXPLICIT, namespace)
    tokens = namespace["blocks"](4, 0, 2)
    model = GPT(Config.from_file(final / "model_config.yaml"))
    model.load_state_dict(torch.load(final / "lit_model.pth", weights_only=True))
    with torch.no_grad():
        logits = model(tokens[:, :-1])
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()).item()
    assert loss == pytest.approx(VAL_LOSSES[name], rel=RTOL)


def test_a_base_that_counts_nothing_is_vanilla_mup(trained):
    assert column(trained("shrink 0"), "loss") == column(trained("scratch"), "loss")


# --- the coordinate check ------------------------------------------------------------------------------------------

MODULES = ("transformer.wte", "transformer.h.1.attn", "transformer.h.1.mlp", "lm_head")
SLOPES = {
    "sp": (-0.368, 1.041, 0.922, 0.567),
    "mup": (0.018, -0.095, -0.126, -0.189),
    "warmstart 0.4": (-0.047, -0.098, -0.317, -0.289),
    "warmstart 1": (-0.246, -0.253, -0.051, -0.049),
}
"""Way to start -> slopes of log mean |activation| against log width after three updates, on b846b63."""


def test_activations_keep_their_size_over_width_under_mup_and_in_warmstarts_and_grow_under_sp(
    command: Command, trained, folder
):
    """Slopes are fitted here, to the coordinates that the command writes; above 0.4 a layer grows with width."""
    trained("base")
    told = command("warmstart_coord_check", "--base", "base/final", "--widths", "32,64,128", "--shrink", "0.4,1",
                   "--steps", 4, "--num_seeds", 2, "--data", "explicit_blocks.Explicit", "--data.first", 160,
                   "--out_dir", "coord_check", "--overwrite", "true", cwd=folder)  # fmt: skip
    assert told.status == 0, told.err
    with (folder / "coord_check/coord_check.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["t"] == "4"]
    slopes: dict[str, dict[str, float]] = {}
    for way, shrink, module in dict.fromkeys((r["parametrization"], r["shrink"], r["module"]) for r in rows):
        logs: dict[float, list[float]] = {}
        for row in rows:
            if (row["parametrization"], row["shrink"], row["module"]) == (way, shrink, module):
                logs.setdefault(math.log(float(row["width"])), []).append(math.log(float(row["l1"])))
        slope = numpy.polyfit(list(logs), [mean(found) for found in logs.values()], 1)[0]
        slopes.setdefault(f"{way} {float(shrink):g}" if shrink else way, {})[module] = float(slope)
    assert max(slopes["sp"].values()) > 0.8
    assert all(max(slopes[way].values()) <= 0.4 for way in slopes if way != "sp")
    assert slopes.keys() == SLOPES.keys()
    for way, found in slopes.items():
        assert [found[module] for module in MODULES] == pytest.approx(SLOPES[way], abs=0.01)
    (verdict,) = (line for line in told.out.splitlines() if line.startswith("verdict"))
    assert verdict.split()[1:] == ["grows", "ok", "ok", "ok"]
