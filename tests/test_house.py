"""The package is built in layers: imports go down, there is no circle, and a name with an underscore stays in its file.

Imports inside functions and for types count too.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "luce_edu"

# Lowest floor first. A room, which is a folder or a single file, may import from itself and from lower floors. Rooms on
# the same floor may not import each other.
FLOORS = (
    ("errors", "paths", "tables"), ("checkpoint",), ("config",), ("weights", "state", "family"), ("odd_model",),
    ("models", "reference"), ("machine",), ("backends", "overlap"), ("stages", "faults"), ("exactness",),
    ("verification",), ("measure",), ("measure.records",), ("measure.bench", "measure.power"),
    ("scoreboard", "plots"), ("inline", "widgets", "course"), ("show", "lab"), ("comparison", "heat"), ("exercises",),
    ("magic", "predict"), ("__init__", "doctor", "train_tiny", "walkthrough"), ("cli",), ("__main__",),
)  # fmt: skip
HEIGHT = {room: height for height, rooms in enumerate(FLOORS) for room in rooms}


def files(package: Path) -> dict[str, Path]:
    """Every file of the package by its dotted name, such as "measure.floor" or "measure.__init__"."""
    return {".".join(path.relative_to(package).with_suffix("").parts): path for path in sorted(package.rglob("*.py"))}


def room_of(name: str) -> str:
    """The room of a file: the longest prefix of its name that is a room, or its first part if there is none."""
    parts = name.split(".")
    beginnings = [".".join(parts[:count]) for count in range(len(parts), 0, -1)]
    return next((beginning for beginning in beginnings if beginning in HEIGHT), parts[0])


def imports(path: Path, known: dict[str, Path], package: str) -> Iterator[tuple[str, str, int]]:
    """(file, name taken from it, line) for every import of a file of the package, anywhere in the text."""

    def file_of(module: str) -> str:
        below = module.removeprefix(package).removeprefix(".")
        return below if below in known else f"{below}.__init__".removeprefix(".")

    tree, modules = ast.parse(path.read_text(encoding="utf-8")), {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == package:
            for alias in node.names:
                module = f"{node.module}.{alias.name}"
                below = module.removeprefix(f"{package}.")
                if below in known or f"{below}.__init__" in known:  # a module, not a name in one
                    modules[alias.asname or alias.name] = file_of(module)
                    yield file_of(module), "", node.lineno
                else:
                    yield file_of(node.module), alias.name, node.lineno
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.partition(".")[0] == package:
                    modules[alias.asname or package] = file_of(alias.name)
                    yield file_of(alias.name), "", node.lineno
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in modules:
            yield modules[node.value.id], node.attr, node.lineno


def circles(needs: dict[str, set[str]]) -> list[list[str]]:
    """Groups of files that import each other."""

    def reached(start: str) -> set[str]:
        seen, todo = set(), [start]
        while todo:
            fresh = needs[todo.pop()] - seen
            seen |= fresh
            todo += fresh
        return seen

    all_reached = {name: reached(name) for name in needs}
    knots = {frozenset(other for other in seen if name in all_reached[other]) for name, seen in all_reached.items()}
    return sorted(sorted(knot) for knot in knots if knot)


def problems(package: Path) -> list[str]:
    """The faults of a package, one line each."""
    known, found = files(package), []
    needs: dict[str, set[str]] = {name: set() for name in known}
    for name, path in known.items():
        if room_of(name) not in HEIGHT:
            found.append(f"{name} is in no room")
            continue
        for other, taken, line in imports(path, known, package.name):
            here, there = room_of(name), room_of(other)
            where = f"{name}, line {line}"
            if other != name and taken.startswith("_") and not taken.startswith("__"):
                found.append(f"{where}: {taken} is private to {other}")
            if here != there and HEIGHT.get(there, len(FLOORS)) >= HEIGHT[here]:
                found.append(f"{where}: {here} imports {there}, which is not below it")
            needs[name].add(other)
    return found + [f"a circle: {', '.join(knot)}" for knot in circles(needs)]


def test_imports_go_down_in_no_circle_and_take_no_private_names():
    assert problems(PACKAGE) == []


def test_every_room_is_there():
    assert {room_of(name) for name in files(PACKAGE)} == set(HEIGHT)


@pytest.mark.planted
@pytest.mark.parametrize(
    "planted, said",
    [
        ({"config": "from luce_edu.plots.style import INK"}, "config imports plots"),
        ({"config": "def f():\n    import luce_edu.plots.style"}, "config imports plots"),
        ({"measure/floor": "from luce_edu.measure import bench"}, "measure imports measure.bench"),
        ({"measure/bench/__init__": "if TYPE_CHECKING:\n    from luce_edu.measure.power import x"},
         "measure.bench imports measure.power"),
        ({"stages/base": "from luce_edu import decoder"}, "stages imports __init__"),
        ({"plots/a": "from luce_edu.plots.b import f", "plots/b": "def g():\n    from luce_edu.plots import a"},
         "a circle: plots.a, plots.b"),
        ({"plots/a": "from luce_edu.plots import a"}, "a circle: plots.a"),
        ({"plots/a": "from luce_edu.plots.style import _x"}, "_x is private to plots.style"),
        ({"plots/a": "from luce_edu.plots import style\n\nstyle._x()"}, "_x is private to plots.style"),
        ({"attic": ""}, "attic is in no room"),
    ],
)  # fmt: skip
def test_a_fault_is_named(planted, said, tmp_path):
    sound = {
        "__init__": "", "config": "", "stages/base": "from luce_edu.config import Config", "measure/floor": "",
        "measure/bench/__init__": "", "measure/power/__init__": "", "plots/__init__": "",
        "plots/style": "from luce_edu.measure.floor import x", "cli": "import luce_edu\n\nluce_edu.__version__",
    }  # fmt: skip
    package = tmp_path / "luce_edu"
    for texts, expected in ((sound, False), (planted, True)):
        for name, text in texts.items():
            (package / f"{name}.py").parent.mkdir(parents=True, exist_ok=True)
            (package / f"{name}.py").write_text(text)
        assert any(said in line for line in problems(package)) == bool(problems(package)) == expected
