"""Mixtral's key table: the keys of Hugging Face's MixtralForCausalLM beside ours."""

from scratch_core.weights import Copy, Rule, split_in, split_out, transpose

from scratch_mixtral.config import MixtralConfig


def rules(config: MixtralConfig) -> list[Rule | Copy]:
    """Return theirs | ours | transform. N query heads, K key/value heads, H head width; {e} is an expert's number."""
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
        Rule("model.layers.{i}.block_sparse_moe.gate.weight",            "layers.{i}.feed_forward.router.kernel", transpose),
        Rule("model.layers.{i}.block_sparse_moe.experts.{e}.w1.weight",  "layers.{i}.feed_forward.experts.gate.kernel", transpose),
        Rule("model.layers.{i}.block_sparse_moe.experts.{e}.w3.weight",  "layers.{i}.feed_forward.experts.up.kernel",   transpose),
        Rule("model.layers.{i}.block_sparse_moe.experts.{e}.w2.weight",  "layers.{i}.feed_forward.experts.down.kernel", transpose),
        Rule("model.norm.weight",                                        "norm.scale"),
        Rule("lm_head.weight",                                           "head.kernel", transpose),
    ]
    # fmt: on
    if config.tie_embeddings:
        return [*table, Copy("lm_head.weight", of="model.embed_tokens.weight")]
    return table
