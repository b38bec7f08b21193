"""Llama's key table: the keys of Hugging Face's LlamaForCausalLM beside ours."""

from scratch_core.weights import Copy, Rule, split_bias, split_in, split_out, transpose

from scratch_llama.config import LlamaConfig


def rules(config: LlamaConfig) -> list[Rule | Copy]:
    """Return theirs | ours | transform. N query heads, K key/value heads, H head width."""
    N, K, H = config.num_heads, config.num_kv_heads, config.head_dim
    # fmt: off
    table = [
        Rule("model.embed_tokens.weight",                                "embedding.embedding"),
        Rule("model.layers.{i}.input_layernorm.weight",                  "layers.{i}.attention_norm.scale"),
        Rule("model.layers.{i}.self_attn.q_proj.weight",                 "layers.{i}.attention.query.kernel", split_out(N, H)),
        Rule("model.layers.{i}.self_attn.k_proj.weight",                 "layers.{i}.attention.key.kernel",   split_out(K, H)),
        Rule("model.layers.{i}.self_attn.v_proj.weight",                 "layers.{i}.attention.value.kernel", split_out(K, H)),
        Rule("model.layers.{i}.self_attn.o_proj.weight",                 "layers.{i}.attention.out.kernel",   split_in(N, H)),
        Rule("model.layers.{i}.post_attention_layernorm.weight",         "layers.{i}.feed_forward_norm.scale"),
        Rule("model.layers.{i}.mlp.gate_proj.weight",                    "layers.{i}.feed_forward.gate.kernel", transpose),
        Rule("model.layers.{i}.mlp.up_proj.weight",                      "layers.{i}.feed_forward.up.kernel",   transpose),
        Rule("model.layers.{i}.mlp.down_proj.weight",                    "layers.{i}.feed_forward.down.kernel", transpose),
        Rule("model.norm.weight",                                        "norm.scale"),
        Rule("lm_head.weight",                                           "head.kernel", transpose),
        # Only with attention_bias and mlp_bias, which no released Llama sets:
        Rule("model.layers.{i}.self_attn.q_proj.bias",                   "layers.{i}.attention.query.bias", split_bias(N, H)),
        Rule("model.layers.{i}.self_attn.k_proj.bias",                   "layers.{i}.attention.key.bias",   split_bias(K, H)),
        Rule("model.layers.{i}.self_attn.v_proj.bias",                   "layers.{i}.attention.value.bias", split_bias(K, H)),
        Rule("model.layers.{i}.self_attn.o_proj.bias",                   "layers.{i}.attention.out.bias"),
        Rule("model.layers.{i}.mlp.gate_proj.bias",                      "layers.{i}.feed_forward.gate.bias"),
        Rule("model.layers.{i}.mlp.up_proj.bias",                        "layers.{i}.feed_forward.up.bias"),
        Rule("model.layers.{i}.mlp.down_proj.bias",                      "layers.{i}.feed_forward.down.bias"),
    ]
    # fmt: on
    if config.tie_embeddings:
        return [*table, Copy("lm_head.weight", of="model.embed_tokens.weight")]
    return table
