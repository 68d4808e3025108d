"""The model card: what a save and a run write, and that the use it shows works."""

import re
import subprocess
import sys

import pytest
from huggingface_hub import ModelCard
from tests.helpers import tiny_config, tiny_model

from chiaroscuro import ChiarForSequenceClassification
from chiaroscuro.data import train_tokenizer
from chiaroscuro.modeling import model_card
from chiaroscuro.training import TrainingPlan, load_run, prepare, recalibrate, train

TINY = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2}


def code_of(card: str) -> str:
    (code,) = re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)
    return code


@pytest.mark.usefixtures("cache")
def test_the_card_of_a_run_holds_its_figures_and_a_use_that_works(english, tmp_path):
    out = tmp_path / "run"
    plan = TrainingPlan(
        data=str(english), vocab_size=300, steps=2, batch_size=2, seq_len=33, warmup_steps=1, fields=TINY
    )
    results = train(plan, prepare(plan), out)
    card = ModelCard.load(out / "README.md")
    assert card.data.library_name == "transformers"
    assert card.data.pipeline_tag == "text-generation"
    figures = {figure.metric_type: figure.metric_value for figure in card.data.eval_results}
    assert figures == {key: results[key] for key in ("perplexity", "bits_per_byte")}
    assert {figure.dataset_name for figure in card.data.eval_results} == {str(english)}
    for told in (
        "| recipe | `chiar` |",
        f"| parameters | {results['parameters']:,} |",
        f"| perplexity | {results['perplexity']:.2f} |",
        f"| attention FLOPs, to full attention | {results['flops']['attention_ratio']:.3f} |",
        f"none {results['routing']['2']['none']:.0%}",
        "| tokens seen | 132 |",
        results["versions"]["commit"],
    ):
        assert told in card.text
    code = code_of(card.text).replace("FOLDER", str(out))
    printed = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    ).stdout
    assert printed.startswith("2 {'none': ")
    (out / "README.md").write_text("my own words")
    load_run(out).model.save_pretrained(out)
    assert (out / "README.md").read_text() == "my own words"


@pytest.mark.usefixtures("cache")
def test_the_card_says_that_thresholds_are_no_longer_those_of_its_figures(english, tmp_path):
    fields = TINY | {"routed_share": 0.5}
    plan = TrainingPlan(data=str(english), vocab_size=300, steps=2, batch_size=2, seq_len=33, fields=fields)
    train(plan, prepare(plan), tmp_path / "run")
    card, said = tmp_path / "run" / "README.md", "Thresholds were set anew by `"
    before = card.read_text()
    for _ in range(2):
        recalibrate(load_run(tmp_path / "run"), 64, str(english))
        assert card.read_text().startswith(before)
        assert card.read_text().count(said) == 1


@pytest.mark.parametrize(
    ("recipe", "fields", "said"),
    [
        ("chiar", {}, "a router in each layer sends each token to one of its operators."),
        ("v1_three_operator", {"router": "soft"}, "a router in each layer weighs its operators for each token."),
        ("full_attention", {}, "each layer runs one operator for all tokens."),
    ],
)
def test_a_card_says_how_the_model_routes(recipe, fields, said):
    assert said in model_card(tiny_model(recipe, **fields)).text


def test_a_saved_model_has_a_card_without_figures(tmp_path):
    tokenizer = train_tokenizer(["Some text to read."], 300)
    model = ChiarForSequenceClassification(tiny_config(vocab_size=len(tokenizer), num_labels=2, pad_token_id=0))
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.pipeline_tag == "text-classification"
    assert card.data.eval_results is None
    exec(code_of(card.text).replace("FOLDER", str(tmp_path)), {})


def test_the_card_of_a_body_names_the_class_that_loads_it(tmp_path):
    tiny_model().model.save_pretrained(tmp_path)
    assert "AutoModel.from_pretrained" in (tmp_path / "README.md").read_text()


def test_a_model_that_reads_the_future_says_so_on_its_card(tmp_path):
    with pytest.warns(UserWarning, match="reads"):
        model = tiny_model("v2", meta_router="paper")
    model.save_pretrained(tmp_path)
    assert "its perplexities mean nothing" in (tmp_path / "README.md").read_text()
    tiny_model("v2").save_pretrained(tmp_path / "causal")
    assert "mean nothing" not in (tmp_path / "causal" / "README.md").read_text()
