"""GPT-Neo's key table: the keys of Hugging Face's GPTNeoForCausalLM beside ours."""

import re

from scratch_core.weights import Copy, Rule, split_in, split_out, transpose

from scratch_gptneo.config import GPTNeoConfig


def rules(config: GPTNeoConfig) -> list[Rule | Copy]:
    """Return theirs | ours | transform. N heads, H head width."""
    N, H = config.num_heads, config.head_dim
    # fmt: off
    table = [
        Rule("transformer.wte.weight",                            "embedding.embedding"),
        Rule("transformer.wpe.weight",                            "positions.embedding"),
        Rule("transformer.h.{i}.ln_1.weight",                     "layers.{i}.attention_norm.scale"),
        Rule("transformer.h.{i}.ln_1.bias",                       "layers.{i}.attention_norm.bias"),
        Rule("transformer.h.{i}.attn.attention.q_proj.weight",    "layers.{i}.attention.query.kernel", split_out(N, H)),
        Rule("transformer.h.{i}.attn.attention.k_proj.weight",    "layers.{i}.attention.key.kernel",   split_out(N, H)),
        Rule("transformer.h.{i}.attn.attention.v_proj.weight",    "layers.{i}.attention.value.kernel", split_out(N, H)),
        Rule("transformer.h.{i}.attn.attention.out_proj.weight",  "layers.{i}.attention.out.kernel",   split_in(N, H)),
        Rule("transformer.h.{i}.attn.attention.out_proj.bias",    "layers.{i}.attention.out.bias"),
        Rule("transformer.h.{i}.ln_2.weight",                     "layers.{i}.feed_forward_norm.scale"),
        Rule("transformer.h.{i}.ln_2.bias",                       "layers.{i}.feed_forward_norm.bias"),
        Rule("transformer.h.{i}.mlp.c_fc.weight",                 "layers.{i}.feed_forward.up.kernel",   transpose),
        Rule("transformer.h.{i}.mlp.c_fc.bias",                   "layers.{i}.feed_forward.up.bias"),
        Rule("transformer.h.{i}.mlp.c_proj.weight",               "layers.{i}.feed_forward.down.kernel", transpose),
        Rule("transformer.h.{i}.mlp.c_proj.bias",                 "layers.{i}.feed_forward.down.bias"),
        Rule("transformer.ln_f.weight",                           "norm.scale"),
        Rule("transformer.ln_f.bias",                             "norm.bias"),
        Rule("lm_head.weight",                                    "head.kernel", transpose),
    ]
    # fmt: on
    if config.tie_embeddings:
        return [*table, Copy("lm_head.weight", of="transformer.wte.weight")]
    return table


def rename(key: str) -> str:
    """Return the key as the table spells it: checkpoints of GPTNeoModel lack "transformer."."""
    return f"transformer.{key}" if re.match(r"(wte|wpe|h|ln_f)\.", key) else key
