"""GPT-2's key table: the keys of Hugging Face's GPT2LMHeadModel beside ours.

OpenAI wrote the linear layers as convolutions of width one. Their kernels are therefore [in, out], like ours.
"""

import re

from scratch_core.weights import Copy, Rule, Transform, transpose

from scratch_gpt2.config import GPT2Config


def rules(config: GPT2Config) -> list[Rule | Copy]:
    """Return theirs | ours | transform. N heads, H head width."""
    N, H = config.num_heads, config.head_dim
    qkv = Transform((None, (3, N, H)), (0, 2, 1, 3))  # theirs [D, 3 * N * H], ours [D, N, 3, H]
    qkv_bias = Transform(((3, N, H),), (1, 0, 2))
    out = Transform(((N, H), None))  # theirs [N * H, D], ours [N, H, D]
    # fmt: off
    table = [
        Rule("transformer.wte.weight",                   "embedding.embedding"),
        Rule("transformer.wpe.weight",                   "positions.embedding"),
        Rule("transformer.h.{i}.ln_1.weight",            "layers.{i}.attention_norm.scale"),
        Rule("transformer.h.{i}.ln_1.bias",              "layers.{i}.attention_norm.bias"),
        Rule("transformer.h.{i}.attn.c_attn.weight",     "layers.{i}.attention.qkv.kernel", qkv),
        Rule("transformer.h.{i}.attn.c_attn.bias",       "layers.{i}.attention.qkv.bias",   qkv_bias),
        Rule("transformer.h.{i}.attn.c_proj.weight",     "layers.{i}.attention.out.kernel", out),
        Rule("transformer.h.{i}.attn.c_proj.bias",       "layers.{i}.attention.out.bias"),
        Rule("transformer.h.{i}.ln_2.weight",            "layers.{i}.feed_forward_norm.scale"),
        Rule("transformer.h.{i}.ln_2.bias",              "layers.{i}.feed_forward_norm.bias"),
        Rule("transformer.h.{i}.mlp.c_fc.weight",        "layers.{i}.feed_forward.up.kernel"),
        Rule("transformer.h.{i}.mlp.c_fc.bias",          "layers.{i}.feed_forward.up.bias"),
        Rule("transformer.h.{i}.mlp.c_proj.weight",      "layers.{i}.feed_forward.down.kernel"),
        Rule("transformer.h.{i}.mlp.c_proj.bias",        "layers.{i}.feed_forward.down.bias"),
        Rule("transformer.ln_f.weight",                  "norm.scale"),
        Rule("transformer.ln_f.bias",                    "norm.bias"),
        Rule("lm_head.weight",                           "head.kernel", transpose),
    ]
    # fmt: on
    if config.tie_embeddings:
        return [*table, Copy("lm_head.weight", of="transformer.wte.weight")]
    return table


def rename(key: str) -> str:
    """Return the key as the table spells it: the first checkpoints, and those of GPT2Model, lack "transformer."."""
    return f"transformer.{key}" if re.match(r"(wte|wpe|h|ln_f)\.", key) else key
