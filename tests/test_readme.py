"""The README says what the files say."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from scripts.first_command import COMMAND
from scripts.readme_figures import ROOT, filled


def test_figures_come_from_the_results():
    done = subprocess.run([sys.executable, "-m", "scripts.readme_figures", "--check"], cwd=ROOT)
    assert done.returncode == 0, "run python -m scripts.readme_figures and commit README.md"


def test_a_typed_number_is_noticed(tmp_path):
    """The check must be able to fail: one digit of one figure changed by hand."""
    text = (ROOT / "README.md").read_text()
    code = (
        "import sys, pathlib, scripts.readme_figures as f; f.README = pathlib.Path(sys.argv[1]); "
        "sys.argv.append('--check'); sys.exit(f.main())"
    )
    changed = tmp_path / "README.md"
    changed.write_text(text.replace("| lm_head | 2.82 |", "| lm_head | 2.83 |"))
    assert changed.read_text() != text
    assert subprocess.run([sys.executable, "-c", code, str(changed)], cwd=ROOT).returncode == 1


def test_what_the_first_command_said_is_checked_too():
    text = (ROOT / "README.md").read_text()
    assert f"    {COMMAND}\n" in text
    assert filled(text.replace("6 prompt + 32 generated", "6 prompt + 33 generated")) == text


def test_folders_of_the_map_exist():
    for name in (
        "kernels/sdpa",
        "kernels/matvec",
        "models/load",
        "runner/pipeline.py",
        "scripts/results",
        "tests/kernels",
    ):
        assert (ROOT / name).exists(), name
