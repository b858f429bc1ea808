"""How much host memory a load takes, measured in a process of its own on a sharded bfloat16 model of 240 MB."""

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file

MIB = 1 << 20
CONFIG = dict(
    model_type="qwen3", vocab_size=24_576, hidden_size=1024, intermediate_size=4096, num_hidden_layers=5,
    num_attention_heads=8, num_key_value_heads=8, head_dim=128, tie_word_embeddings=False,
)  # fmt: skip
LOAD = """
import sys, torch
from models.load.fill import build_on_meta, fill
from models.load.resolve import resolve

def status(key):
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))

torch.set_num_threads(1)
torch.ones(1).to(torch.bfloat16).float()
source = resolve(sys.argv[1])
model = build_on_meta(source)
open("/proc/self/clear_refs", "w").write("5")  # the high-water mark starts again from here (proc(5))
before = status("VmRSS")
report = fill(model, source, device="cpu", dtype=getattr(torch, sys.argv[2]))
weights = sum(parameter.nbytes for parameter in model.parameters())
print(status("VmHWM") - before, weights, report.bytes)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The model, one shard a layer, written tensor by tensor."""
    folder, index, hidden, ffn = tmp_path_factory.mktemp("big"), {}, 1024, 4096
    layer = {
        "input_layernorm": (hidden,), "post_attention_layernorm": (hidden,), "self_attn.q_norm": (128,),
        "self_attn.k_norm": (128,), "mlp.gate_proj": (ffn, hidden), "mlp.up_proj": (ffn, hidden),
        "mlp.down_proj": (hidden, ffn),         **{f"self_attn.{x}_proj": (hidden, hidden) for x in "qkvo"},
    }  # fmt: skip
    shards = [{f"model.layers.{i}.{name}.weight": shape for name, shape in layer.items()} for i in range(5)]
    shards.append({"model.embed_tokens.weight": (24_576, hidden), "model.norm.weight": (hidden,)})
    shards.append({"lm_head.weight": (24_576, hidden)})
    for number, shapes in enumerate(shards):
        name = f"model-{number}.safetensors"
        save_file({key: torch.full(shape, 0.5, dtype=torch.bfloat16) for key, shape in shapes.items()}, folder / name)
        index |= dict.fromkeys(shapes, name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return folder


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_peak_memory_of_a_load(folder, dtype):
    """The bound asked for is the target's bytes + the largest tensor + 1 GiB; what it takes on top is chunks."""
    done = subprocess.run([sys.executable, "-c", LOAD, folder, dtype], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    peak, weights, stored = map(int, done.stdout.split())
    assert stored > 230 * MIB
    assert weights == stored * (2 if dtype == "float32" else 1)
    assert peak >= weights, "every page of the model was touched"
    assert peak < weights + 160 * MIB
