"""The catalogue: every name finds a family, a config in the package and the published number of parameters."""

import pytest

from models.catalog import CATALOG, find, unknown_name
from models.errors import UsageError
from models.load.fill import build_on_meta
from models.load.resolve import resolve

# Parameters in units of 1e9: Gemma 4 31B 30.70, Qwen3 8B 8.191 and 32B 32.762 from their GGUF tensor lists.
PARAMETERS = {
    "gemma4-31b": 30.697,
    "gemma3-270m": 0.268,
    "gemma3-1b": 1.000,
    "gemma3-27b": 27.009,
    "qwen3-0.6b": 0.596,
    "qwen3-8b": 8.191,
    "qwen3-32b": 32.762,
}


def test_every_entry_is_counted():
    assert PARAMETERS.keys() == CATALOG.keys()


@pytest.mark.parametrize("name", CATALOG)
def test_config_builds_the_true_shape(name):
    """Built on the meta device from the packaged config: the parameter count is the published one."""
    source = resolve(name, load_format="dummy")
    assert (source.name, source.kind, source.family.name) == (name, "dummy", CATALOG[name].family)
    model = build_on_meta(source)
    assert all(parameter.is_meta for parameter in model.parameters())
    assert not any(buffer.is_meta for buffer in model.buffers())
    tied = ("lm_head.weight",) if source.spec.tied_embeddings else ()
    count = sum(parameter.numel() for name, parameter in model.named_parameters() if name not in tied)
    assert count / 1e9 == pytest.approx(PARAMETERS[name], abs=6e-4)
    assert len(source.spec.layers) == len(model.model.layers)


def test_gemma4_31b_layers():
    spec = resolve("gemma4_31B", load_format="dummy").spec
    full = [i for i, layer in enumerate(spec.layers) if layer.kind == "full"]
    assert full == list(range(5, 60, 6))
    sliding, whole = spec.layers[0], spec.layers[5]
    assert (sliding.num_heads, sliding.num_kv_heads, sliding.head_dim, sliding.window) == (32, 16, 256, 1024)
    assert (whole.num_heads, whole.num_kv_heads, whole.head_dim, whole.window) == (32, 4, 512, None)
    assert (sliding.value_is_key, whole.value_is_key) == (False, True)
    assert {layer.scale for layer in spec.layers} == {1.0}
    assert spec.logit_softcap == 30.0
    # KV at depth n: 81920 n + 819200 min(n, 1024) bytes of two-byte values.
    assert spec.kv_bytes(2401, 2) == 81920 * 2401 + 819200 * 1024


def test_gemma3_27b_scale_and_rope():
    source = resolve("gemma3-27b", load_format="dummy")
    assert source.spec.layers[0].scale == 168**-0.5
    assert source.config.rope_parameters["full_attention"]["factor"] == 8.0
    assert source.config.rope_parameters["sliding_attention"]["rope_type"] == "default"


def test_hyphens_underscores_and_case_are_alike():
    assert find("Gemma4_31B") is find("gemma4-31b") is CATALOG["gemma4-31b"]
    assert find("qwen3_0.6b") is CATALOG["qwen3-0.6b"]
    assert find("gemma5") is None


@pytest.mark.parametrize(
    ("typed", "meant"), [("gemma4-13b", "gemma4-31b"), ("qwen-8b", "qwen3-8b"), ("gema3-1b", "gemma3-1b")]
)
def test_unknown_names_get_the_closest(typed, meant):
    with pytest.raises(UsageError, match=meant) as error:
        resolve(typed)
    assert error.value.exit_code == 2
    assert all(name in str(error.value) for name in CATALOG)


def test_nonsense_gets_no_suggestion():
    assert "Did you mean" not in str(unknown_name("zzzzzz"))
