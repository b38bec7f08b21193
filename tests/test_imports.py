"""Protects the import rule: a model stands on scratch-core alone, and core knows no model.

    model package -> scratch_core -> jax, flax, optax, numpy, safetensors, ...

Never model -> model, never core -> model; core itself is built from the ground up, without a circle. The libraries
that the models are compared with are imported by ``make_golden.py`` and by benchmarks only. What a file imports, it
declares. The imports are read from the source, so that one inside a function or a test counts too.
"""

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import NamedTuple

import pytest

REFERENCES = {"torch", "torchvision", "transformers", "timm", "sklearn", "tensorflow", "keras"}
# scratch-classical is scikit-learn's interface over JAX: there it is a dependency, not only a reference.
STANDS_ON = {"scratch-classical": {"sklearn"}}
# Installed, a distribution tells what it provides; these are extras that need not be installed.
PROVIDED_BY = {
    "sklearn": "scikit-learn",
    "PIL": "pillow",
    "tensorboardX": "tensorboardx",
    "huggingface_hub": "huggingface-hub",
}


class Import(NamedTuple):
    """One imported module: its dotted name, where, and whether the import runs as soon as the file is imported."""

    name: str
    where: str
    eager: bool

    @property
    def top(self) -> str:
        return self.name.split(".")[0]


def read_imports(path: Path, base: Path) -> list[Import]:
    """Every module that a file imports, relative names resolved against ``base``, the folder that is on sys.path."""
    found = []

    def visit(node: ast.AST, eager: bool) -> None:
        where = f"{path}:{getattr(node, 'lineno', 0)}"
        if isinstance(node, ast.Import):
            found.extend(Import(alias.name, where, eager) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = path.relative_to(base).parts[: -node.level] if node.level else ()
            module = ".".join([*parents, *filter(None, [node.module])])
            # `from package import module` may import a module: ask for the longer name where it is a file of ours.
            names = [f"{module}.{alias.name}" for alias in node.names]
            ours = [n for n in names if is_module(base / n.replace(".", "/"))]
            found.extend(Import(name, where, eager) for name in ours or [module])
        elif isinstance(node, ast.Call):
            called = getattr(node.func, "attr", getattr(node.func, "id", ""))
            if called in ("import_module", "__import__", "importorskip") and node.args:
                argument = node.args[0]
                if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
                    found.append(Import(argument.value, where, False))
        inside = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) or (
            isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        )
        for child in ast.iter_child_nodes(node):
            visit(child, eager and not inside)

    visit(ast.parse(path.read_text(encoding="utf-8"), str(path)), True)
    return found


def is_module(path: Path) -> bool:
    """Whether a path without suffix is a Python file or a package."""
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


def imports_below(folder: Path, base: Path) -> list[Import]:
    """Those of all files but the scripts that make the tests' data: they declare dependencies of their own."""
    paths = [path for path in sorted(folder.rglob("*.py")) if not path.name.startswith("make_")]
    return [i for path in paths for i in read_imports(path, base)]


def source_imports(package) -> list[Import]:
    return imports_below(package.folder / "src", package.folder / "src")


def own_tests_imports(package) -> list[Import]:
    return imports_below(package.folder / "tests", package.folder)


def distribution(requirement: str) -> str:
    """The normalised name at the front of a requirement."""
    return re.sub(r"[-_.]+", "-", re.split(r"[^\w.-]", requirement.strip())[0]).lower()


def is_third_party(name: str) -> bool:
    return name not in sys.stdlib_module_names and not re.match(r"scratch(_|$)", name) and name != "__future__"


def undeclared(imports: list[Import], requirements: list[str]) -> list[str]:
    """Those imports of other people's libraries that none of the requirements names."""
    declared, provided = {distribution(r) for r in requirements}, packages_distributions()
    found = []
    for item in imports:
        if is_third_party(item.top):
            candidates = provided.get(item.top) or [PROVIDED_BY.get(item.top, item.top)]
            if not declared & {distribution(c) for c in candidates}:
                found.append(f"{item.where}: {item.name}")
    return found


def others(imports: list[Import], allowed: set[str]) -> list[str]:
    return [f"{i.where}: {i.name}" for i in imports if re.match(r"scratch_", i.top) and i.top not in allowed]


def test_a_package_imports_itself_and_core_alone(package):
    allowed = {package.module}
    if "scratch-core" in map(distribution, package.project["dependencies"]):
        allowed.add("scratch_core")
    assert others(source_imports(package) + own_tests_imports(package), allowed) == []
    assert {distribution(r) for r in package.project["dependencies"] if r.startswith("scratch")} <= {"scratch-core"}


def test_scripts_that_make_data_declare_what_they_need_and_no_other_model(package):
    for path in package.folder.rglob("make_*.py"):
        assert package.folder / "tests" in path.parents
        block = re.match(r"(?:#!.*\n)?# /// script\n((?:#.*\n)*?)# ///\n", path.read_text(encoding="utf-8"))
        assert block, f"{path} must open with a PEP 723 block"
        declared = tomllib.loads(re.sub("^# ?", "", block[1], flags=re.MULTILINE))["dependencies"]
        imports = read_imports(path, path.parent)
        assert others(imports, {package.module, "scratch_core"}) == []
        assert undeclared(imports, declared) == []


def test_a_package_declares_what_its_source_imports(package):
    imports = source_imports(package)
    eager = [i for i in imports if i.eager]
    assert undeclared(eager, package.project["dependencies"]) == []
    assert undeclared(imports, package.project["dependencies"] + package.extras) == [], "only an extra's import is lazy"


def test_a_package_declares_what_its_tests_import(package, packages):
    """Or has it from scratch-core, whose losses and optimizers every model is trained with."""
    declared = package.project["dependencies"] + package.extras + package.dev
    if "scratch-core" in map(distribution, declared):
        (core,) = [p for p in packages if p.name == "scratch-core"]
        declared = declared + core.project["dependencies"]
    assert undeclared(own_tests_imports(package), declared) == []


def test_references_are_imported_by_goldens_and_benchmarks_alone(package):
    allowed = STANDS_ON.get(package.name, set())
    imports = source_imports(package) + own_tests_imports(package)
    assert [f"{i.where}: {i.name}" for i in imports if i.top in REFERENCES - allowed] == []
    forbidden = REFERENCES - allowed | (set() if "sklearn" in allowed else {"scikit-learn"})
    assert not {distribution(r) for r in package.project["dependencies"] + package.extras + package.dev} & forbidden


def test_nothing_else_imports_a_reference(root):
    imports = imports_below(root / "tests", root) + imports_below(root / "shared/tools", root)
    found = [f"{i.where}: {i.name}" for i in imports if i.top in REFERENCES]
    # This tool runs scikit-learn's own tests.
    assert [f for f in found if "sklearn_suite.py" not in f or not f.rpartition(": ")[2].startswith("sklearn")] == []


# Core from the ground up: a file imports from its own line and the lines above it.
FLOORS = [
    ["errors", "lazy", "paths", "folders", "compiler", "config"],
    ["losses", "parallel"],
    ["layers"],
    ["weights"],
    ["pretrained"],
    ["decoder", "vision", "fine_tuning"],
    ["registry"],
    ["generation"],
    ["data"],
    ["train"],
    ["tasks"],
    ["cli"],
    ["testing"],
]
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}


def upward(imports: list[tuple[str, Import]]) -> list[str]:
    """The imports of core, each with the room that it stands in, that lead to a later line, or to no known room."""
    found = []
    for room, item in imports:
        target = [*item.name.split("."), ""][1]
        if target not in FLOOR and room not in ("tasks", "cli", "testing"):
            found.append(f"{item.where}: {item.name} is no room; name the module that defines it")
        elif FLOOR.get(target, 0) > FLOOR[room]:
            found.append(f"{item.where}: {room} must not import {target}, which stands below it")
    return found


def test_core_is_built_from_the_ground_up(root):
    base = root / "packages/scratch-core/src"
    source = base / "scratch_core"
    rooms = {path.stem for path in source.iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()}
    assert rooms - {"__init__"} == set(FLOOR), "every room has its line in FLOORS"
    imports = [
        (path.relative_to(source).parts[0].removesuffix(".py"), item)
        for path in sorted(source.rglob("*.py"))
        if path != source / "__init__.py"  # the front door leads to every room
        for item in read_imports(path, base)
        if item.top == "scratch_core"
    ]
    assert len(imports) > 100, "core was not found"
    assert upward(imports) == []


def test_an_arrow_that_runs_back_up_is_found():
    eager = [("weights", Import("scratch_core.registry", "here", True))]
    lazy = [("vision", Import("scratch_core.data.digits", "here", False))]
    front = [("layers", Import("scratch_core", "here", True))]
    assert [len(upward(each)) for each in (eager, lazy, front)] == [1, 1, 1]
    assert upward([("registry", Import("scratch_core.weights", "here", False))]) == []


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import torch.nn as nn", [("torch.nn", True)]),
        ("from .. import errors", [("scratch_core.errors", True)]),
        ("from .rope import Rope", [("scratch_core.layers.rope", True)]),
        ("from scratch_core import errors", [("scratch_core.errors", True)]),
        ("from scratch_core import load", [("scratch_core", True)]),
        ("def f():\n    import jax", [("jax", False)]),
        ("if TYPE_CHECKING:\n    import jax", [("jax", False)]),
        ("x = importlib.import_module('torch')", [("torch", False)]),
    ],
)
def test_every_way_to_import_is_read(tmp_path, source, expected):
    layers = tmp_path / "scratch_core/layers"
    layers.mkdir(parents=True)
    (tmp_path / "scratch_core/errors.py").touch()
    path = layers / "example.py"
    path.write_text(source)
    assert [(i.name, i.eager) for i in read_imports(path, tmp_path)] == expected
