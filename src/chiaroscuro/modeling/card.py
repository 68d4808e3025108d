"""The model card that is saved beside a model: what it is, how it routes, how to use it."""

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from transformers import PreTrainedConfig, PreTrainedModel

from chiaroscuro.routing import router_class

CARD = "README.md"
_TASKS = {
    "ChiarForCausalLM": ("text-generation", "AutoModelForCausalLM"),
    "ChiarForMixedTasks": ("text-generation", "AutoModelForCausalLM"),
    "ChiarForSequenceClassification": ("text-classification", "AutoModelForSequenceClassification"),
}
_USE = """\
```python
import chiaroscuro
from transformers import AutoTokenizer, {auto}

tokenizer = AutoTokenizer.from_pretrained("FOLDER")
model = {auto}.from_pretrained("FOLDER")
out = model(**tokenizer("Some text", return_tensors="pt"), output_routing=True)
for trace in out.routing:  # one per layer with a choice
    print(trace.layer, trace.shares())
```

Where nobody imports the package `chiaroscuro`, it must still be installed: load with `trust_remote_code=True`.
"""
_LEAK = """\
**The published MetaRouter of this model reads later tokens and other sequences: its perplexities mean nothing.**
"""


def pipeline_of(model: PreTrainedModel) -> str:
    """The task of transformers' pipelines that a model is for; of a body, feature extraction."""
    return _TASKS.get(type(model).__name__, ("feature-extraction", ""))[0]


def model_card(model: PreTrainedModel, record: str = "", figures: list[EvalResult] | None = None) -> ModelCard:
    """The card of `model`. record: sections in Markdown about data, training and results; figures: the results in the
    form that the hub reads."""
    config = model.config
    auto = _TASKS.get(type(model).__name__, ("", "AutoModel"))[1]
    data = ModelCardData(
        model_name=config.recipe,
        library_name="transformers",
        pipeline_tag=pipeline_of(model),
        tags=["chiaroscuro", "sparse-attention", "token-routing"],
        eval_results=figures,
    )
    facts = {
        "recipe": f"`{config.recipe}`",
        "parameters": f"{model.num_parameters():,}",
        "width, layers, heads": f"{config.hidden_size}, {config.num_hidden_layers}, {config.num_attention_heads}",
        "tokens at most": f"{config.max_position_embeddings:,}",
        "router": f"`{config.router}`",
        "keys of attention": f"those of {config.attention_keys} tokens",
    }
    facts |= {f"layer {index + 1}": " or ".join(names) for index, names in enumerate(config.layer_operators)}
    sections = [
        f"---\n{data.to_yaml()}\n---",
        f"# {config.recipe}",
        f"A CHIAR-Former (arXiv 2606.08327), made with the package `chiaroscuro`: {_how_it_routes(config)}.",
        *([_LEAK] if config.meta_router == "paper" else []),
        markdown_table(facts),
        *([record] if record else []),
        f"## Use\n\n{_USE.format(auto=auto)}",
    ]
    return ModelCard("\n\n".join(section.strip() for section in sections) + "\n", ignore_metadata_errors=False)


def _how_it_routes(config: PreTrainedConfig) -> str:
    if all(len(operators) == 1 for operators in config.layer_operators):
        return "each layer runs one operator for all tokens"
    if not router_class(config.router).hard:
        return "a router in each layer weighs its operators for each token"
    return "a router in each layer sends each token to one of its operators"


def markdown_table(rows: dict[str, str]) -> str:
    """Two columns without a head."""
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())])
