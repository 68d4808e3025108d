"""A routed run and its full-attention twin, as `compare` leaves them."""

import pytest

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
