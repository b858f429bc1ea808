"""Run the README's first command on this machine's CPU and keep what it says, for the README to show.

    python -m scripts.first_command

Writes scripts/results/cpu/first-command.json; then `python -m scripts.readme_figures`.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

COMMAND = (
    'python -m runner generate --model gemma3-270m --prompt "The capital of France is" --max-new-tokens 32 '
    "--temperature 0"
)


def main() -> None:
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # before torch is imported, by the command and by the provenance
    from scripts.provenance import write_result

    done = subprocess.run([sys.executable, *shlex.split(COMMAND)[1:]], capture_output=True, text=True, check=True)
    body = dict(first_command=COMMAND, stdout=done.stdout, stderr=done.stderr)
    print(write_result(Path(__file__).parent / "results" / "cpu", "first-command", body))


if __name__ == "__main__":
    main()
