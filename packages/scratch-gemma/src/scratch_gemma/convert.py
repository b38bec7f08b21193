"""The key tables: the keys of Hugging Face's GemmaForCausalLM and Gemma2ForCausalLM beside ours.

``post_attention_layernorm`` names two different layers: the norm before the feed-forward layer in Gemma, and the norm
after attention in Gemma 2.
"""

from scratch_core.weights import Copy, Rule, split_in, split_out, transpose

from scratch_gemma.config import Gemma2Config, GemmaConfig

# fmt: off
GEMMA_NORMS = [
    Rule("model.layers.{i}.input_layernorm.weight",            "layers.{i}.attention_norm.scale"),
    Rule("model.layers.{i}.post_attention_layernorm.weight",   "layers.{i}.feed_forward_norm.scale"),
]
GEMMA2_NORMS = [
    Rule("model.layers.{i}.input_layernorm.weight",            "layers.{i}.attention_norm.scale"),
    Rule("model.layers.{i}.post_attention_layernorm.weight",   "layers.{i}.attention_post_norm.scale"),
    Rule("model.layers.{i}.pre_feedforward_layernorm.weight",  "layers.{i}.feed_forward_norm.scale"),
    Rule("model.layers.{i}.post_feedforward_layernorm.weight", "layers.{i}.feed_forward_post_norm.scale"),
]
# fmt: on


def gemma_rules(config: GemmaConfig) -> list[Rule | Copy]:
    """Return theirs | ours | transform for Gemma."""
    return [*_shared(config), *GEMMA_NORMS]


def gemma2_rules(config: Gemma2Config) -> list[Rule | Copy]:
    """Return theirs | ours | transform for Gemma 2."""
    return [*_shared(config), *GEMMA2_NORMS]


def _shared(config: GemmaConfig | Gemma2Config) -> list[Rule | Copy]:
    """Return the rows that both tables share. N query heads, K key/value heads, H head width."""
    N, K, H = config.num_heads, config.num_kv_heads, config.head_dim
    # fmt: off
    return [
        Rule("model.embed_tokens.weight",                      "embedding.embedding"),
        Rule("model.layers.{i}.self_attn.q_proj.weight",       "layers.{i}.attention.query.kernel", split_out(N, H)),
        Rule("model.layers.{i}.self_attn.k_proj.weight",       "layers.{i}.attention.key.kernel",   split_out(K, H)),
        Rule("model.layers.{i}.self_attn.v_proj.weight",       "layers.{i}.attention.value.kernel", split_out(K, H)),
        Rule("model.layers.{i}.self_attn.o_proj.weight",       "layers.{i}.attention.out.kernel",   split_in(N, H)),
        Rule("model.layers.{i}.mlp.gate_proj.weight",          "layers.{i}.feed_forward.gate.kernel", transpose),
        Rule("model.layers.{i}.mlp.up_proj.weight",            "layers.{i}.feed_forward.up.kernel",   transpose),
        Rule("model.layers.{i}.mlp.down_proj.weight",          "layers.{i}.feed_forward.down.kernel", transpose),
        Rule("model.norm.weight",                              "norm.scale"),
        Copy("lm_head.weight", of="model.embed_tokens.weight"),
    ]
    # fmt: on
