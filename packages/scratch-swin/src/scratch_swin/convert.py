"""Swin V2's key table: the keys of Hugging Face's Swinv2ForImageClassification beside ours."""

from scratch_core.weights import Copy, Rule, conv, split_bias, split_in, split_out, transpose

from scratch_swin.config import SwinConfig

# Tables that older checkpoints hold although they follow from the config.
BUFFERS = (r".*\.relative_(position_index|coords_table)", r".*\.attn_mask")
AXES = {"classifier.kernel": ("embed", "vocab")}


def rules(config: SwinConfig) -> list[Rule | Copy]:
    """Return theirs | ours | transform. N heads, H head width; both are the stage's."""
    # fmt: off
    table: list[Rule | Copy] = [
        Rule("swinv2.embeddings.patch_embeddings.projection.weight", "patches.kernel", conv),
        Rule("swinv2.embeddings.patch_embeddings.projection.bias",   "patches.bias"),
        Rule("swinv2.embeddings.norm.weight",                        "patch_norm.scale"),
        Rule("swinv2.embeddings.norm.bias",                          "patch_norm.bias"),
        Rule("swinv2.encoder.layers.{i}.downsample.reduction.weight", "stages.{i}.merge.reduction.kernel", transpose),
        Rule("swinv2.encoder.layers.{i}.downsample.norm.weight",     "stages.{i}.merge.norm.scale"),
        Rule("swinv2.encoder.layers.{i}.downsample.norm.bias",       "stages.{i}.merge.norm.bias"),
        Rule("swinv2.layernorm.weight",                              "norm.scale"),
        Rule("swinv2.layernorm.bias",                                "norm.bias"),
        Rule("classifier.weight",                                    "classifier.kernel", transpose),
        Rule("classifier.bias",                                      "classifier.bias"),
    ]
    for stage, N in enumerate(config.num_heads):
        H = config.width(stage) // N
        theirs, ours = f"swinv2.encoder.layers.{stage}.blocks.{{j}}", f"stages.{stage}.blocks.{{j}}"
        attention = f"{theirs}.attention.self"
        table += [
            Rule(f"{attention}.query.weight",                   f"{ours}.attention.query.kernel", split_out(N, H)),
            Rule(f"{attention}.query.bias",                     f"{ours}.attention.query.bias",   split_bias(N, H)),
            Rule(f"{attention}.key.weight",                     f"{ours}.attention.key.kernel",   split_out(N, H)),
            Rule(f"{attention}.value.weight",                   f"{ours}.attention.value.kernel", split_out(N, H)),
            Rule(f"{attention}.value.bias",                     f"{ours}.attention.value.bias",   split_bias(N, H)),
            Rule(f"{theirs}.attention.output.dense.weight",     f"{ours}.attention.out.kernel",   split_in(N, H)),
            Rule(f"{theirs}.attention.output.dense.bias",       f"{ours}.attention.out.bias"),
            Rule(f"{attention}.logit_scale",                    f"{ours}.attention.log_scale"),
            Rule(f"{attention}.continuous_position_bias_mlp.0.weight", f"{ours}.attention.distance_hidden.kernel", transpose),
            Rule(f"{attention}.continuous_position_bias_mlp.0.bias",   f"{ours}.attention.distance_hidden.bias"),
            Rule(f"{attention}.continuous_position_bias_mlp.2.weight", f"{ours}.attention.distance_bias.kernel", transpose),
            # Hugging Face kept the names of V1, where these norms come before the branches:
            Rule(f"{theirs}.layernorm_before.weight",           f"{ours}.attention_norm.scale"),
            Rule(f"{theirs}.layernorm_before.bias",             f"{ours}.attention_norm.bias"),
            Rule(f"{theirs}.layernorm_after.weight",            f"{ours}.feed_forward_norm.scale"),
            Rule(f"{theirs}.layernorm_after.bias",              f"{ours}.feed_forward_norm.bias"),
            Rule(f"{theirs}.intermediate.dense.weight",         f"{ours}.feed_forward.up.kernel",   transpose),
            Rule(f"{theirs}.intermediate.dense.bias",           f"{ours}.feed_forward.up.bias"),
            Rule(f"{theirs}.output.dense.weight",               f"{ours}.feed_forward.down.kernel", transpose),
            Rule(f"{theirs}.output.dense.bias",                 f"{ours}.feed_forward.down.bias"),
        ]
    # fmt: on
    return table
