"""How the library is laid out: no circle, no room that looks up to those built on it, nothing hidden in __init__ files."""

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from lab.files import PROJECT

LAB = PROJECT / "lab"
TESTS = Path(__file__).parent
FOUNDATIONS = ("lora", "merging", "training", "evaluation", "tasks", "world")
EVERY_FILE = "pkgutil.iter_modules(__path__)"
ABOVE = ("experiments", "records", "pages", "app", "runner", "export", "cli")


def module_of(file: Path) -> str:
    parts = file.relative_to(PROJECT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_of(file): file for file in sorted(LAB.rglob("*.py"))}


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def imports(module: str, later: bool) -> set[str]:
    """The modules of lab that a module imports: when it is imported itself, or, with `later`, inside its functions too."""
    found, todo = set(), [ast.parse(FILES[module].read_text())]
    while todo:
        node = todo.pop()
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{module} imports relatively"
            # `from lab.tasks import prompts` may mean a module: then that one is meant, and its package is only passed through.
            named = {f"{node.module}.{name.name}" for name in node.names}
            found |= {name if name in FILES else node.module for name in named}
        elif isinstance(node, ast.For) and ast.unparse(node.iter) == EVERY_FILE:
            found |= {name for name in FILES if name.rpartition(".")[0] == module}
        if later or not (is_type_checking(node) or isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))):
            todo += ast.iter_child_nodes(node)
    return found & FILES.keys()


def test_no_module_needs_itself_to_be_imported():
    graph = {module: imports(module, later=False) for module in FILES}
    assert "lab.errors" in graph["lab.experiments.comparison"] and "lab.merging.methods.ties" in graph["lab.merging.methods"]
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"a circle: {' <- '.join(error.args[1])}")


@pytest.mark.parametrize("room", FOUNDATIONS)
def test_foundations_know_nothing_of_what_is_built_on_them(room):
    """Not even inside a function."""
    own = [module for module in FILES if module.split(".")[1:2] == [room]]
    assert own
    upward = {module: {name for name in imports(module, later=True) if set(name.split(".")[1:2]) & set(ABOVE)} for module in own}
    assert {module: found for module, found in upward.items() if found} == {}


def test_every_folder_is_a_room_that_these_tests_know():
    rooms = {file.name for file in LAB.iterdir() if file.is_dir() and any(file.glob("*.py"))}
    assert rooms == {*FOUNDATIONS, *ABOVE}


def test_init_files_hand_names_on_and_hold_no_logic():
    """Nothing but a docstring, imports and __all__, or, for a folder of which every file is imported, the loop that does it."""
    for file in LAB.rglob("__init__.py"):
        for node in ast.parse(file.read_text()).body:
            handed_on = isinstance(node, (ast.Import, ast.ImportFrom)) or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))
            names = isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
            every = isinstance(node, ast.For) and ast.unparse(node.iter) == EVERY_FILE and len(node.body) == 1
            assert handed_on or names or every, f"{file}, line {node.lineno}"


def test_few_files_at_the_top():
    assert len([file for file in LAB.iterdir() if file.is_file() and file.suffix == ".py"]) <= 6


def test_tests_lie_as_what_they_test():
    for folder in sorted({file.parent for file in TESTS.rglob("test_*.py")} - {TESTS}):
        assert (LAB / folder.relative_to(TESTS)).is_dir(), folder
