"""What users of transformers do with a model.

Shapes: B batch, T tokens, K keys, N heads.
"""

import os
import resource
import signal
import subprocess
import sys
import warnings
from threading import Thread
from types import SimpleNamespace

import accelerate
import pytest
import torch
from huggingface_hub import ModelCard
from tests.helpers import ROUTERS, VOCAB, D, every_keys, ids, tiny_config, tiny_model
from torch.nn.functional import cross_entropy
from transformers import (
    AutoModelForCausalLM,
    DynamicCache,
    Trainer,
    TrainingArguments,
    pipeline,
)
from transformers.generation.streamers import BaseStreamer

from chiaroscuro import ChiarForCausalLM, ChiarForSequenceClassification, calibrate
from chiaroscuro.data import train_tokenizer
from chiaroscuro.mixers import Context
from chiaroscuro.modeling import ChiarForMixedTasks

routed_recipes = pytest.mark.parametrize("recipe", ["chiar", "full_attention", "spectral", "v1_three_operator", "v2"])
TEXTS = ["The import statement finds a module.", "A class is a mapping of names."] * 20


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TEXTS, 300)


@pytest.fixture
def folder(tokenizer, tmp_path):
    """A language model as a run leaves it, with its tokenizer."""
    model = tiny_model(vocab_size=len(tokenizer), eos_token_id=0, pad_token_id=0, bos_token_id=0).float()
    model.save_pretrained(tmp_path / "lm")
    tokenizer.save_pretrained(tmp_path / "lm")
    return tmp_path / "lm"


ELSEWHERE = """
import sys, torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification, pipeline
lm, classifier, again = sys.argv[1:]
assert "chiaroscuro" not in sys.modules
AutoConfig.from_pretrained(lm, trust_remote_code=True)
model = AutoModelForCausalLM.from_pretrained(lm, trust_remote_code=True)
assert AutoModel.from_pretrained(lm, trust_remote_code=True).config.recipe == "spectral"
torch.save(model(torch.arange(1, 20)[None]).logits, again + "/logits.pt")
AutoModelForSequenceClassification.from_pretrained(classifier, trust_remote_code=True)
print(pipeline("text-generation", model=lm, trust_remote_code=True)("The import", max_new_tokens=5, do_sample=False))
print(pipeline("text-classification", model=classifier, trust_remote_code=True)("The import"))
model.save_pretrained(again)
"""


def elsewhere(*folders):
    """A process in which nobody has imported this package."""
    command = [sys.executable, "-c", ELSEWHERE, *map(str, folders)]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(folders[-1] / "home")}
    return subprocess.run(command, check=True, capture_output=True, text=True, env=environment, timeout=120).stdout


def test_a_folder_is_all_that_is_needed_elsewhere_and_what_is_saved_there_again(folder, tokenizer, tmp_path):
    labelled = ChiarForSequenceClassification(tiny_config(vocab_size=len(tokenizer), num_labels=2, pad_token_id=0))
    labelled.save_pretrained(tmp_path / "classifier")
    tokenizer.save_pretrained(tmp_path / "classifier")
    again = tmp_path / "again"
    again.mkdir()
    printed = elsewhere(folder, tmp_path / "classifier", again)
    assert "generated_text" in printed
    assert "LABEL_" in printed
    expected = AutoModelForCausalLM.from_pretrained(folder)(torch.arange(1, 20)[None]).logits
    assert torch.equal(torch.load(again / "logits.pt", weights_only=True), expected)
    assert sorted(path.name for path in again.glob("*.py")) == ["modeling_chiaroscuro.py"]
    tokenizer.save_pretrained(again)
    elsewhere(again, tmp_path / "classifier", again)


def test_a_pipeline_generates(folder, tokenizer):
    (found,) = pipeline("text-generation", model=str(folder))("The import", max_new_tokens=6, do_sample=False)
    prompt = tokenizer("The import", return_tensors="pt")["input_ids"]
    expected = AutoModelForCausalLM.from_pretrained(folder).generate(prompt, max_new_tokens=6, do_sample=False)
    assert found["generated_text"] == tokenizer.decode(expected[0], skip_special_tokens=True)


class Listener(BaseStreamer):
    def __init__(self):
        self.heard = []

    def put(self, value):
        self.heard += value.flatten().tolist()

    def end(self):
        self.heard.append(None)


@routed_recipes
@every_keys
@pytest.mark.parametrize(
    "way",
    [
        {"cache_implementation": "static"},
        {"prefill_chunk_size": 3},
        {"num_beams": 2, "cache_implementation": "static"},
        {"num_beams": 2, "num_return_sequences": 2},
    ],
)
def test_ways_to_generate_give_what_they_give_without_a_cache(recipe, keys, way):
    model = tiny_model(recipe, attention_keys=keys)
    prompts = ids(2, 8).clamp_min(1)
    prompts[1, :3] = 0
    common = {"attention_mask": (prompts > 0).long(), "max_new_tokens": 7, "do_sample": False, "pad_token_id": 0}
    beams = {name: way[name] for name in ("num_beams", "num_return_sequences") if name in way}
    expected = model.generate(prompts, **common, **beams, use_cache=False)
    assert torch.equal(model.generate(prompts, **common, **way), expected)


def test_sampling_repeats_by_seed_and_streams_what_it_returns():
    model, listener = tiny_model(), Listener()
    found = []
    for streamer in (None, listener):
        torch.manual_seed(3)
        found.append(model.generate(ids(1, 5), max_new_tokens=9, do_sample=True, streamer=streamer, pad_token_id=0))
    assert torch.equal(*found)
    assert listener.heard == [*found[1][0].tolist(), None]


def test_several_threads_generate_from_one_model():
    model, prompts, found = tiny_model(), ids(4, 6), {}

    def go(index):
        found[index] = model.generate(prompts[index : index + 1], max_new_tokens=8, do_sample=False, pad_token_id=0)

    threads = [Thread(target=go, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    together = model.generate(prompts, max_new_tokens=8, do_sample=False, pad_token_id=0)
    assert torch.equal(torch.cat([found[index] for index in range(4)]), together)


@pytest.mark.parametrize("embeds", [False, True])
def test_generation_ends_where_the_model_does_and_says_so(embeds):
    model = tiny_model(max_position_embeddings=16)
    prompt = ids(1, 10)
    given = {"inputs_embeds": model.get_input_embeddings()(prompt)} if embeds else {"input_ids": prompt}
    with pytest.warns(UserWarning, match="generation ended at max_position_embeddings"):
        found = model.generate(**given, max_new_tokens=50, do_sample=False, pad_token_id=0)
    assert found.shape[1] == 17 - (10 if embeds else 0)  # the last token is not read
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        shorter = model.generate(**given, max_new_tokens=6, do_sample=False, pad_token_id=0)
    assert torch.equal(shorter, found[:, : shorter.shape[1]])


@routed_recipes
def test_weights_of_attention_are_those_of_its_definition(recipe):
    model = tiny_model(recipe)
    mask = torch.ones(2, 9, dtype=torch.long)
    mask[1, :4] = 0
    out = model(ids(2, 9) % 4, attention_mask=mask, output_attentions=True, output_routing=True)
    operators = model.config.layer_operators
    attending = [index for index, names in enumerate(operators) if "attention" in names]
    assert len(out.attentions) == len(attending)
    traces = {trace.layer: trace for trace in out.routing}
    for layer, weights in zip(attending, out.attentions, strict=True):
        assert weights.shape == (2, 2, 9, 9)
        chosen = mask.bool()
        if layer in traces:
            chosen = chosen & (traces[layer].choice == traces[layer].operators.index("attention"))
        torch.testing.assert_close(weights.sum(-1), chosen[:, None].expand(2, 2, 9).double())
        assert not weights.triu(1).any()
        assert not weights[1, :, :, :4].any()


def test_weights_of_attention_make_its_outputs():
    mixer = tiny_model("full_attention").model.layers[0].mixer.mixers["attention"]
    x, context = torch.randn(2, 7, D, dtype=torch.float64), Context(attentions=[])
    out = mixer(x, None, context)
    values = mixer.key_value(x).chunk(2, dim=-1)[1].unflatten(-1, (mixer.num_heads, -1)).transpose(1, 2)
    made = mixer.out((context.attentions[0] @ values).transpose(1, 2).flatten(2))
    torch.testing.assert_close(made, out)


def test_weights_of_attention_come_from_a_cache_as_well():
    model = tiny_model()
    whole = model(ids(2, 9), output_attentions=True).attentions
    cache = model(ids(2, 9)[:, :6], use_cache=True).past_key_values
    rows = []
    for t in range(6, 9):
        rows.append(model(ids(2, 9)[:, t : t + 1], past_key_values=cache, output_attentions=True).attentions)
    for layer, weights in enumerate(whole):
        for t, row in zip(range(6, 9), rows, strict=True):
            torch.testing.assert_close(row[layer][:, :, 0], weights[:, :, t, : t + 1])
    generated = model.generate(
        ids(1, 4), max_new_tokens=3, output_attentions=True, return_dict_in_generate=True, pad_token_id=0
    )
    assert [step[-1].shape[-1] for step in generated.attentions] == [4, 5, 6]


def test_weights_of_routed_keys_are_refused():
    with pytest.raises(ValueError, match="with attention_keys='routed' most keys have no weights"):
        tiny_model(attention_keys="routed")(ids(1, 5), output_attentions=True)


@pytest.mark.parametrize("cls", [ChiarForCausalLM, ChiarForMixedTasks])
def test_the_trainer_shifts_labels_where_it_computes_the_loss_itself(cls, tmp_path):
    model = cls(tiny_config(task_labels={"imdb": 2})).eval()
    arguments = TrainingArguments(str(tmp_path), label_smoothing_factor=0.1, report_to="none")
    text = ids(2, 9)
    loss = Trainer(model, arguments).compute_loss(model, {"input_ids": text, "labels": text})
    logits = model(text).logits[:, :-1].flatten(0, 1)
    assert float(loss) == pytest.approx(float(cross_entropy(logits, text[:, 1:].flatten(), label_smoothing=0.1)))


@routed_recipes
@every_keys
def test_weights_on_disk_generate_the_same(recipe, keys, tmp_path):
    model = tiny_model(recipe, attention_keys=keys)
    expected = model.generate(ids(2, 5), max_new_tokens=6, do_sample=False, pad_token_id=0)
    accelerate.disk_offload(model, tmp_path, execution_device="cpu", offload_buffers=True)
    assert torch.equal(model.generate(ids(2, 5), max_new_tokens=6, do_sample=False, pad_token_id=0), expected)


@pytest.mark.parametrize("router", ROUTERS)
def test_weights_that_are_fetched_when_they_are_needed_route_and_calibrate_the_same(router):
    model = tiny_model(router=router)
    calibrate(model, ids(2, 64))
    expected = model(ids(2, 9)).logits
    accelerate.cpu_offload(model, execution_device="cpu")
    assert torch.equal(model(ids(2, 9)).logits, expected)
    calibrate(model, ids(2, 64))
    assert torch.equal(model(ids(2, 9)).logits, expected)


def test_a_context_moves_what_is_known_of_the_tokens_and_leaves_what_is_remembered():
    state = {"k": torch.zeros(1)}
    table = torch.zeros(1, 3, 4)
    context = Context(positions_BT=torch.zeros(1, 3), rotary=(table, table), state=state)
    moved = accelerate.utils.send_to_device(context, "meta")
    assert moved.positions_BT.device.type == moved.rotary[1].device.type == "meta"
    assert moved.state is state
    assert state["k"].device.type == "cpu"
    assert moved.valid_BT is None


def test_resized_embeddings_stay_tied_and_are_saved(tmp_path):
    model = tiny_model()
    model.resize_token_embeddings(VOCAB + 7)
    assert model.lm_head.weight is model.get_input_embeddings().weight is model.get_output_embeddings().weight
    model.save_pretrained(tmp_path)
    loaded = ChiarForCausalLM.from_pretrained(tmp_path, dtype=torch.float64)
    assert loaded.config.vocab_size == VOCAB + 7
    assert torch.equal(loaded(ids(1, 6)).logits, model(ids(1, 6)).logits)


def test_loaded_in_bfloat16_it_generates(folder):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    assert model.dtype == torch.bfloat16
    assert model.generate(ids(2, 6), max_new_tokens=5, do_sample=False, pad_token_id=0).shape == (2, 11)


def test_a_cache_is_not_cropped_nor_gone_on_with_by_another_batch_or_without_its_padding():
    model = tiny_model()
    cache = model(ids(2, 6), use_cache=True).past_key_values
    with pytest.raises(ValueError, match="cannot be cropped"):
        cache.crop(3)
    with pytest.raises(ValueError, match="the cache holds 2 rows and 3 are given"):
        model(ids(3, 1), past_key_values=cache)
    mask = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]])
    cache = model(ids(2, 6), attention_mask=mask, use_cache=True).past_key_values
    with pytest.raises(ValueError, match="there is padding in the cache: give attention_mask"):
        model(ids(2, 1), past_key_values=cache)


@pytest.mark.parametrize("learning", ["key_value", "query"])
def test_gradients_flow_through_a_cache_that_others_went_on_with(learning):
    model = tiny_model("full_attention")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(learning in name)
    cache = DynamicCache(config=model.config)
    first = model(ids(1, 5), past_key_values=cache, use_cache=True).logits
    with torch.no_grad():
        model(ids(1, 1), past_key_values=cache)
    first.sum().backward()
    attention = model.model.layers[0].mixer.mixers["attention"]
    assert getattr(attention, learning).weight.grad.abs().sum() > 0


def test_weights_that_a_full_disk_does_not_take_are_an_error_of_the_system(tmp_path):
    model, before = tiny_model(), resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        with pytest.raises(OSError, match="cannot write the weights to"):
            model.save_pretrained(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def test_the_cache_is_taken_by_both_of_its_names():
    model = tiny_model()
    tokens = ids(2, 9)
    whole = model(tokens).logits[:, 5:]
    for name in ("past_key_values", "cache"):  # the second from transformers 5.24 on
        cache = DynamicCache(config=model.config)
        model(tokens[:, :5], **{name: cache})
        assert cache.get_seq_length() == 5
        assert torch.allclose(model(tokens[:, 5:], **{name: cache}).logits, whole)


def test_weights_of_attention_may_be_asked_for_in_the_configuration():
    model = tiny_model()
    model.set_attn_implementation("eager")  # transformers asks for it
    model.config.output_attentions = True
    assert len(model(ids(1, 5)).attentions) == 3
    assert model(ids(1, 5), output_attentions=False).attentions is None


def test_dense_dispatch_gives_the_weights_of_sparse_dispatch():
    dense, sparse = (tiny_model(dispatch=way)(ids(2, 9), output_attentions=True) for way in ("dense", "sparse"))
    for found, expected in zip(dense.attentions, sparse.attentions, strict=True):
        torch.testing.assert_close(found, expected)


def test_what_goes_to_the_hub_is_whole(tmp_path, monkeypatch):
    sent = {}

    def upload(self, working_dir, repo_id, files_timestamps, **kwargs):
        sent[type(self).__name__] = {name for name in os.listdir(working_dir) if name not in files_timestamps}

    monkeypatch.setattr("transformers.utils.hub.PushToHubMixin._upload_modified_files", upload)
    monkeypatch.setattr("huggingface_hub.HfApi.create_repo", lambda *args, **kwargs: SimpleNamespace(repo_id="me/it"))
    monkeypatch.setattr("huggingface_hub.ModelCard.load", lambda *args, **kwargs: ModelCard("It."))
    model = tiny_model()
    model.save_pretrained(tmp_path / "model", push_to_hub=True)
    model.config.save_pretrained(tmp_path / "config", push_to_hub=True)
    assert {"config.json", "modeling_chiaroscuro.py"} <= sent["ChiarConfig"]
    assert {"config.json", "modeling_chiaroscuro.py", "model.safetensors"} <= sent["ChiarForCausalLM"]
