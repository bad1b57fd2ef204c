"""What is installed, in which versions, and what is said about it."""

import importlib
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

import litgpt_warmstart
from litgpt_warmstart.errors import STUDY_PACKAGES, told_in_one_line

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
NAME = re.compile(r"[\w.-]+")


def normalized(requirement: str) -> str:
    """The name in a requirement, as registries compare names."""
    return re.sub(r"[-_.]+", "-", NAME.match(requirement)[0]).lower()


def pins() -> dict[str, str]:
    """Package -> version, from constraints.txt."""
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    return {normalized(line): line.partition("==")[2] for line in lines}


def test_every_dependency_has_a_version_that_the_tests_were_run_with():
    extras = PROJECT["optional-dependencies"].values()
    asked = {normalized(each) for group in (PROJECT["dependencies"], *extras) for each in group} - {PROJECT["name"]}
    assert asked <= pins().keys() and all(pins().values())


def test_what_finds_faults_is_the_version_of_the_constraints():
    for each in PROJECT["optional-dependencies"]["dev"]:
        if "==" in each:
            assert pins()[normalized(each)] == each.partition("==")[2]


def test_the_version_to_cite_is_this_one_and_the_changelog_has_it():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    version = litgpt_warmstart.__version__.partition(".dev")[0]
    assert cited["version"] == version and f"## {version}" in (ROOT / "CHANGELOG.md").read_text()


def test_types_are_handed_on():
    assert (ROOT / "litgpt_warmstart/py.typed").is_file() and "Typing :: Typed" in PROJECT["classifiers"]


@pytest.mark.parametrize("name", STUDY_PACKAGES)
def test_a_missing_extra_is_told_with_the_line_that_installs_it(monkeypatch, capsys, name):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(SystemExit), told_in_one_line("litgpt warmstart_report"):
        importlib.import_module(name)
    told = capsys.readouterr().err
    assert told == f"litgpt warmstart_report: error: {name} is not installed: pip install 'litgpt-warmstart[study]'\n"


def test_the_extra_of_studies_is_what_its_error_speaks_of():
    assert {normalized(each) for each in PROJECT["optional-dependencies"]["study"]} == set(STUDY_PACKAGES)


WITHOUT = """
import sys
import litgpt.api, mup  # which find them by metadata
from mup import coord_check
for name in list(sys.modules):
    if name.partition(".")[0] in {packages}:
        del sys.modules[name]
sys.modules.update(dict.fromkeys({packages}))
from litgpt_warmstart.__main__ import main
for words in ({words}):
    sys.argv = ["litgpt-warmstart", *words]
    try:
        main()
    except SystemExit as ended:
        print(words[0], ended.code)
"""
"""Runs commands where the packages of the extra cannot be imported."""


@pytest.mark.slow
def test_a_command_whose_extra_is_missing_says_how_to_install_it_and_the_others_run(base, tmp_path):
    words = [["warmstart_report", str(base.parent)], ["warmstart", "--help"]]
    code = WITHOUT.format(packages=STUDY_PACKAGES, words=", ".join(map(repr, words)))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert re.search("^warmstart 0$", done.stdout, re.M) and re.search("^warmstart_report 1$", done.stdout, re.M), done
    (line,) = done.stderr.splitlines()
    assert line.startswith("litgpt warmstart_report: error: ")
    assert line.endswith(" is not installed: pip install 'litgpt-warmstart[study]'")
