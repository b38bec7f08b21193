"""MPT's key table: the keys of Hugging Face's MptForCausalLM, which are also MosaicML's, beside ours."""

import re

from scratch_core.weights import Copy, Rule, Transform, split_in, transpose

from scratch_mpt.config import MPTConfig


def rules(config: MPTConfig) -> list[Rule | Copy]:
    """Return theirs | ours | transform. N heads, H head width."""
    N, H = config.num_heads, config.head_dim
    qkv = Transform(((3, N, H), None), (3, 1, 0, 2))  # theirs [3 * N * H, D], ours [D, N, 3, H]
    # fmt: off
    table = [
        Rule("transformer.wte.weight",                       "embedding.embedding"),
        Rule("transformer.blocks.{i}.norm_1.weight",         "layers.{i}.attention_norm.scale"),
        Rule("transformer.blocks.{i}.attn.Wqkv.weight",      "layers.{i}.attention.qkv.kernel", qkv),
        Rule("transformer.blocks.{i}.attn.out_proj.weight",  "layers.{i}.attention.out.kernel", split_in(N, H)),
        Rule("transformer.blocks.{i}.norm_2.weight",         "layers.{i}.feed_forward_norm.scale"),
        Rule("transformer.blocks.{i}.ffn.up_proj.weight",    "layers.{i}.feed_forward.up.kernel",   transpose),
        Rule("transformer.blocks.{i}.ffn.down_proj.weight",  "layers.{i}.feed_forward.down.kernel", transpose),
        Rule("transformer.norm_f.weight",                    "norm.scale"),
        Rule("lm_head.weight",                               "head.kernel", transpose),
    ]
    # fmt: on
    if config.tie_embeddings:
        return [*table, Copy("lm_head.weight", of="transformer.wte.weight")]
    return table


def rename(key: str) -> str:
    """Return the key as the table spells it: checkpoints of MptModel lack "transformer."."""
    return f"transformer.{key}" if re.match(r"(wte|blocks|norm_f)\.", key) else key
