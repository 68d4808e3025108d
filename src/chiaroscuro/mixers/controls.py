"""Operators for controls: what is left of another operator when its point is taken away.

Shapes: B batch, T tokens, D model channels, M chosen tokens.
"""

from typing import Any, ClassVar, Self

from torch import Tensor, nn

from chiaroscuro.mixers.base import NO_CONTEXT, Context, Mixer, register_mixer
from chiaroscuro.mixers.flops import Flops, Work, linear_flops
from chiaroscuro.ops import Chosen


@register_mixer("none")
class NothingMixer(Mixer):
    """y = 0: a token routed here skips the operator. What the DCT is with its filter at zero and kept there."""

    gives_nothing: ClassVar[bool] = True

    @classmethod
    def from_config(cls, config: Any) -> Self:
        return cls()

    def forward(self, x_BTD: Tensor, chosen: Chosen | None = None, context: Context = NO_CONTEXT) -> Tensor:
        rows = x_BTD if chosen is None else chosen.take(x_BTD)
        return rows.new_zeros(rows.shape)

    def flops(self, work: Work) -> Flops:
        return Flops()


@register_mixer("identity")
class IdentityMixer(NothingMixer):
    """y = x: what the DCT is with its filter at one and kept there, in the paper's code up to a factor."""

    gives_nothing: ClassVar[bool] = False

    def forward(self, x_BTD: Tensor, chosen: Chosen | None = None, context: Context = NO_CONTEXT) -> Tensor:
        return x_BTD if chosen is None else chosen.take(x_BTD)


@register_mixer("linear")
class LinearMixer(Mixer):
    """y = Wx + b: what RBF mixing is when each token's kernel is one for itself and zero for all others, as in the
    paper's code on inputs of unit variance."""

    def __init__(self, hidden_size: int):
        super().__init__()
        self.value = nn.Linear(hidden_size, hidden_size)

    @classmethod
    def from_config(cls, config: Any) -> Self:
        return cls(config.hidden_size)

    def forward(self, x_BTD: Tensor, chosen: Chosen | None = None, context: Context = NO_CONTEXT) -> Tensor:
        return self.value(x_BTD if chosen is None else chosen.take(x_BTD))

    def flops(self, work: Work) -> Flops:
        return Flops(mixing=linear_flops(work.chosen, self.value.in_features, self.value.out_features))
