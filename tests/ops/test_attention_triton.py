"""The kernels for GPUs against the definition: on a GPU where there is one, else run by Triton's interpreter on the CPU
(`tests/conftest.py`)."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.ops.test_attention import expected_attention, inputs

pytest.importorskip("triton", reason="the kernels for GPUs are tested where Triton is installed")
from chiaroscuro.ops import attention_triton  # noqa: E402
from chiaroscuro.ops.accelerator import has_triton  # noqa: E402

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def on_device(*tensors):
    return [x if x is None else x.detach().to(DEVICE) for x in tensors]


def run(q, k, v, visible, valid, gradient):
    """Output, and gradients of q, k and v."""
    q, k, v, visible, valid, gradient = on_device(q, k, v, visible, valid, gradient)
    B, N, Q, H = q.shape
    out = q.new_empty(B, Q, N, H).transpose(1, 2)
    lse = attention_triton.forward(q, k, v, visible, valid, out)
    gradients = attention_triton.backward(gradient, q, k, v, out, lse, visible, valid)
    return out.cpu(), [x.cpu() for x in gradients]


@pytest.mark.parametrize(("told", "used"), [("0", False), ("1", True), (None, True)])
def test_kernels_of_our_own_can_be_switched_off(told, used, monkeypatch):
    monkeypatch.delenv("CHIAROSCURO_TRITON", raising=False)
    if told is not None:
        monkeypatch.setenv("CHIAROSCURO_TRITON", told)
    assert has_triton.__wrapped__() is used


@settings(max_examples=15)
@given(
    B=st.integers(1, 2),
    N=st.integers(1, 2),
    Q=st.integers(1, 100),
    K=st.integers(1, 110),
    H=st.sampled_from([2, 16, 24]),
    padded=st.booleans(),
    seed=st.integers(0, 99),
)
def test_outputs_and_gradients_by_definition(B, N, Q, K, H, padded, seed):
    q, k, v, visible = inputs(B, N, Q, K, H, seed)
    valid = torch.rand(B, K) < 0.7 if padded else None
    visible = visible * (torch.rand(B, Q) < 0.9)  # padding queries anywhere
    expected = expected_attention(q, k, v, visible, valid)
    gradient = torch.randn_like(expected)
    # Heads that lie together, as a projection leaves them.
    rows = [x.detach().float().transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, v)]
    out, gradients = run(*rows, visible, valid, gradient.float())
    torch.testing.assert_close(out.double(), expected, atol=2e-5, rtol=0)
    if not expected.requires_grad:
        assert not any(x.any() for x in gradients)
        return
    wanted = torch.autograd.grad((expected * gradient).sum(), (q, k, v), allow_unused=True, materialize_grads=True)
    for found, want in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(found.double(), want, atol=2e-5, rtol=0)


# The interpreter takes the bits of bfloat16 for integers.
HALVES = [(torch.float16, 5e-3)] + ([(torch.bfloat16, 4e-2)] if DEVICE == "cuda" else [])


@pytest.mark.parametrize(("dtype", "tolerance"), HALVES)
def test_half_precision(dtype, tolerance):
    q, k, v, visible = inputs(1, 1, 80, 90, 16)
    halves = [x.detach().to(dtype) for x in (q, k, v)]
    exact = [x.double().requires_grad_() for x in halves]
    expected = expected_attention(*exact, visible)
    gradient = torch.randn_like(expected).to(dtype)
    out, gradients = run(*halves, visible, None, gradient)
    torch.testing.assert_close(out.double(), expected, atol=tolerance, rtol=tolerance)
    wanted = torch.autograd.grad((expected * gradient.double()).sum(), exact)
    for found, want in zip(gradients, wanted, strict=True):
        assert found.dtype == dtype
        torch.testing.assert_close(found.double(), want, atol=tolerance, rtol=tolerance)


def test_nothing_asked_and_nothing_to_see():
    for Q, K in ((0, 5), (3, 0)):
        q, k, v, visible = inputs(1, 1, Q, K, 4)
        out, gradients = run(q.float(), k.float(), v.float(), visible, None, torch.ones(1, 1, Q, 4))
        assert not out.any()
        assert not any(gradient.any() for gradient in gradients)


def test_what_lies_beyond_the_bounds_of_a_query_is_never_read():
    q, k, v, _ = (x.detach().float() for x in inputs(1, 1, 70, 200, 8))
    visible = torch.arange(1, 71)[None]
    k[:, :, 96:], v[:, :, 96:] = float("nan"), float("nan")
    out, gradients = run(q, k, v, visible, None, torch.ones_like(q))
    assert torch.isfinite(out).all()
    assert torch.isfinite(gradients[0]).all()


@pytest.mark.parametrize("dimension", [0, 2])
def test_rows_that_lie_far_apart_are_found(dimension):
    """Beyond 2^31 numbers, of which only the rows are ever touched."""
    shape = {0: (3, 1, 20, 30, 16), 2: (1, 1, 3, 3, 16)}[dimension]
    q, k, v, visible = inputs(*shape)
    apart = 1_100_000_000
    far = []
    for x in (q, k, v):
        space = torch.empty(2 * apart + x[0].numel(), dtype=torch.float16)
        strides = [apart if each == dimension else stride for each, stride in enumerate(x.stride())]
        far.append(space.as_strided(x.shape, strides).copy_(x.detach()))
    exact = [x.double().requires_grad_() for x in far]
    expected = expected_attention(*exact, visible)
    out, _ = run(*far, visible, None, torch.ones_like(far[0]))
    torch.testing.assert_close(out.double(), expected, atol=5e-3, rtol=5e-3)
