"""The budgets that reviewers would otherwise have to watch: sizes, names, what a package's __init__ may do.

Part of `make lint`; needs no kernel and no root.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCES = sorted((ROOT / "src").rglob("*.py"))
TREES = {path: ast.parse(path.read_text()) for path in SOURCES}
MODULE_LINES = 400
FUNCTION_STATEMENTS = 30
NESTING = 4
DRAWERS = re.compile(r"(^|_)(utils?|helpers?|common|managers?|base|misc)($|_)")
NESTED = (ast.If, ast.For, ast.While, ast.With, ast.Try)
# What a pod waits for: `import underlay.daemon.app` may bring in nothing but these from outside the standard library.
# msgspec takes typing_extensions where it is installed.
HOT_IMPORTS = {"msgspec", "typing_extensions", "underlay"}


def functions(tree: ast.Module) -> list[ast.FunctionDef]:
    return [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]


def statements(function: ast.FunctionDef) -> int:
    """Statements without the docstring, nested ones included."""
    inner = sum(isinstance(node, ast.stmt) for node in ast.walk(function)) - 1
    return inner - (ast.get_docstring(function) is not None)


def depth(node: ast.AST) -> int:
    deepest = 0
    for child in ast.iter_child_nodes(node):
        is_elif = isinstance(node, ast.If) and isinstance(child, ast.If) and [child] == node.orelse
        deepest = max(deepest, depth(child) + (isinstance(child, NESTED) and not is_elif))
    return deepest


def places(over: list[tuple[str, int]]) -> str:
    return "\n".join(f"{place}: {count}" for place, count in over)


def test_modules_are_short() -> None:
    over = [(str(path.relative_to(ROOT)), len(path.read_text().splitlines())) for path in SOURCES]
    over = [(place, count) for place, count in over if count > MODULE_LINES]
    assert not over, places(over)


def test_functions_are_short_and_flat() -> None:
    over: list[tuple[str, int]] = []
    for path, tree in TREES.items():
        for function in functions(tree):
            place = f"{path.relative_to(ROOT)}:{function.lineno} {function.name}"
            if statements(function) > FUNCTION_STATEMENTS:
                over.append((f"{place}, statements", statements(function)))
            if depth(function) > NESTING:
                over.append((f"{place}, nesting", depth(function)))
    assert not over, places(over)


def test_the_shim_is_short() -> None:
    assert len((ROOT / "shim" / "underlay-shim.c").read_text().splitlines()) <= 250


def test_no_module_is_a_drawer() -> None:
    assert [path for path in SOURCES if DRAWERS.search(path.stem)] == []


def test_a_package_imports_nothing_by_itself() -> None:
    eager = [
        str(path.relative_to(ROOT))
        for path, tree in TREES.items()
        if path.name == "__init__.py"
        and any(isinstance(node, ast.Import) or (isinstance(node, ast.ImportFrom) and node.module != "__future__")
                for node in tree.body)
    ]  # fmt: skip
    assert eager == []


def test_broad_excepts_stand_at_the_edges_alone() -> None:
    found = {
        f"{path.relative_to(ROOT / 'src')}"
        for path, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.ExceptHandler) and (node.type is None or getattr(node.type, "id", "") == "Exception")
    }
    assert found <= {
        "underlay/daemon/app.py",
        "underlay/daemon/handler.py",
        "underlay/webhook/server.py",
        "underlay/controller/app.py",
    }


@pytest.mark.parametrize("module", ["underlay.daemon.app", "underlay.cli.main"])
def test_the_daemon_starts_on_few_imports(module: str) -> None:
    script = f"import sys; before = set(sys.modules); import {module}; print(*set(sys.modules) - before)"
    done = subprocess.run([sys.executable, "-I", "-c", script], check=True, capture_output=True, text=True)
    roots = {name.partition(".")[0] for name in done.stdout.split()}
    assert {root for root in roots if root not in sys.stdlib_module_names} <= HOT_IMPORTS
