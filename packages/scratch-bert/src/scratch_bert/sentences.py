r"""Sentence embeddings: one vector for each text, such that texts of similar meaning have similar vectors.

Source: Reimers and Gurevych 2019, https://arxiv.org/abs/1908.10084, section 3. The last layer's tokens are pooled. The
vector may be divided by its length; then the product of two vectors is the cosine of their angle:

$$ u = \mathrm{pool}(x_L), \qquad \hat u = u / \max(|u|, 10^{-12}), \qquad \cos(u, v) = \hat u \cdot \hat v \tag{1} $$

In a folder of sentence-transformers, 1_Pooling/config.json gives the pooling, and modules.json whether to normalise.

Shapes: B texts, T tokens, D model width; M and K texts of two sets.
"""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from scratch_core.config import read_json
from scratch_core.errors import CheckpointError, ConfigError, DataError
from scratch_core.tasks.texts import run, tokenizer_of

from scratch_bert.model import BertModel, first_token

POOLINGS = ("mean", "cls", "max")
FIELDS = {"mean": "pooling_mode_mean_tokens", "cls": "pooling_mode_cls_token", "max": "pooling_mode_max_tokens"}
POOLING = "1_Pooling/config.json"


@dataclasses.dataclass(frozen=True)
class Pooling:
    """How tokens become one vector: ``mode`` mean, cls or max, over real tokens; ``normalize`` to length 1."""

    mode: str = "mean"
    normalize: bool = True
    max_tokens: int | None = None  # of a text; None: as many as there are positions

    def __post_init__(self):
        if self.mode not in POOLINGS:
            raise ConfigError(f"pooling mode={self.mode!r} must be one of: {', '.join(POOLINGS)}")

    @classmethod
    def from_folder(cls, folder: Path) -> Self:
        """Return the pooling of a folder of sentence-transformers; the default without a 1_Pooling/config.json.

        Raises ConfigError for a pooling that is not implemented, CheckpointError for a file that cannot be read.
        """
        length = None
        if (folder / "sentence_bert_config.json").is_file():
            length = read_json(folder / "sentence_bert_config.json").get("max_seq_length")
        if not (folder / POOLING).is_file():
            return cls(max_tokens=length)
        fields = read_json(folder / POOLING)
        asked = [name for name, value in fields.items() if name.startswith("pooling_mode_") and value is True]
        modes = [mode for mode, name in FIELDS.items() if name in asked]
        if isinstance(fields.get("pooling_mode"), str):  # newer files name it
            modes, asked = [fields["pooling_mode"]], [fields["pooling_mode"]]
        if len(asked) != 1 or len(modes) != 1 or modes[0] not in POOLINGS:
            raise ConfigError(
                f"{folder / POOLING} asks for {', '.join(asked) or 'no pooling'}; "
                f"implemented is one of: {', '.join(FIELDS.values())}"
            )
        return cls(modes[0], _normalizes(folder), length)

    def save(self, folder: Path, width: int) -> None:
        """Write the files that :meth:`from_folder` reads, as sentence-transformers does."""
        (folder / POOLING).parent.mkdir(exist_ok=True)
        fields = {"word_embedding_dimension": width} | {name: self.mode == mode for mode, name in FIELDS.items()}
        modules = [("", "Transformer"), ("1_Pooling", "Pooling"), *([("2_Normalize", "Normalize")] * self.normalize)]
        described = [
            {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{name}"}
            for i, (path, name) in enumerate(modules)
        ]
        _write_json(folder / POOLING, fields)
        _write_json(folder / "modules.json", described)
        if self.max_tokens is not None:
            _write_json(folder / "sentence_bert_config.json", {"max_seq_length": self.max_tokens})


class SentenceEncoder(BertModel):
    """BERT with eq. 1. Call it for embeddings [B, D], float32; ``pooling`` is read from the folder and saved."""

    pooling: Pooling = Pooling()

    def __call__(self, input_ids, attention_mask=None, token_type_ids=None) -> jax.Array:  # ty: ignore[incompatible-method-override] one result, not two
        """Return embeddings [B, D], float32; arguments as for :meth:`Encoder.hidden`."""
        x_BTD = self.hidden(input_ids, attention_mask, token_type_ids).astype(jnp.float32)
        pooled_BD = pool(x_BTD, attention_mask, self.pooling.mode)
        return normalized(pooled_BD) if self.pooling.normalize else pooled_BD

    def encode(self, texts: Sequence[str], *, batch_size: int = 32, progress: bool = False) -> np.ndarray:
        """Return the embeddings of texts, float32 [B, D], in their order.

        Texts of similar length are computed together. A text that is too long for the model, or for the folder's
        max_seq_length, is cut at its end. Raises CheckpointError for a model without a tokenizer, DataError for one
        text in place of a list.
        """
        if isinstance(texts, str):
            raise DataError(f"encode takes a list of texts, not one text: encode([{texts[:40]!r}])")
        tokenizer = tokenizer_of(self)
        longest = min(self.pooling.max_tokens or self.config.max_positions, self.config.max_positions)
        rows = [tokenizer.join(pieces.ids[: longest - 2]) for pieces in tokenizer.all_pieces(texts)]
        if not rows:
            return np.zeros((0, self.config.d_model), np.float32)
        return np.stack(run(self, rows, batch_size=batch_size, progress=progress))

    def read_companions(self, folder: Path) -> None:
        """Read the tokenizer and the pooling. Raises ConfigError for one that is not implemented."""
        super().read_companions(folder)
        self.pooling = Pooling.from_folder(folder)

    def write_companions(self, folder: Path) -> None:
        """Write the tokenizer and the pooling."""
        super().write_companions(folder)
        self.pooling.save(folder, self.config.d_model)


def pool(x_BTD: jax.Array, attention_mask: jax.Array | None, mode: str) -> jax.Array:
    """Return one vector for each row, [B, D]: mean or maximum over its real tokens, or the first of them (cls)."""
    mask_BT = jnp.ones(x_BTD.shape[:2]) if attention_mask is None else attention_mask
    if mode == "cls":
        return first_token(x_BTD, attention_mask)
    if mode == "max":
        return jnp.where(mask_BT[..., None] != 0, x_BTD, -1e9).max(axis=1)
    weights_BT = mask_BT.astype(x_BTD.dtype)
    return jnp.einsum("BT,BTD->BD", weights_BT, x_BTD) / jnp.maximum(weights_BT.sum(axis=1), 1e-9)[:, None]


def normalized(x: Any) -> Any:
    """Return rows of length 1; a row of zeros stays."""
    return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


def cosine_similarity(one_MD: Any, two_KD: Any) -> np.ndarray:
    """Return the cosines of all pairs of rows, float32 [M, K]."""
    return np.asarray(normalized(jnp.asarray(one_MD)) @ normalized(jnp.asarray(two_KD)).T)


def _normalizes(folder: Path) -> bool:
    """Return whether modules.json has a module that normalises; True where there is no such file."""
    path = folder / "modules.json"
    if not path.is_file():
        return True
    try:
        return any(str(module["type"]).endswith("Normalize") for module in json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise CheckpointError(f"{path} cannot be read as the list of modules: {error!r}") from error


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
