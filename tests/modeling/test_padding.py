"""Padding, and the masks that attention is given for it.

Shapes: B batch, T tokens.
"""

import pytest
import torch
from tests.helpers import SMALL_RECIPES, every_keys, ids, tiny_config, tiny_model
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from chiaroscuro import ChiarForCausalLM

every_recipe = pytest.mark.parametrize("recipe", SMALL_RECIPES)


@every_recipe
@every_keys
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing(recipe, keys, side):
    model, texts = tiny_model(recipe, attention_keys=keys), [ids(1, n, seed=n)[0] for n in (9, 6, 1)]
    padded, mask = torch.full((3, 9), 7), torch.zeros(3, 9, dtype=torch.long)
    for row, text in enumerate(texts):
        place = slice(9 - len(text), 9) if side == "left" else slice(0, len(text))
        padded[row, place], mask[row, place] = text, 1
    logits = model(padded, attention_mask=mask).logits
    for row, text in enumerate(texts):
        torch.testing.assert_close(logits[row][mask[row].bool()], model(text[None]).logits[0], atol=1e-10, rtol=0)


class Largest(TorchDispatchMode):
    """numel: entries of the largest tensor that is made."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.numel = max([self.numel, *(each.numel() for each in tree_leaves(out) if isinstance(each, torch.Tensor))])
        return out


@pytest.mark.parametrize(("recipe", "quadratic"), [("chiar", False), ("full_attention", True)])
def test_attention_of_chosen_tokens_makes_no_mask_of_all_with_all(recipe, quadratic):
    T = 600
    model = ChiarForCausalLM(tiny_config(recipe, max_position_embeddings=T)).train()
    input_ids, mask = ids(1, T), torch.ones(1, T, dtype=torch.long)
    mask[0, :7] = 0
    with Largest() as largest:
        model(input_ids, attention_mask=mask, labels=input_ids).loss.backward()
    assert (largest.numel >= T * T) == quadratic


@pytest.mark.parametrize("recipe", ["v1_dct_attention", "v1_three_operator", "v2"])
def test_padding_before_a_text_makes_no_large_gradients(recipe):
    """The last of it predicts the first token, so that its gradient counts."""
    model = ChiarForCausalLM(tiny_config(recipe)).double()  # with biases of zero, as a model starts
    input_ids, mask = ids(2, 8), torch.ones(2, 8, dtype=torch.long)

    def gradient_norm(mask: torch.Tensor) -> float:
        model.zero_grad()
        model(input_ids, attention_mask=mask, labels=input_ids.masked_fill(mask == 0, -100)).loss.backward()
        return float(torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None]))

    without = gradient_norm(mask)
    mask[0, :3] = 0
    assert gradient_norm(mask) < 3 * without


@pytest.mark.parametrize("recipe", ["full_attention", "chiar", "spectral"])
def test_flex_attention_gives_the_same(recipe):
    model = tiny_model(recipe).float()
    mask = torch.tensor([[0, 0, 0, 1, 1, 1], [1, 1, 1, 1, 1, 1]])
    expected = [model(ids(2, 6), attention_mask=given).logits for given in (None, mask)]
    model.set_attn_implementation("flex_attention")
    with torch.no_grad():  # on the CPU it has no gradient
        found = [model(ids(2, 6), attention_mask=given).logits for given in (None, mask)]
    torch.testing.assert_close(found[0], expected[0], atol=1e-4, rtol=0)
    torch.testing.assert_close(found[1][mask.bool()], expected[1][mask.bool()], atol=1e-4, rtol=0)


@pytest.mark.parametrize("recipe", ["full_attention", "spectral"])
def test_padding_before_a_text_is_nothing_to_the_eager_attention_in_double_precision(recipe):
    model = tiny_model(recipe)
    mask = torch.tensor([[0, 0, 0, 1, 1, 1], [1, 1, 1, 1, 1, 1]])
    expected = model(ids(2, 6), attention_mask=mask).logits
    model.set_attn_implementation("eager")
    found = model(ids(2, 6), attention_mask=mask).logits
    torch.testing.assert_close(
        found[mask.bool()], expected[mask.bool()], atol=1e-6, rtol=1e-6
    )  # its softmax is float32


def test_padding_has_no_gates():
    mask = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])
    for trace in tiny_model()(ids(2, 4), attention_mask=mask, output_routing=True).routing:
        assert torch.equal(trace.gates.sum(-1), mask.double())
        assert sum(trace.shares().values()) == pytest.approx(1.0)
