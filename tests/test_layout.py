"""The tests mirror the package file by file; where another file speaks for a module, it is named here."""

import os
from pathlib import Path

import pytest
import torch

import litgpt_warmstart
from litgpt_warmstart.commands import COMMANDS
from litgpt_warmstart.study import kinds
from tests.conftest import shows_gpus

ROOT = Path(litgpt_warmstart.__file__).parent
TESTS = Path(__file__).parent

HELD_BY = {
    "method/test_softmax.py": ("method/softmax_triton",),
    "guards/test_mission.py": ("__main__",),
    "test_plugin.py": ("_hook",),
    "guards/test_arguments.py": ("edge", "run/optimizer"),
    "guards/test_wrong_input.py": ("errors", "parsing"),
    "guards/test_user_files.py": ("files", "run/folder"),
    "guards/test_breaking_off.py": ("run/breaking_off",),
    "guards/test_damage.py": ("run/record",),
    "guards/test_trust.py": ("data/recorded", "data/use"),
    "guards/test_loaders.py": ("data/tokenizer_files",),
    "commands/test_bad_input.py": ("run/missing", "run/resolve", "run/spec"),
    "report/test_write.py": ("report/layers", "report/sections"),
    "study/test_law.py": ("report/laws",),
    "study/test_runner.py": ("study/folder", "study/outcomes"),
    "run/test_train.py": ("run/journal",),
    "run/test_sharding.py": ("run/launch",),
    "test_api.py": ("run/grow",),
}  # fmt: skip
"""Test file -> modules without one of their own; commands/ is thin, and held by the guards."""


def modules() -> set[str]:
    """Every module of the package but for __init__, by its path without .py."""
    paths = (path.relative_to(ROOT).with_suffix("") for path in ROOT.rglob("*.py") if path.stem != "__init__")
    return {path.as_posix() for path in paths if path.parts[0] != "commands"}


def file_of(module: str) -> Path:
    """Where a module's tests are looked for."""
    return TESTS / Path(module).with_name(f"test_{Path(module).name}.py")


def test_every_module_has_a_test_file_at_its_place_or_one_that_holds_it():
    held = {module for names in HELD_BY.values() for module in names}
    assert {module for module in modules() - held if not file_of(module).is_file()} == set()


@pytest.mark.parametrize("path", HELD_BY)
def test_what_is_held_elsewhere_is_there_and_has_no_file_of_its_own(path):
    assert (TESTS / path).is_file()
    for module in HELD_BY[path]:
        assert module in modules() and not file_of(module).is_file(), module


def test_no_command_and_no_kind_of_study_is_forgotten_in_the_lists_of_them():
    named = {path.stem for path in (ROOT / "commands").glob("warmstart*.py")}
    assert COMMANDS.keys() == named
    with_results = [path for path in (ROOT / "study").glob("*.py") if "\nRESULTS" in path.read_text(encoding="utf-8")]
    assert len(kinds()) == len(with_results)


@pytest.mark.parametrize(
    ("markers", "shown"),
    [("gpu", True), ("gpu and not slow", True), ("slow and gpu", True), ("", False), ("not drill", False),
     ("not gpu", False), ("gpu or slow", False), ("slow", False)],
)  # fmt: skip
def test_gpus_are_hidden_unless_only_tests_that_need_one_are_asked_for(markers, shown):
    assert shows_gpus(markers) == shown
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""  # this run's, and what it starts
    assert not torch.cuda.is_available()
