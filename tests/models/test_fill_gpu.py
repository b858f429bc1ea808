"""fill on a GPU: the same bits as on the CPU, through staging buffers much smaller than a tensor."""

import pytest
import torch

from models.load import copier
from models.load.fill import build_on_meta, fill
from models.load.resolve import resolve

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("staging", [1 << 12, 64 << 20])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_gpu_gets_what_the_cpu_gets(tiny, tmp_path, monkeypatch, dtype, staging):
    monkeypatch.setattr(copier, "STAGING_BYTES", staging)
    _, model = tiny
    model.save_pretrained(tmp_path)
    source = resolve(str(tmp_path))
    filled = {}
    names = [name for name, _ in model.named_parameters() if "mlp.gate" in name or "mlp.up" in name][:2]
    for device in ("cpu", "cuda"):
        filled[device] = build_on_meta(source)
        fill(filled[device], source, device=device, dtype=dtype, packs=[tuple(names)], check_tensors=True)
    for name, expected in filled["cpu"].state_dict().items():
        assert torch.equal(filled["cuda"].state_dict()[name].cpu(), expected), name
    for name, buffer in filled["cuda"].named_buffers():
        assert buffer.is_cuda, name
        assert buffer.dtype == filled["cpu"].get_buffer(name).dtype


def test_dummy_weights_are_made_on_the_device(build_tiny_model, tmp_path):
    build_tiny_model("gemma4").save_pretrained(tmp_path)
    source = resolve(str(tmp_path), load_format="dummy")
    models = [build_on_meta(source) for _ in range(2)]
    for model in models:
        fill(model, source, device="cuda", dtype=torch.bfloat16, seed=3)
    for name, parameter in models[0].named_parameters():
        assert parameter.is_cuda
        assert torch.equal(parameter, models[1].get_parameter(name))
