"""What all tests share: two threads unless OMP_NUM_THREADS says otherwise, and hypothesis without clocks or chance."""

import gc
import os
from pathlib import Path
from pydoc_data.topics import topics

import pytest
import torch
from hypothesis import settings

if not torch.cuda.is_available():
    # Kernels for GPUs are interpreted. Triton reads this when it is first imported, by whomever.
    os.environ["TRITON_INTERPRET"] = "1"
torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
settings.register_profile("chiaroscuro", deadline=None, derandomize=True, max_examples=15)
settings.load_profile("chiaroscuro")


def pytest_collection_finish() -> None:
    gc.freeze()  # as the command does: each training run collects garbage, among all that pytest and torch have loaded


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def english(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A hundred thousand characters of the Python manual, in a file."""
    path = tmp_path_factory.mktemp("text") / "english.txt"
    path.write_text("\n\n".join(text for _, text in sorted(topics.items()))[:100_000])
    return path


@pytest.fixture
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Encoded corpora go to a folder of this test session."""
    monkeypatch.setenv("CHIAROSCURO_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
