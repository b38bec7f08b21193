"""LoRA for any model: adapters on the linear layers that patterns name, and a copy of the model that holds them.

add_lora(model, "*.attention.query", "*.attention.value", rank=8, rngs=nnx.Rngs(0))
trainer = Trainer(model, optimizer, trainable=LoRAParam)
save_lora(model, folder)                           # the adapters alone: lora_files.py
merge_lora(model).save_pretrained(other_folder)    # a model like any other
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any

from flax import nnx

from scratch_core.errors import ConfigError
from scratch_core.layers import Linear, LoRALinear, ScannedBlocks
from scratch_core.paths import matches, unmatched


def add_lora(model: nnx.Module, *patterns: str, rank: int = 8, alpha: float = 16.0, rngs: nnx.Rngs) -> list[str]:
    """Put an adapter beside the kernel of each linear layer that the patterns name; return the layers' paths.

    A pattern is a dotted path such as ``layers.*.attention.query``, in which ``*`` stands for any characters. The
    outputs do not change: B is zero. Train with ``Trainer(..., trainable=LoRAParam)``, which leaves every bit of the
    base as it is. Raises ConfigError for a pattern that names no linear layer, for a tied head, for a layer that has an
    adapter, and if rank is not smaller than both sides of a kernel.
    """
    layers = dict(linear_layers(model))
    if not patterns:
        raise ConfigError("LoRA needs at least one pattern of linear layers, such as '*.query'")
    _check_patterns(model, patterns, layers)
    chosen = {path: layer for path, layer in layers.items() if matches(path, *patterns)}
    for path, layer in chosen.items():
        check_bare(path, layer)
        inputs, outputs = sides(layer)
        if not 1 <= rank < min(inputs, outputs):
            raise ConfigError(
                f"rank={rank} must be at least 1 and less than both sides of the kernel of {path} ({inputs} x "
                f"{outputs}): an adapter is smaller than its layer"
            )
    for path, layer in chosen.items():
        replace_layer(model, path, LoRALinear(layer, rank, alpha, rngs=rngs))
    return list(chosen)


def merge_lora(model: Any) -> Any:
    """Return a copy without adapters whose kernels hold them; it shares all other arrays with ``model``.

    Raises ConfigError if the model has no adapter.
    """
    copy = nnx.clone(model)
    for path, layer in adapters(copy).items():
        replace_layer(copy, path, layer.merged())
    return copy


def linear_layers(model: nnx.Module) -> Iterator[tuple[str, Any]]:
    """Yield (dotted path, layer) of the layers that are nothing but a linear layer; ConfigError if some are scanned."""
    for path, module in nnx.iter_modules(model):
        if isinstance(module, ScannedBlocks):
            raise ConfigError(
                "LoRA on scanned layers, which hold many kernels in one array: call add_lora before scan_layers, and "
                "unscan_layers before the adapters are merged or saved"
            )
        if type(module) in (Linear, LoRALinear, nnx.Linear):
            yield ".".join(map(str, path)), module


def _check_patterns(model: Any, patterns: tuple[str, ...], layers: Mapping[str, Any]) -> None:
    wrong = unmatched(patterns, layers)
    if not wrong:
        return
    others = {".".join(map(str, path)): type(module).__name__ for path, module in nnx.iter_modules(model)}
    tied = getattr(getattr(model, "config", None), "tie_embeddings", False)
    for pattern in wrong:
        names = [path for path in others if path and matches(path, pattern)]
        if tied and (matches("head", pattern) or any("embedding" in name for name in names)):
            raise ConfigError(
                f"LoRA on {pattern!r}: the head of this {type(model).__name__} is its embedding (tie_embeddings=True), "
                "one array with two uses. An adapter would change one use alone, and could not be merged without "
                "changing both: choose linear layers inside of the blocks"
            )
        if names:
            raise ConfigError(f"LoRA on {names[0]}: this is a {others[names[0]]}, not a linear layer")
    known = ", ".join(list(layers)[:8]) + (" ..." if len(layers) > 8 else "")
    raise ConfigError(f"{wrong} match no linear layer of {type(model).__name__}; it has {known}: correct the patterns")


def adapters(model: nnx.Module) -> dict[str, LoRALinear]:
    """Return {dotted path: adapted layer}. Raises ConfigError if there is none."""
    found = {path: layer for path, layer in linear_layers(model) if isinstance(layer, LoRALinear)}
    if not found:
        raise ConfigError(f"this {type(model).__name__} has no adapter: call add_lora or load_lora first")
    return found


def check_bare(path: str, layer: Any) -> None:
    """Raise ConfigError if the layer at ``path`` has an adapter."""
    if isinstance(layer, LoRALinear):
        raise ConfigError(f"{path} has an adapter of rank {layer.rank} already: merge it first with merge_lora(model)")


def sides(layer: Any) -> tuple[int, int]:
    """Return the numbers of inputs and outputs of a linear layer."""
    inputs, outputs = (math.prod((n,) if isinstance(n, int) else n) for n in (layer.in_features, layer.out_features))
    return inputs, outputs


def replace_layer(model: nnx.Module, path: str, layer: nnx.Module) -> None:
    """Put a layer at a dotted path of the model."""
    parent: Any = model
    *parents, name = path.split(".")
    for part in parents:
        parent = parent[int(part)] if part.isdigit() else getattr(parent, part)
    if name.isdigit():
        parent[int(name)] = layer
    else:
        setattr(parent, name, layer)
