"""Fine-tuning: which parameters are trained, and a new head for new classes. Functions over paths, for any model.

replace_head(model, ("cat", "dog"), rngs=rngs)
trainer = Trainer(model, optimizer, loss, trainable=freeze(model, "*", keep=("classifier.*",)))
"""

from collections.abc import Callable, Sequence
from typing import Any

from flax import nnx

from scratch_core.errors import ConfigError
from scratch_core.layers import Linear
from scratch_core.paths import matches, unmatched


def freeze(model: nnx.Module, *patterns: str, keep: Sequence[str] = ()) -> Callable[..., bool]:
    """Freeze the parameters that the patterns name, and return the nnx filter of those that are still trained.

    A parameter is frozen if its dotted path matches one of ``patterns`` and none of ``keep``; ``*`` stands for any
    characters. The filter is for ``Trainer(trainable=...)``. A module with an attribute ``frozen``, such as a batch
    norm, whose variables are all frozen no longer moves its running statistics in training, and normalises with them;
    one that has a variable left to train does as before. Raises ConfigError for a pattern that matches no parameter,
    and if nothing is left to train.
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
    """Put a new linear layer for these classes in the place of ``model.classifier``; the rest stays as it is.

    The old head tells its ``in_features`` and ``dtype``, and ``model.config.with_labels(labels)`` gives the new
    configuration. Raises ConfigError without labels.
    """
    if not labels:
        raise ConfigError("labels=() must name at least one class")
    old = model.classifier
    model.classifier = Linear(old.in_features, len(labels), dtype=old.dtype, rngs=rngs)
    model.config = model.config.with_labels(tuple(labels))
