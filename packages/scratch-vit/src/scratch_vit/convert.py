"""ViT's key table: the keys of Hugging Face's ViTForImageClassification beside ours."""

from scratch_core.weights import Copy, Rule, conv, split_bias, split_in, split_out, transpose

from scratch_vit.config import ViTConfig

AXES = {"classifier.kernel": ("embed", "vocab")}


def rules(config: ViTConfig) -> list[Rule | Copy]:
    """Return theirs | ours | transform. N heads, H head width."""
    N, H = config.num_heads, config.d_model // config.num_heads
    # fmt: off
    return [
        Rule("vit.embeddings.cls_token",                              "class_token"),
        Rule("vit.embeddings.position_embeddings",                    "positions"),
        Rule("vit.embeddings.patch_embeddings.projection.weight",     "patches.kernel", conv),
        Rule("vit.embeddings.patch_embeddings.projection.bias",       "patches.bias"),
        Rule("vit.encoder.layer.{i}.layernorm_before.weight",         "layers.{i}.attention_norm.scale"),
        Rule("vit.encoder.layer.{i}.layernorm_before.bias",           "layers.{i}.attention_norm.bias"),
        Rule("vit.encoder.layer.{i}.attention.attention.query.weight", "layers.{i}.attention.query.kernel", split_out(N, H)),
        Rule("vit.encoder.layer.{i}.attention.attention.query.bias",  "layers.{i}.attention.query.bias",   split_bias(N, H)),
        Rule("vit.encoder.layer.{i}.attention.attention.key.weight",  "layers.{i}.attention.key.kernel",   split_out(N, H)),
        Rule("vit.encoder.layer.{i}.attention.attention.key.bias",    "layers.{i}.attention.key.bias",     split_bias(N, H)),
        Rule("vit.encoder.layer.{i}.attention.attention.value.weight", "layers.{i}.attention.value.kernel", split_out(N, H)),
        Rule("vit.encoder.layer.{i}.attention.attention.value.bias",  "layers.{i}.attention.value.bias",   split_bias(N, H)),
        Rule("vit.encoder.layer.{i}.attention.output.dense.weight",   "layers.{i}.attention.out.kernel",   split_in(N, H)),
        Rule("vit.encoder.layer.{i}.attention.output.dense.bias",     "layers.{i}.attention.out.bias"),
        Rule("vit.encoder.layer.{i}.layernorm_after.weight",          "layers.{i}.feed_forward_norm.scale"),
        Rule("vit.encoder.layer.{i}.layernorm_after.bias",            "layers.{i}.feed_forward_norm.bias"),
        Rule("vit.encoder.layer.{i}.intermediate.dense.weight",       "layers.{i}.feed_forward.up.kernel",   transpose),
        Rule("vit.encoder.layer.{i}.intermediate.dense.bias",         "layers.{i}.feed_forward.up.bias"),
        Rule("vit.encoder.layer.{i}.output.dense.weight",             "layers.{i}.feed_forward.down.kernel", transpose),
        Rule("vit.encoder.layer.{i}.output.dense.bias",               "layers.{i}.feed_forward.down.bias"),
        Rule("vit.layernorm.weight",                                  "norm.scale"),
        Rule("vit.layernorm.bias",                                    "norm.bias"),
        Rule("classifier.weight",                                     "classifier.kernel", transpose),
        Rule("classifier.bias",                                       "classifier.bias"),
    ]
    # fmt: on
