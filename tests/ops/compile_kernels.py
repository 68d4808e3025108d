"""Compile the kernels for GPUs for a GPU that need not be there; prints the shared memory that each takes.

A program of its own: where they are interpreted, kernels cannot be compiled.
"""

from inspect import getmembers

import torch
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from triton.runtime import JITFunction

from chiaroscuro.ops import attention_triton, spectral_triton

HOPPER = GPUTarget("cuda", 90, 32)
OF_THE_MODEL = {"q", "k", "v", "out", "gradient", "of_q", "of_k", "of_v"}
WHOLE = {"visible", "first", "chosen"}
SINGLE = {"lse", "delta", "matrix", "X", "entropy", "weights"}
NUMBERS = {"scale", "to_gradient", "dc_weight", "shortest", "tiny", "to_unit"}


def type_of(name: str, kernel: str, dtype: str) -> str:
    if name in OF_THE_MODEL or (name, kernel) == ("x", "_spectrum_kernel"):
        return f"*{dtype}"
    if name in WHOLE:
        return "*i64"
    if name == "valid":
        return "*u8"
    if name in SINGLE or name == "x":
        return "*fp32"
    return "fp32" if name in NUMBERS else "i32"


def shared_memory(kernel: JITFunction, dtype: str, constants: dict[str, object]) -> int:
    names = kernel.arg_names
    constants = {name: value for name, value in constants.items() if name in names}
    types = {name: "constexpr" if name in constants else type_of(name, kernel.__name__, dtype) for name in names}
    places = {(names.index(name),): value for name, value in constants.items()}
    return compile(ASTSource(kernel, types, places), target=HOPPER).metadata.shared


for dtype, given in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
    heads, tokens = torch.empty(1, 1, 1, attention_triton.WIDEST_HEAD, dtype=given), torch.empty(1, 512, dtype=given)
    constants = {
        attention_triton: attention_triton._options(heads, torch.ones(1, 1)),
        spectral_triton: {"D": 512, "P": 514, "CHOSEN": True, "WEIGHTED": True} | spectral_triton._options(tokens),
    }
    for module, values in constants.items():
        for name, kernel in getmembers(module, lambda member: isinstance(member, JITFunction)):
            if name.endswith("_kernel"):
                print(name, dtype, shared_memory(kernel, dtype, values))
