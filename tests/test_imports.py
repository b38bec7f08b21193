"""Protects the import rule: a model imports only scratch-core, and core imports no model.

    model package -> scratch_core -> jax, flax, optax, numpy, safetensors, ...

Never model -> model, never core -> model; the modules of core import each other without a circle. Only
``make_golden.py`` and benchmarks import the libraries that the models are compared with. A package declares what it
imports. The imports are read from the source, so that an import inside a function or a test counts too.
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
# scratch-classical has scikit-learn's interface over JAX: scikit-learn is its dependency, not only its reference.
DEPENDS_ON = {"scratch-classical": {"sklearn"}}
# The modules of installed distributions are read from their metadata; these belong to extras that may be missing.
PROVIDED_BY = {
    "sklearn": "scikit-learn",
    "PIL": "pillow",
    "tensorboardX": "tensorboardx",
    "huggingface_hub": "huggingface-hub",
}


class Import(NamedTuple):
    """One imported module: its dotted name, its place, and whether it is imported as soon as the file is."""

    name: str
    where: str
    eager: bool

    @property
    def top(self) -> str:
        return self.name.split(".")[0]


def read_imports(path: Path, base: Path) -> list[Import]:
    """Return every module that a file imports; ``base``, the folder on sys.path, resolves relative names."""
    found = []

    def visit(node: ast.AST, eager: bool) -> None:
        where = f"{path}:{getattr(node, 'lineno', 0)}"
        if isinstance(node, ast.Import):
            found.extend(Import(alias.name, where, eager) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = path.relative_to(base).parts[: -node.level] if node.level else ()
            module = ".".join([*parents, *filter(None, [node.module])])
            # `from package import module` may import a module: take the longer name if it is a file of ours.
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
    """Return whether a path without suffix is a Python file or a package."""
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


def imports_below(folder: Path, base: Path) -> list[Import]:
    """Return the imports of all files, except of scripts that make test data, which declare their own dependencies."""
    paths = [path for path in sorted(folder.rglob("*.py")) if not path.name.startswith("make_")]
    return [i for path in paths for i in read_imports(path, base)]


def source_imports(package) -> list[Import]:
    return imports_below(package.folder / "src", package.folder / "src")


def own_tests_imports(package) -> list[Import]:
    return imports_below(package.folder / "tests", package.folder)


def distribution(requirement: str) -> str:
    """Return the normalised name at the start of a requirement."""
    return re.sub(r"[-_.]+", "-", re.split(r"[^\w.-]", requirement.strip())[0]).lower()


def is_third_party(name: str) -> bool:
    return name not in sys.stdlib_module_names and not re.match(r"scratch(_|$)", name) and name != "__future__"


def undeclared(imports: list[Import], requirements: list[str]) -> list[str]:
    """Return the imports of third-party libraries that none of the requirements names."""
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


def test_a_package_imports_only_itself_and_core(package):
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
    """Tests may also import what scratch-core declares: every model is trained with its losses and optimizers."""
    declared = package.project["dependencies"] + package.extras + package.dev
    if "scratch-core" in map(distribution, declared):
        (core,) = [p for p in packages if p.name == "scratch-core"]
        declared = declared + core.project["dependencies"]
    assert undeclared(own_tests_imports(package), declared) == []


def test_references_are_imported_only_by_goldens_and_benchmarks(package):
    allowed = DEPENDS_ON.get(package.name, set())
    imports = source_imports(package) + own_tests_imports(package)
    assert [f"{i.where}: {i.name}" for i in imports if i.top in REFERENCES - allowed] == []
    refused = REFERENCES - allowed | (set() if "sklearn" in allowed else {"scikit-learn"})
    assert not {distribution(r) for r in package.project["dependencies"] + package.extras + package.dev} & refused


def test_nothing_else_imports_a_reference(root):
    imports = imports_below(root / "tests", root) + imports_below(root / "shared/tools", root)
    found = [f"{i.where}: {i.name}" for i in imports if i.top in REFERENCES]
    # This tool runs scikit-learn's own tests.
    assert [f for f in found if "sklearn_suite.py" not in f or not f.rpartition(": ")[2].startswith("sklearn")] == []


# The modules of core: a file imports from its own line and the lines above it.
LEVELS = [
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
LEVEL = {module: number for number, modules in enumerate(LEVELS) for module in modules}


def forbidden(imports: list[tuple[str, Import]]) -> list[str]:
    """Return the imports, given as (module of core, import), of a module on a later line or of scratch_core itself."""
    found = []
    for module, item in imports:
        target = [*item.name.split("."), ""][1]
        if target not in LEVEL and module not in ("tasks", "cli", "testing"):
            found.append(f"{item.where}: {item.name} is not in LEVELS; import the module that defines the name")
        elif LEVEL.get(target, 0) > LEVEL[module]:
            found.append(f"{item.where}: {module} must not import {target}, which is on a later line of LEVELS")
    return found


def test_core_imports_only_from_its_own_level_and_those_above(root):
    base = root / "packages/scratch-core/src"
    source = base / "scratch_core"
    modules = {path.stem for path in source.iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()}
    assert modules - {"__init__"} == set(LEVEL), "every module of core must be on one line of LEVELS"
    imports = [
        (path.relative_to(source).parts[0].removesuffix(".py"), item)
        for path in sorted(source.rglob("*.py"))
        if path != source / "__init__.py"  # it imports from every level
        for item in read_imports(path, base)
        if item.top == "scratch_core"
    ]
    assert len(imports) > 100, "core was not found"
    assert forbidden(imports) == []


def test_an_import_from_a_later_level_is_found():
    eager = [("weights", Import("scratch_core.registry", "here", True))]
    lazy = [("vision", Import("scratch_core.data.digits", "here", False))]
    whole = [("layers", Import("scratch_core", "here", True))]
    assert [len(forbidden(each)) for each in (eager, lazy, whole)] == [1, 1, 1]
    assert forbidden([("registry", Import("scratch_core.weights", "here", False))]) == []


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
