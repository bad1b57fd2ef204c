"""Runs of seconds, into the test's own folder."""

from collections.abc import Callable
from pathlib import Path

import pytest

from litgpt_warmstart.commands import warmstart, warmstart_scratch
from tests.conftest import TRAIN


@pytest.fixture
def warm(base, tiny, tiny_settings, tmp_path) -> Callable[..., Path]:
    """Warmstart from width 16 to 48, with changes to the arguments; into a folder, which is returned."""

    def run(name: str = ".", **changes: object) -> Path:
        own = dict(base=base, target=tiny[48], train=TRAIN, out_dir=tmp_path / name)
        warmstart.setup(**own | tiny_settings | changes)
        return tmp_path / name

    return run


@pytest.fixture
def scratch(tiny, tiny_settings, tmp_path) -> Callable[..., Path]:
    """The same from scratch, of width 16."""

    def run(name: str = ".", **changes: object) -> Path:
        own = dict(target=tiny[16], lr=0.02, train=TRAIN, out_dir=tmp_path / name)
        warmstart_scratch.setup(**own | tiny_settings | changes)
        return tmp_path / name

    return run
