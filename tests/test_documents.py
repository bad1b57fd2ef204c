"""README.md and docs/: a command line in them is one that its program takes, and a file that they name is there.

guards/test_documented_commands.py runs those that can be run.
"""

import argparse
import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml
from jsonargparse import CLI, capture_parser
from litgpt.__main__ import PARSER_DATA

from litgpt_warmstart.__main__ import main
from litgpt_warmstart.command_line import OneLineParser
from litgpt_warmstart.commands import COMMANDS
from tests.test_packaging import PROJECT, ROOT

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
TODAYS = [page for page in PAGES if page.name != "LOG.md"]
"""Those that say what is so, not what was."""
CLASSES = ("--data.", "--optimizer.")
"""Options of classes, which depend on the one that is chosen."""
PROGRAMS = r"litgpt|litgpt-warmstart|python3?|make|pip|uv|hf|lm_eval|git|cd|\.|torchrun"
BLOCK = re.compile(r"^```(\w*)\n([\s\S]*?)^```$|(?<=\n\n)((?: {4}.*\n+)+)", re.M)
OPTION = re.compile(r"(?<![\w-])--[a-z][\w.]*")
TARGETS = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M)


class Taken(BaseException):
    """A command line was parsed to its end; not an error, which the parser would tell."""


def take(*found: object, **_: object) -> None:
    raise Taken(*found)


def blocks(text: str) -> Iterator[tuple[str, str]]:
    """Fenced and indented blocks: language, and lines."""
    for found in BLOCK.finditer(text):
        yield found[1] or "", found[2] if found[2] is not None else re.sub(r"^ {4}", "", found[3], flags=re.M)


def typed(block: str) -> list[str]:
    """The lines of a block, whole; of a session, where `$` stands before what is typed, those alone."""
    lines = block.replace("\\\n", " ").splitlines()
    return [line[2:] for line in lines if line.startswith("$ ")] or lines


def in_words(line: str) -> list[list[str]]:
    """The commands of a line, in words, without where their output goes."""
    found = shlex.shlex(line, posix=True, punctuation_chars="&;>")
    found.whitespace_split, found.commenters = True, "#"
    commands: list[list[str]] = [[]]
    for word in found:
        if word in ("&&", ";"):
            commands.append([])
        else:
            commands[-1].append(word)
    return [words[: words.index(">")] if ">" in words else words for words in commands if words]


def command_lines(text: str) -> list[list[str]]:
    """Each command of a page's blocks, in words; a block of bash has nothing else."""
    found = []
    for language, block in blocks(text):
        for line in typed(block):
            if re.match(rf"({PROGRAMS}) ", line) or language == "bash" and line.strip():
                found += in_words(line)
    return found


def spans(text: str) -> list[str]:
    """What stands between backticks, outside of blocks."""
    found = re.findall(r"`([^`]+)`", BLOCK.sub("", text))
    return list(dict.fromkeys(" ".join(span.split()) for span in found))


def ours(words: list[str]) -> None:
    """One of our commands."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["litgpt-warmstart", *words])
        patch.setattr(OneLineParser, "instantiate_classes", take)
        patch.setattr(OneLineParser, "exit", take)  # after --version and the like
        main()


def litgpts(words: list[str]) -> None:
    """One of LitGPT's."""
    parser = capture_parser(lambda: CLI({words[0]: PARSER_DATA[words[0]]}, args=[]))
    parser.parse_args(words)
    raise Taken


def pythons(words: list[str]) -> None:
    """Python: our package, a script of the repository, or a line of code."""
    if words[:2] == ["-m", "litgpt_warmstart"] and words[2:]:
        ours(words[2:])
    elif words[0] == "-c":
        compile(words[1], "-c", "exec")
    elif words[0] == "-m":
        assert find_spec(words[1]), words[1]
    else:
        with pytest.MonkeyPatch.context() as patch:
            given = [word for option in words for word in option.strip("[]").split() if word != "..."]
            patch.setattr(sys, "argv", given)
            patch.syspath_prepend(str((ROOT / words[0]).parent))
            parse_args = argparse.ArgumentParser.parse_args
            patch.setattr(argparse.ArgumentParser, "parse_args", lambda parser: take(parse_args(parser)))
            runpy.run_path(str(ROOT / words[0]), run_name="__main__")
    raise Taken


def makes(words: list[str]) -> None:
    """make: a target of the Makefile, and variables that it uses."""
    target, *variables = (word.strip("[]") for word in words)
    assert target in TARGETS, f"no target {target}"
    makefile = (ROOT / "Makefile").read_text()
    assert all(f"$({variable.partition('=')[0]})" in makefile for variable in variables), variables
    raise Taken


def installs(words: list[str]) -> None:
    """pip or uv: options that it has, files that are there, extras that the package has."""
    for word in words:
        name, extra = re.fullmatch(r"(.*?)(?:\[(\w+)\])?", word.partition("==")[0]).groups()
        if name in (".", PROJECT["name"]) and extra:
            assert extra in PROJECT["optional-dependencies"], word
        if word.endswith(".txt") and word != "torch.txt":  # which the page has written
            assert (ROOT / word).is_file(), word
    raise Taken


def pips(words: list[str]) -> None:
    """pip."""
    from pip._internal.commands import create_command

    create_command(words[0]).parse_args(words[1:])
    installs(words)


def helped(module: str, words: list[str]) -> None:
    """A program that says what is wrong before it helps."""
    done = subprocess.run([sys.executable, "-m", module, *words, "--help"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def uvs(words: list[str]) -> None:
    """uv."""
    if find_spec("uv"):
        helped("uv", words)
    installs(words)


def hubs(words: list[str]) -> None:
    """huggingface_hub's."""
    helped("huggingface_hub.cli.hf", words)
    raise Taken


KNOWN: dict[str, Callable[[list[str]], None]] = {
    "litgpt": lambda words: (ours if words[0].startswith("warmstart") else litgpts)(words),
    "litgpt-warmstart": ours,
    "python": pythons,
    "python3": pythons,
    "make": makes,
    "pip": pips,
    "uv": uvs,
    "hf": hubs,
    "lm_eval": take,
    "git": take,
    "cd": take,
    ".": take,
    "torchrun": lambda words: pythons(words[words.index("-m") :]),
}


def problem_with(words: list[str], capsys: pytest.CaptureFixture) -> str | None:
    """What is wrong with a command, if anything is."""
    told = " ".join(words)
    try:
        KNOWN[words[0]](words[1:])
    except Taken:
        missing = [word for word in words if word.startswith("configs/") and not (ROOT / word).exists()]
        return f"{told}: there is no {', '.join(missing)}" if missing else None
    except (Exception, SystemExit) as error:
        return f"{told}: {capsys.readouterr().err or repr(error)}"
    return f"{told}: not parsed"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_each_command_line_of_a_page_is_one_that_its_program_takes(page, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    problems = [problem_with(words, capsys) for words in command_lines(page.read_text())]
    assert [each for each in problems if each] == []


@pytest.mark.parametrize("page", TODAYS, ids=lambda page: page.name)
def test_each_command_within_a_sentence_is_one_that_its_program_takes(page, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    problems = []
    for span in spans(page.read_text()):
        if re.match(rf"({PROGRAMS}|warmstart\w*) [^.]", span) and "COMMAND" not in span:
            (words,) = in_words(span.replace("…", ""))
            words = ["litgpt", *words] if words[0].startswith("warmstart") else words
            words = [re.sub(r"^[A-Z]$", "1", word) for word in words]
            if words[0] == "litgpt" and len(words) == 2:  # named, not to be typed
                problems += [] if words[1] in (*COMMANDS, *PARSER_DATA, "--help") else [span]
            else:
                problems += filter(None, [problem_with(words, capsys)])
    assert problems == []


@pytest.fixture(scope="module")
def options() -> set[str]:
    """All that our commands and the benchmarks take."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Taken) as taken:
        patch.setattr(sys, "argv", ["litgpt-warmstart"])
        patch.setattr(OneLineParser, "parse_args", lambda parser, *_, **__: take(parser))
        main()
    scripts = "".join(path.read_text() for path in (ROOT / "benchmarks").glob("*.py"))
    return {*OPTION.findall(scripts), *(each for a in taken.value.args[0]._all_actions for each in a.option_strings)}


@pytest.mark.parametrize("page", TODAYS, ids=lambda page: page.name)
def test_each_option_within_a_sentence_is_one_of_a_command(page, options):
    named = {each for span in spans(page.read_text()) if span.startswith("--") for each in OPTION.findall(span)}
    assert {each for each in named if not each.startswith(CLASSES) and not each.endswith(".")} - options == set()


@pytest.mark.parametrize("page", TODAYS, ids=lambda page: page.name)
def test_each_file_of_the_repository_that_is_named_is_there(page):
    named = [
        span
        for span in spans(page.read_text())
        if re.fullmatch(r"(configs|tests|benchmarks|docs)/[a-z0-9/*._-]+", span)
    ]
    assert [each for each in named if not list(ROOT.glob(each))] == []


def anchors(page: Path) -> set[str]:
    """The headings of a page, as links name them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.M)
    return {re.sub(r"\s", "-", re.sub(r"[^\w\s-]", "", heading.lower())) for heading in headings}


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CHANGELOG.md"], ids=lambda page: page.name)
def test_each_link_leads_to_a_file_or_heading_that_is_there(page):
    text = re.sub(r"`[^`]+`", "", BLOCK.sub("", page.read_text()))
    for path, anchor in re.findall(r"\]\((?!https?:)([^)#]*)#?([^)]*)\)", text):
        led = page.parent / path if path else page
        assert led.is_file() and (not anchor or anchor in anchors(led)), (path, anchor)


def test_the_readme_is_short_and_the_site_has_every_page():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 120
    entries = yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]
    named = sorted(name for entry in entries for name in entry.values())
    assert named == sorted(path.name for path in (ROOT / "docs").glob("*.md"))
