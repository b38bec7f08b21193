"""Random Swin V2s: shifted and padded windows, positions trained at other windows, oblong images."""

from families import pick, some

ARCHITECTURE = "Swinv2ForImageClassification"
LOGITS = 3e-4


def random_config(rng):
    """Return the fields of a small config.json."""
    stages = pick(rng, 1, 2, 3)
    heads = [pick(rng, 1, 2, 3) for _ in range(stages)]
    fields = {
        "embed_dim": 12 if rng.random() < 0.95 else 10,
        "depths": [pick(rng, 1, 2, 2, 3) for _ in range(stages)],
        "num_heads": heads,
        "window_size": pick(rng, 2, 3, 4, 7),
        "image_size": pick(rng, 16, 28, 32, 36, [16, 32], [32, 24]),
        "patch_size": pick(rng, 2, 4, 4),
    }
    optional = {
        "pretrained_window_sizes": pick(rng, [0] * 4, [0] * stages, [6] * stages, [6, 3, 0][:stages]),
        "num_channels": pick(rng, 1, 3, 4),
        "mlp_ratio": pick(rng, 1.0, 2.5, 4.0),
        "qkv_bias": pick(rng, True, False),
        "layer_norm_eps": pick(rng, 1e-6, 1e-5, 1e-3),
        "hidden_act": pick(rng, "gelu", "gelu", "gelu", "relu"),
        "use_absolute_embeddings": pick(rng, False, False, True),
        "hidden_dropout_prob": pick(rng, 0.0, 0.1),
        "drop_path_rate": pick(rng, 0.0, 0.2),
    }
    labels = pick(rng, {"num_labels": pick(rng, 1, 2, 7)}, {"id2label": {"0": "cat", "1": "dog", "2": "cow"}}, {})
    return fields | some(rng, optional, 0.4) | labels
