"""Layouts of chosen tokens."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from chiaroscuro.ops import Chosen


@given(B=st.integers(1, 4), T=st.integers(1, 9), share=st.floats(0, 1), seed=st.integers(0, 100))
def test_rows_taken_padded_and_taken_back_are_the_chosen_ones_in_order(B, T, share, seed):
    torch.manual_seed(seed)
    mask, x = torch.rand(B, T) < share, torch.randn(B, T, 3)
    chosen = Chosen(mask)
    rows = chosen.take(x)
    assert torch.equal(rows, x[mask])
    assert torch.equal(chosen.take(x[:1]), x[:1].expand(B, -1, -1)[mask])
    assert torch.equal(chosen.place_M, torch.arange(T).expand(B, T)[mask])
    padded = chosen.pad(rows)
    assert padded.shape == (B, int(mask.sum(1).max()), 3)
    for b in range(B):
        count = int(mask[b].sum())
        assert torch.equal(padded[b, :count], x[b][mask[b]])
        assert not padded[b, count:].any()
        assert chosen.filled_BQ[b].tolist() == [True] * count + [False] * (chosen.Q - count)
    assert torch.equal(chosen.unpad(padded), rows)


def test_counts_of_all_masks_are_asked_for_at_once(monkeypatch):
    mask = torch.rand(3, 8) < 0.5
    asked = []
    tolist = torch.Tensor.tolist
    monkeypatch.setattr(torch.Tensor, "tolist", lambda x: asked.append(x.shape) or tolist(x))
    first, second = Chosen.each([mask, ~mask])
    assert (len(first.flat_M), first.Q) == (int(mask.sum()), int(mask.sum(1).max()))
    assert sum(second.counts) == int((~mask).sum())
    assert asked == [(2, 3)]
