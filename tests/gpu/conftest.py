"""What only a GPU can show: every test here is marked gpu. See CONTRIBUTING.md for how to run them, and to rehearse."""

from collections.abc import Callable
from contextlib import AbstractContextManager, contextmanager

import pytest
import torch

from tests.run.conftest import scratch, warm  # noqa: F401  # fixtures


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """No test finds a micro-batch that another has found."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def on_a_cpu(monkeypatch) -> Callable[[], AbstractContextManager[None]]:
    """Within it, commands in this process train on the CPU."""

    @contextmanager
    def hidden():
        with monkeypatch.context() as patch:
            patch.setattr(torch.cuda, "is_available", lambda: False)
            yield

    return hidden
