"""Small models of transformers, as they are and with routed attention."""

import pytest
import torch
from tests.helpers import VOCAB, ids
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Ministral3Config,
    Ministral3ForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Olmo2Config,
    Olmo2ForCausalLM,
    OlmoConfig,
    OlmoForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    SeedOssConfig,
    SeedOssForCausalLM,
)

from chiaroscuro import retrofit, set_share

SIZES = {"vocab_size": VOCAB, "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "bos_token_id": 0}
SIZES |= {"num_key_value_heads": 2, "intermediate_size": 64, "max_position_embeddings": 256, "eos_token_id": None}
SIZES |= {"pad_token_id": 0}
SCALED = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 8.0, "original_max_position_embeddings": 32}
SCALED |= {"llama_4_scaling_beta": 0.1}
BUILT = {
    "gpt2": (
        GPT2LMHeadModel,
        GPT2Config,
        {"n_positions": 256, "attn_pdrop": 0.0, "resid_pdrop": 0.0, "embd_pdrop": 0.0},
    ),
    "llama": (LlamaForCausalLM, LlamaConfig, {}),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config, {}),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config, {"head_dim": 16}),
    "cohere": (CohereForCausalLM, CohereConfig, {}),
    "gemma2": (Gemma2ForCausalLM, Gemma2Config, {"head_dim": 8, "sliding_window": 16}),
    "mistral": (MistralForCausalLM, MistralConfig, {"sliding_window": 16}),
    "olmo2": (Olmo2ForCausalLM, Olmo2Config, {}),
    "olmo": (OlmoForCausalLM, OlmoConfig, {"clip_qkv": 8.0}),
    "ministral3": (Ministral3ForCausalLM, Ministral3Config, {"rope_parameters": SCALED}),
    "crossing": (GPT2LMHeadModel, GPT2Config, {"add_cross_attention": True}),
    "seed_oss": (SeedOssForCausalLM, SeedOssConfig, {"residual_dropout": 0.3, "head_dim": 8}),
    "gpt_neox": (GPTNeoXForCausalLM, GPTNeoXConfig, {}),
}
every_model = pytest.mark.parametrize("name", ["gpt2", "llama", "qwen2", "qwen3"])


def build(name, **fields):
    """Weights far enough from their start that attention matters."""
    cls, config, own = BUILT[name]
    torch.manual_seed(0)
    model = cls(config(**(SIZES | own | fields))).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def half(name="llama", light="dct", **fields):
    """Half of the tokens of two layers go to attention, the others through a spectral filter that does something."""
    model = retrofit(build(name, **fields), light=light)
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if parameter_name.endswith("filter"):
                parameter.normal_()
    set_share(model, 0.5, ids(4, 96))
    return model
