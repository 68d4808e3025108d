"""A routed run and its full-attention twin, as `compare` leaves them, and a page that shows them."""

import shutil

import pytest
from tests.helpers import free_port

from chiaroscuro.app import Shelf, build, serve
from chiaroscuro.training import TrainingPlan, compare


@pytest.fixture(scope="session")
def runs(tmp_path_factory, english):
    folder = tmp_path_factory.mktemp("app") / "compared"
    tiny = {"hidden_size": 32, "num_hidden_layers": 5, "num_attention_heads": 2}
    plan = TrainingPlan(
        data=str(english), vocab_size=400, steps=20, batch_size=4, seq_len=65, warmup_steps=2, fields=tiny
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CHIAROSCURO_CACHE", str(folder.parent / "cache"))
        compare(plan, "full_attention", folder)
        yield [folder / "chiar", folder / "full_attention"]


@pytest.fixture(scope="session")
def broken(runs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("broken") / "run"
    shutil.copytree(runs[0], folder)
    (folder / "config.json").write_text("{")
    return folder


@pytest.fixture(scope="module")
def address(runs, broken):
    page = build(Shelf([*runs, broken]), "A note about these runs.")
    yield serve(page, "127.0.0.1", free_port())
    page.close()
