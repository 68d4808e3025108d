"""The spectral kernels for GPUs against the operators: on a GPU where there is one, else run by Triton's interpreter on
the CPU (`tests/conftest.py`)."""

import importlib

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from chiaroscuro.ops import filtered_idct, packed_dct_and_entropy
from chiaroscuro.ops.dct import matrix, slots, tables_for

pytest.importorskip("triton", reason="the kernels for GPUs are tested where Triton is installed")
from chiaroscuro.ops import spectral_triton  # noqa: E402

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


# The package has functions of these names.
dct, entropy = (importlib.import_module(f"chiaroscuro.ops.{name}") for name in ("dct", "entropy"))


def cosines(D):
    return matrix(D, torch.float32, torch.device("cpu")).to(DEVICE)


@settings(max_examples=20)
@given(
    M=st.integers(0, 70),
    D=st.sampled_from([1, 2, 7, 16, 64, 65, 130]),
    dc_weight=st.sampled_from([1.0, 2.0]),
    weighted=st.booleans(),
    some=st.booleans(),
    seed=st.integers(0, 99),
)
def test_the_kernels_compute_what_the_operators_do(M, D, dc_weight, weighted, some, seed):
    torch.manual_seed(seed)
    x = torch.randn(M, D) * 10.0 ** torch.randint(-3, 4, (M, 1))
    X, entropy = spectral_triton.spectrum(x.to(DEVICE), cosines(D), dc_weight)
    expected_X, expected_entropy = packed_dct_and_entropy(x.double(), dc_weight)
    scale = x.double().norm(dim=-1, keepdim=True)
    torch.testing.assert_close(X.cpu() / scale, expected_X / scale, atol=2e-6, rtol=0, check_dtype=False)
    torch.testing.assert_close(entropy.cpu(), expected_entropy, atol=1e-5, rtol=0, check_dtype=False)

    w = torch.randn(D) if weighted else torch.ones(D)
    chosen = (torch.rand(M) < 0.5).nonzero().squeeze(-1) if some else None
    w_P = w[tables_for(D, x).coefficient_P].to(DEVICE) if weighted else None
    back = spectral_triton.inverse(X, cosines(D), w_P, None if chosen is None else chosen.to(DEVICE))
    expected = filtered_idct(expected_X, w.double(), chosen)
    scale = scale if chosen is None else scale[chosen]
    torch.testing.assert_close(
        back.cpu() / scale, expected / scale, atol=4e-6 * max(1, w.abs().max()), rtol=0, check_dtype=False
    )


def test_entropy_of_what_has_no_length():
    x = torch.stack((torch.zeros(8), torch.full((8,), 1e-30), torch.full((8,), 1e30), torch.ones(8)))
    _, entropy = spectral_triton.spectrum(x.to(DEVICE), cosines(8), 1.0)
    torch.testing.assert_close(entropy.cpu(), packed_dct_and_entropy(x)[1], atol=1e-6, rtol=0)


def test_half_precision_is_multiplied_as_it_is():
    x = torch.randn(40, 64).half()
    X, entropy = spectral_triton.spectrum(x.to(DEVICE), cosines(64), 1.0)
    assert X.shape == (40, slots(64))
    assert X.dtype == entropy.dtype == torch.float32
    expected_X, expected_entropy = packed_dct_and_entropy(x.double())
    tolerance = 1e-5 if DEVICE == "cpu" else 5e-3  # TF32 rounds the cosines
    torch.testing.assert_close(X.cpu(), expected_X, atol=tolerance, rtol=0, check_dtype=False)
    torch.testing.assert_close(entropy.cpu(), expected_entropy, atol=tolerance, rtol=0, check_dtype=False)


def test_operators_that_are_given_the_kernels_have_the_same_outputs_and_gradients(monkeypatch):
    chosen = torch.tensor([0, 3, 4])

    def outputs():
        x = torch.randn(2, 5, 24, generator=torch.Generator().manual_seed(0)).requires_grad_()
        w = torch.linspace(0.5, 1.5, 24).requires_grad_()
        X, H = packed_dct_and_entropy(x, 2.0)
        of_some, of_all = filtered_idct(X, w, chosen), filtered_idct(X, w)
        loss = of_some.square().sum() + (of_all * H[..., None]).sum()
        return [X, H, of_some, of_all, *torch.autograd.grad(loss, (x, w))]

    expected = outputs()
    monkeypatch.setattr(dct, "has_kernel", lambda x, D: True)
    monkeypatch.setattr(entropy, "has_kernel", lambda x, D: True)
    monkeypatch.setattr(dct, "fused_spectrum", spectral_triton.spectrum)
    monkeypatch.setattr(entropy, "fused_spectrum", spectral_triton.spectrum)
    monkeypatch.setattr(dct, "fused_inverse", spectral_triton.inverse)
    for found, want in zip(outputs(), expected, strict=True):
        torch.testing.assert_close(found, want, atol=1e-5, rtol=1e-5)
