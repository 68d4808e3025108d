"""Run each operator on its tokens and put the rows back.

Shapes: B batch, T tokens, D model channels, O operators, M chosen tokens of all rows.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, cast

import torch
from torch import Tensor, nn

from chiaroscuro.mixers import NO_CONTEXT, Context, Flops, Mixer, Work
from chiaroscuro.ops import Chosen, packed_dct_and_entropy
from chiaroscuro.ops.once import once
from chiaroscuro.routing.router import Router

Dispatch = Literal["auto", "dense", "sparse"]


@dataclass(frozen=True)
class Routing:
    """What the router of a layer decided.

    gates_BTO: weight of each operator's output, zero at padding. choice_BT: index of the operator with the largest
        gate. weighted: whether gates may be other than zero and one, or want a gradient.
    entropy_BT: spectral entropy of the tokens the layer saw. spectrum_BTP: their DCT, packed. Both None where the
        router does not read the entropy.
    valid_BT: which tokens are not padding; None: all. hard: whether the operators with a gate of zero need not be run
        for a token.
    """

    gates_BTO: Tensor
    choice_BT: Tensor
    valid_BT: Tensor | None
    hard: bool
    weighted: bool
    entropy_BT: Tensor | None
    spectrum_BTP: Tensor | None

    @once
    def chosen(self) -> list[Chosen] | None:
        """Per operator the tokens that go to it, or None where gates blend all operators for all tokens."""
        if not self.hard:
            return None
        return Chosen.each([gate_BT > 0 for gate_BT in self.gates_BTO.unbind(-1)])


def dispatch(
    modules: Sequence[Mixer], x_BTD: Tensor, routing: Routing, context_of: Callable[[int], Context], sparse: bool
) -> Tensor:
    """sum_o gate_o * module_o(x), (B, T, D). `context_of` gives the context of each module, and is asked for those that
    are run only.

    Sparse: each module computes its own tokens only. Dense: each computes all tokens and the gates blend them. For hard
    choices outputs and gradients are equal.
    """
    if sparse and x_BTD.shape[:2] == (1, 1) and routing.valid_BT is None and not routing.weighted:
        return _dispatch_one(modules, x_BTD, routing, context_of)
    run = [index for index, module in enumerate(modules) if not module.gives_nothing]
    if sparse:
        assert routing.chosen is not None
        rows = {index: modules[index](x_BTD, routing.chosen[index], context_of(index)) for index in run}
        return _put_back(rows, routing, x_BTD)
    out = torch.zeros_like(x_BTD)
    for index in run:
        context = context_of(index)
        if routing.chosen is not None:
            context = replace(context, routed_BT=routing.chosen[index].mask_BT)
        out = out + routing.gates_BTO[..., index, None] * modules[index](x_BTD, None, context)
    return out


def _put_back(rows: Mapping[int, Tensor], routing: Routing, x_BTD: Tensor) -> Tensor:
    """(B, T, D): the outputs of the operators by their index, each at its tokens; zero elsewhere."""
    assert routing.chosen is not None
    tokens = x_BTD.shape[0] * x_BTD.shape[1]
    if routing.weighted:  # a token may have gone to several
        out = x_BTD.new_zeros(tokens, x_BTD.shape[2])
        for index, row in rows.items():
            chosen, gate_BT = routing.chosen[index], routing.gates_BTO[..., index]
            out = out.index_add(0, chosen.flat_M, (row * chosen.take(gate_BT)[:, None]).to(x_BTD.dtype))
        return out.view_as(x_BTD)
    everywhere = sum(map(len, rows.values())) == tokens  # neither padding, nor tokens that get nothing
    out = (x_BTD.new_empty if everywhere else x_BTD.new_zeros)(tokens, x_BTD.shape[2])
    for index, row in rows.items():
        out.index_copy_(0, routing.chosen[index].flat_M, row.to(x_BTD.dtype))
    return out.view_as(x_BTD)


def _dispatch_one(
    modules: Sequence[Mixer], x_BTD: Tensor, routing: Routing, context_of: Callable[[int], Context]
) -> Tensor:
    """The same for a single token, as in generation: nothing to gather and to put back. Operators that the token does
    not go to are shown it only if they remember tokens."""
    taken = int(routing.choice_BT)
    for index, module in enumerate(modules):
        if index != taken and module.remembers:
            module.remember(x_BTD, context_of(index))
    return modules[taken](x_BTD, None, context_of(taken))


class RoutedMixer(nn.Module):
    """Several operators and the router that chooses between them for each token; or one operator and no router.

    `mixers` maps names to operators, the cheapest first. Raises ValueError when there is no operator, when several come
    without a router or with one for another number, or when sparse dispatch is asked of a router whose gates blend.
    """

    def __init__(
        self,
        mixers: Mapping[str, Mixer],
        router: Router | None = None,
        dispatch: Dispatch = "auto",
        entropy_dc_weight: float = 1.0,
    ):
        super().__init__()
        if not mixers:
            raise ValueError("a layer needs at least one operator")
        if (len(mixers) > 1) != (router is not None):
            raise ValueError(f"{len(mixers)} operators {'need a' if len(mixers) > 1 else 'take no'} router")
        if router is not None and router.num_operators != len(mixers):
            raise ValueError(f"{len(mixers)} operators and a router that chooses between {router.num_operators}")
        if dispatch == "sparse" and router is not None and not router.hard:
            raise ValueError(
                "sparse dispatch needs a router that sends each token to one operator; this one blends them all: use "
                "dispatch='auto' or 'dense', or another router"
            )
        self.mixers = nn.ModuleDict(mixers)
        self.router = router
        self.dispatch = dispatch
        self.entropy_dc_weight = entropy_dc_weight

    @property
    def operators(self) -> tuple[str, ...]:
        return tuple(self.mixers)

    @property
    def windows(self) -> list[int | None]:
        """Per operator how many tokens back it looks; None: at all of them."""
        return [mixer.window for mixer in self._mixers_in_order]

    @property
    def _mixers_in_order(self) -> list[Mixer]:
        return [cast(Mixer, mixer) for mixer in self.mixers.values()]

    @property
    def sparse(self) -> bool:
        """Whether operators run on their tokens only. "auto": whenever each token goes to one operator."""
        return self.router is not None and self.router.hard and self.dispatch != "dense"

    @property
    def reads_mask(self) -> bool:
        """Whether an operator that is run on all tokens reads a mask of queries against keys."""
        return not self.sparse and any(mixer.reads_mask for mixer in self._mixers_in_order)

    def route(self, x_BTD: Tensor, context: Context = NO_CONTEXT) -> Routing:
        """Decide for each token. The entropy is computed in float32 at least, from one DCT that the spectral operator
        uses again."""
        assert self.router is not None
        spectrum_BTP, entropy_BT = None, None
        if self.router.reads_entropy:
            spectrum_BTP, entropy_BT = packed_dct_and_entropy(x_BTD, self.entropy_dc_weight)
            if not self.router.learned:
                entropy_BT = entropy_BT.detach()
        gates_BTO = self.router.gates(x_BTD, entropy_BT, context)
        choice_BT = gates_BTO.argmax(-1)
        valid_BT = context.valid_BT
        if valid_BT is not None:
            gates_BTO = gates_BTO * valid_BT[..., None]
        trained = self.training and (self.router.learned or self.router.explores)
        weighted = gates_BTO.requires_grad or trained or not self.router.zero_or_one
        return Routing(gates_BTO, choice_BT, valid_BT, self.router.hard, weighted, entropy_BT, spectrum_BTP)

    def forward(
        self,
        x_BTD: Tensor,
        context: Context = NO_CONTEXT,
        states: Mapping[str, dict[str, Tensor]] | None = None,
    ) -> tuple[Tensor, Routing | None]:
        """The mixed tokens (B, T, D), and the routing where there was a choice. `states` holds, per operator, what it
        keeps between calls (`Context.state`)."""
        modules = self._mixers_in_order
        routing = None if self.router is None else self.route(x_BTD, context)
        spectrum_BTP = context.spectrum_BTP if routing is None else routing.spectrum_BTP

        def context_of(index: int) -> Context:
            state = context.state if states is None else states[self.operators[index]]
            return replace(context, spectrum_BTP=spectrum_BTP, state=state)

        if routing is None:
            return modules[0](x_BTD, None, context_of(0)), None
        return dispatch(modules, x_BTD, routing, context_of, self.sparse), routing

    def flops(self, works: Sequence[Work]) -> Flops:
        """Forward FLOPs, given the work of each operator when it is run on its own tokens only."""
        total = Flops()
        for mixer, work in zip(self._mixers_in_order, works, strict=True):
            total = total + mixer.flops(work)
        if self.router is not None:
            tokens = works[0].tokens
            transforms = works[0].transforms(tokens, self.router.hidden_size) if self.router.reads_entropy else 0.0
            total = total + Flops(routing=transforms + self.router.flops(tokens))
        return total
