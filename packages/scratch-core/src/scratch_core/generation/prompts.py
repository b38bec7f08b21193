"""Checks prompts, and pads them on the right to a bucket length, so that prompts of many lengths share a program.

Shapes: B batch, T prompt, P prompt padded to its bucket.
"""

from typing import Any, NamedTuple

import numpy as np

from scratch_core.errors import ConfigError, DataError

NO_EOS = -1


class Prompt(NamedTuple):
    """Prompts as given (ids_BT) and padded to their bucket, int32; ``room`` is the bucket of the new tokens."""

    ids_BT: np.ndarray
    padded_BP: np.ndarray
    mask_BP: np.ndarray
    room: int


def read_prompt(model: Any, input_ids: Any, attention_mask: Any, max_new_tokens: int) -> Prompt:
    """Return the prompts, or raise DataError if one is empty, malformed, or too long for the model."""
    ids_BT, mask_BT = _check(model, input_ids, attention_mask, max_new_tokens)
    T = ids_BT.shape[1]
    padding = ((0, 0), (0, bucket(T) - T))
    return Prompt(ids_BT, np.pad(ids_BT, padding), np.pad(mask_BT, padding), bucket(max_new_tokens))


def prefix(model: Any, input_ids: Any, attention_mask: Any) -> tuple[Any, Any]:
    """Return the tokens that the new ones follow, and their mask, int [B, n].

    They are the prompt, or what ``model.prefix`` of an encoder-decoder returns.
    """
    return model.prefix(input_ids, attention_mask) if hasattr(model, "prefix") else (input_ids, attention_mask)


def bucket(length: int) -> int:
    """Return the padded length: the next of 16, 32, 64, 128, then multiples of 128."""
    return next((size for size in (16, 32, 64) if length <= size), -(-length // 128) * 128)


def read_special_tokens(eos_token_id: Any, pad_token_id: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return the tokens that end a text, int32 [N], and the padding token. With eos None, no token ends a text."""
    (pad,) = _token_ids("pad_token_id", pad_token_id)
    return _token_ids("eos_token_id", [NO_EOS] if eos_token_id is None else eos_token_id), pad


def _token_ids(name: str, value: Any) -> np.ndarray:
    """Return one token or several as int32 [N], or raise ConfigError."""
    ids = np.atleast_1d(np.asarray(value))
    if ids.ndim != 1 or not np.issubdtype(ids.dtype, np.integer) or not ids.size or abs(ids).max() >= 2**31:
        raise ConfigError(f"{name}={value!r} must be a token: an integer that fits int32")
    return ids.astype(np.int32)


def _check(model, input_ids, attention_mask, max_new_tokens) -> tuple[np.ndarray, np.ndarray]:
    """Return ids and mask as int32 [B, T], or raise DataError."""
    try:
        ids = np.asarray(input_ids)
    except ValueError as error:  # rows of different lengths
        raise DataError(f"input_ids must be an array [batch, length]: {error}") from error
    if ids.ndim != 2 or not ids.size or not np.issubdtype(ids.dtype, np.integer):
        raise DataError(
            f"input_ids must be integers [batch, length] with at least one token, found {ids.dtype} {ids.shape}"
        )
    vocab_size = model.config.vocab_size
    if ids.min() < 0 or ids.max() >= vocab_size:
        raise DataError(f"input_ids must be in [0, vocab_size={vocab_size}), found {ids.min()} to {ids.max()}")
    mask = np.ones_like(ids) if attention_mask is None else np.asarray(attention_mask)
    if mask.shape != ids.shape:
        raise DataError(f"attention_mask {mask.shape} must have the shape of input_ids {ids.shape}")
    if not (mask == 1).any(axis=1).all():
        raise DataError("attention_mask must be 1 at one token or more of every row")
    if not 1 <= max_new_tokens < 2**31 // 128:
        raise DataError(f"max_new_tokens={max_new_tokens} must be at least 1 and less than {2**31 // 128}")
    longest, limit = int((mask == 1).sum(axis=1).max()), model.config.max_positions
    if limit is not None and longest + max_new_tokens > limit:
        raise DataError(
            f"a prompt of {longest} tokens and max_new_tokens={max_new_tokens} need {longest + max_new_tokens} "
            f"positions, the model has {limit}: shorten the prompt or write fewer tokens"
        )
    return ids.astype(np.int32), (mask == 1).astype(np.int32)
