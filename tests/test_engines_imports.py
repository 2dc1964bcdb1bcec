"""What may import what: exporter -> calibration -> engines, and engines on a bare device."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import engines

ROOT = Path(engines.__file__).parent.parent
PACKAGES = ("exporter", "calibration", "engines")
HEAVY = {
    "torch",
    "onnx",
    "onnxruntime",
    "onnxsim",
    "safetensors",
    "tensorrt",
    "cv2",
    "cuda",
    "pycuda",
    "matplotlib",
    "PIL",
    "click",
    "rich",
    "jinja2",
    "exporter",
    "calibration",
}


def sources(package: str) -> list[Path]:
    found = sorted((ROOT / package).rglob("*.py"))
    assert found, f"no source of {package} under {ROOT}"
    return found


def imported(tree: ast.AST, module: str) -> Iterator[str]:
    """Full name of each module that a syntax tree imports; `module` is the importing one's own."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = module.split(".")[: -node.level] if node.level else []
            yield ".".join([*parents, *([node.module] if node.module else [])])


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def at_import(body: list[ast.AST]) -> Iterator[ast.stmt]:
    """Import statements that run when the module is imported: not in functions or TYPE_CHECKING."""
    for node in body:
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            yield node
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            yield from at_import([*node.orelse])
        elif not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            for part in ("body", "handlers", "orelse", "finalbody"):
                yield from at_import(getattr(node, part, []))


def run(code: str) -> str:
    finished = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


def loaded_after(code: str) -> set[str]:
    """Top-level names in sys.modules after running the code in a fresh interpreter."""
    report = "\nimport sys; print(*sorted({name.split('.')[0] for name in sys.modules}))"
    return set(run(code + report).split())


def test_import_engines_loads_nothing_heavy() -> None:
    loaded = loaded_after("import engines")
    assert "engines" in loaded
    assert loaded.isdisjoint(HEAVY)
    assert "numpy" not in loaded


def test_every_module_of_engines_can_be_imported_with_numpy_alone() -> None:
    modules = [module_name(path) for path in sources("engines")]
    loaded = loaded_after("\n".join(f"import {module}" for module in modules))
    assert "numpy" in loaded
    assert loaded.isdisjoint(HEAVY)


@pytest.mark.parametrize("name", ["Segmenter", "Bundle", "bundle_from_folder"])
def test_the_runtimes_names_come_from_engines_itself_and_load_nothing_heavy(name: str) -> None:
    loaded = loaded_after(f"from engines import {name}\nassert {name}.__name__ == {name!r}")
    assert loaded.isdisjoint(HEAVY)


def test_engines_lists_its_names_and_has_no_others() -> None:
    for name in ("Segmenter", "Bundle", "bundle_from_folder"):
        assert name in dir(engines)
        assert name in engines.__all__
    with pytest.raises(AttributeError, match="module 'engines' has no attribute 'Pipeline'"):
        _ = engines.Pipeline


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_imports_only_itself_and_those_to_its_right(package: str) -> None:
    forbidden = {*PACKAGES[: PACKAGES.index(package)], "tests", "scripts"}
    for path in sources(package):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        names = {name.split(".")[0] for name in imported(tree, module_name(path))}
        assert names.isdisjoint(forbidden), f"{path} imports {sorted(names & forbidden)}"


def test_the_search_for_imports_finds_those_in_functions_and_relative_ones() -> None:
    code = "def f():\n    import exporter.zoo\n    from ..a import b\nfrom . import c\n"
    assert list(imported(ast.parse(code), "engines.sub.module")) == [
        "engines.sub",
        "exporter.zoo",
        "engines.a",
    ]


def test_modules_of_engines_start_with_the_standard_library_and_numpy_only() -> None:
    allowed = {*sys.stdlib_module_names, "numpy", "engines"}
    for path in sources("engines"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        body = ast.Module(list(at_import([*tree.body])), [])
        names = {name.split(".")[0] for name in imported(body, module_name(path))}
        assert names <= allowed, f"{path} imports {sorted(names - allowed)}"


def test_engines_is_python_3_8_that_evaluates_no_annotation() -> None:
    for path in sources("engines"):
        tree = ast.parse(path.read_text(encoding="utf-8"), feature_version=(3, 8))
        futures = [
            alias.name
            for node in tree.body
            if isinstance(node, ast.ImportFrom) and node.module == "__future__"
            for alias in node.names
        ]
        assert "annotations" in futures, path
