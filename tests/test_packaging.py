"""What is installed, in which versions, and what is said about it."""

import importlib
import re
import sys
import tarfile
import tomllib
from pathlib import Path
from zipfile import ZipFile

import pytest
import yaml
from hatchling.builders.sdist import SdistBuilder
from hatchling.builders.wheel import WheelBuilder

import litgpt_warmstart
from litgpt_warmstart.errors import STUDY_PACKAGES, told_in_one_line

ROOT = Path(__file__).parents[1]
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = SETTINGS["project"]
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


def test_wheel_and_source_archive_hold_the_configs_beside_the_code(tmp_path):
    names = {path.relative_to(ROOT).as_posix() for path in (ROOT / "configs").rglob("*.yaml")}
    wheel = next(WheelBuilder(str(ROOT)).build(directory=str(tmp_path), versions=["standard"]))
    assert {f"litgpt_warmstart/{name}" for name in names} <= set(ZipFile(wheel).namelist())
    archive = next(SdistBuilder(str(ROOT)).build(directory=str(tmp_path), versions=["standard"]))
    with tarfile.open(archive) as held:
        inside = {path.partition("/")[2] for path in held.getnames()}
    assert names | {f"litgpt_warmstart/{name}" for name in names} <= inside  # make quickstart has them there


@pytest.mark.parametrize("name", STUDY_PACKAGES)
def test_a_missing_extra_is_told_with_the_line_that_installs_it(monkeypatch, capsys, name):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(SystemExit), told_in_one_line("litgpt warmstart_report"):
        importlib.import_module(name)
    told = capsys.readouterr().err
    assert told == f"litgpt warmstart_report: error: {name} is not installed: pip install 'litgpt-warmstart[study]'\n"


def test_the_extra_of_studies_is_what_its_error_speaks_of():
    assert {normalized(each) for each in PROJECT["optional-dependencies"]["study"]} == set(STUDY_PACKAGES)
