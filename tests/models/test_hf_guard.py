"""Hugging Face's `kernels` package and our folder of that name, in every order of finding them."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def python(code: str, *, cwd: Path, path: str = "") -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": path, "PYTHONSAFEPATH": ""}
    return subprocess.run([sys.executable, "-c", code], cwd=cwd, env=env, capture_output=True, text=True, timeout=300)


USE_BOTH = """
import models.hf_guard
from transformers import Gemma3ForCausalLM
import kernels.sdpa
print(kernels.sdpa.__file__)
"""


def test_hugging_face_kernels_is_really_installed():
    """Without it the next tests would prove nothing."""
    assert version("kernels")


def test_without_the_guard_transformers_breaks_in_a_checkout(tmp_path):
    """The fault the guard is for; when this test fails the guard may go."""
    usable = python("from transformers.utils import is_kernels_available as ask; print(ask())", cwd=tmp_path)
    if usable.stdout.strip() == "False":
        pytest.skip(f"transformers {version('transformers')} takes no notice of kernels {version('kernels')}")
    done = python("from transformers import Gemma3ForCausalLM", cwd=ROOT)
    assert "cannot import name" in done.stderr
    assert str(ROOT / "kernels") in done.stderr


def test_ours_found_first():
    done = python(USE_BOTH, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(ROOT / "kernels/sdpa/__init__.py")


def test_hugging_faces_found_first(tmp_path):
    """A development install seen from another directory: site-packages comes before the checkout on sys.path."""
    done = python(f"import sys; sys.path.append({str(ROOT)!r})\n{USE_BOTH}print(kernels.get_kernel)", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == str(ROOT / "kernels/sdpa/__init__.py")
    assert "function get_kernel" in done.stdout
