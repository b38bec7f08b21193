"""Decoding with a cache equals the full pass, reads nothing from the future, and compiles twice."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from scratch_core.generation import beam, beam_search, generate
from scratch_core.generation.generate import decode_loop, prefill
from scratch_core.testing.goldens import CACHED, assert_close, jitted

PROGRAMS: tuple[Any, ...] = (prefill, decode_loop, beam.prefill, beam.decode_loop)


def check_decoding(model: Any, seed: int = 0) -> None:
    """Cached = uncached, in chunks of any length; a padded row = the row alone, with any tokens as padding."""
    B, T = 3, 23
    forward, decode = jitted(model), jitted(model, "decode")
    ids_BT = np.random.default_rng(seed).integers(0, model.config.vocab_size, (B, T)).astype(np.int32)
    expected_BTV = np.asarray(forward(ids_BT))
    for chunks in ([T], [1] * T, [7, 1, 4, 11]):
        cache, parts, start = model.init_cache(B, T + 5), [], 0
        for length in chunks:
            logits, cache = decode(ids_BT[:, start : start + length], cache)
            parts.append(np.asarray(logits))
            start += length
        assert_close(np.concatenate(parts, axis=1), expected_BTV, CACHED, f"decoding in chunks of {chunks}")

    lengths = [T, 9, 16]
    for side in ("left", "right"):
        mask_BT = np.zeros((B, T), np.int32)
        padded_BT = ids_BT[::-1].copy()
        for row, length in enumerate(lengths):
            real = slice(T - length, T) if side == "left" else slice(0, length)
            mask_BT[row, real], padded_BT[row, real] = 1, ids_BT[row, :length]
        full_BTV = np.asarray(forward(padded_BT, mask_BT))
        cache = model.init_cache(B, T + 5)
        prefill_BTV, cache = decode(padded_BT, cache, mask_BT)
        last_B1V, _ = decode(padded_BT, model.init_cache(B, T + 5), mask_BT, last_only=True)
        more_ids = np.repeat(ids_BT[:, :1], 2, axis=1)
        more, _ = decode(more_ids, cache)
        assert np.isfinite(full_BTV).all()
        for row, length in enumerate(lengths):
            alone = np.concatenate([ids_BT[row : row + 1, :length], more_ids[row : row + 1]], axis=1)
            by_itself = np.asarray(forward(alone))[0]
            real = mask_BT[row] == 1
            what = f"row of {length}, padded on the {side}"
            assert_close(full_BTV[row, real], by_itself[:length], CACHED, what)
            assert_close(np.asarray(prefill_BTV)[row, real], by_itself[:length], CACHED, f"{what}, decoded")
            assert_close(np.asarray(last_B1V)[row], by_itself[length - 1 : length], CACHED, f"{what}, last logits")
            assert_close(np.asarray(more)[row], by_itself[length:], CACHED, f"{what}, continued")


def check_causal(model: Any, seed: int = 0) -> None:
    """Changing a token changes the logits from that position on, and none before it."""
    T = 12
    ids = np.random.default_rng(seed).integers(0, model.config.vocab_size, (1, T)).astype(np.int32)
    changed = ids.copy()
    changed[0, 7] = (changed[0, 7] + 1) % model.config.vocab_size
    forward = jitted(model)
    moved = np.abs(np.asarray(forward(ids)) - np.asarray(forward(changed)))[0].max(axis=-1)
    assert (moved[:7] == 0).all()
    assert (moved[7:] > 1e-6).all()


def count_traces(model: Any, run: Callable[[], Any]) -> int:
    """Return how often JAX traces ``model.decode`` during ``run``: once per compiled program."""
    kind, traces = type(model), 0
    original = kind.decode

    def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal traces
        traces += 1
        return original(*args, **kwargs)

    kind.decode = counted
    try:
        run()
    finally:
        kind.decode = original
    return traces


def check_two_traces(model: Any, write: Callable[..., Any] = generate) -> None:
    """Prompts of any length within a bucket, and any number of new tokens, share two compiled programs."""

    def run() -> None:
        for length, new in ((17, 5), (30, 16), (32, 3)):
            ids = np.ones((2, length), np.int32)
            write(model, ids, max_new_tokens=new)

    for program in PROGRAMS:  # earlier tests may have compiled them for this model
        program.clear_cache()
    assert count_traces(model, run) == 2


def check_beam_search(model: Any, seed: int = 0) -> None:
    """One beam equals greedy decoding, and the scores of several beams equal those computed by full passes."""
    B, T, W, new = 2, 18, 3, 8
    ids_BT = np.random.default_rng(seed).integers(0, model.config.vocab_size, (B, T)).astype(np.int32)
    mask_BT = np.array([[1] * T, [0] * 5 + [1] * (T - 5)])
    one, _ = beam_search(model, ids_BT, mask_BT, num_beams=1, max_new_tokens=new)
    np.testing.assert_array_equal(one[:, 0], generate(model, ids_BT, mask_BT, max_new_tokens=new))

    beams, scores_BW = beam_search(
        model, ids_BT, mask_BT, num_beams=W, num_return_sequences=W, max_new_tokens=new, length_penalty=0.5
    )
    assert (np.diff(scores_BW) <= 0).all()
    assert all(len({tuple(text) for text in row}) == W for row in beams)
    texts = beams.reshape(B * W, T + new)
    mask = np.repeat(np.pad(mask_BT, ((0, 0), (0, new)), constant_values=1), W, axis=0)
    log_probabilities = jax.nn.log_softmax(jitted(model)(texts, mask)[:, T - 1 : -1], axis=-1)
    chosen = np.take_along_axis(np.asarray(log_probabilities), texts[:, T:, None], axis=2)
    assert_close(scores_BW, chosen.sum(axis=(1, 2)).reshape(B, W) / new**0.5, 1e-4, "scores of the beams")
