"""The house has stairs in one direction: kernels <- models <- runner <- scripts and tests."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
OURS = {"kernels", "models", "runner", "scripts", "tests"}
MAY_IMPORT = {
    "kernels": {"kernels"},
    "models": {"kernels", "models"},
    "runner": {"kernels", "models", "runner"},
}


def imported_packages(file: Path) -> set[str]:
    """First parts of every absolute import anywhere in the file, lazy ones included."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            found.add((node.module or "").split(".")[0])
    return found


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_imports_point_one_way(package):
    files = sorted((ROOT / package).rglob("*.py"))
    assert len(files) > 5
    for file in files:
        wrong = (imported_packages(file) & OURS) - MAY_IMPORT[package]
        assert not wrong, f"{file.relative_to(ROOT)} imports {wrong}"


def test_kernels_need_torch_and_triton_alone():
    allowed = {"kernels", "torch", "triton", "platformdirs"}
    import sys

    for file in sorted((ROOT / "kernels").rglob("*.py")):
        wrong = imported_packages(file) - allowed - set(sys.stdlib_module_names)
        assert not wrong, f"{file.relative_to(ROOT)} imports {wrong}"


def test_kernels_package_is_empty():
    """transformers imports whatever is called `kernels`; it must find nothing here."""
    assert (ROOT / "kernels" / "__init__.py").read_text() == ""
