"""What pip and uv make of an installation: each Python, the lowest versions and the newest, torch as it is."""

import json
import re
import subprocess
import sys
import time
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from tests.conftest import made_once
from tests.test_packaging import PROJECT, ROOT, SETTINGS, normalized, pins

PYTHONS = re.findall(r"Python :: (3\.\d+)", " ".join(PROJECT["classifiers"]))
COMPILE = ("uv", "pip", "compile", "--quiet", "--no-header", "--no-annotate")
STUDY = (*COMPILE, "pyproject.toml", "--extra", "study", "--python-version")
WHEELS = ("--only-binary", ":all:", "--no-binary", "mup")  # mup is handed out as source alone
OVERRIDES = ("--no-config", "--overrides", "overrides.txt")
ENOUGH_SECONDS = 180
OUT_OF_REACH = ("error sending request", "dns error", "Temporary failure", "timed out", "No matching distribution")

pytestmark = [pytest.mark.slow, pytest.mark.skipif(find_spec("uv") is None, reason="uv is not installed")]


def commands(folder: Path) -> dict[str, tuple[object, ...]]:
    """Name -> what is asked of a Python module, with the files that it needs in a folder."""
    tool, torch = folder / "tool.in", folder / "torch.txt"
    tool.write_text(f"litgpt\nlitgpt-warmstart @ {ROOT.as_uri()}\n")
    torch.write_text(f"torch=={version('torch')}\n")
    pinned = (*COMPILE, "pyproject.toml", "--extra", "dev", "--constraint", "constraints.txt", "--python-version")
    return {python: (*STUDY, python, *WHEELS) for python in PYTHONS} | {
        "constraints": (*pinned, PYTHONS[-1], *WHEELS),
        "lowest": (*STUDY, PYTHONS[0], "--resolution", "lowest-direct"),
        "tool": (*COMPILE, tool, "--no-config", "--python-version", PYTHONS[0]),
        "tool, overridden": (*COMPILE, tool, *OVERRIDES, "--python-version", PYTHONS[0]),
        "uv": ("uv", "pip", "install", "--dry-run", "--python", sys.executable, *OVERRIDES, ROOT),
        "pip": ("pip", "install", "--dry-run", "--quiet", "--report", "-", "--constraint", torch, ROOT),
    }


def ask(folder: Path) -> None:
    """Ask all at once, since each waits for the registry; what is said, and the status, are kept by name."""
    folder.mkdir()
    running = {}
    for name, words in commands(folder).items():
        command = [sys.executable, "-m", *(str(word) for word in words)]
        with (folder / f"{name}.out").open("w") as out, (folder / f"{name}.err").open("w") as err:
            running[name] = subprocess.Popen(command, cwd=ROOT, stdout=out, stderr=err)
    ends = time.monotonic() + ENOUGH_SECONDS
    for name, process in running.items():
        try:
            status = process.wait(max(ends - time.monotonic(), 0))
        except subprocess.TimeoutExpired:
            process.kill()
            status = f"timed out after {ENOUGH_SECONDS} s"
        (folder / f"{name}.status").write_text(str(status))


@pytest.fixture(scope="module")
def answers(tmp_path_factory) -> Path:
    """A folder of what was said."""
    return made_once(tmp_path_factory, "installations", ask)


def told(answers: Path, name: str, kind: str = "out") -> str:
    """What a command said; the test is skipped where the registry is out of reach."""
    status, problem = (answers / f"{name}.status").read_text(), (answers / f"{name}.err").read_text()
    if status != "0" and any(sign in status + problem for sign in OUT_OF_REACH):
        pytest.skip(f"the registry is out of reach: {status}, {problem.strip()[-200:]}")
    assert status == "0", problem
    return (answers / f"{name}.{kind}").read_text()


def resolved(answers: Path, name: str) -> dict[str, Version]:
    """Package -> version, as uv found them."""
    return {name: Version(found) for name, found in re.findall(r"^([\w.-]+)==(\S+)", told(answers, name), re.M)}


@pytest.mark.parametrize("python", PYTHONS)
def test_each_python_has_wheels_of_the_newest_versions_and_no_torchvision(answers, python):
    found = resolved(answers, python)
    assert found["litgpt"] >= Version("0.5.13") and "torch" in found and "torchvision" not in found


def test_the_versions_of_the_constraints_can_be_had_together_on_the_newest_python(answers):
    found = resolved(answers, "constraints")
    assert {name: str(found[name]) for name in pins() if name in found} == {
        name: pin for name, pin in pins().items() if name in found
    }
    assert "torch" in found and "torchvision" not in found


def test_the_lowest_versions_that_are_asked_for_can_be_had_together(answers):
    asked = [Requirement(each) for each in (*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["study"])]
    bounds = {normalized(each.name): Version(s.version) for each in asked for s in each.specifier if s.operator == ">="}
    found = resolved(answers, "lowest")
    assert len(bounds) == len(asked) and {name: found[name] for name in bounds} == bounds


def test_a_tools_environment_has_no_torchvision_by_the_file_of_overrides(answers):
    assert "torchvision" in resolved(answers, "tool") and "torchvision" not in resolved(answers, "tool, overridden")


def test_uv_leaves_the_torch_that_is_there(answers):
    plan = told(answers, "uv", "err")
    assert "litgpt-warmstart" in plan and not re.search(r"^ *[+~-] torch(vision)?==", plan, re.M), plan


def test_pip_leaves_the_torch_that_is_there_by_a_constraint(answers):
    names = {each["metadata"]["name"] for each in json.loads(told(answers, "pip"))["install"]}
    assert "litgpt-warmstart" in names and "torch" not in names


def test_the_file_of_overrides_says_what_uv_is_told_in_this_folder():
    lines = [line for line in (ROOT / "overrides.txt").read_text().splitlines() if not line.startswith("#")]
    assert lines == SETTINGS["tool"]["uv"]["override-dependencies"]
