"""The key table: Llama's keys for the plain transformer, and our own keys for the router and the predictor.

At capacity 1.0 no block is routed, and the table reads a checkpoint of Llama.
"""

from scratch_core.weights import Copy, Rule, split_in, split_out, transpose

from scratch_mod.config import MixtureOfDepthsConfig


def rules(config: MixtureOfDepthsConfig) -> list[Rule | Copy]:
    """Return theirs | ours | transform. N query heads, K key/value heads, H head width."""
    N, K, H = config.num_heads, config.num_kv_heads, config.head_dim
    # fmt: off
    table = [
        Rule("model.embed_tokens.weight",                        "embedding.embedding"),
        Rule("model.layers.{i}.input_layernorm.weight",          "layers.{i}.attention_norm.scale"),
        Rule("model.layers.{i}.self_attn.q_proj.weight",         "layers.{i}.attention.query.kernel", split_out(N, H)),
        Rule("model.layers.{i}.self_attn.k_proj.weight",         "layers.{i}.attention.key.kernel",   split_out(K, H)),
        Rule("model.layers.{i}.self_attn.v_proj.weight",         "layers.{i}.attention.value.kernel", split_out(K, H)),
        Rule("model.layers.{i}.self_attn.o_proj.weight",         "layers.{i}.attention.out.kernel",   split_in(N, H)),
        Rule("model.layers.{i}.post_attention_layernorm.weight", "layers.{i}.feed_forward_norm.scale"),
        Rule("model.layers.{i}.mlp.gate_proj.weight",            "layers.{i}.feed_forward.gate.kernel", transpose),
        Rule("model.layers.{i}.mlp.up_proj.weight",              "layers.{i}.feed_forward.up.kernel",   transpose),
        Rule("model.layers.{i}.mlp.down_proj.weight",            "layers.{i}.feed_forward.down.kernel", transpose),
        Rule("model.layers.{i}.router.weight",                   "layers.{i}.router.kernel", transpose),
        Rule("model.layers.{i}.predictor.up.weight",             "layers.{i}.predictor.up.kernel",   transpose),
        Rule("model.layers.{i}.predictor.up.bias",               "layers.{i}.predictor.up.bias"),
        Rule("model.layers.{i}.predictor.down.weight",           "layers.{i}.predictor.down.kernel", transpose),
        Rule("model.layers.{i}.predictor.down.bias",             "layers.{i}.predictor.down.bias"),
        Rule("model.norm.weight",                                "norm.scale"),
        Rule("lm_head.weight",                                   "head.kernel", transpose),
    ]
    # fmt: on
    if config.tie_embeddings:
        return [*table, Copy("lm_head.weight", of="model.embed_tokens.weight")]
    return table
