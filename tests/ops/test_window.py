"""Attention within windows against its definition."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.helpers import assert_same_with_gradients

from chiaroscuro.flops import executed_flops
from chiaroscuro.ops import window_attention
from chiaroscuro.ops.reference import attention


def expected_attention(q, k, v, window, valid=None):
    """The definition, a row and a head at a time."""
    (B, N, T, _), K = q.shape, k.shape[2]
    out = torch.zeros_like(q)
    for b in range(B):
        keys = [j for j in range(K) if valid is None or valid[b, j]]
        seen = [[j for j in keys if j <= place][-window:] if place in keys else [] for place in range(K - T, K)]
        for n in range(N):
            out[b, n] = attention(q[b, n], k[b, n], v[b, n], seen)
    return out


@given(
    B=st.integers(1, 3),
    N=st.integers(1, 2),
    T=st.integers(1, 16),
    past=st.integers(0, 6),
    window=st.integers(1, 24),
    padded=st.booleans(),
    seed=st.integers(0, 99),
)
def test_outputs_and_gradients_by_definition(B, N, T, past, window, padded, seed):
    torch.manual_seed(seed)
    q, k, v = (torch.randn(B, N, size, 4, dtype=torch.float64, requires_grad=True) for size in (T, T + past, T + past))
    valid = torch.rand(B, T + past) < 0.7 if padded else None
    if valid is not None:
        valid[0, -1] = True  # a definition that sees nothing at all has no gradient
    out, expected = window_attention(q, k, v, window, valid), expected_attention(q, k, v, window, valid)
    assert_same_with_gradients(out, expected, (q, k, v))


@pytest.mark.parametrize("T", [64, 128])
def test_twice_the_pairs_that_are_seen_are_computed_and_no_others(T):
    q = torch.randn(1, 1, T, 4)
    pairs = executed_flops(lambda: window_attention(q, q, q, 8)) / (4 * 4)
    assert pairs == T * (2 * 8 - 1)


@pytest.mark.parametrize(
    ("keys", "window", "valid"), [((1, 2, 3, 4), 2, None), ((1, 2, 5, 4), 0, None), ((1, 2, 5, 4), 2, (1, 4))]
)
def test_what_does_not_fit_is_refused(keys, window, valid):
    mask = None if valid is None else torch.ones(valid, dtype=torch.bool)
    with pytest.raises(ValueError, match="do not fit together"):
        window_attention(torch.randn(1, 2, 4, 4), torch.randn(keys), torch.randn(keys), window, mask)


def test_dropout_draws_anew_each_time():
    q, k, v = (torch.randn(1, 2, 9, 4) for _ in range(3))
    first, second = (window_attention(q, k, v, 3, dropout=0.3) for _ in range(2))
    assert not torch.allclose(first, second)


def test_no_query_at_all_is_refused():
    with pytest.raises(ValueError, match="do not fit together"):
        window_attention(*(torch.randn(1, 2, size, 4) for size in (0, 3, 3)), 2)
