"""Several texts packed into one row, which operators would mix: they are refused.

Shapes: B batch, T tokens.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

_NAMES = {"cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k", "seq_idx"}
_REFUSAL = "several texts packed into one are not supported, as operators would mix them; give a row to each"


def refuse_named(given: Mapping[str, Any]) -> None:
    """Raises ValueError for arguments that tell where texts begin and end."""
    if packed := sorted(_NAMES & set(given)):
        raise ValueError(f"{', '.join(packed)}: {_REFUSAL}")


def refuse_restarts(position_ids: Tensor, valid_BT: Tensor | None) -> None:
    """Raises ValueError for positions (B or 1, T) that start again within a row; padding may have any."""
    if position_ids.shape[1] == 1 or torch.compiler.is_compiling():
        return
    start_again = position_ids.diff() < 0
    if valid_BT is not None:
        start_again = start_again & valid_BT[:, 1:] & valid_BT[:, :-1]
    if start_again.any():
        raise ValueError(f"position_ids start again within a row: {_REFUSAL}")
