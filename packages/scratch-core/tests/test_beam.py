"""Beam search on a table of probabilities, where every continuation can be tried and scored by hand."""

import dataclasses
import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scratch_core import ConfigError, DataError, beam_search
from scratch_core.testing import check_two_traces

V = 5


@dataclasses.dataclass(frozen=True)
class TableConfig:
    vocab_size: int = V
    max_positions: int = 64


class Table(nnx.Module):
    """The next token depends on the last two; the cache is the last one. Beam search needs ``start`` and ``decode``."""

    config = TableConfig()

    def __init__(self, logits):
        self.logits = nnx.Param(jnp.asarray(logits, jnp.float32))

    def start(self, input_ids, attention_mask, room):
        last_B1 = attention_mask.cumsum(axis=1).argmax(axis=1)[:, None]
        before_B1 = jnp.take_along_axis(input_ids, last_B1 - 1, axis=1)
        return self.decode(jnp.take_along_axis(input_ids, last_B1, axis=1), before_B1[:, 0])

    def decode(self, input_ids, before):
        last = input_ids[:, 0]
        return self.logits[...][before, last][:, None], last


@pytest.fixture(scope="module")
def model():
    return Table(np.random.default_rng(0).normal(size=(V, V, V)) * 2)


PROMPT = np.array([[3, 1, 4], [2, 0, 1]])


def exhaustive(model, row, new, penalty, eos=None):
    """Every continuation, best first: its tokens up to the end, and its score."""
    log_probability = np.asarray(jax.nn.log_softmax(model.logits[...], axis=-1), np.float64)
    found = {}
    for tokens in itertools.product(range(V), repeat=new):
        tokens = tokens[: tokens.index(eos) + 1] if eos in tokens else tokens
        text = [*row[-2:], *tokens]
        total = sum(log_probability[text[i], text[i + 1], token] for i, token in enumerate(tokens))
        found[tokens] = total / len(tokens) ** penalty
    return sorted(found.items(), key=lambda item: -item[1])


@pytest.mark.parametrize("eos", [None, 2])
@pytest.mark.parametrize("penalty", [0.0, 1.0])
def test_as_many_beams_as_continuations_find_the_best_of_all(model, penalty, eos):
    """Two new tokens give 25 continuations. The best of them are returned in order, with their scores."""
    ids, scores = beam_search(
        model,
        PROMPT,
        num_beams=V**2,
        num_return_sequences=V,
        max_new_tokens=2,
        length_penalty=penalty,
        early_stopping="never",
        eos_token_id=eos,
        pad_token_id=0,
    )
    for row, texts, found in zip(PROMPT, ids, scores):
        best = exhaustive(model, row, 2, penalty, eos)[:V]
        assert [tuple(text[3:])[: len(tokens)] for text, (tokens, _) in zip(texts, best)] == [t for t, _ in best]
        np.testing.assert_allclose(found, [score for _, score in best], atol=1e-5)


def test_few_beams_follow_the_best_beginnings(model):
    """Two beams by hand: the two best beginnings of each length, until the last token."""
    log_probability = np.asarray(jax.nn.log_softmax(model.logits[...], axis=-1), np.float64)
    ids, scores = beam_search(model, PROMPT, num_beams=2, num_return_sequences=2, max_new_tokens=9)
    for row, texts, found in zip(PROMPT, ids, scores):
        beams = [(0.0, list(row))]
        for _ in range(9):
            longer = [(s + log_probability[t[-2], t[-1], v], [*t, v]) for s, t in beams for v in range(V)]
            beams = sorted(longer, key=lambda beam: -beam[0])[:2]
        assert texts.tolist() == [text for _, text in beams]
        np.testing.assert_allclose(found, [total / 9 for total, _ in beams], atol=1e-5)


def test_when_a_row_is_done():
    """Token 0 ends a text. It is likely at first; after two tokens 1, more of them are nearly certain."""
    logits = np.full((V, V, V), -9.0)
    logits[:, :, :2], logits[1, 1, :2] = [0.0, -0.1], [-9.0, 0.0]
    search = partial(beam_search, Table(logits), [[2, 3]], num_beams=2, max_new_tokens=10, eos_token_id=0)
    # [0] and [1, 0] have ended after two tokens. [1, 1] scores worse than both now, and better than both later.
    for early_stopping, best in ((True, [0]), (False, [0]), ("never", [1] * 10)):
        ids, _ = search(early_stopping=early_stopping)
        assert ids.tolist() == [[[2, 3, *best]]]


def test_a_beam_stays_open_where_the_likeliest_tokens_all_end_a_text():
    """Tokens 1 to 3 end a text and are the likeliest; after a token 0, more of them are nearly certain."""
    logits = np.full((V, V, V), -9.0)
    logits[:, :, 1:4], logits[:, :, 0], logits[:, 0] = 0.0, -3.0, [0.0, -9.0, -9.0, -9.0, -9.0]
    settings = {"num_beams": 1, "max_new_tokens": 10, "eos_token_id": [1, 2, 3], "early_stopping": "never"}
    ids, _ = beam_search(Table(logits), [[2, 3]], **settings)
    assert ids.tolist() == [[[2, 3, *[0] * 10]]]


def test_rows_are_filled_up_after_their_end(model):
    ids, _ = beam_search(
        model, PROMPT, num_beams=3, num_return_sequences=3, max_new_tokens=8, eos_token_id=[2, 3], pad_token_id=7
    )
    new = ids[:, :, 3:].reshape(6, -1)
    ends = [next((i for i, token in enumerate(text) if token in (2, 3)), len(text) - 1) for text in new]
    assert len(set(ends)) > 1
    assert max(ends) == new.shape[1] - 1
    for text, end in zip(new, ends):
        assert (text[end + 1 :] == 7).all()
        assert (text[: end + 1] < V).all()


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_padded_row_has_the_beams_it_has_alone(model, side):
    ids, mask = np.array([[1, 2, 3, 4, 0], [0] * 5]), np.array([[1] * 5, [0] * 5])
    real = slice(2, 5) if side == "left" else slice(0, 3)
    ids[1, real], mask[1, real] = PROMPT[0], 1
    settings = {"num_beams": 3, "max_new_tokens": 5, "eos_token_id": 2}
    both, scores = beam_search(model, ids, mask, **settings)
    alone, score = beam_search(model, PROMPT[:1], **settings)
    np.testing.assert_array_equal(both[1, 0, 5:][: alone.shape[2] - 3], alone[0, 0, 3:])
    np.testing.assert_allclose(scores[1], score[0], rtol=1e-6)


def test_two_programs_serve_all_prompts_of_a_bucket(model):
    check_two_traces(model, partial(beam_search, num_beams=2))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_beams": 0}, "num_beams=0 must be at least 1"),
        ({"num_return_sequences": 3}, r"num_return_sequences=3 must be in \[1, num_beams=2\]"),
        ({"num_return_sequences": 0}, r"num_return_sequences=0 must be in \[1, num_beams=2\]"),
        ({"num_beams": 9, "num_return_sequences": 6}, "num_return_sequences=6 must be at most vocab_size=5"),
        ({"length_penalty": float("nan")}, "max_new_tokens=3 to the power of length_penalty=nan must be in"),
        ({"length_penalty": -80.0}, "max_new_tokens=3 to the power of length_penalty=-80.0 must be in"),
        ({"early_stopping": "always"}, "early_stopping='always' must be True, False or \"never\""),
        ({"max_new_tokens": 62}, "a prompt of 3 tokens and max_new_tokens=62 need 65 positions, the model has 64"),
        ({"max_new_tokens": 0}, "max_new_tokens=0 must be at least 1"),
        ({"input_ids": [[1, 2], [3]]}, "must be an array"),
        ({"eos_token_id": "a"}, "eos_token_id='a' must be a token"),
    ],
)
def test_what_cannot_be_searched_says_why(model, arguments, message):
    with pytest.raises((DataError, ConfigError), match=message):
        beam_search(**{"model": model, "input_ids": PROMPT, "num_beams": 2, "max_new_tokens": 3} | arguments)
