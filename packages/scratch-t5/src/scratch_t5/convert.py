"""T5's key table: the keys of Hugging Face's T5ForConditionalGeneration beside ours."""

from scratch_core.weights import Copy, Rule, split_in, split_out, transpose

from scratch_t5.config import T5Config


def rules(config: T5Config) -> list[Rule | Copy]:
    """Return theirs | ours | transform. N heads, H head width.

    The table of relative positions belongs to the whole stack here, and to its first layer there.
    """
    N, H = config.num_heads, config.head_dim
    # fmt: off
    table: list[Rule | Copy] = [
        Rule("shared.weight", "embedding.embedding"),
        Rule("encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight", "encoder.position_bias.embedding"),
        Rule("encoder.block.{i}.layer.0.layer_norm.weight",         "encoder.layers.{i}.attention_norm.scale"),
        Rule("encoder.block.{i}.layer.0.SelfAttention.q.weight",    "encoder.layers.{i}.attention.query.kernel", split_out(N, H)),
        Rule("encoder.block.{i}.layer.0.SelfAttention.k.weight",    "encoder.layers.{i}.attention.key.kernel",   split_out(N, H)),
        Rule("encoder.block.{i}.layer.0.SelfAttention.v.weight",    "encoder.layers.{i}.attention.value.kernel", split_out(N, H)),
        Rule("encoder.block.{i}.layer.0.SelfAttention.o.weight",    "encoder.layers.{i}.attention.out.kernel",   split_in(N, H)),
        Rule("encoder.block.{i}.layer.1.layer_norm.weight",         "encoder.layers.{i}.feed_forward_norm.scale"),
        Rule("encoder.block.{i}.layer.1.DenseReluDense.wi.weight",  "encoder.layers.{i}.feed_forward.up.kernel",   transpose),
        Rule("encoder.block.{i}.layer.1.DenseReluDense.wo.weight",  "encoder.layers.{i}.feed_forward.down.kernel", transpose),
        Rule("encoder.final_layer_norm.weight",                     "encoder.norm.scale"),

        Rule("decoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight", "decoder.position_bias.embedding"),
        Rule("decoder.block.{i}.layer.0.layer_norm.weight",         "decoder.layers.{i}.attention_norm.scale"),
        Rule("decoder.block.{i}.layer.0.SelfAttention.q.weight",    "decoder.layers.{i}.attention.query.kernel", split_out(N, H)),
        Rule("decoder.block.{i}.layer.0.SelfAttention.k.weight",    "decoder.layers.{i}.attention.key.kernel",   split_out(N, H)),
        Rule("decoder.block.{i}.layer.0.SelfAttention.v.weight",    "decoder.layers.{i}.attention.value.kernel", split_out(N, H)),
        Rule("decoder.block.{i}.layer.0.SelfAttention.o.weight",    "decoder.layers.{i}.attention.out.kernel",   split_in(N, H)),
        Rule("decoder.block.{i}.layer.1.layer_norm.weight",         "decoder.layers.{i}.cross_attention_norm.scale"),
        Rule("decoder.block.{i}.layer.1.EncDecAttention.q.weight",  "decoder.layers.{i}.cross_attention.query.kernel", split_out(N, H)),
        Rule("decoder.block.{i}.layer.1.EncDecAttention.k.weight",  "decoder.layers.{i}.cross_attention.key.kernel",   split_out(N, H)),
        Rule("decoder.block.{i}.layer.1.EncDecAttention.v.weight",  "decoder.layers.{i}.cross_attention.value.kernel", split_out(N, H)),
        Rule("decoder.block.{i}.layer.1.EncDecAttention.o.weight",  "decoder.layers.{i}.cross_attention.out.kernel",   split_in(N, H)),
        Rule("decoder.block.{i}.layer.2.layer_norm.weight",         "decoder.layers.{i}.feed_forward_norm.scale"),
        Rule("decoder.block.{i}.layer.2.DenseReluDense.wi.weight",  "decoder.layers.{i}.feed_forward.up.kernel",   transpose),
        Rule("decoder.block.{i}.layer.2.DenseReluDense.wo.weight",  "decoder.layers.{i}.feed_forward.down.kernel", transpose),
        Rule("decoder.final_layer_norm.weight",                     "decoder.norm.scale"),
        Rule("lm_head.weight",                                      "head.kernel", transpose),
        # The embedding, which old files hold three times:
        Copy("encoder.embed_tokens.weight", of="shared.weight"),
        Copy("decoder.embed_tokens.weight", of="shared.weight"),
    ]
    gated = [
        Rule("encoder.block.{i}.layer.1.DenseReluDense.wi_0.weight", "encoder.layers.{i}.feed_forward.gate.kernel", transpose),
        Rule("encoder.block.{i}.layer.1.DenseReluDense.wi_1.weight", "encoder.layers.{i}.feed_forward.up.kernel",   transpose),
        Rule("decoder.block.{i}.layer.2.DenseReluDense.wi_0.weight", "decoder.layers.{i}.feed_forward.gate.kernel", transpose),
        Rule("decoder.block.{i}.layer.2.DenseReluDense.wi_1.weight", "decoder.layers.{i}.feed_forward.up.kernel",   transpose),
    ]
    # fmt: on
    if config.is_gated:
        table = [row for row in table if ".wi." not in row.theirs] + gated
    if config.tie_embeddings:
        table.append(Copy("lm_head.weight", of="shared.weight"))
    return table
