"""Random ViTs: oblong images and patches, sizes that the patches do not divide."""

from families import pick, some

ARCHITECTURE = "ViTForImageClassification"


def random_config(rng):
    """Return the fields of a small config.json."""
    heads = pick(rng, 1, 2, 3)
    fields = {
        "hidden_size": heads * pick(rng, 4, 5, 8),
        "num_hidden_layers": pick(rng, 1, 2, 3),
        "num_attention_heads": heads,
        "intermediate_size": pick(rng, 7, 32, 48),
        "image_size": pick(rng, 16, 18, 24, [16, 24], [24, 8]),
        "patch_size": pick(rng, 4, 8, [4, 8], [8, 2]),
    }
    optional = {
        "num_channels": pick(rng, 1, 3, 4),
        "qkv_bias": pick(rng, True, False),
        "layer_norm_eps": pick(rng, 1e-12, 1e-6, 1e-3),
        "hidden_act": pick(rng, "gelu", "gelu", "gelu", "gelu_new", "relu"),
        "hidden_dropout_prob": pick(rng, 0.0, 0.1),
        "attention_probs_dropout_prob": pick(rng, 0.0, 0.1),
        "pooler_act": pick(rng, "tanh", "relu"),
        "encoder_stride": pick(rng, 4, 16),
    }
    labels = pick(rng, {"num_labels": pick(rng, 1, 2, 7)}, {"id2label": {"0": "cat", "1": "dog", "2": "cow"}}, {})
    return fields | some(rng, optional) | labels
