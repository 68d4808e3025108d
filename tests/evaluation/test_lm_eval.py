"""lm-evaluation-harness on a task of our own, through Python and by its command line."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.nn.functional import cross_entropy

from chiaroscuro import ChiarConfig, ChiarForCausalLM
from chiaroscuro.data import train_tokenizer

TEXTS = ["The import statement finds a module and binds its name.", "A class is a mapping of names to objects."] * 3
TASK = """
task: local_text
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{{{text}}}}"
metric_list:
  - metric: bits_per_byte
metadata:
  version: 1
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A run's model and tokenizer, and beside them the task."""
    path = tmp_path_factory.mktemp("lm_eval")
    tokenizer = train_tokenizer(TEXTS, 300)
    torch.manual_seed(0)
    config = ChiarConfig(vocab_size=300, hidden_size=32, num_attention_heads=2, eos_token_id=0, bos_token_id=0)
    ChiarForCausalLM(config).save_pretrained(path / "model")
    tokenizer.model_max_length = 256
    tokenizer.save_pretrained(path / "model")
    (path / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    (path / "tasks").mkdir()
    (path / "tasks" / "local_text.yaml").write_text(TASK.format(data=path / "texts.jsonl"))
    return path


@pytest.fixture(scope="module")
def bits_per_byte(folder) -> float:
    """By definition, each text behind an end-of-text token."""
    from transformers import AutoTokenizer

    model = ChiarForCausalLM.from_pretrained(folder / "model").eval()
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    nats = 0.0
    for text in TEXTS:
        ids = torch.tensor([[0, *tokenizer(text)["input_ids"]]])
        with torch.no_grad():
            nats += float(cross_entropy(model(ids).logits[0, :-1], ids[0, 1:], reduction="sum"))
    return nats / math.log(2) / sum(len(text.encode()) for text in TEXTS)


def test_through_hflm(folder, bits_per_byte, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager
    from transformers import AutoTokenizer

    model = ChiarForCausalLM.from_pretrained(folder / "model")
    wrapped = HFLM(pretrained=model, tokenizer=AutoTokenizer.from_pretrained(folder / "model"), batch_size=2)
    manager = TaskManager(include_path=str(folder / "tasks"), include_defaults=False)
    found = simple_evaluate(wrapped, tasks=["local_text"], task_manager=manager)
    assert found["results"]["local_text"]["bits_per_byte,none"] == pytest.approx(bits_per_byte, rel=1e-4)


def test_by_its_command_line_which_does_not_know_this_package(folder, bits_per_byte, tmp_path):
    arguments = f"pretrained={folder / 'model'},trust_remote_code=True,dtype=float32"
    command = [sys.executable, "-m", "lm_eval", "--model", "hf", "--model_args", arguments, "--device", "cpu"]
    command += ["--tasks", "local_text", "--include_path", str(folder / "tasks"), "--output_path", str(tmp_path)]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home")}
    subprocess.run(command, check=True, capture_output=True, text=True, timeout=180, env=environment)
    (results,) = tmp_path.rglob("results*.json")
    found = json.loads(results.read_text())["results"]["local_text"]["bits_per_byte,none"]
    assert found == pytest.approx(bits_per_byte, rel=1e-4)
