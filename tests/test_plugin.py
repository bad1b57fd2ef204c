"""Our commands in LitGPT's table, and a broken package beside us; guards/test_mission.py installs a wheel."""

import os
import subprocess
import sys
from types import ModuleType

import huggingface_hub.constants
import litgpt.parser_config
import pytest

from litgpt_warmstart import plugin
from litgpt_warmstart.commands import COMMANDS


def test_registering_adds_our_commands_to_both_tables_and_twice_changes_nothing(monkeypatch):
    stock = litgpt.parser_config.parser_commands
    monkeypatch.setattr(litgpt.parser_config, "parser_commands", stock)
    monkeypatch.delattr(huggingface_hub.constants, "HF_HUB_ENABLE_HF_TRANSFER", raising=False)
    main = ModuleType("litgpt.__main__")
    main.PARSER_DATA, main.parser_commands, main.main = dict.fromkeys(stock()), stock, lambda: None
    for _ in range(2):
        plugin.register(main)
        assert set(main.PARSER_DATA) == set(main.parser_commands()) == set(litgpt.parser_config.parser_commands())
        assert len(main.parser_commands()) == len(stock()) + len(COMMANDS)
        assert set(main.PARSER_DATA) - set(stock()) == COMMANDS.keys()
    assert not huggingface_hub.constants.HF_HUB_ENABLE_HF_TRANSFER  # which litgpt download reads


@pytest.mark.slow
@pytest.mark.parametrize(
    "crash",  # what a torchvision of another torch does, by version
    ["raise RuntimeError('operator torchvision::nms does not exist')", "import torchvision; torchvision.extension"],
)
def test_a_torchvision_of_another_torch_is_told_in_one_line(tmp_path, crash):
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision/__init__.py").write_text(crash + "\n")
    (tmp_path / "torchvision-0.1.dist-info").mkdir()
    metadata = "Metadata-Version: 2.1\nName: torchvision\nVersion: 0.1\n"
    (tmp_path / "torchvision-0.1.dist-info/METADATA").write_text(metadata)
    command = [sys.executable, "-m", "litgpt_warmstart", "--help"]
    result = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(tmp_path)})
    assert result.returncode == 1 and result.stdout == ""
    assert len(result.stderr.splitlines()) == 1 and "pip uninstall -y torchvision" in result.stderr
