"""Our commands in LitGPT's own console script, whatever is installed when, and what is left after uninstalling."""

import os
import shutil
import site
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from types import ModuleType

import litgpt.parser_config
import pytest

from litgpt_warmstart import plugin

ROOT = Path(__file__).parents[1]
COMMANDS = {
    "warmstart",
    "warmstart_scratch",
    "warmstart_grow",
    "warmstart_plan",
    "warmstart_grid_search",
    "warmstart_successive",
    "warmstart_ablations",
    "warmstart_coord_check",
    "warmstart_export",
    "warmstart_report",
    "warmstart_prepare_data",
}
ENVIRONMENT = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV", "PYTHONHOME")}


def run(*words: object, check: bool = True, **environment: str) -> subprocess.CompletedProcess:
    result = subprocess.run([str(w) for w in words], capture_output=True, text=True, env=ENVIRONMENT | environment)
    assert result.returncode == 0 or not check, f"{words}\n{result.stdout}\n{result.stderr}"
    return result


def test_registering_adds_our_commands_to_both_tables_and_twice_changes_nothing(monkeypatch):
    stock = litgpt.parser_config.parser_commands
    monkeypatch.setattr(litgpt.parser_config, "parser_commands", stock)
    main = ModuleType("litgpt.__main__")
    main.PARSER_DATA, main.parser_commands, main.main = dict.fromkeys(stock()), stock, lambda: None
    for _ in range(2):
        plugin.register(main)
        assert set(main.PARSER_DATA) == set(main.parser_commands()) == set(litgpt.parser_config.parser_commands())
        assert len(main.parser_commands()) == len(stock()) + len(COMMANDS)
        assert set(main.PARSER_DATA) - set(stock()) == COMMANDS


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Our wheel, built from a copy of the sources."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    ignore = shutil.ignore_patterns(".*", "out", "data_", "dist", "__pycache__")
    shutil.copytree(ROOT / "litgpt_warmstart", source / "litgpt_warmstart", ignore=ignore)
    for name in ("pyproject.toml", "README.md", "LICENSE", "litgpt_warmstart.pth"):
        shutil.copy(ROOT / name, source)
    run(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", folder, source)
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def venv(tmp_path_factory) -> Path:
    """An empty virtual environment that sees the packages installed here, without their .pth files."""
    folder = tmp_path_factory.mktemp("venv")
    run(sys.executable, "-m", "venv", folder)
    packages = next(folder.glob("lib/python*/site-packages"))
    (packages / "zz_parent.pth").write_text("\n".join(site.getsitepackages()) + "\n")
    return folder


@pytest.mark.slow
def test_litgpt_has_our_commands_through_install_upgrade_breakage_and_uninstall(
    venv, wheel, tiny, stdlib_path, tmp_path
):
    packages = next(venv.glob("lib/python*/site-packages"))
    pip = [venv / "bin/python", "-m", "pip", "install", "-q", "--no-deps", "--ignore-installed"]
    litgpt_script, stock = venv / "bin/litgpt", f"litgpt=={version('litgpt')}"

    def listed() -> set[str]:
        result = run(litgpt_script, "--help", JSONARGPARSE_DEPRECATION_WARNINGS="off")
        assert result.stderr == ""
        return COMMANDS & set(result.stdout.replace("{", ",").replace("}", ",").replace("\n", ",").split(","))

    run(*pip, wheel)
    run(*pip, stock)  # litgpt after ours
    assert listed() == COMMANDS
    run(*pip, wheel)  # ours after litgpt
    assert listed() == COMMANDS
    assert "warmstart-70m" in run(litgpt_script, "pretrain", "list").stdout.split()

    # The two lines of a user, from a base to a warmstart, in LitGPT's own script.
    shared = ["--train.max_steps", "3", "--eval.max_iters", "4", "--compile", "false", "--logger_name", "csv"]
    scratch, warm = tmp_path / "scratch", tmp_path / "warm"
    run(litgpt_script, "warmstart_scratch", "--target", tiny[16], "--lr", "0.01", "--train.global_batch_size", "4",
        "--data", "StdlibText", "--data.data_path", stdlib_path, "--out_dir", scratch, *shared)  # fmt: skip
    result = run(
        litgpt_script, "warmstart", "--base", scratch / "final", "--target", tiny[48], "--out_dir", warm, *shared
    )
    assert "shrink 0.4, alignment heads" in result.stdout and (warm / "final/lit_model.pth").is_file()
    for words in (["--shirnk", "1"], ["--shrink", "much"], ["--config", tmp_path / "missing.yaml"]):
        result = run(litgpt_script, "warmstart", *words, check=False)
        assert result.returncode == 2 and len(result.stderr.splitlines()) == 1, result.stderr
        assert result.stderr.startswith("litgpt warmstart: error: ")
    result = run(litgpt_script, "generate", warm / "final", "--prompt", "def ", "--max_new_tokens", "5")
    assert "def " in result.stdout

    (packages / "litgpt_warmstart/plugin.py").write_text("raise ImportError('broken on purpose')\n")
    result = run(litgpt_script, "--help", JSONARGPARSE_DEPRECATION_WARNINGS="off")
    assert "pretrain" in result.stdout and len(result.stderr.splitlines()) == 1 and "broken on purpose" in result.stderr

    run(venv / "bin/python", "-m", "pip", "uninstall", "-q", "-y", "litgpt-warmstart")
    assert listed() == set()
    assert not [p.name for p in packages.iterdir() if "warmstart" in p.name]

    run(*pip, "--no-build-isolation", "-e", ROOT)
    assert listed() == COMMANDS
    run(venv / "bin/python", "-m", "pip", "uninstall", "-q", "-y", "litgpt-warmstart")


@pytest.mark.slow
def test_other_python_processes_do_not_load_the_hook(venv, wheel):
    run(venv / "bin/python", "-m", "pip", "install", "-q", "--no-deps", "--ignore-installed", wheel)
    result = run(venv / "bin/python", "-c", "import sys; print([m for m in sys.modules if 'warmstart' in m])")
    assert result.stdout.strip() == "[]"


@pytest.mark.slow
def test_python_m_lists_the_commands_without_the_hook():
    told = run(sys.executable, "-m", "litgpt_warmstart", "--help").stdout
    assert all(name in told for name in COMMANDS)


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
    result = run(sys.executable, "-m", "litgpt_warmstart", "--help", check=False, PYTHONPATH=str(tmp_path))
    assert result.returncode == 1 and result.stdout == ""
    assert len(result.stderr.splitlines()) == 1 and "pip uninstall -y torchvision" in result.stderr
