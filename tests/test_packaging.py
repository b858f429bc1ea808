"""The wheel: what is in it, and how it gets on with Hugging Face's `kernels` package in one site-packages.

Each test installs into a virtual environment of its own. To spare the download it borrows every package of the
environment that runs the tests, except ours and Hugging Face's `kernels`, by links to their folders.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from importlib.metadata import distribution
from pathlib import Path
from zipfile import ZipFile

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("runner", "models", "kernels")
SITES = [Path(entry) for entry in sys.path if Path(entry).name in ("site-packages", "dist-packages")]

pytestmark = pytest.mark.slow


def run(*command: str | Path, cwd: Path, expect: int = 0) -> str:
    """Run outside the checkout, so that nothing but what is installed can be imported. Returns stdout."""
    env = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    done = subprocess.run(list(map(str, command)), cwd=cwd, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == expect, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built from a copy of the tree: setuptools would pack left-overs of older builds from the checkout's build/."""
    tree, out = tmp_path_factory.mktemp("tree"), tmp_path_factory.mktemp("wheel")
    for package in PACKAGES:
        shutil.copytree(ROOT / package, tree / package, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, tree)
    (tree / "tests").mkdir()
    (tree / "tests" / "test_stray.py").touch()
    run(sys.executable, "-m", "pip", "wheel", tree, "--no-deps", "--no-build-isolation", "-qw", out, cwd=out)
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def hugging_face_wheel(tmp_path_factory) -> Path:
    """Hugging Face's `kernels`, packed again from its installed files."""
    installed = distribution("kernels")
    target = tmp_path_factory.mktemp("hugging_face") / f"kernels-{installed.version}-py3-none-any.whl"
    with ZipFile(target, "w") as archive:
        for file in installed.files or ():
            if ".." not in file.parts and "__pycache__" not in file.parts:
                archive.write(file.locate(), str(file))
    return target


class Environment:
    """A virtual environment with everything we depend on and nothing of the two packages under test."""

    def __init__(self, folder: Path):
        self.cwd = folder
        run(sys.executable, "-m", "venv", "--without-pip", folder / "venv", cwd=folder)
        self.python = folder / "venv" / "bin" / "python"
        self.site = Path(
            run(self.python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder)[:-1]
        )
        borrowed = folder / "borrowed"
        borrowed.mkdir()
        for entry in (entry for site in SITES for entry in site.iterdir()):
            link, name = borrowed / entry.name, entry.name.split("-")[0]
            if name not in PACKAGES and not name.startswith("__editable__") and not link.is_symlink():
                link.symlink_to(entry)
        (self.site / "borrowed.pth").write_text(f"{borrowed}\n")

    def pip(self, *arguments: str | Path) -> None:
        run(self.python, "-m", "pip", "-q", *arguments, cwd=self.cwd)

    def install(self, wheel: Path) -> None:
        self.pip("install", "--no-deps", "--no-index", wheel)

    def uninstall(self, name: str) -> None:
        self.pip("uninstall", "-y", name)

    def evaluate(self, code: str) -> str:
        return run(self.python, "-c", code, cwd=self.cwd).strip()

    def generate(self) -> str:
        """A few greedy tokens of the real model, through the command of the README."""
        model = ("--model", "gemma3-270m", "--device", "cpu")
        prompt = (
            "--prompt",
            "The capital of Italy is Rome. The capital of France is",
            "--max-new-tokens",
            "4",
            "--temperature",
            "0",
        )
        return run(self.python, "-m", "runner", "generate", *model, *prompt, cwd=self.cwd)


@pytest.fixture
def environment(tmp_path) -> Environment:
    return Environment(tmp_path)


OURS_WORKS = """
from models.catalog import CATALOG
import runner.cli, models.hf_guard, kernels.sdpa, kernels.matvec
from transformers import Gemma3ForCausalLM
assert all(entry.config()["vocab_size"] > 0 for entry in CATALOG.values())
print(kernels.sdpa.__file__)
"""
HUGGING_FACES_WORKS = """
from kernels import get_kernel, has_kernel
import kernels.layer
from transformers import Gemma3ForCausalLM
print(kernels.__file__)
"""


def test_the_wheel_holds_every_module_and_data_file_and_no_more(wheel):
    with ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    files = [path for package in PACKAGES for path in (ROOT / package).rglob("*") if path.suffix in (".py", ".json")]
    expected = {str(path.relative_to(ROOT)) for path in files} - {"kernels/__init__.py"}
    assert names == expected
    assert "models/configs/gemma4-31b.json" in names


def test_no_file_is_both_ours_and_hugging_faces(wheel, hugging_face_wheel):
    """A module of ours named like one of theirs (kernels/utils.py, say) would overwrite it."""
    with ZipFile(wheel) as ours, ZipFile(hugging_face_wheel) as theirs:
        assert not set(ours.namelist()) & set(theirs.namelist())
        assert "kernels/__init__.py" in theirs.namelist()


def test_alone_then_hugging_faces_joins_and_ours_leaves(environment, wheel, hugging_face_wheel):
    environment.install(wheel)
    assert environment.evaluate(OURS_WORKS) == str(environment.site / "kernels/sdpa/__init__.py")
    assert environment.evaluate("import kernels; print(kernels.__file__)") == "None"
    assert "usage: " in run(environment.python, "-m", "runner", "--help", cwd=environment.cwd)
    assert "usage: " in run(environment.python.with_name("runner"), "--help", cwd=environment.cwd)
    assert "Paris" in environment.generate()

    environment.install(hugging_face_wheel)
    assert environment.evaluate(OURS_WORKS) == str(environment.site / "kernels/sdpa/__init__.py")
    assert environment.evaluate(HUGGING_FACES_WORKS) == str(environment.site / "kernels/__init__.py")

    environment.uninstall("runner")
    assert environment.evaluate(HUGGING_FACES_WORKS) == str(environment.site / "kernels/__init__.py")
    assert not any((environment.site / left).exists() for left in ("runner", "models", "kernels/sdpa"))


def test_hugging_faces_first_then_ours_joins_and_theirs_leaves(environment, wheel, hugging_face_wheel):
    environment.install(hugging_face_wheel)
    environment.install(wheel)
    assert environment.evaluate(OURS_WORKS) == str(environment.site / "kernels/sdpa/__init__.py")
    assert environment.evaluate(HUGGING_FACES_WORKS) == str(environment.site / "kernels/__init__.py")
    assert "Paris" in environment.generate()

    environment.uninstall("kernels")
    assert environment.evaluate(OURS_WORKS) == str(environment.site / "kernels/sdpa/__init__.py")
    assert environment.evaluate("import kernels; print(kernels.__file__)") == "None"


def test_hugging_faces_in_another_folder_of_the_path(environment, wheel):
    """A virtual environment over a system-wide `kernels`: theirs wins the name, the guard lets ours in."""
    theirs = Path(str(distribution("kernels").locate_file("")))
    (environment.site / "theirs.pth").write_text(f"{theirs}\n")
    environment.install(wheel)
    assert environment.evaluate(OURS_WORKS) == str(environment.site / "kernels/sdpa/__init__.py")
    assert environment.evaluate("import kernels; print(kernels.__file__)") == str(theirs / "kernels/__init__.py")
