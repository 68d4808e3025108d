"""What is timed, and the ratios of times that we mean to reach."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import torch

from chiaroscuro.bench.case import BLEND, DOUBLE, FULL, KEYS, Case, Sizes
from chiaroscuro.bench.models import body, compiled, decoding, training_step
from chiaroscuro.bench.parts import layer, op, spectral

TARGETS = ("op", "spectral", "layer", "model", "train", "decode", "compile", "chiar")


def cases(
    target: str, sizes: Sizes | None = None, device: str = "cpu", dtype: torch.dtype = torch.float32
) -> Iterator[Case]:
    """The cases of a target: its own on a device, or, with `sizes`, those of that size. Raises ValueError for an
    unknown target."""
    own = partial(Sizes, device=device, dtype=dtype)
    one = None if sizes is None else replace(sizes, layers=1)
    if target == "op":
        for keys, bound in zip(KEYS, (0.60, 0.30), strict=True):
            yield op(one or own(1, 4096, 512, 8), keys, {} if sizes else {FULL: bound})
    elif target == "spectral":
        yield spectral(one or own(1, 4096, 512, 8), {} if sizes else {DOUBLE: 1 / 3})
    elif target == "layer":
        for keys, bound, blend in zip(KEYS, (0.75, 0.48), (0.65, 0.42), strict=True):
            yield layer(one or own(1, 4096, 512, 8), keys, {} if sizes else {FULL: bound, BLEND: blend})
    elif target == "model":
        for keys, bound in zip(KEYS, (0.80, 0.67), strict=True):
            yield body(sizes or own(1, 4096, 512, 8, 8), keys, {} if sizes else {FULL: bound})
        for width in (256, 1024) if sizes is None else ():
            for keys in KEYS:
                yield body(own(8, 256, width, width // 64, 8), keys, {FULL: 1.0})
    elif target == "train":
        for keys, bound in zip(KEYS, (0.90, 0.80), strict=True):
            yield training_step(sizes or own(1, 2048, 512, 8, 8), keys, {} if sizes else {FULL: bound})
    elif target == "decode":
        for keys in KEYS:
            yield decoding(sizes or own(1, 4096, 512, 8, 8), keys, {} if sizes else {FULL: 0.85})
    elif target == "compile":
        for keys in KEYS:
            yield compiled(sizes or own(8, 256, 256, 4, 8), keys)
    elif target == "chiar":  # the recommended recipe, as large as eight layers of full attention; without bounds
        for keys in KEYS:
            yield body(sizes or own(1, 4096, 512, 8, 11), keys, {}, target)
            if sizes is None:
                yield body(own(8, 256, 256, 4, 11), keys, {}, target)
            yield training_step(sizes or own(1, 2048, 512, 8, 11), keys, {}, target)
            yield decoding(sizes or own(1, 4096, 512, 8, 11), keys, {}, target)
    else:
        raise ValueError(f"unknown target {target!r}; known targets: {', '.join(TARGETS)}")
