"""The interface of an operator that tokens can be routed to, and the registry of operators by name.

Shapes: B batch, T tokens, D model channels, H head channels, M chosen tokens of all rows.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Self, TypeVar

import torch
from torch import Tensor, nn

from chiaroscuro.mixers.flops import Flops, Work
from chiaroscuro.mixers.registry import Registry
from chiaroscuro.ops import Chosen


@dataclass(frozen=True)
class Context:
    """What mixers and routers may know beside the token vectors. Everything is optional; used alone they need none of
    it.

    positions_BT: of the tokens in their sequences, (B or 1, T). None: 0, 1, 2 ... ids_BT: the tokens' ids, if they
        have any. recency_BT: how near behind each token its id last occurred (`chiaroscuro.routing.recency`), where a
        router wants to know.
    valid_BT: False at padding, which must not reach other tokens.
    rotary: cosines and sines of the tokens' positions, each (B or 1, T, H); None: no rotary position embedding.
    attention_mask: a mask of queries against all keys, in the form the chosen attention implementation takes; for
        operators that read it (`Mixer.reads_mask`) where they are run on all tokens.
    routed_BT: the tokens routed to this operator, when it is run on all tokens (dense dispatch).
    spectrum_BTP: the packed DCT of the tokens (`chiaroscuro.ops.packed_dct`), when it has been computed already.
    state: tensors the mixer keeps between calls, each with the batch as first axis; it reads and replaces its own
        entries. None: nothing precedes these tokens and nothing need be kept.
    cache: a cache of transformers instead, for operators made of its modules.
    attentions: where attention puts its weights (B, N, T, K), when somebody wants to see them.
    traced: whether somebody wants to know where the tokens go.
    """

    positions_BT: Tensor | None = None
    ids_BT: Tensor | None = None
    recency_BT: Tensor | None = None
    valid_BT: Tensor | None = None
    rotary: tuple[Tensor, Tensor] | None = None
    attention_mask: Tensor | None = None
    routed_BT: Tensor | None = None
    spectrum_BTP: Tensor | None = None
    state: dict[str, Tensor] | None = None
    cache: Any = None
    attentions: list[Tensor] | None = None
    traced: bool = False

    def of_the_tokens(self) -> Self:
        """What is known of the tokens by themselves, without what is computed or kept for attention among them."""
        return replace(
            self, attention_mask=None, routed_BT=None, spectrum_BTP=None, state=None, cache=None, attentions=None
        )

    def to(self, device: torch.device, **kwargs: Any) -> Self:
        """The same with what is known of the tokens on another device, for models spread over several; what is
        remembered and collected stays where it is."""
        lasting = ("state", "cache", "attentions", "traced")
        moved = {name: getattr(self, name) for name in (field.name for field in fields(self)) if name not in lasting}
        return replace(self, **{name: _moved(value, device) for name, value in moved.items()})


def _moved(value: Any, device: torch.device) -> Any:
    if isinstance(value, tuple):
        return tuple(part.to(device) for part in value)
    return None if value is None else value.to(device)


NO_CONTEXT = Context()


class Mixer(nn.Module, ABC):
    """An operator on token vectors, (B, T, D) to (B, T, D).

    It keeps the rows of a batch apart, and when `causal` the output at a position depends on nothing after it. Given
    `chosen` it returns the output of the chosen tokens only, flat rows (M, D), equal to what it returns for them when
    all are asked for, unless it lets chosen tokens see chosen tokens only; else those that are not chosen may still
    serve as context. Called on consecutive pieces of a sequence with the same `state`, it returns the pieces of what it
    returns for the whole.
    """

    causal: bool = True
    window: int | None = None  # how many tokens back it looks, itself included; None: at all of them
    remembers: bool = False  # whether tokens that go elsewhere must be shown to it, since later ones may see them
    reads_mask: bool = False  # whether it reads `Context.attention_mask`, which is as large as the square of the length
    gives_nothing: ClassVar[bool] = False  # whether its outputs are all zero, so that it need not be run

    @classmethod
    @abstractmethod
    def from_config(cls, config: Any) -> Self:
        """Build the mixer from a model configuration (`ChiarConfig`)."""

    @abstractmethod
    def forward(self, x_BTD: Tensor, chosen: Chosen | None = None, context: Context = NO_CONTEXT) -> Tensor:
        """Outputs of all tokens (B, T, D), or of the chosen ones, flat (M, D)."""

    @abstractmethod
    def flops(self, work: Work) -> Flops:
        """Forward FLOPs of `work`, by the convention of `chiaroscuro.mixers.flops`."""

    def remember(self, x_BTD: Tensor, context: Context) -> None:
        """Update the state for tokens that were all routed elsewhere, as calling it with none of them chosen does;
        override it where that can be cheaper."""
        B, T = x_BTD.shape[:2]
        self(x_BTD, Chosen.none(B, T, x_BTD.device), context)

    def reset_parameters(self) -> None:
        """Set parameters and buffers held by this module itself, not by its children, to their starting values.

        Use `transformers.initialization`, which leaves alone what a checkpoint has just filled.
        """

    def fit(self, x_BTD: Tensor) -> None:
        """Set what should start from data, given typical inputs. `chiaroscuro.calibrate` with `fit_mixers` calls it,
        once, before training."""


M = TypeVar("M", bound=type[Mixer])
_MIXERS: Registry[Mixer] = Registry("operator")
_RESERVED = ("short_convolution", "meta_router", "recency")  # whose states lie beside those of a layer's operators


def register_mixer(name: str) -> Callable[[M], M]:
    """Class decorator: make a mixer available to configurations under `name`. Raises ValueError when the name is
    taken by another class, and for one that no operator can have: it becomes part of the names of weights."""
    if not name.isidentifier() or name in _RESERVED or hasattr(nn.ModuleDict, name):
        raise ValueError(f"an operator cannot be called {name!r}: give a name as of a variable, not taken otherwise")
    return _MIXERS.register(name)


def operator_names() -> list[str]:
    return _MIXERS.names()


def mixer_class(name: str) -> type[Mixer]:
    """The mixer registered under `name`. Raises ValueError listing the known names."""
    return _MIXERS[name]
