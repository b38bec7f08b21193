"""OLMo's key tables: the keys of Hugging Face's OlmoForCausalLM and Olmo2ForCausalLM beside ours."""

from scratch_core.weights import Copy, Rule, split_bias, split_in, split_out, transpose

from scratch_olmo.config import Olmo2Config, OlmoConfig


def olmo_rules(config: OlmoConfig | Olmo2Config) -> list[Rule | Copy]:
    """Return theirs | ours | transform. N query heads, K key/value heads, H head width. OLMo's norms have no parameters."""
    N, K, H = config.num_heads, config.num_kv_heads, config.head_dim
    # fmt: off
    table = [
        Rule("model.embed_tokens.weight",                "embedding.embedding"),
        Rule("model.layers.{i}.self_attn.q_proj.weight", "layers.{i}.attention.query.kernel", split_out(N, H)),
        Rule("model.layers.{i}.self_attn.k_proj.weight", "layers.{i}.attention.key.kernel",   split_out(K, H)),
        Rule("model.layers.{i}.self_attn.v_proj.weight", "layers.{i}.attention.value.kernel", split_out(K, H)),
        Rule("model.layers.{i}.self_attn.o_proj.weight", "layers.{i}.attention.out.kernel",   split_in(N, H)),
        Rule("model.layers.{i}.mlp.gate_proj.weight",    "layers.{i}.feed_forward.gate.kernel", transpose),
        Rule("model.layers.{i}.mlp.up_proj.weight",      "layers.{i}.feed_forward.up.kernel",   transpose),
        Rule("model.layers.{i}.mlp.down_proj.weight",    "layers.{i}.feed_forward.down.kernel", transpose),
        Rule("lm_head.weight",                           "head.kernel", transpose),
        # Only with attention_bias, which no released OLMo sets:
        Rule("model.layers.{i}.self_attn.q_proj.bias",   "layers.{i}.attention.query.bias", split_bias(N, H)),
        Rule("model.layers.{i}.self_attn.k_proj.bias",   "layers.{i}.attention.key.bias",   split_bias(K, H)),
        Rule("model.layers.{i}.self_attn.v_proj.bias",   "layers.{i}.attention.value.bias", split_bias(K, H)),
        Rule("model.layers.{i}.self_attn.o_proj.bias",   "layers.{i}.attention.out.bias"),
    ]
    # fmt: on
    if config.tie_embeddings:
        return [*table, Copy("lm_head.weight", of="model.embed_tokens.weight")]
    return table


def olmo2_rules(config: Olmo2Config) -> list[Rule | Copy]:
    """Return OLMo's table and the norms that OLMo 2 adds; the norms of queries and keys span all heads."""
    N, K, H = config.num_heads, config.num_kv_heads, config.head_dim
    # fmt: off
    return [
        *olmo_rules(config),
        Rule("model.layers.{i}.self_attn.q_norm.weight",           "layers.{i}.attention.query_norm.scale", split_bias(N, H)),
        Rule("model.layers.{i}.self_attn.k_norm.weight",           "layers.{i}.attention.key_norm.scale",   split_bias(K, H)),
        Rule("model.layers.{i}.post_attention_layernorm.weight",   "layers.{i}.attention_post_norm.scale"),
        Rule("model.layers.{i}.post_feedforward_layernorm.weight", "layers.{i}.feed_forward_post_norm.scale"),
        Rule("model.norm.weight",                                  "norm.scale"),
    ]
    # fmt: on
