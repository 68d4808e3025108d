"""Tiny models, the two properties that every causal model must have, what a run logged, and processes that start
quickly.

Shapes: B batch, T tokens, D model channels.
"""

import json
import multiprocessing
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from chiaroscuro import RECIPES, ChiarConfig, ChiarForCausalLM

SMALL_RECIPES = [name for name in RECIPES if name != "v2_400m"]
ROUTERS = ["threshold", "soft", "hard", "learned", "benefit", "recurrence", "random", "interleaved"]
HARD_ROUTERS = [name for name in ROUTERS if name != "soft"]
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["chiaroscuro.cli", "chiaroscuro.training"])  # importing takes longer than they run
VOCAB, D = 61, 16
# Two layers with a router that learns and explores, below them three without an operator.
EXPLORING = {"router": "benefit", "layer_operators": [["none"]] * 3 + [["none", "attention"]] * 2}


def tiny_config(recipe: str = "spectral", **fields: Any) -> ChiarConfig:
    small = {"vocab_size": VOCAB, "hidden_size": D, "num_attention_heads": 2, "dropout": 0.0, "rbf_features": 8}
    small["window"] = 3
    if "layer_operators" not in fields:
        small["num_hidden_layers"] = 5 if recipe == "chiar" else 4  # of which one routes, or two
    return ChiarConfig.from_recipe(recipe, **(small | fields))


def assert_same_with_gradients(out: torch.Tensor, expected: torch.Tensor, inputs: tuple[torch.Tensor, ...]) -> None:
    """Two ways to compute the same from `inputs`, in float64."""
    torch.testing.assert_close(out, expected, atol=1e-10, rtol=0)
    weights = torch.randn_like(out)
    gradients = torch.autograd.grad((out * weights).sum(), inputs)
    wanted = torch.autograd.grad((expected * weights).sum(), inputs, allow_unused=True, materialize_grads=True)
    for gradient, want in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(gradient, want, atol=1e-10, rtol=0)


def routes(recipe: str) -> bool:
    """Whether any layer has a choice."""
    return any(len(operators) > 1 for operators in tiny_config(recipe).layer_operators)


every_keys = pytest.mark.parametrize("keys", ["all", "routed"])
# A router that blends has every token among the keys.
ROUTERS_AND_KEYS = [(router, "all") for router in ROUTERS] + [(router, "routed") for router in HARD_ROUTERS]
every_router_and_keys = pytest.mark.parametrize(("router", "keys"), ROUTERS_AND_KEYS)
every_recipe_router_and_keys = pytest.mark.parametrize(
    ("recipe", "router", "keys"),
    [(recipe, *way) for recipe in SMALL_RECIPES for way in ROUTERS_AND_KEYS if routes(recipe) or way[0] == ROUTERS[0]],
)


def tiny_model(recipe: str = "spectral", **fields: Any) -> ChiarForCausalLM:
    """In float64 and evaluation mode, with weights far enough from their start that every path carries something."""
    torch.manual_seed(1)
    model = ChiarForCausalLM(tiny_config(recipe, **fields)).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def ids(B: int, T: int, seed: int = 0) -> Tensor:
    return torch.randint(VOCAB, (B, T), generator=torch.Generator().manual_seed(seed))


def logs(run: Path) -> list[dict[str, Any]]:
    """All logs of training without the times, and without the summary at an end, which holds nothing else."""
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [{name: line[name] for name in line if name != "seconds"} for line in lines if "loss" in line]


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def reach(function: Callable[[Tensor], Tensor], x_BTD: Tensor) -> Tensor:
    """(B, T, B, T): whether the output of row b at t depends on the input of row a at s, by gradient."""
    x_BTD = x_BTD.detach().requires_grad_()
    out = function(x_BTD)
    B, T = x_BTD.shape[:2]
    weights = torch.rand(out.shape[2:], dtype=out.dtype, generator=torch.Generator().manual_seed(0))
    found = torch.zeros(B, T, B, T, dtype=torch.bool)
    for b in range(B):
        for t in range(T):
            (gradient,) = torch.autograd.grad((out[b, t] * weights).sum(), x_BTD, retain_graph=True)
            found[b, t] = gradient.abs().sum(-1) > 0
    return found


def assert_causal_and_apart(function: Callable[[Tensor], Tensor], x_BTD: Tensor) -> None:
    """No output depends on a later token or on another row, and each depends on its own token."""
    found = reach(function, x_BTD)
    B, T = x_BTD.shape[:2]
    for b in range(B):
        assert not found[b].transpose(0, 1)[[a for a in range(B) if a != b]].any(), "a row reads another"
        assert not found[b, :, b].triu(1).any(), "a token reads the future"
        assert found[b, :, b].diagonal().all(), "a token does not read itself"


class Hostile:
    """What makes a file when it is unpickled."""

    def __init__(self, file: Path):
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.file}",)
