"""The layout of the package, held by reading its source: who may import whom, how long things are, what is not used."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from loopwise.registry import discover
from loopwise.tasks.base import Task

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "src" / "loopwise"

# Lowest first. A part imports only from lines above its own; parts of one line do not know each other. A part is a
# module or a folder of the package; within a folder the modules are free.
LAYERS = (
    ("types", "errors"),
    ("config", "registry", "runtime", "storage"),
    ("tasks",),
    ("data",),
    ("nn",),
    ("reasoners",),
    ("checkpoint",),
    ("training", "solving"),
    ("evaluation", "export", "modelcard", "models", "published"),
    ("plots", "serving"),
    ("runs",),
    ("estimate", "recipes"),
    ("comparison", "results"),
    ("cli",),
    ("__main__",),
)
LEVEL = {part: level for level, parts in enumerate(LAYERS) for part in parts}

MODULES = {path.relative_to(PACKAGE).as_posix(): path for path in sorted(PACKAGE.rglob("*.py"))}
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in MODULES.items()}

ALL_TASKS = """
from loopwise.registry import discover
from loopwise.tasks.base import Task
discover("loopwise.tasks", Task)
"""

MAX_LINES = 400
MAX_FUNCTION_LINES = 60


def part_of(module: str) -> str:
    """The part to which a file, relative to the package, belongs; `__init__` is the package itself."""
    return module.split("/", maxsplit=1)[0].removesuffix(".py")


def imported_parts(tree: ast.Module) -> Iterator[tuple[str, int]]:
    """(part of loopwise, line) of every import, wherever it stands, also inside functions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            yield "a relative import", node.lineno
        elif isinstance(node, ast.ImportFrom) and node.module == "loopwise":
            yield from ((name.name, node.lineno) for name in node.names)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("loopwise."):
            yield (node.module or "").split(".")[1], node.lineno
        elif isinstance(node, ast.Import):
            names = [name.name.split(".") for name in node.names]
            yield from ((name[1], node.lineno) for name in names if name[0] == "loopwise" and len(name) > 1)


def called(tree: ast.Module) -> Iterator[tuple[str, int]]:
    """(dotted name, line) of every function call."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node.lineno


def docstrings(tree: ast.Module) -> set[int]:
    """The ids of the nodes that are docstrings (also those that follow a field)."""
    return {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}


def test_parts_import_only_what_lies_below_them():
    """The import order is a list: no module reaches up, or sideways to another part of its own layer."""
    wrong = []
    for module, tree in TREES.items():
        part = part_of(module)
        if part == "__init__":
            continue
        for other, line in imported_parts(tree):
            if other not in ("__version__", "load", part) and LEVEL.get(other, 99) >= LEVEL[part]:
                wrong.append(f"{module}:{line} imports {other}")
    assert not wrong


def test_every_part_has_a_place_in_the_order():
    """A new module or folder is given its layer here, and no layer names what is gone."""
    assert {part_of(module) for module in MODULES} - {"__init__"} == set(LEVEL)


def test_the_package_itself_imports_nothing_at_once():
    """`import loopwise` is cheap: what its functions need they import when they are called."""
    at_once = [
        ast.unparse(node)
        for node in TREES["__init__.py"].body
        if isinstance(node, ast.Import | ast.ImportFrom) and "loopwise" in ast.unparse(node)
    ]
    assert not at_once


@pytest.mark.parametrize(
    "statement",
    [
        "import loopwise",
        "import loopwise.cli",
        ALL_TASKS,
    ],
)
def test_tasks_and_the_first_word_of_the_command_line_need_no_torch(statement):
    """A task can be written and tested without torch, directly or through anything that it imports."""
    check = f"import sys\n{statement}\nsys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0


def test_files_and_functions_are_short():
    """A file has at most 400 lines, a function at most 60."""
    long = [f"{name} has {lines} lines" for name, lines in line_counts() if lines > MAX_LINES]
    for name, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                if lines > MAX_FUNCTION_LINES:
                    long.append(f"{name}: {node.name} has {lines} lines")
    assert not long


def line_counts() -> Iterator[tuple[str, int]]:
    yield from ((name, len(path.read_text(encoding="utf-8").splitlines())) for name, path in MODULES.items())


def test_every_module_says_what_it_is():
    """Each module has a docstring."""
    assert not [name for name, tree in TREES.items() if not (ast.get_docstring(tree) or "").strip()]


def test_every_module_lists_its_public_names():
    """`__all__` is there where a module defines public names, is sorted as ruff sorts it, and each name exists."""
    wrong = []
    for name, tree in TREES.items():
        defined = list(top_level_names(tree))
        public = [n for n in defined if not n.startswith("_")]
        lists = [ast.literal_eval(node.value) for node in tree.body if is_assignment_of(node, "__all__")]
        if not lists:
            wrong += [f"{name} has no __all__ for {public}"] * bool(public)
            continue
        (listed,) = lists
        wrong += [f"{name} lists {n}, which it does not define" for n in listed if n not in defined]
        if listed != sorted(set(listed), key=lambda n: (not n.isupper(), not n[0].isupper(), n)):
            wrong.append(f"{name}: __all__ is not sorted")
    assert not wrong


def top_level_names(tree: ast.Module) -> Iterator[str]:
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Assign):
            yield from (t.id for t in node.targets if isinstance(t, ast.Name))
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            yield node.target.id


def is_assignment_of(node: ast.stmt, name: str) -> bool:
    return isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == name for t in node.targets)


def test_no_task_is_named_outside_its_own_files():
    """The library treats all tasks alike: a task's name stands only in its own file, and in the recipes."""
    own = {name: cls.__module__.rpartition(".")[2] for name, cls in discover("loopwise.tasks", Task).items()}
    wrong = []
    for module, tree in TREES.items():
        if module == "recipes.py":
            continue
        prose = docstrings(tree)
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and node.value in own and id(node) not in prose:
                home = part_of(module) == "tasks" and Path(module).stem.startswith(own[node.value])
                wrong += [f"{module}:{node.lineno} names {node.value!r}"] * (not home)
    assert not wrong


def test_nothing_is_asked_by_hasattr_and_nothing_is_pickled():
    """No duck is asked whether it quacks; no file that is read can run code."""
    wrong = []
    # Other programs' checkpoints are pickles. They are read in one place, as data alone.
    reader = "published/layout.py"
    harmless = {
        (reader, node.lineno)
        for node in ast.walk(TREES[reader])
        if isinstance(node, ast.Call) and any(ast.unparse(k) == "weights_only=True" for k in node.keywords)
    }
    for module, tree in TREES.items():
        for name, line in called(tree):
            if (module, line) in harmless:
                continue
            if name in {"hasattr", "torch.load", "torch.save", "eval", "exec"} or "pickle" in name:
                wrong.append(f"{module}:{line} calls {name}")
        for node in ast.walk(tree):
            names = [a.name for a in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
            wrong += [f"{module}:{node.lineno} imports pickle" for n in names if n.split(".")[0] == "pickle"]
            if isinstance(node, ast.keyword) and node.arg == "allow_pickle":
                wrong.append(f"{module}:{node.value.lineno} sets allow_pickle")
    assert not wrong


def test_only_the_command_line_prints():
    """The library returns values and raises errors; to print is the command line's part."""
    found = [(m, line) for m, tree in TREES.items() for name, line in called(tree) if name == "print"]
    assert not [f"{module}:{line}" for module, line in found if part_of(module) != "cli"]


def test_no_file_names_a_machine():
    """No text file of the repository holds an absolute path of somebody's machine or a private package index."""
    git = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(git, cwd=ROOT, capture_output=True, check=False)
    if listed.returncode:
        pytest.skip("this is no git checkout")
    path = re.compile(r"(?<![\w.:/-])/(?:home|root|Users|work|workspace|mnt)/\w")
    index = re.compile(r"(?:index[-_]url|find-links|trusted-host)[ =]+(\S*\.\S+)")
    host = re.compile(r"https?://(?:[\w.-]+@)?((?:\d+\.){3}\d+|[\w-]+(?=[:/])|[\w.-]+\.(?:internal|local|lan|corp))\b")
    public = ("https://pypi.org/", "https://download.pytorch.org/")
    wrong = []
    for name in listed.stdout.decode().split("\0"):
        file = ROOT / name
        if not file.is_file() or b"\0" in file.read_bytes()[:8192]:
            continue
        for number, line in enumerate(file.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
            private = [url for url in index.findall(line) if not url.startswith(public)]
            private += [h for h in host.findall(line) if h not in {"localhost", "127.0.0.1"}]
            wrong += [f"{name}:{number}: {line.strip()[:80]}"] * bool(path.search(line) or private)
    assert not wrong
