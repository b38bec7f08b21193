"""A model package for the tests of the command line: a language model that reads only the last token."""

import dataclasses
from typing import Any, ClassVar

import jax.numpy as jnp
from flax import nnx
from scratch_core import CausalLM, ModelSpec, Rule
from scratch_core.layers import DecoderCache
from scratch_core.weights import transpose


@dataclasses.dataclass(frozen=True)
class ToyConfig:
    vocab_size: int = 264
    d_model: int = 16
    max_positions: int = 300
    bos_token_id: int | None = 256
    eos_token_id: int | None = 257
    pad_token_id: int | None = 258

    @classmethod
    def tiny(cls):
        return cls()

    @classmethod
    def narrow(cls):
        return cls(vocab_size=100)

    @classmethod
    def from_hf(cls, fields):
        return cls(**{field.name: fields[field.name] for field in dataclasses.fields(cls)})

    def to_hf(self):
        return {"model_type": "toy", **dataclasses.asdict(self)}


class Layer(nnx.Module):
    """Dropout. It has no parameters and stores nothing in the cache."""

    def __init__(self, rngs):
        self.dropout = nnx.Dropout(0.1, rngs=rngs)

    def __call__(self, x, positions, cache=None):
        return self.dropout(x), cache


class Toy(CausalLM):
    Config: ClassVar[Any] = ToyConfig
    architectures = ("ToyForCausalLM",)

    @staticmethod
    def rules(config):
        return [
            Rule("embedding.weight", "embedding.embedding"),
            Rule("head.weight", "head.kernel", transpose),
            Rule("head.bias", "head.bias"),
        ]

    def __init__(self, config, *, dtype=jnp.float32, rngs):
        self.config = config
        self.embedding = nnx.Embed(config.vocab_size, config.d_model, dtype=dtype, rngs=rngs)
        self.layers = nnx.List([Layer(rngs)])
        self.norm = lambda x: x
        self.head = nnx.Linear(config.d_model, config.vocab_size, dtype=dtype, rngs=rngs)

    def embed(self, input_ids, positions):
        return self.embedding(input_ids)

    def logits(self, x):
        return self.head(x)

    def init_cache(self, batch_size, capacity):
        return DecoderCache.empty(batch_size, (None,), capacity)


SPEC = ModelSpec(
    "toy",
    models={"causal_lm": "scratch_toy:Toy"},
    presets={"tiny": 8712, "narrow": 3300},
    recipes={"tiny": {"steps": 600, "learning_rate": 3e-3, "batch_size": 16}, "narrow": {"learning_rate": 1e-3}},
)
