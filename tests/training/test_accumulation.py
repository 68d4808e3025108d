"""transformers' own Trainer, with a batch in one piece and in four."""

import pytest
import torch
from tests.helpers import ids, tiny_config
from torch.utils.data import Dataset
from transformers import Trainer, TrainingArguments

from chiaroscuro import ChiarForCausalLM, ChiarForSequenceClassification


class Constant(Dataset):
    """The same example again and again, so that every split into batches must give the same loss and gradient."""

    def __init__(self, labels):
        self.example = {"input_ids": ids(1, 9)[0], "labels": labels}

    def __len__(self):
        return 16

    def __getitem__(self, index):
        return self.example


def first_log(model, data, accumulation, folder):
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=1,
        per_device_train_batch_size=8 // accumulation,
        gradient_accumulation_steps=accumulation,
        learning_rate=0.0,
        logging_steps=1,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        use_cpu=True,
    )
    trainer = Trainer(model=model, args=arguments, train_dataset=data)
    trainer.train()
    log = trainer.state.log_history[0]
    return log["loss"], float(log["grad_norm"])


@pytest.mark.parametrize("collapse_weight", [0.0, 10.0])
@pytest.mark.parametrize("cls", [ChiarForCausalLM, ChiarForSequenceClassification])
def test_accumulated_batches_give_the_loss_and_gradient_of_the_whole(cls, collapse_weight, tmp_path):
    labels = ids(1, 9)[0] if cls is ChiarForCausalLM else torch.tensor(1)
    logs = []
    for accumulation in (1, 4):
        torch.manual_seed(0)
        model = cls(tiny_config(router="soft", collapse_weight=collapse_weight))
        logs.append(first_log(model, Constant(labels), accumulation, tmp_path))
    assert logs[1] == pytest.approx(logs[0], rel=1e-4)
