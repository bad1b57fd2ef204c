"""The layout: import arrows point one way, and few modules know mup."""

import ast
from pathlib import Path

import litgpt_warmstart

ROOT = Path(litgpt_warmstart.__file__).parent

LAYERS = (  # top to bottom: a module imports only what stands below it
    ("_hook",),
    ("plugin",),
    ("__main__",),
    ("commands",),
    ("experiments",),
    ("report",),
    ("run_plan",),
    ("pretrain", "measurement"),
    ("assembly", "breaking_off"),
    ("run_folder", "grow_folder", "export"),
    ("parametrization",),
    ("growth",),
    ("model",),
    ("data",),
    ("ownership",),
    ("compilation", "micro_batch", "loss_choice", "norms"),
    ("loss", "interrupt", "metrics"),
    ("checkpoint",),
    ("flops",),
    ("args",),
    ("record",),
    ("schedule", "scales", "optimizer", "edge"),
    ("families",),
    ("folding", "parsing", "tokenizer_files"),
    ("files",),
    ("errors",),
)
MUP_MODULES = {"model.py", "parametrization.py", "experiments/coord_check.py"}


def imports(path: Path) -> set[str]:
    """Dotted names that a file imports, at any depth."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def unit(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def rank(name: str) -> int:
    return next(i for i, layer in enumerate(LAYERS) if name in layer)


def test_every_module_imports_only_what_stands_below_it():
    for path in ROOT.rglob("*.py"):
        if path == ROOT / "__init__.py":
            assert not imports(path)
            continue
        for name in imports(path):
            package, _, rest = name.partition(".")
            if package != "litgpt_warmstart" or rest.partition(".")[0] == unit(path):
                continue
            assert rank(rest.partition(".")[0]) > rank(unit(path)), f"{path.relative_to(ROOT)} imports {name}"


def test_only_the_model_the_parametrization_and_the_coordinate_check_import_mup():
    for path in ROOT.rglob("*.py"):
        if any(name.partition(".")[0] == "mup" for name in imports(path)):
            assert path.relative_to(ROOT).as_posix() in MUP_MODULES, path


def test_there_is_no_utils_and_no_file_is_long():
    for path in ROOT.rglob("*.py"):
        assert path.stem not in {"utils", "helpers", "common", "misc"}
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 400, path


def test_every_command_is_a_file_named_as_it_is_typed():
    from litgpt_warmstart.commands import COMMANDS

    assert all((ROOT / "commands" / f"{name}.py").is_file() for name in COMMANDS)
