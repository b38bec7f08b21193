"""Configurations of Mamba-2 (https://arxiv.org/abs/2405.21060), in the two layouts of its checkpoints.

"hf" is the config.json of Hugging Face's Mamba2ForCausalLM. "state-spaces" is the config.json of the authors'
own checkpoints, in which most sizes follow from d_model and defaults. The presets have the sizes of the released models
(section 9.2.1).
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, ClassVar, Self

from scratch_core.config import field, positive, token, tokens, unsupported
from scratch_core.errors import ConfigError

# The fields that "ssm_cfg" in a state-spaces config.json may leave out, and their default values.
SSM_DEFAULTS: Mapping[str, Any] = {
    "d_state": 128,
    "d_conv": 4,
    "expand": 2,
    "headdim": 64,
    "ngroups": 1,
    "chunk_size": 256,
    "bias": False,
    "conv_bias": True,
    "dt_min": 0.001,
    "dt_max": 0.1,
    "dt_init_floor": 1e-4,
    "dt_limit": (0.0, math.inf),
}


@dataclasses.dataclass(frozen=True)
class Mamba2Config:
    """The hyperparameters of Mamba-2. Raises ConfigError if no model can be built from them."""

    vocab_size: int
    d_model: int  # D
    num_layers: int  # L
    num_heads: int  # H
    head_dim: int = 64  # P; H * P is the inner width
    d_state: int = 128  # N
    num_groups: int = 1  # G; the heads of a group share B and C
    conv_width: int = 4  # K
    chunk_size: int = 256  # Q; changes the speed, not the result
    norm_epsilon: float = 1e-5
    tie_embeddings: bool = True  # the output head uses the embedding matrix
    use_bias: bool = False
    conv_bias: bool = True
    residual_in_fp32: bool = True
    dt_limit: tuple[float, float] = (0.0, math.inf)
    dt_min: float = 0.001  # dt_min, dt_max and dt_floor limit the initial step sizes
    dt_max: float = 0.1
    dt_floor: float = 1e-4
    pad_vocab_multiple: int = 1  # the embedding's number of rows is rounded up to a multiple of this
    layout: str = "hf"  # or "state-spaces"
    bos_token_id: int | None = 0
    eos_token_id: int | tuple[int, ...] | None = 0
    pad_token_id: int | None = 0

    max_positions: ClassVar[None] = None  # a state has room for any number of tokens

    def __post_init__(self):
        positive(self, "vocab_size", "d_model", "num_layers", "num_heads", "head_dim", "d_state", "num_groups")
        positive(self, "conv_width", "chunk_size", "norm_epsilon", "dt_min", "dt_max", "dt_floor", "pad_vocab_multiple")
        if self.num_heads % self.num_groups:
            raise ConfigError(f"num_groups={self.num_groups} must divide num_heads={self.num_heads}")
        if self.d_inner % self.d_model:
            raise ConfigError(
                f"num_heads * head_dim = {self.d_inner} must be a multiple of d_model={self.d_model}: the "
                f"expansion is a whole number"
            )
        if not 0 <= self.dt_limit[0] < self.dt_limit[1]:
            raise ConfigError(f"dt_limit={self.dt_limit} must be (low, high) with 0 <= low < high")
        if not self.dt_min <= self.dt_max:
            raise ConfigError(f"dt_min={self.dt_min} must be at most dt_max={self.dt_max}")
        if self.layout not in ("hf", "state-spaces"):
            raise ConfigError(f"layout={self.layout!r} must be 'hf' or 'state-spaces'")

    @property
    def d_inner(self) -> int:
        """I, the inner width of the mixer: all heads side by side."""
        return self.num_heads * self.head_dim

    @property
    def padded_vocab_size(self) -> int:
        """V, the number of rows of the embedding and of logits per position."""
        return -(-self.vocab_size // self.pad_vocab_multiple) * self.pad_vocab_multiple

    @classmethod
    def from_hf(cls, fields: Mapping[str, Any]) -> Self:
        """Return the configuration of a config.json of either layout.

        Raises ConfigError for a missing or malformed field, and for a value that is not implemented here.
        """
        if "ssm_cfg" in fields:
            return cls._from_state_spaces(fields)
        unsupported(fields, hidden_act=("silu", "swish"), norm_before_gate=False, rms_norm=True)
        d_model = field(fields, "hidden_size", int)
        num_heads, head_dim = field(fields, "num_heads", int, 128), field(fields, "head_dim", int, 64)
        expand = field(fields, "expand", int, 2)
        if expand * d_model != num_heads * head_dim:
            raise ConfigError(
                f"expand * hidden_size = {expand} * {d_model} must equal "
                f"num_heads * head_dim = {num_heads} * {head_dim}"
            )
        return cls(
            vocab_size=field(fields, "vocab_size", int),
            d_model=d_model,
            num_layers=field(fields, "num_hidden_layers", int),
            num_heads=num_heads,
            head_dim=head_dim,
            d_state=field(fields, "state_size", int, 128),
            num_groups=field(fields, "n_groups", int, 8),
            conv_width=field(fields, "conv_kernel", int, 4),
            chunk_size=field(fields, "chunk_size", int, 256),
            norm_epsilon=field(fields, "layer_norm_epsilon", float, 1e-5),
            tie_embeddings=field(fields, "tie_word_embeddings", bool, False),
            use_bias=field(fields, "use_bias", bool, False),
            conv_bias=field(fields, "use_conv_bias", bool, True),
            residual_in_fp32=field(fields, "residual_in_fp32", bool, True),
            dt_limit=_limits(fields, "time_step_limit"),
            dt_min=field(fields, "time_step_min", float, 0.001),
            dt_max=field(fields, "time_step_max", float, 0.1),
            dt_floor=field(fields, "time_step_floor", float, 1e-4),
            bos_token_id=token(fields, "bos_token_id", 0),
            eos_token_id=tokens(fields, "eos_token_id", 2),
            pad_token_id=token(fields, "pad_token_id", 1),
        )

    @classmethod
    def _from_state_spaces(cls, fields: Mapping[str, Any]) -> Self:
        unsupported(fields, d_intermediate=0, attn_layer_idx=([],), rms_norm=True)
        ssm = field(fields, "ssm_cfg", dict)
        unsupported({"layer": "Mamba1", **ssm}, layer="Mamba2", D_has_hdim=False, rmsnorm=True, norm_before_gate=False)
        # These fields choose initial values and kernels. They do not change what a loaded checkpoint computes.
        without_effect = {"conv_init", "A_init_range", "use_mem_eff_path"}
        implemented = {*SSM_DEFAULTS, *without_effect, "layer", "D_has_hdim", "rmsnorm", "norm_before_gate"}
        unsupported(ssm, **{name: None for name in ssm if name not in implemented})
        ssm = {**SSM_DEFAULTS, **ssm}
        d_model = field(fields, "d_model", int)
        head_dim, d_inner = field(ssm, "headdim", int), field(ssm, "expand", int) * d_model
        if head_dim < 1 or d_inner % head_dim:
            raise ConfigError(f"ssm_cfg headdim={head_dim} must divide expand * d_model = {d_inner}")
        return cls(
            vocab_size=field(fields, "vocab_size", int),
            d_model=d_model,
            num_layers=field(fields, "n_layer", int),
            num_heads=d_inner // head_dim,
            head_dim=head_dim,
            d_state=field(ssm, "d_state", int),
            num_groups=field(ssm, "ngroups", int),
            conv_width=field(ssm, "d_conv", int),
            chunk_size=field(ssm, "chunk_size", int),
            tie_embeddings=field(fields, "tie_embeddings", bool, True),
            use_bias=field(ssm, "bias", bool),
            conv_bias=field(ssm, "conv_bias", bool),
            residual_in_fp32=field(fields, "residual_in_fp32", bool, True),
            dt_limit=_limits(ssm, "dt_limit"),
            dt_min=field(ssm, "dt_min", float),
            dt_max=field(ssm, "dt_max", float),
            dt_floor=field(ssm, "dt_init_floor", float),
            pad_vocab_multiple=field(fields, "pad_vocab_size_multiple", int, 8),
            layout="state-spaces",
        )

    def to_hf(self) -> dict[str, Any]:
        """Return the fields of a config.json in the configuration's own layout."""
        expand = self.d_inner // self.d_model
        if self.layout == "state-spaces":
            ssm = {
                "d_state": self.d_state,
                "d_conv": self.conv_width,
                "expand": expand,
                "headdim": self.head_dim,
                "ngroups": self.num_groups,
                "chunk_size": self.chunk_size,
                "bias": self.use_bias,
                "conv_bias": self.conv_bias,
                "dt_min": self.dt_min,
                "dt_max": self.dt_max,
                "dt_init_floor": self.dt_floor,
                "dt_limit": self.dt_limit,
            }
            return {
                "d_model": self.d_model,
                "d_intermediate": 0,
                "n_layer": self.num_layers,
                "vocab_size": self.vocab_size,
                "ssm_cfg": {"layer": "Mamba2", **{k: v for k, v in ssm.items() if v != SSM_DEFAULTS[k]}},
                "attn_layer_idx": [],
                "attn_cfg": {},
                "rms_norm": True,
                "residual_in_fp32": self.residual_in_fp32,
                "fused_add_norm": True,
                "pad_vocab_size_multiple": self.pad_vocab_multiple,
                "tie_embeddings": self.tie_embeddings,
            }
        return {
            "model_type": "mamba2",
            "vocab_size": self.padded_vocab_size,
            "hidden_size": self.d_model,
            "num_hidden_layers": self.num_layers,
            "num_heads": self.num_heads,
            "head_dim": self.head_dim,
            "expand": expand,
            "state_size": self.d_state,
            "n_groups": self.num_groups,
            "conv_kernel": self.conv_width,
            "chunk_size": self.chunk_size,
            "layer_norm_epsilon": self.norm_epsilon,
            "tie_word_embeddings": self.tie_embeddings,
            "use_bias": self.use_bias,
            "use_conv_bias": self.conv_bias,
            "residual_in_fp32": self.residual_in_fp32,
            "hidden_act": "silu",
            "time_step_limit": list(self.dt_limit),
            "time_step_min": self.dt_min,
            "time_step_max": self.dt_max,
            "time_step_floor": self.dt_floor,
            "time_step_rank": -(-self.d_model // 16),
            "rescale_prenorm_residual": False,  # True makes transformers 5.23 rescale out_proj of a loaded checkpoint
            "bos_token_id": self.bos_token_id,
            "eos_token_id": list(self.eos_token_id) if isinstance(self.eos_token_id, tuple) else self.eos_token_id,
            "pad_token_id": self.pad_token_id,
        }

    @classmethod
    def tiny(cls) -> Self:
        """Return a model for the tests and the first run: byte tokens, 0.5 M parameters."""
        return cls(
            264, 128, 4, num_heads=4, head_dim=64, d_state=32, chunk_size=64,
            bos_token_id=256, eos_token_id=257, pad_token_id=258,
        )  # fmt: skip

    @classmethod
    def mamba2_130m(cls) -> Self:
        """Return mamba2-130m."""
        return cls._released(768, 24)

    @classmethod
    def mamba2_370m(cls) -> Self:
        """Return mamba2-370m."""
        return cls._released(1024, 48)

    @classmethod
    def mamba2_780m(cls) -> Self:
        """Return mamba2-780m."""
        return cls._released(1536, 48)

    @classmethod
    def mamba2_1_3b(cls) -> Self:
        """Return mamba2-1.3b."""
        return cls._released(2048, 48)

    @classmethod
    def mamba2_2_7b(cls) -> Self:
        """Return mamba2-2.7b."""
        return cls._released(2560, 64)

    @classmethod
    def _released(cls, d_model: int, num_layers: int) -> Self:
        """GPT-NeoX tokens: 50,277 of them, in 50,288 rows."""
        return cls(50_277, d_model, num_layers, 2 * d_model // 64, pad_vocab_multiple=16, layout="state-spaces")


def _limits(fields: Mapping[str, Any], name: str) -> tuple[float, float]:
    found = field(fields, name, (list, tuple), [0.0, math.inf])
    if len(found) != 2 or not all(isinstance(each, int | float) for each in found):
        raise ConfigError(f"config.json: {name}={found!r} must be two numbers, [low, high]")
    return float(found[0]), float(found[1])
