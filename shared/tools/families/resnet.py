"""Random ResNets: both blocks, any number of stages, v1 and v1.5."""

from families import pick, some

ARCHITECTURE = "ResNetForImageClassification"


def random_config(rng):
    """Return the fields of a small config.json."""
    stages = pick(rng, 1, 2, 3, 4)
    depths = [pick(rng, 1, 1, 2, 3) for _ in range(stages)]
    widths = [pick(rng, 8, 12, 16, 20) for _ in range(stages)]
    if rng.random() < 0.1:
        widths[0] = 10  # not a multiple of 4, as a bottleneck needs
    fields = {
        "depths": depths,
        "hidden_sizes": widths,
        "embedding_size": pick(rng, 4, 8, widths[0]),
    }
    optional = {
        "num_channels": pick(rng, 1, 3, 4),
        "layer_type": pick(rng, "basic", "bottleneck"),
        "hidden_act": pick(rng, "relu", "relu", "relu", "gelu"),
        "downsample_in_first_stage": pick(rng, True, False),
        "downsample_in_bottleneck": pick(rng, True, False),
    }
    labels = pick(rng, {"num_labels": pick(rng, 1, 2, 7)}, {"id2label": {"0": "cat", "1": "dog", "2": "cow"}}, {})
    return fields | some(rng, optional, 0.7) | labels
