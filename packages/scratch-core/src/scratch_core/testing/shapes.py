"""Checks that arrays have the shapes that their names state: ``x_BTD`` must have three axes.

The modules of ``scratch_*`` packages are compiled with one extra call at the end of each function that has such names.
Other code runs unchanged, so that the check is cheap enough for a whole test session.
"""

import ast
import re
import sys
from collections.abc import Mapping, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import CodeType, ModuleType
from typing import Any

SUFFIX = re.compile(r"[a-z0-9]_([A-Z]+)$")
OWN = "scratch_core.testing"  # pytest rewrites its assertions instead


def check_names(local: Mapping[str, Any], where: str) -> None:
    """Raise AssertionError unless the number of axes of each array in ``local`` is the number of letters in its name.

    A letter must mean the same size everywhere: that of the integer of this name, or of the first axis with the letter.
    """
    size = {k: v for k, v in local.items() if len(k) == 1 and k.isupper() and isinstance(v, int)}
    for name, value in local.items():
        if (found := SUFFIX.search(name)) and hasattr(value, "shape"):
            what = f"{where}: {name} has shape {value.shape}"
            assert len(value.shape) == len(found[1]), what
            for letter, n in zip(found[1], value.shape, strict=True):
                assert size.setdefault(letter, n) == n, f"{what}, but {letter}={size[letter]}"


def check_shapes_on_import() -> None:
    """Check array names in every ``scratch_*`` module that is imported after this call. Tracers are checked too."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


class _Finder(MetaPathFinder):
    """Finds the modules of ``scratch_*`` packages, and lets `_Loader` compile them with checks."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if not fullname.startswith("scratch_") or fullname.startswith(OWN):
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and type(spec.loader) is SourceFileLoader:
            spec.loader = _Loader(fullname, spec.loader.path)
        return spec


class _Loader(SourceFileLoader):
    """Compiles a module with checks, without writing to the cache of compiled modules."""

    def get_code(self, fullname: str) -> CodeType:
        path = self.get_filename(fullname)
        tree = ast.parse(self.get_data(path), path)
        after_docstring = 1 if ast.get_docstring(tree, clean=False) is not None else 0
        tree.body.insert(after_docstring, ast.parse(f"from {__name__} import check_names as __check_names__").body[0])
        return compile(ast.fix_missing_locations(_Checked(path).visit(tree)), path, "exec")


class _Checked(ast.NodeTransformer):
    """Puts the body of every function that names arrays into ``try: ... finally: check_names(locals(), where)``."""

    def __init__(self, path: str):
        self.path = path

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.FunctionDef:
        self.generic_visit(node)
        names = {name.id for name in ast.walk(node) if isinstance(name, ast.Name)}
        names |= {argument.arg for argument in ast.walk(node) if isinstance(argument, ast.arg)}
        if any(map(SUFFIX.search, names)):
            check = ast.parse(f"__check_names__(locals(), {f'{self.path}:{node.name}'!r})").body
            docstring = 1 if ast.get_docstring(node, clean=False) is not None else 0
            body: list[ast.stmt] = node.body[docstring:] or [ast.Pass()]
            guarded = ast.Try(body=body, handlers=[], orelse=[], finalbody=check)
            for new in (guarded, *ast.walk(check[0])):
                ast.copy_location(new, node)  # the line that a failure shows
            node.body[docstring:] = [guarded]
        return node
