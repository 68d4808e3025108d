"""What attention remembers between calls of generation, in a dictionary of tensors with the batch as first axis.

k, v: the keys and values computed so far, with room behind them. waiting: tokens whose keys and values nobody has asked
for yet. Computing them reads the weights of a projection, which for one token takes longer than everything else and
for many at once no longer than for one. used_B, waiting_B: how many there are of either, known on the CPU, where asking
does not stall a GPU. usable_BK: which of all these tokens may be seen, kept from the first time that some may not.

Shapes: B batch, T new tokens, K tokens seen with them, N heads, D model channels, H head channels.
"""

import torch
from torch import Tensor

State = dict[str, Tensor]
Rotary = tuple[Tensor, Tensor]

ROOM = 64  # tokens that a buffer which is full grows by, at the least


def _seen(state: State | None) -> int:
    """How many tokens a state knows."""
    return _count(state, "used_B") + _count(state, "waiting_B")


def mark_usable(state: State | None, B: int, T: int, usable_BT: Tensor | None) -> Tensor | None:
    """Say which of T new tokens may be seen (None: all), before they are added. Returns the same of all, (B, K)."""
    if state is None or (usable_BT is None and "usable_BK" not in state):
        return usable_BT
    parts = ((_seen(state), state.get("usable_BK")), (T, usable_BT))
    device = next(usable.device for _, usable in parts if usable is not None)
    filled = [torch.ones(B, n, dtype=torch.bool, device=device) if usable is None else usable for n, usable in parts]
    state["usable_BK"] = torch.cat(filled, dim=1)
    return state["usable_BK"]


def wait(state: State, x_BTD: Tensor, rotary: Rotary | None) -> None:
    """Remember tokens whose keys and values are not needed yet."""
    B, T = x_BTD.shape[:2]
    tables = () if rotary is None else (table.expand(B, T, -1) for table in rotary)
    waiting = _count(state, "waiting_B")
    state["waiting"] = _behind(state.get("waiting"), waiting, torch.cat((x_BTD, *tables), dim=-1)[:, None])
    state["waiting_B"] = _counter(B, waiting + T)


def recall(state: State | None, x_BTD: Tensor, rotary: Rotary | None) -> tuple[Tensor, Rotary | None]:
    """The tokens that wait, which then do so no more, and those of x behind them."""
    waiting = _count(state, "waiting_B")
    if state is None or waiting == 0:
        return x_BTD, rotary
    B, T, D = x_BTD.shape
    state["waiting_B"] = _counter(B, 0)
    before = state["waiting"][:, 0, :waiting].to(x_BTD.dtype)
    x_BTD = torch.cat((before[..., :D], x_BTD), dim=1)
    if rotary is not None:
        tables = zip(before[..., D:].chunk(2, dim=-1), rotary, strict=True)
        cos, sin = (torch.cat((old, new.expand(B, T, -1)), dim=1) for old, new in tables)
        rotary = cos, sin
    return x_BTD, rotary


def append(state: State | None, k_BNTH: Tensor, v_BNTH: Tensor) -> tuple[Tensor, Tensor]:
    """Put keys and values behind those in `state`. Returns all of them."""
    if state is None:
        return k_BNTH, v_BNTH
    used = _count(state, "used_B")
    end = used + k_BNTH.shape[2]
    state["k"] = _behind(state.get("k"), used, k_BNTH)
    state["v"] = _behind(state.get("v"), used, v_BNTH)
    state["used_B"] = _counter(len(k_BNTH), end)
    return state["k"][:, :, :end], state["v"][:, :, :end]


def _count(state: State | None, name: str) -> int:
    return int(state[name][0]) if state and name in state else 0


def _counter(B: int, count: int) -> Tensor:
    return torch.full((B,), count, device="cpu")


def _behind(buffer: Tensor | None, past: int, new_BNTC: Tensor) -> Tensor:
    """A buffer whose first `past` entries of axis 2 are those of `buffer`, followed by the new: the same one while
    there is room, so that a step of generation copies one token and not the whole context."""
    end = past + new_BNTC.shape[2]
    if torch.is_grad_enabled():  # nobody writes into what a backward pass has yet to read
        return new_BNTC if buffer is None else torch.cat((buffer[:, :, :past], new_BNTC), dim=2)
    frozen = buffer is not None and buffer.is_inference() and not torch.is_inference_mode_enabled()
    if buffer is None or buffer.shape[2] < end or frozen:
        room = new_BNTC.new_empty(*new_BNTC.shape[:2], end + max(ROOM, end // 4), new_BNTC.shape[3])
        if buffer is not None:
            room[:, :, :past] = buffer[:, :, :past]
        buffer = room
    buffer[:, :, past:end] = new_BNTC
    return buffer
