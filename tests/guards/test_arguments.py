"""A command's arguments mean the same from every place they come from, and reach local files only."""

import csv
import ctypes
import inspect
import json
import pwd
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import litgpt.__main__
import litgpt.parser_config
import pytest
import yaml

from litgpt_warmstart.plugin import register
from tests.guards.conftest import STEP, Command, contents, training


def our_commands() -> dict[str, Callable]:
    """What we add to LitGPT's table of commands; the table is as it was afterwards."""
    module, config = litgpt.__main__, litgpt.parser_config
    table, before = dict(module.PARSER_DATA), (module.main, module.parser_commands, config.parser_commands)
    register(module)
    ours = {name: function for name, function in module.PARSER_DATA.items() if name not in table}
    for name in ours:
        del module.PARSER_DATA[name]
    module.main, module.parser_commands, config.parser_commands = before
    return ours


COMMANDS = our_commands()

PATHS = ("target", "base", "mup_base", "scales", "tokenizer")
"""Options that take a path without saying so in their type."""


@pytest.fixture
def server():
    """A web server of this machine: its address, and every path that was asked for."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"max_steps: 3\nseed: 3\n")

        do_HEAD = do_GET

        def log_message(self, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}", asked
        running.shutdown()


def path_options() -> list[tuple[str, str]]:
    """(command, option) of every option that takes a path; those of --data stand under it."""
    found = []
    for name, setup in COMMANDS.items():
        from jsonargparse import ArgumentParser

        parser = ArgumentParser(exit_on_error=False)
        parser.add_function_arguments(setup)
        for action in parser._actions:
            typed = str(getattr(action, "_typehint", ""))
            if "Path" in typed or action.dest in PATHS:
                found.append((name, action.dest))
            if "DataModule" in typed and action.dest == "data":
                found += [(name, f"data.{inner}") for inner in ("data_path", "text_dir", "tokenizer")]
    return found


def the_words(command: str, option: str, value: str) -> list[str]:
    """A command with an option, which for the report has no name."""
    if option == "runs":
        return [command, value]
    data = ["--data", "PreparedText"] if option.startswith("data.") else []
    return [command, *data, f"--{option}", value]


def test_every_command_has_a_path_option_here():
    assert {command for command, _ in path_options()} == set(COMMANDS)
    assert len(path_options()) >= 50


@pytest.mark.parametrize(("name", "option"), path_options(), ids=lambda part: part)
def test_an_empty_path_is_refused_from_flag_and_file(command: Command, tmp_path, name, option):
    here = tmp_path / "here"
    here.mkdir()
    file = tmp_path / "config.yaml"
    group, _, inner = option.partition(".")
    content = {group: {"class_path": "PreparedText", "init_args": {inner: ""}}} if inner else {option: ""}
    content = {"runs": [""]} if option == "runs" else content
    file.write_text(yaml.safe_dump(content))
    for words in (the_words(name, option, ""), [name, "--config", file]):
        if name in ("warmstart_fit", "warmstart_report") and words[1] == "--config":
            continue  # its runs are positional, and no config file gives those
        told = command(*words, cwd=here)
        assert told.status != 0 and len(told.error_lines) == 1, told.err
        assert "empty" in told.error_lines[0] and option.rpartition(".")[2] in told.error_lines[0], told.err
        assert contents(here) == {}


def test_blanks_are_as_empty_as_nothing(command: Command, tmp_path):
    told = command("warmstart_grow", "--out_dir", "  ", cwd=tmp_path)
    assert told.status != 0 and "--out_dir is empty" in told.err


def test_a_home_folder_is_expanded_once_in_flags_and_config_files(
    command: Command, base, models, data, tmp_path, monkeypatch
):
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    for name, where in (("base", base), ("data", data), ("wide", models[48].parent), ("narrow", models[16].parent)):
        (home / name).symlink_to(where)
    here = tmp_path / "here"
    here.mkdir()
    words = training("~/wide/model_config.yaml", "~/run", "--base", "~/base", "--data", "PreparedText",
                     "--data.data_path", "~/data", steps=2)  # fmt: skip
    told = command("warmstart", *words, cwd=here)
    assert told.status == 0, told.err
    content = yaml.safe_load((home / "run/final/hyperparameters.yaml").read_text())
    assert content["out_dir"] == str(home / "run") and content["target"] == str(home / "wide/model_config.yaml")
    assert content["data"]["init_args"]["data_path"] == str(home / "data")

    file = tmp_path / "config.yaml"
    data_module = {"class_path": "PreparedText", "init_args": {"data_path": "~/data"}}
    given = dict(base="~/base", target="~/wide/model_config.yaml", out_dir="~/again", mup_base="~/base",
                 tokenizer_dir="~/data", data=data_module, resume="~/again/step-00000001")  # fmt: skip
    (home / "again").symlink_to(home / "run")
    file.write_text(yaml.safe_dump(given))
    told = command(
        "warmstart", "--config", file, *training("~/wide/model_config.yaml", "~/again", steps=2)[4:], cwd=here
    )
    assert told.status != 0 and str(home / "again/step-00000001") in told.err, told.err

    plan = ("--measure", "false", "--json", "~/plan.json", "--data", "PreparedText", "--data.data_path", "~/data")
    told = command("warmstart_plan", "--base", "~/base", "--target", "~/wide", "--train.max_steps", 2, *plan, cwd=here)
    assert told.status == 0, told.err
    assert (home / "plan.json").is_file()
    chain = ("--scales", "~/narrow,~/wide", "--lr", 0.01, "--plan", "tokens", "--out_dir", "~/chain",
             "--train.global_batch_size", 8, "--tokens_per_param", 1, "--data", "PreparedText", "--data.data_path",
             "~/data")  # fmt: skip
    told = command("warmstart_successive", *chain, cwd=here)
    assert told.status == 0 and str(home / "chain") in told.out, told.err
    told = command("warmstart", "--base", "~/base", "--target", "~/wide", "--data", "TinyLlama", "--data.data_path",
                   "~/nothing", "--train.max_steps", 2, cwd=here)  # fmt: skip
    assert told.status != 0 and str(home / "nothing/slimpajama/train") in told.err, told.err
    assert contents(here) == {}


def test_python_expands_and_refuses_as_the_command_line_does(base, models, tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    grow = COMMANDS["warmstart_grow"]
    grow(base=base, target=str(models[48]), out_dir="~/grown")
    assert (tmp_path / "grown/lit_model.pth").is_file()
    before = contents(tmp_path)
    for wrong in (dict(out_dir=""), dict(target=""), dict(seed=-1), dict(perturb=float("nan"))):
        with pytest.raises(SystemExit):
            grow(**(dict(base=base, target=str(models[48]), out_dir="~/more") | wrong))
        assert len(capfd.readouterr().err.splitlines()) == 1
    assert contents(tmp_path) == before


def test_a_command_without_a_home_folder_goes_on_or_says_so(command: Command, models, from_text, tmp_path, monkeypatch):
    """HOME is not set, and nobody is found under this user's id."""

    def nobody(uid: int) -> None:
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    monkeypatch.setattr(pwd, "getpwuid", nobody)
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    long = ("--train.global_batch_size", 4, "--train.max_tokens", 400 * 4 * 64)
    words = ("--target", models[16], "--out_dir", tmp_path / "out", "--lr", 0.01, *long, *STEP, *from_text)
    told = command("warmstart_scratch", *words, "--train.max_time", 0.5, cwd=tmp_path)
    assert told.status == 0 and "tokens/s by size" in told.out, told.err + told.out
    told = command("warmstart_scratch", *training(models[16], "~/out", "--lr", 0.01), cwd=tmp_path)
    assert told.status == 1 and len(told.error_lines) == 1
    assert told.error_lines[0].endswith("--out_dir ~/out: no home folder is known: give the whole path")
    assert {path.name for path in tmp_path.iterdir()} == {"out"}


def test_a_folder_without_permission_is_unreadable_or_cannot_be_written(base, from_text, models, tmp_path):
    """Not damaged, and no traceback, for a user whom permissions bind."""
    shutil.copytree(base, tmp_path / "locked/base")
    (tmp_path / "locked/base").chmod(0)
    (tmp_path / "closed").mkdir()
    (tmp_path / "closed").chmod(0o555)
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text(models[48].read_text())
    wrong.chmod(0)
    locked, out = tmp_path / "locked/base", tmp_path / "closed/out"
    grid = ("--target", models[16], "--lrs", "0.01", "--batch_sizes", 8, "--train.max_tokens", 2048, *from_text)
    rows = (
        (("warmstart", *training(models[48], tmp_path / "a", "--base", locked)), "unreadable"),
        (("warmstart_grow", "--base", base, "--target", models[48], "--mup_base", locked, "--out_dir", tmp_path / "a"),
         "unreadable"),
        (("warmstart_grow", "--base", base, "--target", models[48], "--out_dir", out), "cannot write"),
        (("warmstart_grow", "--base", base, "--target", wrong, "--out_dir", tmp_path / "b"), "unreadable"),
        (("warmstart_export", "--checkpoint_dir", base, "--out_dir", out), "cannot write"),
        (("warmstart_report", locked, "--out_dir", tmp_path / "c"), "locked"),
        (("warmstart_report", base.parent, "--out_dir", out), "cannot write"),
        (("warmstart_grid_search", *grid, "--out_dir", out), "cannot write"),
        (("warmstart_plan", "--base", base, "--target", models[48], "--measure", "false", "--train.max_steps", 2,
          *from_text, "--json", out), "cannot write"),
        (("warmstart_grow", "--config", wrong), "wrong.yaml"),
    )  # fmt: skip
    try:
        for (words, said), (status, lines) in zip(rows, bound_by_permissions([row[0] for row in rows]), strict=True):
            assert status not in (0, None) and len(lines) == 1, (words, lines)
            assert said in lines[0] and "damaged" not in lines[0], (words, lines)
        assert {path.name for path in tmp_path.iterdir()} == {"locked", "closed", "wrong.yaml"}
        assert not list((tmp_path / "closed").iterdir())
    finally:
        locked.chmod(0o755)


ONE_AFTER_ANOTHER = """
import contextlib, io, json, sys
from litgpt_warmstart.__main__ import main
for words in json.loads(sys.stdin.read()):
    sys.argv, told, status = ["litgpt-warmstart", *words], io.StringIO(), 0
    with contextlib.redirect_stderr(told), contextlib.redirect_stdout(io.StringIO()):
        try:
            main()
        except SystemExit as error:
            status = error.code
    print(json.dumps([status, told.getvalue().splitlines()]))
"""


def bound_by_permissions(commands: list[tuple[object, ...]]) -> list[tuple[int, list[str]]]:
    """Run commands in a process that cannot overlook a file's permissions, as root's can: statuses and error lines."""

    def drop() -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        for capability in (1, 2):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
            libc.prctl(24, capability, 0, 0, 0)  # PR_CAPBSET_DROP; who is not root has none to drop

    done = subprocess.run(
        [sys.executable, "-c", ONE_AFTER_ANOTHER], input=json.dumps([[str(w) for w in words] for words in commands]),
        capture_output=True, text=True, timeout=120, preexec_fn=drop,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_no_command_fetches_a_config_file(command: Command, server, tmp_path, monkeypatch):
    address, asked = server
    nested = tmp_path / "nested.yaml"
    for name in COMMANDS:
        if name in ("warmstart_fit", "warmstart_report"):
            continue
        told = command(name, "--config", f"{address}/whole.yaml", cwd=tmp_path)
        assert told.status != 0 and len(told.error_lines) == 1, told.err
        assert address in told.error_lines[0]
        for group in ("train", "eval", "log", "data", "optimizer"):
            if group not in inspect.signature(COMMANDS[name]).parameters and name != "warmstart":
                continue
            nested.write_text(f"{group}: {address}/{group}.yaml\n")
            for words in ((name, "--config", nested), (name, f"--{group}", f"{address}/{group}.yaml")):
                told = command(*words, cwd=tmp_path)
                assert told.status != 0 and len(told.error_lines) == 1, told.err
    assert asked == []


def test_no_command_of_ours_fetches_a_config_file_as_litgpts_either(server, tmp_path):
    """LitGPT's own script, whose hook hands our commands over to our parser; its own commands stay as they are."""
    address, asked = server
    script = Path(sys.executable).with_name("litgpt")
    (tmp_path / "nested.yaml").write_text(f"train: {address}/train.yaml\n")
    for words in (("--config", f"{address}/whole.yaml"), ("--config", tmp_path / "nested.yaml")):
        done = subprocess.run([script, "warmstart", *map(str, words)], capture_output=True, text=True, timeout=120)
        assert done.returncode != 0 and len(done.stderr.splitlines()) == 1, done.stderr
    assert asked == []


def test_a_config_file_of_this_machine_is_read_whole_and_in_parts(command: Command, models, from_text, tmp_path):
    (tmp_path / "train.yaml").write_text("max_steps: 2\nglobal_batch_size: 8\nmicro_batch_size: 4\n")
    config = dict(target=str(models[16]), lr=0.01, out_dir=str(tmp_path / "out"), train="train.yaml", compile=False)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    told = command("warmstart_scratch", "--config", tmp_path / "config.yaml", *from_text, cwd=tmp_path)
    assert told.status == 0, told.err
    written = yaml.safe_load((tmp_path / "out/final/hyperparameters.yaml").read_text())
    assert written["train"]["max_steps"] == 2


def test_a_table_holds_no_formula(command: Command, models, from_text, tmp_path):
    """A run's folder may be called anything; a spreadsheet runs what begins with one of these."""
    names = ["=cmd|' -C calc'!A0", "@SUM(1)", "-2+3", "+1", "\tx", "plain"]
    for name in names:
        words = training(models[16], tmp_path / "runs" / name, "--lr", 0.01, *from_text, steps=1)
        assert command("warmstart_scratch", *words).status == 0
    told = command("warmstart_report", tmp_path / "runs", "--out_dir", tmp_path / "page")
    assert told.status == 0, told.err
    cells = []
    for path in (tmp_path / "page/tables").glob("*.csv"):
        with path.open(newline="") as file:
            cells += [cell for row in csv.reader(file) for cell in row]
    shown = [cell for cell in cells if any(cell.endswith(name) for name in names)]
    assert len(shown) >= len(names)
    for cell in cells:
        try:
            float(cell)
        except ValueError:
            assert cell == "-" or not cell.startswith(("=", "+", "-", "@", "\t", "\r")), cell
