"""Protects the structure of the tree: all packages are alike.

The tests check the top level, the files and metadata that every package has, the versions that members require of each
other, and that no file names a machine or a package index.
"""

import ast
import re
from importlib.metadata import entry_points
from pathlib import Path

from packaging.requirements import Requirement
from scratch_core.tasks import find_task

TOP_LEVEL = {"packages", "shared", "tests", "pyproject.toml", "uv.lock", "README.md", "LICENSE"}


def test_top_level(files, root):
    entries = {path.relative_to(root).parts[0] for path in files}
    assert {name for name in entries if not name.startswith(".")} == TOP_LEVEL


def test_every_package_has_the_common_files(package):
    source = package.folder / "src" / package.module
    for path in ("pyproject.toml", "README.md", "CHANGELOG.md"):
        assert (package.folder / path).is_file(), path
    assert [p.name for p in (package.folder / "src").iterdir() if p.name != "__pycache__"] == [package.module]
    assert (source / "__init__.py").is_file()
    assert (source / "py.typed").is_file()
    assert list((package.folder / "tests").glob("test_*.py"))


def test_every_package_has_the_same_metadata(package):
    project = package.project
    assert package.folder.name == package.name
    assert re.fullmatch(r"\d+\.\d+\.\d+", project["version"])
    assert (project["readme"], project["license"], project["requires-python"]) == ("README.md", "Apache-2.0", ">=3.11")
    assert package.pyproject["build-system"]["build-backend"] == "uv_build"
    assert any(r.startswith("pytest") for r in package.dev), "`uv run --isolated --package` needs pytest in dev"
    # A member's own tables would replace the root's, and its own sources would not be the workspace's packages.
    assert set(package.pyproject) <= {"project", "dependency-groups", "build-system"}


def test_every_package_has_the_same_classifiers(package, root):
    """The licence is not among them: its SPDX name is in ``license``. A package may add topics of its own."""
    common = [c for c in package.project["classifiers"] if not c.startswith("Topic :: ")]
    assert common == [
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Developers",
        "Intended Audience :: Education",
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3 :: Only",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Typing :: Typed",
    ]
    assert "Topic :: Scientific/Engineering :: Artificial Intelligence" in package.project["classifiers"]
    tested = re.search(r"python: (\[.*\])", (root / ".github/workflows/tests.yml").read_text(encoding="utf-8"))
    assert tested is not None
    assert ast.literal_eval(tested[1]) == [c.split()[-1] for c in common if re.search(r":: 3\.\d+$", c)]


def test_no_package_admits_a_faulty_jax(package):
    """On a CPU, jaxlib 0.11.0 crashes and 0.11.1 copies whole arrays for small updates; 0.10.2 has a workaround."""
    (jax,) = [r for r in map(Requirement, package.project["dependencies"]) if r.name == "jax"]
    admitted = list(jax.specifier.filter(["0.10.1", "0.10.2", "0.11.0", "0.11.1", "0.12.0", "0.12.0.1", "0.13.0"]))
    assert admitted == ["0.10.2", "0.12.0", "0.12.0.1", "0.13.0"]


def test_the_changelog_starts_with_the_version(package):
    headings = re.findall(r"^## (\S+)", (package.folder / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert headings
    assert headings[0].strip("[]") == package.project["version"]


def test_tests_are_not_python_packages(root):
    """With two packages called ``tests``, pytest would import one instead of the other."""
    assert [str(p) for p in root.glob("**/tests/**/__init__.py") if ".venv" not in p.parts] == []


def test_a_model_package_has_the_files_of_a_model_package(model_package):
    source, tests = model_package.folder / "src" / model_package.module, model_package.folder / "tests"
    for name in ("__init__.py", "config.py", "model.py", "convert.py"):
        assert (source / name).is_file(), name
    for name in ("test_model.py", "test_parity.py", "make_golden.py"):
        assert (tests / name).is_file(), name
    assert "# /// script" in (tests / "make_golden.py").read_text(encoding="utf-8"), (
        "make_golden.py is a PEP 723 script"
    )


def test_a_model_package_has_goldens(model_package):
    goldens = [p for p in (model_package.folder / "tests/golden").glob("*") if p.is_dir()]
    assert goldens
    for folder in goldens:
        names = {p.name for p in folder.iterdir()}
        assert {"config.json", "io.safetensors"} <= names, folder
        assert names & {"model.safetensors", "model.safetensors.index.json"}, folder


def test_a_model_package_registers_under_its_name(model_package):
    """A second generation of a model has a class, a spec and a name of its own: gemma, gemma2."""
    (name, spec), *others = model_package.models.items()
    assert (model_package.name, spec) == (f"scratch-{name}", f"{model_package.module}:SPEC")
    for other, spec in others:
        assert other.startswith(name), other
        assert spec.startswith(f"{model_package.module}:SPEC_"), spec


def contracts(tests: Path) -> set[tuple[str, str]]:
    """Return (contract, model class) of every test class: ``class TestX(Contract): model_class = X``."""
    found = set()
    for path in tests.glob("test_*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef) and node.name.startswith("Test"):
                for line in node.body:
                    if isinstance(line, ast.Assign) and ast.unparse(line.targets[0]) == "model_class":
                        found |= {(ast.unparse(base), ast.unparse(line.value)) for base in node.bases}
    return found


def test_a_model_package_keeps_the_contract_of_each_of_its_tasks(model_package):
    points = [p for p in entry_points(group="scratch.models") if p.value in model_package.models.values()]
    assert len(points) == len(model_package.models)
    for task, model in (item for point in points for item in point.load().models.items()):
        wanted = (find_task(task).contract.partition(":")[2], model.partition(":")[2])
        assert wanted in contracts(model_package.folder / "tests"), f"no test class with model_class is a {wanted[0]}"


def test_the_root_lists_only_core_and_one_model(root, packages):
    """Adding a model changes no list outside its folder: models are found by their entry points."""
    listed = re.findall(r"scratch-[a-z0-9]+", (root / "pyproject.toml").read_text(encoding="utf-8"))
    assert set(listed) <= {"scratch-core", "scratch-llama"}


def test_the_bounds_between_members_admit_their_versions(packages):
    """uv accepts a member of any version, but a wheel whose bounds exclude that version cannot be installed."""
    versions = {p.name: p.project["version"] for p in packages}
    checked = []
    for package in packages:
        for text in package.project["dependencies"] + package.extras + package.dev:
            requirement = Requirement(text)
            if requirement.name in versions:
                version = versions[requirement.name]
                assert requirement.specifier, f"{package.name} asks for {requirement.name} of any version"
                assert requirement.specifier.contains(version), f"{package.name}: {text}, but it is at {version}"
                checked.append(package.name)
    assert checked


def test_nothing_names_an_index_or_a_machine(files, root):
    """Only the working copy of uv.lock holds addresses; test_lockfile.py checks its committed form."""
    telltale = re.compile(
        rb"py"
        rb"pi\.org|python"
        rb"hosted|https?://[^\s\"'<>)]*/simple\b|file:///[a-z]"
        rb"|(?<![\w.~$}/-])/(?:root|work|home|Users)/[A-Za-z0-9_.-]"
    )
    found = []
    for path in files:
        if path != root / "uv.lock" and (match := telltale.search(path.read_bytes())):
            found.append(f"{path.relative_to(root)}: {match[0].decode(errors='replace')}")
    assert found == []


def test_sources_raise_instead_of_asserting(package):
    """``python -O`` drops an assert. ``testing/`` may use them, because it is for tests."""
    found = []
    for path in sorted((package.folder / "src").rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        found += [
            f"{path}:{n.lineno}"
            for n in ast.walk(tree)
            if isinstance(n, ast.Assert) and "testing" not in path.relative_to(package.folder).parts
        ]
    assert found == []
