"""The base of every model that has a checkpoint format."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import jax
import jax.numpy as jnp
from flax import nnx

from scratch_core import weights
from scratch_core.config import architectures

if TYPE_CHECKING:
    from jax.sharding import Mesh


class PretrainedModel(nnx.Module):
    """Base of every model: ``Model(config, *, dtype, rngs)``.

    ``dtype`` is what the layers compute in; parameters are created float32.
    """

    Config: ClassVar[Any]
    """Frozen dataclass with ``from_hf(fields) -> Config`` and ``to_hf() -> dict`` (with "model_type")."""
    task: ClassVar[str]
    """Name of the model's task, such as "causal_lm"; see ``scratch_core.tasks``."""
    architectures: ClassVar[tuple[str, ...]]
    """Names in config.json's "architectures" that mean this class; the first one is written."""
    trunks: ClassVar[Mapping[str, str]] = {}
    """Names in "architectures" of this model without its head, each with the prefix that its keys then lack.

    Llama's is {"LlamaModel": "model."}. Such a folder is loaded with the head in ``fresh``.
    """
    unread: ClassVar[tuple[str, ...]] = ()
    """Patterns of keys that files of this model may hold and this class does not use, such as "vit.pooler.*"."""
    buffers: ClassVar[tuple[str, ...]] = ()
    """Regular expressions for their keys that hold nothing learned, such as tables computed from the config."""
    axes: ClassVar[Mapping[str, tuple[str | None, ...]]] = {}
    """Rows that the sharding table of :mod:`scratch_core.parallel` lacks: parameter path -> logical axes."""
    decayed: ClassVar[tuple[str, ...]] = ()
    """Patterns (``*`` matches anything) of parameters with weight decay, in addition to the kernels of products."""

    config: Any
    checkpoint_dtype: str | None = None
    """Dtype that :func:`scratch_core.save` writes, such as "bfloat16"; None: what the parameters have."""

    def __init__(self, config: Any, *, dtype: Any = jnp.float32, rngs: nnx.Rngs):
        raise NotImplementedError(f"{type(self).__name__} must define __init__(config, *, dtype, rngs)")

    def loss(self, batch: Any) -> tuple[jax.Array, jax.Array]:
        """Return the (sum, weight) of the model's loss on a batch of its task; see :mod:`scratch_core.losses`."""
        raise NotImplementedError(f"{type(self).__name__} must define loss(batch)")

    @staticmethod
    def rules(config: Any) -> "list[weights.Rule | weights.Copy]":
        """Return the key table of this configuration: the model package's ``convert.rules``."""
        raise NotImplementedError

    @classmethod
    def rename(cls, key: str) -> str:
        """Return the table's spelling of a key that older checkpoints spell differently."""
        return key

    @classmethod
    def recognises(cls, fields: Mapping[str, Any]) -> bool:
        """Return whether a config.json with these fields describes this class."""
        return any(name in cls.architectures or name in cls.trunks for name in architectures(fields))

    def read_companions(self, folder: Path) -> None:
        """Read what a folder holds beside config and weights, such as preprocessing; by default nothing."""

    def write_companions(self, folder: Path) -> None:
        """Write what :meth:`read_companions` reads."""

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        *,
        dtype: Any = None,
        mesh: "Mesh | None" = None,
        config: Any = None,
        fresh: tuple[str, ...] = (),
        ignore: tuple[str, ...] = (),
        rngs: nnx.Rngs | None = None,
        allow_nonfinite: bool = False,
    ) -> Self:
        """Return this class with the weights of a folder or Hub id, in evaluation mode; see :func:`scratch_core.load`.

        Raises CheckpointError or ConfigError.
        """
        return weights.load(
            folder,
            cls,
            dtype=dtype,
            mesh=mesh,
            config=config,
            fresh=fresh,
            ignore=ignore,
            rngs=rngs,
            allow_nonfinite=allow_nonfinite,
        )

    def save_pretrained(self, folder: str | Path) -> None:
        """Write config.json and model.safetensors; see :func:`scratch_core.save`."""
        weights.save(self, folder)
