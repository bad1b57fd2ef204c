"""The layout: import arrows point one way, and few modules know mup."""

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import litgpt_warmstart
from litgpt_warmstart.errors import STUDY_PACKAGES

ROOT = Path(litgpt_warmstart.__file__).parent

LAYERS = (  # top to bottom: a module imports only what stands below it
    ("_hook",),
    ("plugin",),
    ("__main__", "api"),
    ("commands",),
    ("study",),
    ("report",),
    ("run",),
    ("data",),
    ("method",),
    ("edge", "command_line", "parsing", "files", "executors"),
    ("errors",),
)
MUP_MODULES = {"method/model.py", "method/parametrization.py", "study/coord_check.py"}


def statements(node: ast.AST, at_once: bool) -> Iterator[ast.AST]:
    """Every node beneath one, without what functions and ``if TYPE_CHECKING`` hold where ``at_once``."""
    for child in ast.iter_child_nodes(node):
        for_types = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test)
        if not (at_once and (for_types or isinstance(child, ast.FunctionDef))):
            yield child
            yield from statements(child, at_once)


def imports(path: Path, at_once: bool = False) -> set[str]:
    """Dotted names that a file imports, at any depth, or those that importing it imports at once."""
    found = set()
    for node in statements(ast.parse(path.read_text(encoding="utf-8")), at_once):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def module(path: Path) -> str:
    """The dotted name below the package, the package's own for a folder's __init__."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def layer(name: str) -> tuple[int, str]:
    """Number and entry of the layer of a dotted name: the longest entry that it is, or lies in."""
    entries = [(len(e), i, e) for i, layer in enumerate(LAYERS) for e in layer if f"{name}.".startswith(f"{e}.")]
    _, number, entry = max(entries)
    return number, entry


def arrows(at_once: bool = False) -> dict[str, set[str]]:
    """What each module of the package imports of it, also within its folder and, but for ``at_once``, in functions."""
    modules = {module(path): path for path in ROOT.rglob("*.py") if path != ROOT / "__init__.py"}
    found = {}
    for name, path in modules.items():
        inner = {
            i.removeprefix("litgpt_warmstart.") for i in imports(path, at_once) if i.startswith("litgpt_warmstart.")
        }
        found[name] = {i if i in modules else i.rpartition(".")[0] for i in inner} & modules.keys()
    return found


def test_every_module_imports_only_what_stands_below_it():
    for name, imported in arrows().items():
        for other in imported:
            if layer(other)[1] != layer(name)[1]:
                assert layer(other) > layer(name), f"{name} imports {other}"


def test_no_modules_import_each_other_in_a_circle():
    list(TopologicalSorter(arrows()).static_order())  # raises CycleError


def test_a_run_needs_no_package_of_the_study_extra():
    """All commands are imported, whichever is typed: what only studies and reports need, their functions import."""
    found = arrows(at_once=True)
    reached = {name for name in found if name.startswith("commands")}
    while new := {inner for name in reached for inner in found[name]} - reached:
        reached |= new
    for name in reached:
        path = next(p for p in ROOT.rglob("*.py") if module(p) == name)
        assert not {each.partition(".")[0] for each in imports(path, at_once=True)} & set(STUDY_PACKAGES), name


def test_importing_the_package_imports_nothing_of_it_yet():
    assert imports(ROOT / "__init__.py", at_once=True) == {"typing.TYPE_CHECKING", "typing.Any"}


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
