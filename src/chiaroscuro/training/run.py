"""Train a model by a plan, measure it on held-out text, and leave a run folder."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerFast, TrainingArguments, set_seed
from transformers.trainer_callback import PrinterCallback
from transformers.trainer_utils import get_last_checkpoint

from chiaroscuro.data import TokenWindows, encode, load_corpus, load_tokenizer, token_bytes, train_tokenizer
from chiaroscuro.evaluation import evaluate
from chiaroscuro.flops import flops_ratios
from chiaroscuro.modeling import ChiarForCausalLM
from chiaroscuro.training.folder import CHECKPOINTS, METRICS, RESULTS, new_run_folder, versions, write_json
from chiaroscuro.training.plan import TrainingPlan
from chiaroscuro.training.trainer import Bar, MetricsFile, RoutingTrainer, ThresholdRefresh

CALIBRATION_TOKENS = 4096
LOGS_PER_RUN = 50


@dataclass(frozen=True)
class Text:
    """Encoded text by split, and the tokenizer it was encoded with."""

    tokens: dict[str, np.ndarray]
    tokenizer: PreTrainedTokenizerFast

    def windows(self, split: str, length: int) -> TokenWindows:
        return TokenWindows(self.tokens[split], length)


def load_text(plan: TrainingPlan) -> Text:
    """The plan's corpus, encoded with the plan's tokenizer or with one trained on its training split."""
    corpus = load_corpus(plan.data)
    if plan.tokenizer is not None:
        tokenizer = load_tokenizer(Path(plan.tokenizer))
    else:
        tokenizer = train_tokenizer(corpus.splits["train"], plan.vocab_size)
    return Text(encode(corpus, tokenizer), tokenizer)


def train(plan: TrainingPlan, text: Text, out: Path, resume: bool = False) -> dict[str, Any]:
    """Train, evaluate on the test split, and write the run folder `out`. Returns what `results.json` holds.

    One seed gives the same loss curve on the same machine. With `resume` the last checkpoint in `out` is continued.
    Raises ValueError for a folder that would be overwritten, and when there is nothing to resume.
    """
    config = plan.config(len(text.tokenizer), text.tokenizer.eos_token_id)
    windows = {split: text.windows(split, plan.seq_len) for split in text.tokens}
    checkpoint = None
    if resume:
        checkpoint = get_last_checkpoint(str(out / CHECKPOINTS)) if (out / CHECKPOINTS).is_dir() else None
        if checkpoint is None:
            raise ValueError(f"nothing to resume in {out}: it holds no checkpoint (train with --save-every)")
    else:
        new_run_folder(out)
    set_seed(plan.seed)
    model = ChiarForCausalLM(config)
    trainer = _trainer(plan, model, windows, out)
    start = time.perf_counter()
    trainer.train(resume_from_checkpoint=checkpoint)
    seconds = time.perf_counter() - start

    evaluation = evaluate(model, windows["test"], token_bytes(text.tokenizer), show_progress=True)
    tokens_seen = plan.steps * plan.batch_size * plan.seq_len
    sample = windows["test"].batch(range(min(8, len(windows["test"])))).to(model.device)
    results = {
        "recipe": plan.recipe,
        "task": "language_modelling",
        "data": plan.data,
        "seed": plan.seed,
        "steps": plan.steps,
        "tokens_seen": tokens_seen,
        "parameters": model.num_parameters(),
        "loss": evaluation.loss,
        "perplexity": evaluation.perplexity,
        "bits_per_byte": evaluation.bits_per_byte,
        "accuracy": None,
        "flops": flops_ratios(model, sample),
        "routing": evaluation.routing,
        "train_seconds": seconds,
        "tokens_per_second": tokens_seen / seconds,
        "plan": {name: value for name, value in vars(plan).items() if name not in ("recipe", "data", "seed", "steps")},
        "versions": versions(),
    }
    model.save_pretrained(out)
    text.tokenizer.save_pretrained(out)
    write_json(out / RESULTS, results)
    return results


def _trainer(
    plan: TrainingPlan, model: ChiarForCausalLM, windows: dict[str, TokenWindows], out: Path
) -> RoutingTrainer:
    arguments = TrainingArguments(
        output_dir=str(out / CHECKPOINTS),
        max_steps=plan.steps,
        per_device_train_batch_size=plan.batch_size,
        learning_rate=plan.learning_rate,
        lr_scheduler_type="cosine_with_min_lr",
        lr_scheduler_kwargs={"min_lr": plan.learning_rate / 100},
        warmup_steps=plan.warmup_steps,
        weight_decay=plan.weight_decay,
        adam_beta1=0.9,
        adam_beta2=0.95,
        max_grad_norm=1.0,
        seed=plan.seed,
        data_seed=plan.seed,
        logging_steps=max(1, plan.steps // LOGS_PER_RUN),
        save_strategy="no" if plan.save_every is None else "steps",
        save_steps=plan.save_every or plan.steps,
        save_total_limit=2,
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
    )
    enough = min(len(windows["validation"]), -(-CALIBRATION_TOKENS // plan.seq_len))
    calibration_text = windows["validation"].batch(range(enough))
    trainer = RoutingTrainer(
        model=model,
        args=arguments,
        train_dataset=windows["train"],
        callbacks=[
            ThresholdRefresh(calibration_text, plan.calibrate_every),
            MetricsFile(out / METRICS),
            Bar(plan.recipe),
        ],
    )
    trainer.remove_callback(PrinterCallback)
    return trainer
