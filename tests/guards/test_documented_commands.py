"""Every command line of README.md, CONTRIBUTING.md, docs/ and configs/ is run as a reader would, on small models.

A page's lines are run one after another in a folder that holds what the page speaks of, so that later ones use what
earlier ones left. A new line needs nothing here unless it names a file of the reader's (``world``), takes long (MORE)
or cannot be run (PARSED).
"""

import contextlib
import gzip
import re
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import huggingface_hub.constants as constants
import huggingface_hub.hf_api
import pytest
import transformers
import yaml
from jsonargparse import CLI
from litgpt.__main__ import PARSER_DATA
from litgpt.config import name_to_config

from litgpt_warmstart.__main__ import main
from litgpt_warmstart.plugin import mend_download
from tests.conftest import made_once
from tests.data.conftest import jsonl, parquet
from tests.data.hub_server import Hub, Repository, serve
from tests.guards.conftest import write_model
from tests.guards.test_mission import COMMIT, CONFIGS, FILES
from tests.test_documents import PROGRAMS, TODAYS, blocks, command_lines, in_words, spans

PARSED = {
    "cd": "a folder of the reader's",
    ".": "an environment of the reader's",
    "git clone": "the network",
    "python3 -m venv": "makes an environment; test_installation.py resolves what goes into it",
    "pip": "the network; test_installation.py resolves them",
    "uv": "the network; test_installation.py resolves them",
    "hf": "the network; test_push.py pushes with it",
    "lm_eval": "is of the extra eval; test_export.py runs it where that is installed",
    "litgpt evaluate": "is of the extra eval; test_export.py runs it where that is installed",
    "litgpt pretrain": "takes a minute; test_mission.py trains on prepared text with it",
    "litgpt --help": "takes seconds; test_mission.py reads it",
    "make": "installs, and takes minutes to hours",
    "python benchmarks": "takes minutes of a machine that does nothing else; test_benchmarks.py holds its parts",
    "torchrun": "several nodes",
    "litgpt warmstart_grid_search --target 5M --executor ray": "a cluster; test_executors.py has one",
}
"""Beginning of a command -> why it is not run here, but by test_documents.py taken for a right one."""

WHERE = [*TODAYS, CONFIGS]
FIRST = ("study/cpu/1-grid", "warmstart_prepare_data/", "warmstart_scratch/", "warmstart/")
"""Beginnings of the config files whose checkpoints and data others read, in the order in which they do."""

SHORT = "--compile false --logger_name csv --train.micro_batch_size 8 --train.max_seq_length 32 --eval.max_iters 2"
STUDIES = ("warmstart_grid_search", "warmstart_ablations", "warmstart_successive", "warmstart_lr_transfer")
SEARCH = f"{SHORT} --executor here --seeds 42"
CHAIN = f"{SHORT} --executor here --tokens_per_param 0.02 --train.global_batch_size 8"
SMALLER = {
    "warmstart": f"{SHORT} --train.max_steps 2",
    "warmstart_scratch": f"{SHORT} --train.max_steps 2",
    "warmstart_plan": "--compile false --train.micro_batch_size 8 --train.max_seq_length 32",
    "warmstart_grid_search": f"{SEARCH} --train.max_tokens 1024 --lrs 0.01,0.03 --batch_sizes 16,32",
    "warmstart_ablations": f"{CHAIN} --base_tokens_per_param 0.02 --seeds 42",
    "warmstart_successive": CHAIN,
    "warmstart_lr_transfer": f"{SEARCH} --train.max_tokens 4096 --lrs 0.01,0.03",
    "warmstart_coord_check": "--widths 12,24,48 --num_seeds 1 --steps 2 --block_size 32",
    "warmstart_prepare_data": "--num_workers 1",
    "warmstart_fit": "--resamples 20",
}
"""Command -> options that make it short, after those of the page."""
MORE = {
    "litgpt warmstart_scratch --config configs/warmstart_scratch/quickstart.yaml": "--train.max_steps 30",
    "litgpt warmstart_scratch --config configs/warmstart_scratch/quickstart-compare.yaml": "--train.max_steps 6",
    "litgpt warmstart --config configs/warmstart/quickstart.yaml": "--train.max_steps 6",
    "litgpt warmstart_plan --devices 8": "--base CKPT --target 10M --train.micro_batch_size 1"
    " --device_memory_gb 80 --measure false",
    "litgpt warmstart_plan --base out/5M/final --target 70M --data SlimPajama6B": "--data.data_path data/not-yet",
    "litgpt warmstart_grow --base ../mine/Llama-60M": "--target LLAMA.yaml",
    "litgpt warmstart_grow --base HuggingFaceTB/SmolLM2-135M": "--target LLAMA.yaml --overwrite true",
    "litgpt warmstart_successive --config configs/warmstart_successive/quickstart.yaml": "--max_flops 4e9",
    "litgpt warmstart_ablations --config configs/warmstart_ablations/quickstart.yaml": "--seeds 42,43"
    " --tokens_per_param 0.005",
    "litgpt warmstart_coord_check --config configs/study/cpu": "--widths 48,96",
    "litgpt warmstart_coord_check --config configs/study/figure": "--base out/warmstart_scratch/5M/final --widths null"
    " --scales 5M,22M",
    "litgpt warmstart_successive --scales 35M,70M": "--max_flops 1e10",
    "litgpt warmstart_export --checkpoint_dir CKPT": "--out_dir out/hf",
}
"""Beginning of a line -> options that it needs here, after those."""
REMEDY = (
    "What to do: mend the line or the code; or, in test_documented_commands.py, give `names` what it reads, MORE what"
    " makes it smaller, or PARSED why it cannot be run"
)
STANDS_FOR = {
    "--text_dir DIR": "--text_dir TEXTS",
    "--data_path DIR": "--data_path data/new",
    "--base X": "--base CKPT",
    "--base BASE": "--base CKPT",
    "--target T": "--target 10M",
    "--num_nodes M": "--num_nodes 1",
}
"""What a page writes for something of the reader's -> something in ``world``."""


@cache
def documented(page: Path) -> list[str]:
    """The command lines of a page, those within sentences last; of configs/, those of its files' comments."""
    if page == CONFIGS:
        files = [path.read_text() for path in sorted(FILES, key=in_order)]
        return [line for text in files for line in re.findall(r"^#   (litgpt .*)", text, re.M)]
    found = command_lines(page.read_text())
    for span in spans(page.read_text()):
        if re.match(rf"({PROGRAMS}|warmstart\w*) [^.]", span) and "COMMAND" not in span:
            words = in_words(span)[0]
            words = ["litgpt", *words] if words[0].startswith("warmstart") else words
            if not re.fullmatch(r"litgpt \w+|python -m \w+", " ".join(words)):  # named, not to be typed
                found.append(words)
    return list(dict.fromkeys(map(shlex.join, found)))


def in_order(path: Path) -> tuple[list[bool], int]:
    """By this config files come after those that they need; a second stage has a longer name than the first."""
    name = path.relative_to(CONFIGS).as_posix()
    return [not name.startswith(first) for first in FIRST], len(name)


def lines_of(page: Path) -> list[str]:
    """Those of a page to run, without those of pages before it."""
    before = [line for other in WHERE[: WHERE.index(page)] for line in documented(other)]
    return [line for line in documented(page) if line not in before and not told_of(line, PARSED)]


def told_of(line: str, table: dict[str, str]) -> str:
    """What a table says of a line by how it begins; nothing where it does not."""
    return next((told for start, told in table.items() if re.match(rf"{re.escape(start)}(?!\w)", line)), "")


@contextlib.contextmanager
def small_models() -> Iterator[None]:
    """The models that pages name, in LitGPT's table at a quarter of their width, with two layers and 512 tokens."""
    from litgpt_warmstart.method.scales import register

    register()
    with pytest.MonkeyPatch.context() as patch:
        for name in (*(f"warmstart-{scale}m" for scale in (5, 10, 22, 35, 70)), "pythia-14m", "pythia-31m"):
            wide = name_to_config[name]
            small = dict(n_layer=2, n_embd=wide["n_embd"] // 4, vocab_size=512, padded_vocab_size=512)
            patch.setitem(name_to_config, name, wide | small | dict(rotary_percentage=1.0))
        yield


def option(words: list[str], name: str) -> str | None:
    """What is typed for an option."""
    return words[words.index(name) + 1] if name in words else None


def smaller(line: str) -> str:
    """A line as it is run here."""
    for written, ours in STANDS_FOR.items():
        line = line.replace(written, ours)
    command, *words = shlex.split(line)[1:]
    if {"--help", "--plan"} & set(words):
        return line
    more = [SMALLER.get(command), told_of(line, MORE)]
    if command in ("warmstart", "warmstart_scratch") and not {"--out_dir", "--config"} & set(words):
        more.append("--overwrite true")  # another run of the page's is in the command's own folder
    return " ".join([line, *filter(None, more)])


def is_drilled(line: str, page: Path) -> bool:
    """Whether ``make drill`` alone runs a line: it takes seconds, and others are like it."""
    seconds = ("litgpt warmstart_fit out/study", "litgpt-warmstart --print_shtab")
    return line.startswith(seconds) or page == CONFIGS and "configs/study/" in line


def planned(line: str, page: Path) -> str:
    """A study as --plan tells it, but where later lines need what it trains; ``make drill`` trains all."""
    is_trained = page.name == "studies.md" or line.endswith("1-grid.yaml")
    return f"{line} --plan tokens" if line.split()[1] in STUDIES and not is_trained else line


def run(line: str) -> int:
    """A command in this process, one of ours or of LitGPT's or a line of Python: its exit status."""
    program, *words = shlex.split(line)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [program, *words])
        try:
            if program == "python" and words[0] == "-c":
                exec(words[1], {})
            elif program == "litgpt" and words[0] in PARSER_DATA:
                mend_download()  # as the hook does
                CLI({words[0]: PARSER_DATA[words[0]]}, args=words)
            elif program in ("litgpt", "litgpt-warmstart"):
                main()
            elif words[:2] == ["-m", "litgpt_warmstart"]:
                patch.setattr(sys, "argv", ["litgpt-warmstart", *words[2:]])
                main()
            else:
                raise AssertionError(f"{line}\nis of a program that is not run here. {REMEDY}")
        except SystemExit as ended:
            return ended.code if isinstance(ended.code, int) else bool(ended.code)
    return 0


@contextlib.contextmanager
def hub_of(models: Path, tokenizer: Path, cache: Path, texts: Path) -> Iterator[Hub]:
    """A Hub with the data sets and models that pages name, where this user is USER."""
    written = [path.read_text() for path in sorted(texts.iterdir())]
    documents = [text[i : i + 2000] for text in written for i in range(0, len(text), 2000)]
    splits = {"train": documents[40:], "validation": documents[:20], "test": documents[20:40]}
    end = "-00000-of-00001-0123456789abcdef.parquet"
    slimpajama = {f"data/{name}{end}": parquet(split) for name, split in splits.items()}
    c4 = {f"en/c4-train.0000{n}-of-01024.json.gz": gzip.compress(jsonl(documents[n::2])) for n in range(2)}
    datasets = {"DKYoon/SlimPajama-6B": Repository(slimpajama, COMMIT), "allenai/c4": Repository(c4)}
    folders = {str(path.relative_to(models)): path for path in models.glob("*/*")}
    files = {name: {path.name: path.read_bytes() for path in folder.iterdir()} for name, folder in folders.items()}
    files["openai-community/gpt2"] = {name: (tokenizer / name).read_bytes() for name in TOKENIZER}
    hub = Hub(datasets, {name: Repository(each) for name, each in files.items()}, writers={"mine": "USER"})
    with serve(hub), pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_TOKEN", "mine")
        patch.setattr(constants, "ENDPOINT", hub.url)
        patch.setattr(huggingface_hub.hf_api.api, "endpoint", hub.url)  # made when it was imported
        patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}")
        patch.setattr(constants, "HF_HUB_CACHE", str(cache))
        patch.setattr(constants, "HF_HUB_OFFLINE", False)
        yield hub


def save_model(folder: Path, kind: str, tokenizer: Path, **sizes: object) -> None:
    """A random model of transformers' in a folder, with a tokenizer."""
    config = dict(num_hidden_layers=2, vocab_size=512, max_position_embeddings=512, bos_token_id=0, eos_token_id=0)
    model = getattr(transformers, f"{kind}ForCausalLM")(getattr(transformers, f"{kind}Config")(**config | sizes))
    model.save_pretrained(folder)
    for name in TOKENIZER:
        shutil.copy(tokenizer / name, folder)


TOKENIZER = ("tokenizer.json", "tokenizer_config.json")
RUNS = (
    "litgpt warmstart_prepare_data",
    "litgpt warmstart_scratch --config configs/warmstart_scratch/quickstart.yaml",
    "litgpt warmstart_scratch --target 5M --out_dir out/5M",
    "litgpt warmstart --base out/5M/final --target 10M --out_dir out/10M",
    "litgpt warmstart_scratch --mup_base out/5M/final --target 10M --out_dir out/10M-scratch",
)
LAW = (("5M", 2), ("5M", 4), ("10M", 2), ("10M", 4), ("22M", 4), ("22M", 8))
"""Scales and steps of runs from scratch that a law is fitted to."""
MODELS = {"WIDER": (24, 2), "DEEPER": (12, 4), "48x2": (12, 2), "48x6": (12, 6), "96x6": (24, 6), "96": (24, 2)}
"""Config file -> n_embd and n_layer."""
MADE = ("hub", "data/slimpajama-6b", "out/quickstart/base", "out/5M", "out/10M", "out/10M-scratch", "LLAMA.yaml",
        *(f"{name}.yaml" for name in MODELS))  # fmt: skip
"""What ``make_world`` makes under the names that pages have for it."""


def make_world(folder: Path, texts: Path, data: Path, stdlib: Path) -> None:
    """Make what pages speak of."""
    heads = dict(hidden_size=32, num_attention_heads=4)
    llama = heads | dict(num_key_value_heads=2, intermediate_size=96)
    save_model(folder / "hub/EleutherAI/pythia-14m", "GPTNeoX", data, intermediate_size=128, rotary_pct=1.0, **heads)
    save_model(folder / "hub/HuggingFaceTB/SmolLM2-135M", "Llama", data, tie_word_embeddings=True, **llama)
    save_model(folder / "mine/Llama-60M", "Llama", data, **llama)
    for name, (n_embd, n_layer) in MODELS.items():
        path = write_model(folder / name, n_embd, n_embd // 6, n_layer=n_layer, rotary_percentage=1.0)
        path.rename(folder / f"{name}.yaml")
    like_llama = dict(norm_class_name="RMSNorm", mlp_class_name="LLaMAMLP", bias=False, parallel_residual=False)
    wider = write_model(
        folder / "LLAMA", 64, 8, n_query_groups=4, intermediate_size=192, rotary_percentage=1.0, **like_llama
    )
    wider.rename(folder / "LLAMA.yaml")
    with hub_of(folder / "hub", data, folder / "cache", texts), small_models(), pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        settle({"configs": CONFIGS, "data/stdlib_text": stdlib})
        for line in RUNS:
            assert run(smaller(line)) == 0, line
        for scale, steps in LAW:
            sized = f"--train.global_batch_size 16 --train.max_steps {steps} --out_dir out/law/{scale}-{steps}"
            assert run(f"litgpt warmstart_scratch --target {scale} --lr 0.01 {SHORT} {sized}") == 0


def names(made: Path, texts: Path, data: Path, stdlib: Path) -> dict[str, Path]:
    """Where all that lies, by the names that pages have for it."""
    return {name: made / name for name in MADE} | {
        "CKPT": made / "out/5M/final",
        "out/48": made / "out/5M",
        "out/a": made / "out/10M",
        "out/b": made / "out/10M-scratch",
        "out/paper": made / "out",
        "out/study": made / "out/law",
        "out/scratch": made / "out/law",
        "out/warm": made / "out/10M",
        "../mine": made / "mine",
        "TEXTS": texts,
        "my_text": texts,
        "my_tokenizer": data,
        "data/mine": data,
        "data/study/text": data,
        "data/stdlib_text": stdlib,
        "configs": CONFIGS,
    }


@pytest.fixture(scope="session")
def world(texts: Path, data: Path, stdlib_path: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """What pages speak of, by the names that they have for it."""
    made = made_once(tmp_path_factory, "documented", lambda folder: make_world(folder, texts, data, stdlib_path))
    return names(made, texts, data, stdlib_path)


def settle(world: dict[str, Path]) -> None:
    """Link the world into the current folder."""
    for name, path in world.items():
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).symlink_to(path)


def written(line: str) -> Path:
    """The folder that a line writes, where it may be one of the world's; else the current one."""
    words = shlex.split(line)
    config = option(words, "--config")
    said = yaml.safe_load(Path(config).read_text()) if config else {}
    name, default = ("data_path", "data/slimpajama-6b") if words[1] == "warmstart_prepare_data" else ("out_dir", ".")
    return Path(option(words, f"--{name}") or said.get(name, default))


def play(line: str) -> int:
    """Run a line as a reader does, who has not yet what it writes."""
    for place in (written(line), *written(line).parents):
        if place.is_symlink():
            place.unlink()
    return run(smaller(line))


BLANKS = {
    r"[-+]?\d+(,\d{3})*(\.\d+)?(e[-+]?\d+)?\*?( <)?": "#",
    r"# (days|hours|h|minutes|min|s)\b": "# s",
    r"\b(grows|ok)\b": "verdict",
    r"(?<=the chain's validation loss is #, )(not )?lower": "verdict",
    r"#(, #)+": "#",
    r"# is the (smallest|largest) of --\w+( and # is the (smallest|largest) of --\w+)?": "edge",
    r"\bseeds\b": "seed",
}
"""What is another in another run: numbers, their marks and units, and what is said of them."""


def shape(text: str) -> str:
    """A text with its white space evened, and blanks for what is another in another run."""
    text = " ".join(text.split())
    for pattern, blank in BLANKS.items():
        text = re.sub(pattern, blank, text)
    return text


def shown(page: Path) -> list[str]:
    """The lines that a page says are printed: those of a session but the ones that are typed."""
    if page == CONFIGS:
        return []
    sessions = [block for _, block in blocks(page.read_text()) if re.search(r"^\$ ", block, re.M)]
    lines = [line for block in sessions for line in block.replace("\\\n", " ").splitlines()]
    return [line for line in lines if line.strip() and not line.startswith("$ ")]


@pytest.fixture
def told(world, data, texts, tmp_path, monkeypatch, capfd) -> Iterator[Callable[[str], str]]:
    """Play a line in a folder of a reader's: what it prints."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    settle(world)

    def played(line: str) -> str:
        capfd.readouterr()
        status = play(line)
        out, err = capfd.readouterr()
        assert status == 0, f"{line}\nran as {smaller(line)}\nand ended with {status}: {err or out}\n{REMEDY}"
        return out

    with hub_of(world["hub"], data, tmp_path / "cache", texts), small_models():
        yield played


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in WHERE if lines_of(page)], ids=lambda page: page.name)
def test_each_command_line_of_a_page_runs_and_prints_what_the_page_shows(page, told):
    lines = [planned(line, page) for line in lines_of(page) if not is_drilled(line, page)]
    printed = shape("".join(map(told, lines)))
    assert [line for line in shown(page) if shape(line) not in printed] == []


@pytest.mark.drill
@pytest.mark.parametrize("name", ["README.md", "growing.md", "options.md", "configs"])
def test_the_lines_that_take_long_run_and_studies_train(name, told):
    """Those of configs/study are only planned: they train for hours whatever is left out."""
    (page,) = (page for page in WHERE if page.name == name)
    for line in lines_of(page):
        told(planned(line, page) if page == CONFIGS else line)


def test_what_is_said_of_lines_here_is_said_of_some():
    lines = [line for page in WHERE for line in documented(page)]
    for table in (PARSED, MORE):
        assert [start for start in table if not any(told_of(line, {start: "said"}) for line in lines)] == []
    assert [written for written in STANDS_FOR if not any(written in line for line in lines)] == []
