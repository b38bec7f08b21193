r"""Rotary position embedding: queries and keys are rotated, so that their products depend on their distance.

Source: Su et al. 2021, https://arxiv.org/abs/2104.09864, section 3.4. Feature pair $i$ of a head of
width $H$ is a point in the plane, turned by an angle that grows with the position $p$:

$$ f_i = \theta^{-2i/H}, \qquad
   \begin{pmatrix} a' \\ b' \end{pmatrix} =
   \begin{pmatrix} \cos p f_i & -\sin p f_i \\ \sin p f_i & \cos p f_i \end{pmatrix}
   \begin{pmatrix} a \\ b \end{pmatrix} \tag{1} $$

Which two features form pair $i$ is a convention of the checkpoint:

* half-split, as in Hugging Face's files: feature $i$ with feature $i + H/2$. Used here.
* interleaved, as in the paper and in Meta's own files: feature $2i$ with feature $2i + 1$.

The two differ by a permutation of the features of each head: reading the interleaved features in the
order 0, 2, 4, ..., 1, 3, 5, ... gives the half-split ones. Queries and keys are permuted in the same way, so their
scores do not change. :func:`interleaved_to_half_split` is that permutation.

To reach beyond the trained length, the frequencies are scaled down. *linear* divides all of them
(Chen et al. 2023, https://arxiv.org/abs/2306.15595). *llama3* divides those that turn slowly, leaves
those that turn fast, and interpolates between (Llama Team 2024, https://arxiv.org/abs/2407.21783; Meta's
published code): with $n_i$ the number of turns of pair $i$ within the original length,

$$ f_i' = (1 - s_i)\, f_i / \mathrm{factor} + s_i f_i, \qquad
   s_i = \mathrm{clip}\left(\frac{n_i - \mathrm{low}}{\mathrm{high} - \mathrm{low}}, 0, 1\right) \tag{2} $$

Shapes: B batch, T positions, N heads, H head width, P = H / 2 pairs.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from scratch_core.config import REQUIRED, field, unsupported
from scratch_core.errors import ConfigError
from scratch_core.layers.masks import places


@dataclasses.dataclass(frozen=True)
class LinearScaling:
    """All frequencies divided by ``factor``."""

    factor: float

    def scale(self, frequency_P: np.ndarray) -> np.ndarray:
        """Return the scaled frequencies, in radians per position."""
        return frequency_P / self.factor


@dataclasses.dataclass(frozen=True)
class Llama3Scaling:
    """Eq. 2: slow frequencies divided by ``factor``, fast ones kept.

    ``low_turns`` and ``high_turns`` (turns within ``original_length`` positions) bound the transition.
    Raises ConfigError unless low_turns < high_turns.
    """

    factor: float
    low_turns: float
    high_turns: float
    original_length: int

    def __post_init__(self):
        if not self.low_turns < self.high_turns:
            raise ConfigError(
                f"low_freq_factor={self.low_turns} must be smaller than high_freq_factor={self.high_turns}: "
                "Llama 3.1 has 1 and 4"
            )

    def scale(self, frequency_P: np.ndarray) -> np.ndarray:
        """Return the scaled frequencies, in radians per position."""
        turns_P = self.original_length * frequency_P / (2 * np.pi)
        keep_P = np.clip((turns_P - self.low_turns) / (self.high_turns - self.low_turns), 0, 1)
        return (1 - keep_P) * frequency_P / self.factor + keep_P * frequency_P  # eq. 2


@dataclasses.dataclass(frozen=True)
class Rope:
    """Frequencies of a rotary embedding: base ``theta``, and a scaling or None.

    Raises ConfigError if theta is not positive.
    """

    theta: float = 10_000.0
    scaling: LinearScaling | Llama3Scaling | None = None

    def __post_init__(self):
        if self.theta <= 0:
            raise ConfigError(f"rope_theta={self.theta} must be positive: most models have 10,000 or 500,000")

    def frequencies(self, head_dim: int) -> np.ndarray:
        """Return frequency_P, float32 [head_dim / 2], in radians per position.

        Raises ConfigError if head_dim is odd.
        """
        if head_dim % 2:
            raise ConfigError(f"head_dim={head_dim} must be even: rotary features come in pairs")
        frequency_P = self.theta ** -(np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
        return (self.scaling.scale(frequency_P) if self.scaling else frequency_P).astype(np.float32)

    def __call__(self, x_BTNH: jax.Array, positions_BT: jax.Array) -> jax.Array:
        """Return ``x_BTNH`` rotated by its positions (int32), in its own dtype; angles are float32."""
        angle_BTP = places(positions_BT)[..., None].astype(jnp.float32) * self.frequencies(x_BTNH.shape[-1])
        cos_BT1P, sin_BT1P = jnp.cos(angle_BTP)[:, :, None], jnp.sin(angle_BTP)[:, :, None]
        a_BTNP, b_BTNP = jnp.split(x_BTNH.astype(jnp.float32), 2, axis=-1)  # pair i is (i, i + H/2)
        turned_BTNH = jnp.concatenate(
            [a_BTNP * cos_BT1P - b_BTNP * sin_BT1P, b_BTNP * cos_BT1P + a_BTNP * sin_BT1P], axis=-1
        )  # eq. 1
        return turned_BTNH.astype(x_BTNH.dtype)


def interleaved_to_half_split(head_dim: int) -> np.ndarray:
    """Return the int order in which interleaved features must be read to become half-split ones."""
    return np.concatenate([np.arange(0, head_dim, 2), np.arange(1, head_dim, 2)])


def read_rope(fields: Mapping[str, Any], default_theta: float = 10_000.0, max_positions: int | None = None) -> Rope:
    """Return the rotary embedding of a config.json, spelled ``rope_parameters`` or ``rope_theta`` + ``rope_scaling``.

    If both are there, ``rope_scaling`` is read, as in every version of transformers, unless it is empty. The base is
    the ``rope_theta`` inside it, else the top-level one, else ``default_theta``. The original length of llama3 scaling
    is ``original_max_position_embeddings``, else max_position_embeddings, else ``max_positions`` (None: an error).
    Raises ConfigError for an unknown type, a missing or malformed number, or a partial rotation.
    """
    scaling, parameters = (field(fields, name, dict, {}) for name in ("rope_scaling", "rope_parameters"))
    parameters = scaling or parameters
    unsupported(fields, partial_rotary_factor=(1, 1.0))
    unsupported(parameters, partial_rotary_factor=(1, 1.0))
    if nested := sorted(name for name, value in parameters.items() if isinstance(value, dict)):
        raise ConfigError(
            f"config.json gives {', '.join(nested)} rotary positions of their own, which this model does not have: "
            "give one rope_type for all layers"
        )
    rope_type = parameters.get("rope_type") or parameters.get("type") or "default"
    theta = _positive(parameters, "rope_theta", None) or _positive(fields, "rope_theta", default_theta)
    if rope_type == "default":
        return Rope(theta)
    if rope_type == "linear":
        return Rope(theta, LinearScaling(_positive(parameters, "factor")))
    if rope_type == "llama3":
        low, high = _positive(parameters, "low_freq_factor"), _positive(parameters, "high_freq_factor")
        length = _original_length(fields, parameters, max_positions)
        return Rope(theta, Llama3Scaling(_positive(parameters, "factor"), low, high, length))
    raise ConfigError(
        f"rope_type={rope_type!r} is not implemented; known types are 'default', 'linear' and 'llama3': "
        "choose a checkpoint with one of these"
    )


def _original_length(fields: Mapping[str, Any], parameters: Mapping[str, Any], max_positions: int | None) -> int:
    """Return the original length of llama3 scaling: the top-level one, the one in ``parameters``, or the model's.

    transformers looks in the same order.
    """
    name = "original_max_position_embeddings"
    for place in (fields, parameters):
        if (length := field(place, name, int, None)) is not None:
            break
    else:
        name = "max_position_embeddings"
        length = field(fields, name, int, REQUIRED if max_positions is None else max_positions)
    if length < 1:
        raise ConfigError(f"config.json: {name}={length} must be at least 1: the number of positions of the training")
    return length


def _positive(fields: Mapping[str, Any], name: str, default: Any = REQUIRED) -> Any:
    value = field(fields, name, float, default)
    if value is not None and not (math.isfinite(value) and value > 0):
        raise ConfigError(
            f"config.json: {name}={value} must be a finite number greater than 0: take the value that the weights "
            "were trained with"
        )
    return value


def rope_to_hf(rope: Rope) -> dict[str, Any]:
    """Return ``rope_theta`` and ``rope_scaling``, the spelling that every version of transformers reads."""
    match rope.scaling:
        case None:
            scaling = None
        case LinearScaling(factor):
            scaling = {"rope_type": "linear", "type": "linear", "factor": factor}
        case Llama3Scaling(factor, low, high, length):
            scaling = {
                "rope_type": "llama3",
                "factor": factor,
                "low_freq_factor": low,
                "high_freq_factor": high,
                "original_max_position_embeddings": length,
            }
    return {"rope_theta": rope.theta, "rope_scaling": scaling}
