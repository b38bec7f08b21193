"""Fine-tuning of any model: which parameters are trained, by their paths, and a new head for new classes.

replace_head(model, ("cat", "dog"), rngs=rngs)
trainer = Trainer(model, optimizer, loss, trainable=freeze(model, "*", keep=("classifier.*",)))
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from flax import nnx

from scratch_core.config import architectures, read_json
from scratch_core.errors import ConfigError
from scratch_core.layers import Linear
from scratch_core.paths import matches, unmatched
from scratch_core.weights import Rule, load, open_folder


def freeze(model: nnx.Module, *patterns: str, keep: Sequence[str] = ()) -> Callable[..., bool]:
    """Freeze the parameters that the patterns name, and return the nnx filter of those that are still trained.

    A parameter is frozen if its dotted path matches one of ``patterns`` and none of ``keep``; ``*`` stands for any
    characters. The filter is for ``Trainer(trainable=...)``. If all variables of a module with an attribute ``frozen``,
    such as a batch norm, are frozen, the module normalises with its running statistics in training and no longer
    updates them. If one of its variables is still trained, it works as before. Raises ConfigError for a pattern that
    matches no parameter, and if nothing is left to train.
    """

    def is_frozen(path: tuple[Any, ...]) -> bool:
        name = ".".join(map(str, path))
        return matches(name, *patterns) and not matches(name, *keep)

    parameters = [path for path, _ in nnx.to_flat_state(nnx.state(model, nnx.Param))]
    names = [".".join(map(str, path)) for path in parameters]
    if wrong := unmatched((*patterns, *keep), names):
        raise ConfigError(
            f"{wrong} match no parameter of {type(model).__name__}; its parameters are {', '.join(names[:8])}"
            f"{' ...' if len(names) > 8 else ''}: correct the patterns"
        )
    if all(is_frozen(path) for path in parameters):
        raise ConfigError(f"patterns={list(patterns)} freeze every parameter: name those to train in keep=(...)")
    for path, module in nnx.iter_modules(model):
        if hasattr(module, "frozen"):
            variables = [(*path, *inner) for inner, _ in nnx.to_flat_state(nnx.state(module))]
            setattr(module, "frozen", all(map(is_frozen, variables)))  # noqa: B010, whatever the module's class
    return lambda path, value: nnx.filterlib.to_predicate(nnx.Param)(path, value) and not is_frozen(path)


def replace_head(model: Any, labels: Sequence[str], *, rngs: nnx.Rngs) -> None:
    """Replace ``model.classifier`` by a new linear layer for these classes; the rest stays as it is.

    The new head has the ``in_features`` and ``dtype`` of the old one, and ``model.config.with_labels(labels)`` gives
    the new configuration. Raises ConfigError without labels.
    """
    if not labels:
        raise ConfigError("labels=() must name at least one class")
    old = model.classifier
    model.classifier = Linear(old.in_features, len(labels), dtype=old.dtype, rngs=rngs)
    model.config = model.config.with_labels(tuple(labels))


def start_from(model_class: Any, folder: Path, labels: tuple[str, ...] | None, *, rngs: nnx.Rngs) -> Any:
    """Return the checkpoint of a folder as ``model_class``, even if it was saved with another head.

    Parameters outside of the layers that the file lacks, such as those of a head or a pooler, are initialised with
    ``rngs``. Keys that the class does not use are skipped. ``labels`` name the classes to learn: a ``classifier`` for
    other classes is replaced; None: the classes stay. Raises CheckpointError if the file lacks a parameter of a layer.
    """
    fields = read_json(folder / "config.json")
    config = model_class.Config.from_hf(fields)
    names = architectures(fields)
    same_head = any(name in model_class.architectures for name in names)
    if same_head and labels in (None, config.labels):
        return load(folder, model_class)
    config = config if labels is None else config.with_labels(labels)
    prefix = next((model_class.trunks[name] for name in names if name in model_class.trunks), "")
    with open_folder(folder) as files:
        held = {model_class.rename(key if key.startswith(prefix) else prefix + key) for key in files}
    rows = [row for row in model_class.rules(config) if isinstance(row, Rule) and "{" not in row.theirs]
    fresh = {row.ours for row in rows if row.theirs not in held or row.ours.startswith("classifier.")}
    return load(folder, model_class, config=config, fresh=tuple(sorted(fresh)), ignore=("*",), rngs=rngs)
