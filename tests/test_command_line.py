"""The command line before a command runs: what is typed, mistyped, printed and completed."""

import gc
import io
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from litgpt_warmstart.__main__ import _freeze_once, main
from litgpt_warmstart.command_line import CONFIGS
from litgpt_warmstart.commands import COMMANDS, warmstart, warmstart_grow
from litgpt_warmstart.run.optimizer import named
from litgpt_warmstart.run.spec import TrainArgs

CONFIG_FILES = Path(__file__).parents[1] / "configs"


@pytest.fixture
def typed(monkeypatch, capsys, tmp_path) -> Callable[..., tuple[int, str, str]]:
    """Type a command in an empty folder: its status, and what it printed."""
    monkeypatch.chdir(tmp_path)

    def run(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["litgpt-warmstart", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            main()
        return ended.value.code, *capsys.readouterr()

    return run


@pytest.fixture
def refused(typed) -> Callable[..., str]:
    """Type a command and return its one line."""

    def run(*words: object) -> str:
        status, out, err = typed(*words)
        assert status in (1, 2) and out == "" and len(err.splitlines()) == 1, err
        return err

    return run


@pytest.mark.parametrize("words", [(), ("warmstart",), ("warmstart_report",)])
def test_the_version_is_told_with_those_that_matter(typed, words):
    status, out, err = typed(*words, "--version")
    assert status == 0 and not err
    assert re.fullmatch(r"litgpt-warmstart \d\S+, litgpt 0\.5\S+, torch \d\S+\n", out)


def test_garbage_is_looked_for_but_not_in_what_was_imported(typed):
    gc.unfreeze()
    _freeze_once.cache_clear()
    typed("--version")
    assert gc.isenabled() and gc.get_freeze_count() > 100_000


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        ("warmstart --shrnik 0.4", "--shrink"),
        ("warmstart --shrnik=0.4", "--shrink"),
        ("warmstart --max_tokens 5", "--train.max_tokens"),
        ("warmstart_grid_search --lr_s 0.1", "--lrs"),
        ("warmstart_scratch --scale 5M", "--scale_eps"),
        ("warmstart --targ 70M", "--target"),
        ("warmstart_plan --train.max_tok=1e6", "--train.max_tokens"),
        ("warmstrat", "warmstart"),
        ("warmstart_plna --base x", "warmstart_plan"),
        ("warmstart --schedule cosin", "cosine"),
        ("warmstart --compile reduce-overhed", "reduce-overhead"),
        ("warmstart --parametrization mpu", "mup"),
        ("warmstart_export --format litgtp", "litgpt"),
        ("warmstart --data PreparedTxt", "PreparedText"),
        ("warmstart --data PreparedText --data.data_pth x", "data_path"),
        ("warmstart --config quikstart", "quickstart"),
        ("warmstart_scratch --target 7OM", "70M"),
        ("warmstart_scratch --target pythia-14", "pythia-14m"),
        ("warmstart_scratch --target 5M --mup_base 5OM", "5M"),
    ],
)
def test_what_is_mistyped_is_told_with_the_nearest_that_there_is(refused, words, meant):
    assert f"; did you mean {meant}?" in refused(*words.split())


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["warmstart_report"], "runs are missing: give folders"),
        (["warmstart_fit", "--points", "validations"], "runs are missing: give folders"),
        (["warmstart", "--data.data_path", "x"], "--data.data_path is an argument of a data source: name one before"),
        (["warmstart", "--config", ""], "--config is empty: give a file"),
        (["warmstart_ablations", "--arms", "{"], "--arms {: give a list, such as '[{shrink: [0.2, 0.4]}]'"),
        (["warmstart", "--shrink", "{gains: nan}"], "--shrink {gains: nan}: give a number or a mapping of"),
        (["warmstart", "--shrink.gains", "[1]"], "--shrink.gains [1]: give a number"),
        (["warmstart", "--lr", ""], "--lr is empty: give a number, or leave it out"),
        (["warmstart", "--lr", "a"], "--lr a: give a number (see --help)"),
        (["warmstart_report", ""], "runs is empty: give a path"),
        (["warmstart", "--optimizer", "[1]"], "--optimizer [1]: give a name or a mapping"),
        (["warmstart", "--optimizer", "null"], "--optimizer null: give a name or a mapping"),
        (["warmstart", "--data", "PreparedText", "--data.seed", "x"], "--data.seed x: give a whole number"),
        (["warmstart", "--data", "PreparedText", "--data.val_fraction", ""], "--data.val_fraction is empty"),
        (["warmstart", "--data", "PreparedText", "--data.data_path", "[1]"], "--data.data_path [1]: give a path"),
        (["warmstart", "--data", "{class_path: PreparedText, x: 3}"], "--data {'class_path': 'Prepar"),
        (["warmstart", "--data", "{class_path: PreparedText, init_args: 3}"], "--data {'class_path'"),
        (["warmstart", "--train", ""], "--train is empty: give its options"),
        (["warmstart", "--train", "{max_tokens: x}"], "--train.max_tokens x: give a whole number"),
        (["warmstart", "--train", "{max_tokns: 3}", "--print_config"], "there is no option 'max_tokns'; did you"),
        (["warmstart", "--shrink", "much"], "--shrink much: give a number or a mapping of names to numbers"),
        (["warmstart", "--shrink", ""], "--shrink is empty: give a number or a mapping"),
        (["warmstart", "--shrink.gains", "nan"], "--shrink.gains nan: give a number"),
        (["warmstart", "--data", "torch.nn.Linear"], "--data torch.nn.Linear: there is no such class"),
        (["warmstart", "--data", "data/mine"], "--data data/mine: there is no such class"),
        (["warmstart", "--data", ""], "--data is empty"),
        (["warmstart", "--data", "litgpt.data.TextFiles"], "--data.train_data_path is missing"),
        (["warmstart_ablations", "--arms", "[3]"], "--arms [3]: give a list"),
        (["warmstart", "--data", "nowhere.Text"], "--data nowhere.Text: there is no such class"),
        (["warmstart", "--data", "litgpt.data.Nothing"], "--data litgpt.data.Nothing: there is no such class"),
        (["warmstart", "--eval", "3"], "--eval 3: give its options, such as --eval.interval"),
        (["warmstart", "--config", "/no/such.yaml"], "--config /no/such.yaml: there is no such file"),
        (["warmstart", "--config", "/it's.yaml"], "--config /it's.yaml: there is no such file"),
        (["warmstart", "--config", "/"], "--config /: there is no such file"),
    ],
)
def test_what_is_missing_is_told_in_words(refused, words, told):
    assert f"error: {told}" in refused(*words)


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("train: 3", "--train 3: give its options, such as --train."),
        ("eval: [1, 2]", "--eval [1, 2]: give its options, such as --eval."),
        ("train: null", "--train None: give its options"),
        ("data: 3", "--data 3: there is no such class"),
        ("data: []", "--data []: give a class's name, or class_path and init_args alone"),
        ("data: {class_path: PreparedTxt}", "--data PreparedTxt: there is no such class; did you mean PreparedText?"),
        ("data: {class_path: PreparedText, init_args: {data_path: [1]}}", "--data.data_path [1]: give a path"),
        ("", "it holds no names and values"),
        ("3", "it holds no names and values"),
        ("1: 2", "it holds no names and values"),
        ("base: {", "while parsing a flow node"),
        ("base: \xff", "'utf-8' codec can't decode byte 0xff"),
        ("out_dir: [1]", "--out_dir [1]: give a path"),
        ("data: PreparedTxt", "--data PreparedTxt: there is no such class; did you mean PreparedText?"),
        ("optimizer: 3", "--optimizer 3: give a name or a mapping"),
        ("base: [1]", "--base [1]: give a path"),
        ("resume: [1]", "--resume [1]: give true or false or auto or a path"),
        ("devices: [1]", "--devices [1]: give a whole number or a name"),
    ],
)
def test_what_is_wrong_in_a_file_is_told_in_words_with_its_name(refused, tmp_path, line, told):
    (tmp_path / "wrong.yaml").write_text(line, encoding="latin-1")
    assert f"error: --config {tmp_path / 'wrong.yaml'}: {told}" in refused(
        "warmstart", "--config", str(tmp_path / "wrong.yaml")
    )


def test_a_file_that_names_itself_is_told(refused, tmp_path):
    (tmp_path / "wrong.yaml").write_text("config: wrong.yaml")
    assert "--config wrong.yaml: it is nested too deeply" in refused("warmstart", "--config", "wrong.yaml")


@pytest.mark.parametrize("line", ["shrink: null", "train: {log_interval: null}", "eval: {initial_validation: null}"])
def test_a_null_of_a_file_where_none_is_taken_is_told(refused, tmp_path, line):
    (tmp_path / "wrong.yaml").write_text(line)
    option = re.sub(r": \{|: null\}?", ".", line).strip(".")
    assert f"error: --{option} is null: give a value" in refused("warmstart", "--config", "wrong.yaml")


def test_a_key_of_a_config_file_is_told_so_too_and_what_is_like_nothing_has_no_such_end(refused, tmp_path):
    (tmp_path / "wrong.yaml").write_text("shrnik: 0.4\n")
    assert "there is no option 'shrnik'; did you mean shrink?" in refused("warmstart", "--config", "wrong.yaml")
    (tmp_path / "short.yaml").write_text("train:\n  max_tok: 5\n")
    assert "there is no option 'train.max_tok'; did you mean train.max_tokens?" in refused(
        "warmstart", "--config", "short.yaml"
    )
    assert "did you mean" not in refused("warmstart", "--zzzzzz", 1)


NOT_SUPPORTED = {"train.epochs", "train.tie_embeddings", "eval.evaluate_example"}
OF_A_STUDY = {"train.max_steps", "train.max_time", "eval.initial_validation", "eval.final_validation"}


@pytest.mark.parametrize("name", COMMANDS)
def test_what_a_command_refuses_is_not_in_its_help(typed, name):
    _, out, _ = typed(name, "--help")
    shown = set(re.findall(r"^  --([\w.]+)", out, re.M))
    is_study = {"warmstart_ablations", "warmstart_successive", "warmstart_grid_search", "warmstart_lr_transfer"}
    assert {"version", "config", "print_config"} <= shown
    assert not shown & (NOT_SUPPORTED | (OF_A_STUDY if name in is_study else set()))
    assert not re.search("not supported", out, re.I)


@pytest.mark.parametrize(("written", "number"), [("1e6", 10**6), ("1_000_000", 10**6), ("2.5e3", 2500), ("64", 64)])
def test_a_whole_number_may_be_typed_as_it_is_said(typed, written, number):
    words = ("--train.max_tokens", written, "--data", "PreparedText", "--data.order_seed", written)
    _, out, _ = typed("warmstart_scratch", *words, "--print_config")
    printed = yaml.safe_load(out)
    assert printed["train"]["max_tokens"] == printed["data"]["init_args"]["order_seed"] == number


def test_a_whole_number_may_be_so_in_a_config_file(typed, tmp_path):
    (tmp_path / "numbers.yaml").write_text("seed: 1e3\ntrain:\n  max_steps: 2e1\n")
    _, out, _ = typed("warmstart", "--config", "numbers.yaml", "--print_config")
    printed = yaml.safe_load(out)
    assert (printed["seed"], printed["train"]["max_steps"]) == (1000, 20)


@pytest.mark.parametrize("written", ["1.5", "1e-3", "1e400", "nan", "many", ""])
def test_a_number_with_a_fraction_is_none(refused, written):
    given = f"--train.max_tokens {written or 'is empty'}: give a whole number"
    assert given in refused("warmstart", "--train.max_tokens", written)


def test_a_whole_number_from_python_is_one_and_lists_take_it(tiny, capsys):
    from litgpt_warmstart.commands.study import as_list
    from litgpt_warmstart.edge import checked_value
    from litgpt_warmstart.errors import UserError
    from litgpt_warmstart.run.spec import TrainArgs

    assert repr(checked_value("train", TrainArgs(max_tokens=1e6)).max_tokens) == "1000000"
    with pytest.raises(UserError, match=r"--train.max_tokens 1.5: give a whole number"):
        checked_value("train", TrainArgs(max_tokens=1.5))
    assert as_list("1e2,64", int, "--batch_sizes") == [100, 64]
    with pytest.raises(UserError, match="--batch_sizes"):
        as_list("8.5", int, "--batch_sizes")


PRINTED = {
    "warmstart": "--base x --target 70M --data PreparedText --data.tokenizer t --optimizer Muon"
    " --optimizer.momentum 0.9 --train.max_tokens 1e6",
    "warmstart_scratch": "--config quickstart",
    "warmstart_plan": "--base x --target 70M --measure false",
    "warmstart_grow": "--base x --target 70M --growth quiet",
    "warmstart_grid_search": "--config quickstart",
    "warmstart_ablations": "--config quickstart",
    "warmstart_successive": "--config quickstart",
    "warmstart_coord_check": "--config quickstart",
    "warmstart_prepare_data": "--text_dir x --tokenizer y",
    "warmstart_report": "out/a out/b",
    "warmstart_fit": "out/a out/b",
}
"""Command -> options to print; of the others the defaults."""


@pytest.mark.parametrize("flags", ["", "=skip_default", "=skip_null"])
@pytest.mark.parametrize("name", COMMANDS)
def test_print_config_prints_what_config_takes_back(typed, tmp_path, name, flags):
    status, out, err = typed(name, *PRINTED.get(name, "").split(), f"--print_config{flags}")
    assert status == 0, err
    (tmp_path / "printed.yaml").write_text(out)
    status, again, err = typed(name, "--config", "printed.yaml", f"--print_config{flags}")
    assert status == 0 and again == out, err


def test_print_config_fills_in_what_the_base_gives_and_the_run_says_the_same_of_itself(
    typed, base, tiny, tiny_settings, tmp_path
):
    used = ["--base", base, "--target", tiny[48], "--train.max_steps", 2, "--compile", "false", "--logger_name", "csv"]
    status, out, err = typed("warmstart", *used, "--print_config")
    assert (status, err) == (0, "") and list(tmp_path.iterdir()) == []
    printed = yaml.safe_load(out)
    (tmp_path / "printed.yaml").write_text(out)
    assert typed("warmstart", "--config", "printed.yaml", "--print_config")[1] == out
    assert (printed["lr"], printed["train"]["global_batch_size"], printed["parametrization"]) == (0.02, 8, "mup")
    assert printed["data"]["init_args"]["data_path"] == str(tiny_settings["data"].data_path)
    settings = {name: tiny_settings[name] for name in ("compile", "logger_name")}
    warmstart.setup(base=base, target=tiny[48], train=TrainArgs(max_steps=2), **settings)
    run = yaml.safe_load((tmp_path / "out/warmstart/final/hyperparameters.yaml").read_text())
    for not_supported in ("train.epochs", "train.tie_embeddings", "eval.evaluate_example"):
        group, _, name = not_supported.partition(".")
        del run[group][name]
    run["train"]["micro_batch_size"], run["loss_impl"] = None, "auto"  # which the device has been asked for
    assert {name: printed.pop(name) for name in run} == run and printed == {"resume": False, "overwrite": False}


def test_other_commands_fill_in_too(typed, base, tiny):
    for name in ("warmstart_plan", "warmstart_grow"):
        _, out, err = typed(name, "--base", base, "--target", tiny[48], "--print_config")
        assert yaml.safe_load(out)["parametrization"] == "mup" and not err
    _, out, _ = typed("warmstart_scratch", "--target", "5M", "--data", "StdlibText", "--print_config=skip_default")
    assert (yaml.safe_load(out)["lr"], yaml.safe_load(out)["train"]) == (0.03, {"global_batch_size": 64})
    _, out, _ = typed("warmstart_plan", "--max_flops", "1e18", "--print_config=skip_default")
    assert yaml.safe_load(out) == {"max_flops": 1e18}


@pytest.mark.parametrize(
    ("base", "told"),
    [
        ("missing", "--base folder 'missing' does not exist"),
        ("org/name", "is looked up on the Hub when the command runs"),
        ("theirs", "'theirs' is converted to LitGPT's format when the command runs"),
    ],
)
def test_print_config_makes_and_fetches_nothing_and_says_what_is_not_known_yet(typed, tmp_path, base, told):
    (tmp_path / "theirs").mkdir()
    for name in ("config.json", "model.safetensors"):
        (tmp_path / "theirs" / name).touch()
    status, out, err = typed("warmstart", "--base", base, "--target", "10M", "--print_config")
    assert status == 0 and yaml.safe_load(out)["lr"] is None and yaml.safe_load(out)["base"] == base
    assert len(err.splitlines()) == 1 and err.startswith("litgpt warmstart: what is left out") and told in err
    assert [path.name for path in tmp_path.iterdir()] == ["theirs"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("--base BASE --target 10M", "has n_layer 2, target 'warmstart-10m' has 6"),
        ("--base damaged --target 10M", "is damaged"),
        ("--base . --target 10M", "is not a checkpoint folder"),
        ("--base BASE --target 10M --eval.interval -1", "--eval.interval must be above 0"),
        ("--base BASE --target 10M --shrink 2", "--shrink must lie in [0, 1]"),
    ],
)
def test_print_config_refuses_what_the_command_would(refused, base, tmp_path, words, told):
    shutil.copytree(base, tmp_path / "damaged")
    (tmp_path / "damaged/warmstart.yaml").write_text("{")
    assert told in refused("warmstart", *words.replace("BASE", str(base)).split(), "--print_config")


def test_the_folder_that_was_grown_has_a_config_of_its_command(typed, base, tiny, tmp_path):
    warmstart_grow.setup(base=base, target=tiny[48], out_dir=tmp_path / "grown")
    status, out, err = typed("warmstart_grow", "--config", "grown/hyperparameters.yaml", "--print_config")
    assert status == 0 and yaml.safe_load(out)["out_dir"] == str(tmp_path / "grown"), err


def test_a_config_comes_through_a_pipe_too(typed, refused, monkeypatch):
    _, out, _ = typed("warmstart_grow", "--shrink", 0.25, "--print_config")
    monkeypatch.setattr(sys, "stdin", io.StringIO(out))
    assert typed("warmstart_grow", "--config", "-", "--print_config")[1] == out
    monkeypatch.setattr(sys, "stdin", io.StringIO("shrnik: 1\n"))
    assert "there is no option 'shrnik'" in refused("warmstart_grow", "--config", "-")


def test_a_config_is_found_by_its_name_and_a_file_of_that_name_goes_first(typed, refused, tmp_path):
    _, out, _ = typed("warmstart", "--config", "quickstart", "--print_config")
    assert yaml.safe_load(out)["base"] == "out/quickstart/base/final"
    _, out, _ = typed("warmstart_ablations", "--config", "study/figure-01", "--print_config")
    assert yaml.safe_load(out)["arms"]
    (tmp_path / "quickstart").write_text("base: mine\n")
    _, out, _ = typed("warmstart", "--config", "quickstart", "--print_config")
    assert yaml.safe_load(out)["base"] == "mine"
    told = refused("warmstart", "--config", "nothing_like_it")
    assert "the package has 10M-22M, " in told and "quickstart" in told
    assert "no such config" in refused("warmstart_report", "--config", "quickstar")


def test_the_configs_are_in_the_package_and_name_models_that_are_found_from_anywhere(monkeypatch, tmp_path):
    from litgpt_warmstart.method.scales import resolve_config

    names = {path.relative_to(CONFIG_FILES) for path in CONFIG_FILES.rglob("*.yaml")}
    assert all((CONFIGS / name).is_file() for name in names) and len(names) > 50
    monkeypatch.chdir(tmp_path)
    assert resolve_config("configs/study/cpu/models/width-48.yaml").n_embd == 48


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize(
    ("name", "words", "midst"),
    [
        ("warmstart_grow", "--base theirs --target wide.yaml --out_dir out", "hugging_face.save_config"),
        ("warmstart_export", "--checkpoint_dir BASE --out_dir out", "export.save_file"),
        ("warmstart_grow", "--base BASE --target WIDE --out_dir out", "checkpoint.save_config"),
    ],
)
def test_a_signal_leaves_nothing_half_written(typed, base, tiny, tmp_path, monkeypatch, number, name, words, midst):
    """It comes in the midst of writing; a second one does not break into cleaning up."""
    transformers = pytest.importorskip("transformers")
    sizes = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, vocab_size=64)
    transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes)).save_pretrained(tmp_path / "theirs")

    def send(*written: object, **more: object) -> None:
        (partial,) = [path for path in tmp_path.rglob(".*.partial") if path.is_dir()]
        assert any(partial.iterdir())
        try:
            signal.raise_signal(number)
        finally:
            signal.raise_signal(number)

    monkeypatch.setattr(f"litgpt_warmstart.run.{midst}", send)
    before = {each: signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGHUP)}
    status, _, err = typed(name, *words.replace("BASE", str(base)).replace("WIDE", tiny[48]).split())
    assert status == 128 + number and err.endswith(f"litgpt {name}: ended by {number.name}\n")
    assert not [path for path in tmp_path.rglob("*") if path.suffix == ".partial"]
    assert before == {each: signal.getsignal(each) for each in before}


@pytest.mark.parametrize(
    "words",
    [
        "warmstart_prepare_data --repo_id org/nothing --data_path a/b/data",
        "warmstart_prepare_data --text_dir texts --tokenizer ./nothing --data_path a/b/data",
        "warmstart_prepare_data --text_dir texts --tokenizer_vocab_size 100 --data_path a/b/data",
        "warmstart_grid_search --target 5M --data StdlibText --cpus_per_run 2 --out_dir a/b/grid",
    ],
)
def test_a_command_that_fails_leaves_no_empty_folders(typed, tmp_path, monkeypatch, words):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts/one.txt").write_text("some text\n" * 100)
    assert typed(*words.split())[0] == 1
    assert [path.name for path in tmp_path.iterdir()] == ["texts"]


def test_a_file_that_a_signal_breaks_into_is_not_left_half_written(tmp_path, monkeypatch):
    from litgpt_warmstart import files
    from litgpt_warmstart.errors import Ended, ended_by_signals

    monkeypatch.setattr(files, "flush_to_disk", lambda path: signal.raise_signal(signal.SIGTERM))
    with pytest.raises(Ended), ended_by_signals():
        files.write_whole(tmp_path / "table.csv", "a,b")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "path", "arguments"),
    [
        (["--optimizer", "Adam"], "Adam", {}),
        (["--optimizer.class_path", "Adam"], "Adam", {}),
        (["--optimizer.betas", "[0.7,0.9]", "--optimizer", "Adam"], "Adam", {"betas": [0.7, 0.9]}),
        (["--optimizer", "torch.optim.AdamW"], "torch.optim.AdamW", {"betas": [0.8, 0.9]}),
        (["--optimizer", "{class_path: Adam, init_args: {eps: 1e-9}}"], "Adam", {"eps": 1e-9}),
        (["--optimizer.eps", "1e-9"], "AdamW", {"betas": [0.8, 0.9], "eps": "1e-9"}),
    ],
)
@pytest.mark.parametrize("in_file", ["init_args: {betas: [0.8, 0.9]}", "betas: [0.8, 0.9]"])
def test_an_optimizer_that_is_typed_goes_before_a_files(typed, tmp_path, in_file, words, path, arguments):
    """A file of ``--print_config``, or of a run, names its class and arguments."""
    file = tmp_path / "of_run.yaml"
    file.write_text(f"optimizer: {{class_path: AdamW, {in_file}}}")
    status, out, _ = typed("warmstart_scratch", "--config", str(file), *words, "--print_config")
    assert status == 0 and named(yaml.safe_load(out)["optimizer"]) == (path, arguments)


@pytest.mark.parametrize("command", ["warmstart_coord_check", "warmstart_grid_search"])
def test_an_optimizer_is_named_without_its_module_in_every_command(typed, command):
    status, out, _ = typed(command, "--optimizer", "Muon", "--print_config")
    assert status == 0 and named(yaml.safe_load(out)["optimizer"]) == ("Muon", {})


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_a_shell_completes_commands_and_options(typed, shell):
    pytest.importorskip("shtab")
    status, out, _ = typed("--print_shtab", shell)
    assert status == 0 and all(word in out for word in ("warmstart_plan", "--train.max_tokens", "--shrink"))
    assert "--train.epochs" not in out


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="what is imported shows in Linux's /proc")
def test_ctrl_c_while_modules_are_imported_is_quiet():
    command = [sys.executable, "-m", "litgpt_warmstart", "warmstart", "--help"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while "torch" not in Path(f"/proc/{process.pid}/maps").read_text():
        time.sleep(0.01)
    for _ in range(2):
        process.send_signal(signal.SIGINT)
        time.sleep(0.02)
    out, err = process.communicate()
    assert (process.returncode, out, err) == (130, "", "")
