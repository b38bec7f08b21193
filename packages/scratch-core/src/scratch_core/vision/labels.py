"""Names of the classes, and the fields id2label and label2id of a config.json that hold them."""

from collections.abc import Mapping
from typing import Any

from scratch_core.config import field
from scratch_core.errors import ConfigError

MAX_CLASSES = 1_000_000
"""The largest number of classes that a config.json without class names may give."""


def label(config: Any, index: int) -> str:
    """Return the name of a class; ``LABEL_3`` where the checkpoint names none, as Hugging Face does."""
    return config.labels[index] if config.labels else f"LABEL_{index}"


def read_labels(fields: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the class names of a config.json's id2label, in the order of their numbers.

    Without id2label the classes are LABEL_0 and so on, ``num_labels`` of them (2 unless given, as in
    transformers). Raises ConfigError if the numbers are not 0, 1, 2 ... or contradict num_labels.
    """
    names = field(fields, "id2label", dict, None)
    if names is None:
        count = field(fields, "num_labels", int, 2)
        if not 0 < count <= MAX_CLASSES:
            raise ConfigError(f"config.json: num_labels={count} must be 1 to {MAX_CLASSES:,}")
        return tuple(f"LABEL_{i}" for i in range(count))
    count = field(fields, "num_labels", int, len(names))
    by_number = {str(number): str(name) for number, name in names.items()}
    if len(by_number) != count or set(by_number) != {str(i) for i in range(count)}:
        raise ConfigError(f"config.json: id2label must name the classes 0 to {count - 1}, found {len(by_number)} names")
    return tuple(by_number[str(i)] for i in range(count))


def labels_to_hf(config: Any) -> dict[str, Any]:
    """Return ``id2label`` and ``label2id`` of a configuration with ``labels`` and ``num_classes``."""
    names = [label(config, i) for i in range(config.num_classes)]
    return {"id2label": {str(i): name for i, name in enumerate(names)}, "label2id": {n: i for i, n in enumerate(names)}}


def check_labels(config: Any) -> None:
    """Raise ConfigError unless a configuration names each of its classes, or none."""
    if config.labels and len(config.labels) != config.num_classes:
        raise ConfigError(f"num_classes={config.num_classes} must equal the number of labels, {len(config.labels)}")
