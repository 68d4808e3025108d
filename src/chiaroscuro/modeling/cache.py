"""What a layer remembers between calls of generation.

transformers builds a cache from `config.layer_types`; the layer type "chiaroscuro" is this one. It holds, per
operator, a dictionary of tensors with the batch as first axis, which the operator reads and replaces
(`Context.state`): keys and values for attention, possibly of chosen tokens only, a running sum for RBF mixing,
nothing for the DCT. It can be neither made beforehand in full size nor cropped: a running sum cannot be undone.
"""

from collections import defaultdict
from collections.abc import Callable
from typing import Any

from torch import Tensor
from transformers.cache_utils import CacheLayerMixin, StaticLayer


class RoutedCacheLayer(CacheLayerMixin):
    """The states of one layer's operators, and the number of tokens the layer has seen. padded: whether there was
    padding among them."""

    _layer_type = "chiaroscuro"
    is_sliding = False
    supports_early_init = False

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.states: defaultdict[str, dict[str, Tensor]] = defaultdict(dict)
        self.seen = 0
        self.padded = False

    @property
    def rows(self) -> int | None:
        """The batch size of the tokens seen; None where nothing is remembered."""
        return next((len(tensor) for state in self.states.values() for tensor in state.values()), None)

    def get_seq_length(self) -> int:
        return self.seen

    def get_max_length(self) -> int:
        return -1

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.seen + query_length, 0

    def reset(self) -> None:
        self.states.clear()
        self.seen = 0
        self.padded = False

    def crop(self, max_length: int) -> None:
        raise ValueError("a routed cache cannot be cropped, as sums are not undone: copy it before going on")

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self._on_batch(lambda tensor: tensor.index_select(0, beam_idx.to(tensor.device)))

    def batch_repeat_interleave(self, repeats: int) -> None:
        self._on_batch(lambda tensor: tensor.repeat_interleave(repeats, dim=0))

    def batch_select_indices(self, indices: Tensor) -> None:
        self._on_batch(lambda tensor: tensor[indices.to(tensor.device)])

    def _on_batch(self, change: Callable[[Tensor], Tensor]) -> None:
        for state in self.states.values():
            for name, tensor in state.items():
                state[name] = change(tensor)

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing to allocate: operators make their states when they first run."""

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        raise ValueError("a chiaroscuro cache layer is written by its operators, through their states")


class StaticRoutedCacheLayer(RoutedCacheLayer, StaticLayer):
    """What transformers makes of the same for `cache_implementation="static"`: it grows like the other, since how many
    tokens a layer remembers follows from where they go, and is not compiled."""

    is_compileable = False
