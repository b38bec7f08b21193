"""A model package for the tests of the command line: a language model that reads its last token alone."""

import dataclasses
from typing import Any, ClassVar

import jax.numpy as jnp
from flax import nnx
from scratch_core import ModelSpec, PretrainedModel, Rule
from scratch_core.weights import transpose


@dataclasses.dataclass(frozen=True)
class ToyConfig:
    vocab_size: int = 264
    d_model: int = 16
    max_positions: int = 300
    eos_token_id: int | None = 257

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


class Toy(PretrainedModel):
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
        self.dropout = nnx.Dropout(0.1, rngs=rngs)
        self.head = nnx.Linear(config.d_model, config.vocab_size, dtype=dtype, rngs=rngs)

    def __call__(self, input_ids, attention_mask=None):
        return self.head(self.dropout(self.embedding(input_ids)))

    def init_cache(self, batch_size, capacity):
        return jnp.zeros(batch_size, jnp.int32)

    def decode(self, input_ids, cache, attention_mask=None, *, last_only=False):
        logits = self(input_ids)
        if last_only and attention_mask is not None:
            last = input_ids.shape[1] - 1 - jnp.argmax(attention_mask[:, ::-1], axis=1)
            logits = jnp.take_along_axis(logits, last[:, None, None], axis=1)
        return logits, cache + input_ids.shape[1]


SPEC = ModelSpec("toy", models=(Toy,), presets=("tiny", "narrow"), task="causal_lm")
