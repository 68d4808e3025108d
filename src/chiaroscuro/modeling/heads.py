"""The model with a language-modelling or a classification head.

Shapes: B batch, T tokens, D model channels, V vocabulary.
"""

import warnings
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import (
    GenerationConfig,
    GenerationMixin,
    LogitsProcessorList,
    PreTrainedConfig,
    StoppingCriteria,
    StoppingCriteriaList,
)
from transformers.cache_utils import Cache
from transformers.modeling_outputs import CausalLMOutputWithPast, SequenceClassifierOutput
from transformers.utils import can_return_tuple

from chiaroscuro.mixers import Flops
from chiaroscuro.mixers.flops import linear_flops
from chiaroscuro.modeling.configuration import ChiarConfig
from chiaroscuro.modeling.layer import RoutingTrace
from chiaroscuro.modeling.model import ChiarModel, ChiarModelOutput, ChiarPreTrainedModel
from chiaroscuro.routing import utilisation, utilisation_entropy


@dataclass
class ChiarCausalLMOutput(CausalLMOutputWithPast):
    """As `ChiarModelOutput`, with loss and logits."""

    routing: tuple[RoutingTrace, ...] | None = None
    meta_gate: Tensor | None = None


@dataclass
class ChiarClassifierOutput(SequenceClassifierOutput):
    """As `ChiarModelOutput`, with loss and logits."""

    routing: tuple[RoutingTrace, ...] | None = None
    meta_gate: Tensor | None = None


class _Full(StoppingCriteria):
    """Ends a generation when there is no position left for its last token to be read at."""

    def __init__(self, room: int):
        self.room = room

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        full = input_ids.shape[1] > self.room
        if full:
            warnings.warn("generation ended at max_position_embeddings", stacklevel=2)
        return torch.full((len(input_ids),), full, device=input_ids.device)


class ChiarForCausalLM(ChiarPreTrainedModel, GenerationMixin):
    """A causal language model; the head shares its weight with the embedding, unless `tie_word_embeddings` is false."""

    _keys_to_ignore_on_load_unexpected = [r"^classifiers\."]  # those of a `ChiarForMixedTasks`
    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}

    def __init__(self, config: ChiarConfig):
        super().__init__(config)
        self.model = ChiarModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        output_routing: bool = False,
        **kwargs: Any,
    ) -> ChiarCausalLMOutput:
        """`ChiarModel.forward`, and logits (B, T, V) of the last `logits_to_keep` tokens, all by default.

        labels (B, T), -100 where there is none, are shifted here: the logits at t are held against the label at t + 1.
            The loss is their cross-entropy, in training with the collapse regulariser.
        """
        outputs: ChiarModelOutput = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            output_routing=output_routing or self.config.collapse_weight > 0,
            **kwargs,
        )
        hidden_BTD = outputs.last_hidden_state
        assert hidden_BTD is not None
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(hidden_BTD[:, kept])
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
            # The Trainer divides by the items of all accumulated batches; the penalty takes this batch's share of them.
            items = kwargs.get("num_items_in_batch")
            share = 1.0 if items is None else (labels[:, 1:] != -100).sum() / items
            loss = loss + share * collapse_penalty(self, outputs.routing)
        elif self.training and self.config.collapse_weight and torch.is_grad_enabled():
            warnings.warn("collapse_weight does nothing without labels; label smoothing takes them away", stacklevel=2)
        return ChiarCausalLMOutput(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            routing=outputs.routing if output_routing else None,
            meta_gate=outputs.meta_gate,
        )

    def generate(  # type: ignore[override]
        self,
        inputs: Tensor | None = None,
        generation_config: GenerationConfig | None = None,
        logits_processor: LogitsProcessorList | None = None,
        stopping_criteria: StoppingCriteriaList | None = None,
        **kwargs: Any,
    ) -> Any:
        """As transformers' own, but it ends where the model takes no more tokens, with a warning."""
        prompt = kwargs.get("inputs_embeds")
        before = 0 if prompt is None or inputs is not None or "input_ids" in kwargs else prompt.shape[1]
        full = _Full(self.config.max_position_embeddings - before)
        criteria = StoppingCriteriaList([*(stopping_criteria or ()), full])
        generate: Any = super().generate  # type: ignore[misc]
        return generate(inputs, generation_config, logits_processor, criteria, **kwargs)

    def flops(
        self, batch_size: int, seq_len: int, routing: tuple[RoutingTrace, ...] | None = None, past: int = 0
    ) -> Flops:
        """`ChiarModel.flops`, with the head."""
        head = linear_flops(batch_size * seq_len, self.config.hidden_size, self.config.vocab_size)
        return self.model.flops(batch_size, seq_len, routing, past) + Flops(head=head)


class ClassificationHead(nn.Sequential):
    """The mean of the tokens that are not padding, then linear, GELU, dropout, linear (paper, section 2)."""

    def __init__(self, config: ChiarConfig, num_labels: int):
        D = config.hidden_size
        super().__init__(nn.Linear(D, D), nn.GELU(), nn.Dropout(config.dropout), nn.Linear(D, num_labels))

    def forward(self, hidden_BTD: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Logits (B, num_labels)."""
        dtype = torch.promote_types(hidden_BTD.dtype, torch.float32)  # a half cannot count beyond its precision
        weight_BT1 = hidden_BTD.new_ones((*hidden_BTD.shape[:2], 1), dtype=dtype)
        if attention_mask is not None:
            weight_BT1 = attention_mask[:, -hidden_BTD.shape[1] :, None].to(dtype)
        mean_BD = (hidden_BTD * weight_BT1).sum(1) / weight_BT1.sum(1).clamp_min(1.0)
        return super().forward(mean_BD.to(hidden_BTD.dtype))


class ChiarForSequenceClassification(ChiarPreTrainedModel):
    """The body with a `ClassificationHead`."""

    accepts_loss_kwargs = False  # the loss is a mean over this batch, which the Trainer divides when it accumulates

    def __init__(self, config: ChiarConfig):
        super().__init__(config)
        assert config.num_labels is not None
        self.num_labels: int = config.num_labels
        self.model = ChiarModel(config)
        self.classifier = ClassificationHead(config, self.num_labels)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_routing: bool = False,
        **kwargs: Any,
    ) -> ChiarClassifierOutput:
        """`ChiarModel.forward`, and logits (B, num_labels). labels: (B,). The mean is that of a whole sequence: a cache
        is refused with a ValueError, and none is made, whatever `use_cache` says."""
        if past_key_values is not None or kwargs.pop("cache", None) is not None:
            raise ValueError("a classifier takes whole sequences and goes on from no cache")
        outputs: ChiarModelOutput = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            use_cache=False,
            output_routing=output_routing or self.config.collapse_weight > 0,
            **kwargs,
        )
        hidden_BTD = outputs.last_hidden_state
        assert hidden_BTD is not None
        logits = self.classifier(hidden_BTD, attention_mask)
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, pooled_logits=logits, config=self.config)
            loss = loss + collapse_penalty(self, outputs.routing)
        return ChiarClassifierOutput(
            loss=loss,
            logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            routing=outputs.routing if output_routing else None,
            meta_gate=outputs.meta_gate,
        )

    def flops(self, batch_size: int, seq_len: int, routing: tuple[RoutingTrace, ...] | None = None) -> Flops:
        """`ChiarModel.flops`, with the head."""
        D = self.config.hidden_size
        head = linear_flops(batch_size, D, D + self.num_labels)
        return self.model.flops(batch_size, seq_len, routing) + Flops(head=head)


class ChiarForMixedTasks(ChiarForCausalLM):
    """A language model whose body also carries a classification head for each of `config.task_labels` (paper, mixed
    training)."""

    def __init__(self, config: ChiarConfig):
        super().__init__(config)
        self.loss_type = "ForCausalLM"  # which transformers cannot tell from the name of the class
        self.classifiers = nn.ModuleDict(
            {task: ClassificationHead(config, labels) for task, labels in (config.task_labels or {}).items()}
        )
        self.post_init()

    def classifier(self, task: str) -> ChiarForSequenceClassification:
        """The body with the head of `task`, as a classifier of its own that shares these weights. Raises ValueError for
        a task without a head."""
        if task not in self.classifiers:
            raise ValueError(f"no head for task {task!r}; heads: {', '.join(self.classifiers) or 'none'}")
        assert self.config.task_labels is not None
        fields = self.config.to_dict() | {"num_labels": self.config.task_labels[task], "task_labels": None}
        del fields["id2label"], fields["label2id"]
        with torch.device("meta"):
            found = ChiarForSequenceClassification(ChiarConfig(**fields))
        found.model = self.model
        found.classifier = cast(ClassificationHead, self.classifiers[task])
        return found.train(self.training)


def collapse_penalty(model: ChiarPreTrainedModel, routing: tuple[RoutingTrace, ...] | None) -> float | Tensor:
    """- lambda times the mean over layers of the utilisation entropy (paper, collapse regulariser), in training only.
    Raises ValueError when the gates of a router that learns have lost their gradient, as by reentrant checkpointing."""
    if not model.training or not model.config.collapse_weight or not routing:
        return 0.0
    if torch.is_grad_enabled() and any(_learns(model, trace) and not trace.gates.requires_grad for trace in routing):
        raise ValueError("collapse_weight: gates come without a gradient; checkpointing needs use_reentrant=False")
    entropies = [utilisation_entropy(utilisation(trace.gates)) for trace in routing]
    return -model.config.collapse_weight * torch.stack(entropies).mean()


def _learns(model: ChiarPreTrainedModel, trace: RoutingTrace) -> bool:
    """Whether the router of that layer has weights that are trained."""
    return any(weight.requires_grad for weight in model.model.layers[trace.layer].mixer.router.parameters())


def class_of(config: PreTrainedConfig) -> type[ChiarPreTrainedModel]:
    """The class of the model that a configuration was saved with. Raises ValueError for those of other libraries."""
    known = {cls.__name__: cls for cls in (ChiarForCausalLM, ChiarForMixedTasks, ChiarForSequenceClassification)}
    names = config.architectures or [ChiarForCausalLM.__name__]
    if not isinstance(config, ChiarConfig) or names not in [[name] for name in known]:
        raise ValueError(f"it holds a {names} of type {config.model_type!r}; known models: {', '.join(known)}")
    return known[names[0]]
