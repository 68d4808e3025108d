"""Files that a stranger made: each gives one clear error, runs nothing, and fills no more memory than it is long."""

import copy
import gzip
import io
import json
import pickle
import re
import shutil
import subprocess
import sys
import zipfile
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from chiaroscuro import ChiarConfig, load_retrofitted, retrofit
from chiaroscuro.analysis.run_figures import training_figures
from chiaroscuro.analysis.subject import subject
from chiaroscuro.data import load_corpus
from chiaroscuro.data.imdb import load_imdb
from chiaroscuro.modeling.convert import convert
from chiaroscuro.training import TrainingPlan, load_run, prepare, task_of, train
from chiaroscuro.training.run import started_plan
from tests.helpers import Hostile

pytestmark = [pytest.mark.usefixtures("cache"), pytest.mark.filterwarnings("ignore")]
CHECKPOINT = Path(__file__).parent / "fixtures" / "checkpoint.pt"
TINY = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2}
many = settings(max_examples=60)

numbers = st.one_of(
    st.integers(-3, 9),
    st.sampled_from([10**5, 2**31, 2**62, 10**40, -(2**63), 0.5, 1e300, float("nan"), float("inf"), -0.0]),
)
words = st.sampled_from(
    ["", "dct", "attention", "../../etc/passwd", "/dev/zero", "a\0b", "\ud800", "float64", "load", "x" * 5000]
)
values = st.recursive(
    st.one_of(st.none(), st.booleans(), numbers, words),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=6,
)


def places(content, path=()):
    """The path to each value inside a JSON document."""
    items = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in items:
        yield (*path, key)
        yield from places(value, (*path, key))


@st.composite
def changed(draw, content):
    """A JSON document with one to three of its values exchanged, or taken out."""
    content = copy.deepcopy(content)
    for _ in range(draw(st.integers(1, 3))):
        found = list(places(content))
        if not found:
            break
        *path, last = draw(st.sampled_from(found))
        holder = content
        for key in path:
            holder = holder[key]
        if draw(st.integers(0, 5)):
            holder[last] = draw(values)
        else:
            del holder[last]
    return content


@st.composite
def damaged(draw, content):
    """Bytes with some exchanged, taken out or put in."""
    content = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, max(0, len(content) - 1)))
        kind = draw(st.sampled_from(["exchange", "cut", "insert", "end"]))
        some = draw(st.binary(min_size=1, max_size=8))
        if kind == "exchange":
            content[start : start + len(some)] = some
        elif kind == "cut":
            del content[start : start + len(some)]
        elif kind == "insert":
            content[start:start] = some
        else:
            del content[start:]
    return bytes(content)


def loads_or_says_why(load, *arguments):
    """Whether there is either something loaded or a ValueError with words; whatever else is raised fails the test. A
    model that loads computes."""
    try:
        loaded, told = load(*arguments), ""
    except ValueError as error:
        loaded, told = None, str(error).strip()
    model = loaded[0] if isinstance(loaded, tuple) else getattr(loaded, "model", loaded)
    if isinstance(model, PreTrainedModel):
        return bool(model(torch.ones(1, 5, dtype=torch.long))[0].isfinite().all())
    return (loaded is None) != (told == "")


@pytest.fixture(scope="module")
def made(tmp_path_factory, english):
    """A finished run."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    plan = TrainingPlan(
        data=str(english), vocab_size=300, steps=2, batch_size=2, seq_len=17, warmup_steps=1, fields=TINY
    )
    train(plan, prepare(plan), folder)
    return folder


@pytest.fixture
def run(made, tmp_path):
    """A copy of a finished run, to be changed."""
    return shutil.copytree(made, tmp_path / "run")


@contextmanager
def written(path, content):
    """A file with another content, for a while."""
    before = path.read_bytes()
    path.write_bytes(content)
    try:
        yield
    finally:
        path.write_bytes(before)


def look_at(folder):
    loaded = load_run(folder)
    task_of(loaded)
    return loaded


@many
@given(data=st.data())
@pytest.mark.parametrize("name", ["config.json", "results.json", "tokenizer.json", "generation_config.json"])
def test_json_of_a_run_with_other_values(made, name, data):
    content = data.draw(changed(json.loads((made / name).read_text())))
    with written(made / name, json.dumps(content).encode()):
        assert loads_or_says_why(look_at, made)
        assert loads_or_says_why(subject, str(made))


@many
@given(data=st.data())
@pytest.mark.parametrize("name", ["config.json", "results.json", "tokenizer.json", "model.safetensors", "plan.json"])
def test_damaged_bytes_of_a_run(made, name, data):
    with written(made / name, data.draw(damaged((made / name).read_bytes()))):
        assert loads_or_says_why(look_at, made)
        assert loads_or_says_why(started_plan, made)


@many
@given(data=st.data())
def test_a_plan_with_other_values(made, data):
    content = data.draw(changed(json.loads((made / "plan.json").read_text())))
    with written(made / "plan.json", json.dumps(content).encode()):
        assert loads_or_says_why(started_plan, made)


@many
@given(data=st.data())
def test_logs_with_other_values_and_damaged_bytes(made, data):
    path = made / "metrics.jsonl"
    lines = path.read_text().splitlines()
    place = data.draw(st.integers(0, len(lines) - 1))
    lines[place] = json.dumps(data.draw(changed(json.loads(lines[place]))))
    for content in ("\n".join(lines).encode(), data.draw(damaged(path.read_bytes()))):
        with written(path, content):
            assert loads_or_says_why(training_figures, made)


@many
@given(st.sampled_from(sorted({*ChiarConfig.__annotations__, "num_labels"} - {"keys_to_ignore_at_inference"})), values)
def test_any_field_of_a_configuration(name, value):
    assert loads_or_says_why(lambda: ChiarConfig(**{name: value}))
    if name in ("recipe", "router", "layer_operators", "num_hidden_layers"):
        assert loads_or_says_why(lambda: ChiarConfig.from_recipe("v2", **{name: value}))


@pytest.fixture(scope="module")
def retrofitted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("retrofitted")
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "num_hidden_layers": 3}
    retrofit(LlamaForCausalLM(LlamaConfig(vocab_size=50, **sizes))).save_pretrained(folder)
    return folder


@many
@given(data=st.data())
def test_a_retrofitted_model_with_another_configuration(retrofitted, data):
    content = data.draw(changed(json.loads((retrofitted / "config.json").read_text())))
    with written(retrofitted / "config.json", json.dumps(content).encode()):
        assert loads_or_says_why(load_retrofitted, retrofitted)
        assert loads_or_says_why(subject, str(retrofitted))


@many
@given(data=st.data())
def test_damaged_bytes_of_a_checkpoint_of_the_papers_code(data, tmp_path_factory):
    path = tmp_path_factory.mktemp("checkpoint") / "checkpoint.pt"
    path.write_bytes(data.draw(damaged(CHECKPOINT.read_bytes())))
    assert loads_or_says_why(convert, path)


@many
@given(data=st.data())
def test_other_settings_in_a_checkpoint_of_the_papers_code(data, tmp_path_factory):
    content = torch.load(CHECKPOINT, weights_only=True)
    content["cfg"] = data.draw(changed(content["cfg"]))
    path = tmp_path_factory.mktemp("checkpoint") / "checkpoint.pt"
    torch.save(content, path)
    assert loads_or_says_why(convert, path)


@many
@given(data=st.data())
@pytest.mark.parametrize("end", ["jsonl", "jsonl.gz"])
def test_reviews_with_other_values_and_damaged_bytes(data, end, tmp_path_factory):
    folder = tmp_path_factory.mktemp("reviews")
    reviews = [{"text": f"review {number}", "label": number % 2} for number in range(6)]
    text = "\n".join(map(json.dumps, data.draw(changed(reviews)))).encode()
    pack = gzip.compress if end == "jsonl.gz" else bytes
    for name in ("train", "test"):
        (folder / f"{name}.{end}").write_bytes(pack(text))
    assert loads_or_says_why(load_imdb, str(folder))
    (folder / f"train.{end}").write_bytes(data.draw(damaged(pack(text))))
    assert loads_or_says_why(load_imdb, str(folder))


@many
@given(content=st.binary(max_size=400))
def test_any_bytes_as_text(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_bytes(content)
    assert loads_or_says_why(load_corpus, str(path))


DEEP = "[" * 200_000 + "]" * 200_000


@pytest.mark.parametrize(
    "name", ["config.json", "results.json", "tokenizer.json", "generation_config.json", "plan.json"]
)
def test_json_that_is_too_deep_is_named(run, name):
    (run / name).write_text('{"version": ' + DEEP + "}")
    with pytest.raises(ValueError, match=r"config\.json|results\.json|tokenizer|plan\.json|weights in"):
        started_plan(run) if name == "plan.json" else load_run(run)


def test_reviews_that_are_too_deep(tmp_path):
    for name in ("train", "test"):
        (tmp_path / f"{name}.jsonl").write_text('{"text": ' + DEEP + "}")
    with pytest.raises(ValueError, match="damaged or holds no reviews"):
        load_imdb(str(tmp_path))


def test_code_in_a_folder_is_not_run(run, tmp_path):
    config = json.loads((run / "config.json").read_text())
    (run / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass ChiarConfig: pass\n")
    everywhere = dict.fromkeys(config["auto_map"], "evil.ChiarConfig")
    for model_type in ("chiaroscuro", "evil"):
        (run / "config.json").write_text(json.dumps(config | {"model_type": model_type, "auto_map": everywhere}))
        assert loads_or_says_why(load_run, run)
        assert loads_or_says_why(subject, str(run))
        assert loads_or_says_why(load_retrofitted, run)
    for name in ("pytorch_model.bin", "training_args.bin"):
        (run / name).write_bytes(pickle.dumps(Hostile(tmp_path / "ran")))
    (run / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="no model of type 'evil'"):
        load_run(run)
    (run / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="model.safetensors is missing"):
        load_run(run)
    assert not (tmp_path / "ran").exists()


def test_a_checkpoint_that_would_run_code_is_not_resumed_from(english, tmp_path):
    from chiaroscuro.training.checkpoints import SUMS, _sums

    plan = TrainingPlan(
        data=str(english), vocab_size=300, steps=4, save_every=2, batch_size=2, seq_len=17, warmup_steps=1, fields=TINY
    )
    out = tmp_path / "run"
    train(plan, prepare(plan), out)
    for name in ("config.json", "model.safetensors", "results.json"):
        (out / name).unlink()
    last, before = out / "checkpoints" / "checkpoint-4", out / "checkpoints" / "checkpoint-2"
    last.rename(tmp_path / "moved")
    torch.save(Hostile(tmp_path / "ran"), before / "optimizer.pt")
    (before / SUMS).write_text(json.dumps(_sums(before)))
    with pytest.raises(ValueError, match="holds more than the state of a run"):
        train(plan, prepare(plan), out, resume=True)
    assert not (tmp_path / "ran").exists()


def test_weights_are_looked_for_in_the_folder_only(run):
    (run / "model.safetensors").rename(run.parent / "elsewhere.safetensors")
    names = {"lm_head.weight": "../elsewhere.safetensors"}
    (run / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))
    with pytest.raises(ValueError, match="not a file of its folder"):
        load_run(run)
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(config | {"transformers_weights": "../elsewhere.safetensors"}))
    with pytest.raises(ValueError, match="transformers_weights is not followed"):
        load_run(run)


def test_weights_that_are_not_finite_missing_or_of_other_shapes_are_named(run):
    path = run / "model.safetensors"
    weights = load_file(path)
    name = "model.norm.weight"
    for wrong, told in (
        (weights | {name: torch.full_like(weights[name], float("nan"))}, f"{name} holds values that are not finite"),
        (weights | {name: torch.zeros(3)}, "damaged or not those"),
        ({key: weight for key, weight in weights.items() if key != name}, f"missing {name}"),
        (weights | {"model.more": torch.zeros(3)}, "unexpected model.more"),
    ):
        save_file(wrong, path, metadata={"format": "pt"})
        with pytest.raises(ValueError, match=told):
            load_run(run)


def test_a_tokenizer_of_another_vocabulary_is_refused(run):
    content = json.loads((run / "tokenizer.json").read_text())
    content["model"]["vocab"]["more"] = 300
    (run / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="the tokenizer has 301 entries and the model 300"):
        load_run(run)


# In a process of its own, so that the peak of its memory is that of one file.
MEASURE = """
import gzip, resource, sys, warnings
from pathlib import Path
warnings.simplefilter("ignore")
import torch
from chiaroscuro.analysis.subject import subject
from chiaroscuro.data.imdb import load_imdb
from chiaroscuro.modeling.convert import convert
from chiaroscuro.training import load_run
load = {
    "run": load_run,
    "checkpoint": convert,
    "reviews": lambda path: load_imdb(str(path)),
    "audit": lambda path: subject(str(path)),
}
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for kind, path in zip(sys.argv[1::2], sys.argv[2::2]):
    try:
        load[kind](Path(path))
    except ValueError as error:
        told = " ".join(str(error).split())
    else:
        told = "LOADED"
    now = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(f"{(now - before) >> 10} MiB more: {told}")
    before = now
"""


def copy_of(run: Path, folder: Path, **fields) -> Path:
    shutil.copytree(run, folder)
    config = json.loads((run / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | fields))
    return folder


def pickled(path: Path, *, rows: int = 0, called: bytes = b"", compressed: bool = False) -> Path:
    """The fixture as an archive in which a weight shows one value `rows` times, something is called, or all is
    compressed."""
    content = torch.load(CHECKPOINT, weights_only=True)
    if rows:
        content["model"]["token_emb.weight"] = torch.zeros(1, dtype=torch.float64).expand(rows, 24)
    if compressed:
        content["more"] = torch.zeros(2**25)
    made = io.BytesIO()
    torch.save(content, made)
    kind = zipfile.ZIP_DEFLATED if compressed else zipfile.ZIP_STORED
    with zipfile.ZipFile(made) as archive, zipfile.ZipFile(path, "w", kind) as changed:
        for entry in archive.infolist():
            data = archive.read(entry)
            changed.writestr(entry.filename, called if called and entry.filename.endswith(".pkl") else data)
    return path


def test_a_file_fills_no_more_memory_than_it_is_long(run, tmp_path):
    bomb = tmp_path / "bomb"
    bomb.mkdir()
    for name in ("train", "test"):
        with gzip.open(bomb / f"{name}.jsonl.gz", "wb") as file:
            for _ in range(256):
                file.write(b" " * 2**20)
    far = shutil.copytree(run, tmp_path / "far")
    tokenizer = json.loads((far / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"]["more"] = 2**31
    (far / "tokenizer.json").write_text(json.dumps(tokenizer))
    empty = tmp_path / "no weights"
    empty.mkdir()
    (empty / "config.json").write_text(json.dumps({"model_type": "gpt2", "n_embd": 2**14, "n_head": 2}))
    layers = tmp_path / "layers"
    layers.mkdir()
    (layers / "config.json").write_text(json.dumps({"model_type": "gpt2", "n_layer": 10**9}))
    large = b"\x80\x02cbuiltins\nbytearray\nJ\x00\x00\x00\x40\x85R."  # bytearray(2**30)
    cases = [
        ("run", copy_of(run, tmp_path / "a", vocab_size=2**31), "the weights are"),
        ("run", copy_of(run, tmp_path / "b", intermediate_size=2**40), "the weights are"),
        ("run", copy_of(run, tmp_path / "c", num_hidden_layers=9999, layer_operators=None), "9999 layers"),
        ("run", copy_of(run, tmp_path / "d", num_hidden_layers=10**12, layer_operators=None), "are accepted"),
        ("run", copy_of(run, tmp_path / "e", num_labels=10**9), "are accepted"),
        ("run", copy_of(run, tmp_path / "f", rbf_features=2**40, layer_operators=[["rbf"]] * 3), "the weights are"),
        ("run", copy_of(run, tmp_path / "g", hidden_size=2**60), "no model can be built"),
        ("run", far, "ids are not those from 0"),
        ("audit", empty, "has no weights"),
        ("audit", layers, "are accepted"),
        ("reviews", bomb, "expands to more than"),
        ("checkpoint", pickled(tmp_path / "a.pt", rows=2**24), "larger than the file"),
        ("checkpoint", pickled(tmp_path / "b.pt", compressed=True), "it is compressed"),
        ("checkpoint", pickled(tmp_path / "c.pt", called=large), "it calls builtins bytearray"),
    ]
    arguments = [str(each) for kind, path, _ in cases for each in (kind, path)]
    command = [sys.executable, "-c", MEASURE, *arguments]
    printed = subprocess.run(command, check=True, capture_output=True, text=True, timeout=300).stdout.splitlines()
    for line, (_, path, told) in zip(printed, cases, strict=True):
        assert re.search(told, line), f"{path}: {line}"
        assert int(line.split()[0]) < 64, f"{path}: {line}"
