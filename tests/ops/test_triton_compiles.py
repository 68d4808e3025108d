"""The kernels for GPUs compile for one, whether there is one or not. (What they compute is tested beside this file.)"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="kernels are compiled where Triton is installed")

SHARED_MEMORY = 101_376  # bytes that one block may have on the GPUs that have least (compute capability 8.6 and 8.9)


def test_every_kernel_compiles_and_fits_into_a_multiprocessor(tmp_path):
    environment = os.environ | {"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-m", "tests.ops.compile_kernels"]
    done = subprocess.run(
        command, cwd=Path(__file__).parents[2], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    kernels = [line.split() for line in done.stdout.splitlines()]
    assert len({name for name, *_ in kernels}) == 5
    assert len(kernels) == 10
    assert all(int(shared) <= SHARED_MEMORY for *_, shared in kernels)
