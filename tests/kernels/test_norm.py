"""RMSNorm and the norm-residual-norm seam: twins against Hugging Face's modules, kernels against the twins."""

from __future__ import annotations

import pytest
import torch

from kernels.norm import Norm, reference, rms_norm, sandwich
from kernels.norm.rms_norm import launch_rms_norm
from kernels.norm.sandwich import launch_sandwich

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# Half the spacing of the storage format, for values of size one, with room for another order of summation.
TOLERANCE = {torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}


def _norm(K: int, offset: float = 0.0, weight: bool = True, dtype: torch.dtype = torch.float32) -> Norm:
    return Norm((torch.randn(K, device=DEVICE) * 0.3 + 1 - offset).to(dtype) if weight else None, 1e-6, offset)


def _poison(like: torch.Tensor) -> torch.Tensor:
    return torch.full_like(like, float("nan"))


def _close(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(
        found.float(), expected.float(), rtol=TOLERANCE[found.dtype], atol=TOLERANCE[found.dtype]
    )


@pytest.mark.parametrize("family", ["gemma3", "gemma4", "gemma4-unweighted", "qwen3"])
def test_twin_is_the_hugging_face_norm(family: str) -> None:
    from transformers.models.gemma3.modeling_gemma3 import Gemma3RMSNorm
    from transformers.models.gemma4.modeling_gemma4 import Gemma4RMSNorm
    from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm

    module = {
        "gemma3": lambda: Gemma3RMSNorm(63),
        "gemma4": lambda: Gemma4RMSNorm(63),
        "gemma4-unweighted": lambda: Gemma4RMSNorm(63, with_scale=False),
        "qwen3": lambda: Qwen3RMSNorm(63),
    }[family]()
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter)
    norm = Norm(getattr(module, "weight", None), 1e-6, 1.0 if family == "gemma3" else 0.0)
    x = torch.randn(5, 63) * 7
    torch.testing.assert_close(rms_norm(x, norm), module(x), rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("rows", "K"), [(1, 63), (1, 1000), (3, 128), (5, 5376)])
@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_rms_norm_kernel(rows: int, K: int, offset: float, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x = (torch.randn(rows, K, device=DEVICE) * 3).to(dtype)
    for norm in (_norm(K, offset, dtype=dtype), _norm(K, weight=False)):
        out = _poison(x)
        launch_rms_norm(x, norm, out, pdl=False)
        _close(out, reference.rms_norm(x, norm))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("rows", "K"), [(1, 63), (1, 5376), (4, 1000)])
@pytest.mark.parametrize(("post", "scaled", "pre"), [(1, 1, 1), (1, 0, 1), (0, 0, 1), (0, 0, 0), (1, 1, 0)])
def test_sandwich_kernel(rows: int, K: int, post: int, scaled: int, pre: int, dtype: torch.dtype) -> None:
    torch.manual_seed(1)
    h, y = ((torch.randn(rows, K, device=DEVICE) * size).to(dtype) for size in (2.0, 9.0))
    arguments = dict(
        post=_norm(K, 1.0, dtype=dtype) if post else None,
        scalar=torch.tensor([0.37], device=DEVICE, dtype=dtype) if scaled else None,
        pre=_norm(K, dtype=dtype) if pre else None,
    )
    expected_h, expected_x = reference.sandwich(h, y, **arguments)
    h_out, x_out = _poison(h), _poison(h) if pre else None
    launch_sandwich(h, y, **arguments, h_out=h_out, x_out=x_out, pdl=False)
    _close(h_out, expected_h)
    if pre:
        # One rounding of h_new may fall the other way; the next norm carries it on.
        torch.testing.assert_close(
            x_out.float(), expected_x.float(), rtol=2 * TOLERANCE[dtype], atol=2 * TOLERANCE[dtype]
        )


def test_sandwich_may_overwrite_the_residual_stream() -> None:
    h, y, norm = torch.randn(1, 64, device=DEVICE), torch.randn(1, 64, device=DEVICE), _norm(64)
    expected, _ = reference.sandwich(h, y, post=norm, pre=norm)
    launch_sandwich(h, y, norm, None, norm, h, torch.empty_like(h), pdl=False)
    _close(h, expected)


def test_sandwich_is_the_gemma4_layer_tail() -> None:
    """Two seams of the HF layer written out: residual + post norm, times layer_scalar, then the next norm."""
    torch.manual_seed(2)
    h, y, scalar = torch.randn(1, 1, 48), torch.randn(1, 1, 48), torch.tensor([0.8])
    post, pre = Norm(torch.randn(48), 1e-6), Norm(torch.randn(48), 1e-6)
    h_new, x_next = sandwich(h, y, post=post, scalar=scalar, pre=pre)
    expected = (h + rms_norm(y, post)) * scalar
    torch.testing.assert_close(h_new, expected)
    torch.testing.assert_close(x_next, rms_norm(expected, pre))


@pytest.mark.gpu
def test_entries_refuse_what_they_cannot_read() -> None:
    if DEVICE == "cpu":
        pytest.skip("the CPU twin takes any strides")
    x = torch.randn(4, 128, device=DEVICE)[:, ::2]
    with pytest.raises(ValueError, match="contiguous"):
        rms_norm(x, _norm(64))
    with pytest.raises(ValueError, match=r"y .* contiguous"):
        sandwich(x.contiguous(), x)
