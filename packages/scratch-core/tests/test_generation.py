"""Generation on a small model whose tokens are computed by hand, and sampling from given distributions."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scratch_core import CausalLM, ConfigError, DataError, generate, stream
from scratch_core.generation.prompts import bucket
from scratch_core.generation.sampling import Sampling, greedy, restrict, sample
from scratch_core.layers import GroupedQueryAttention, Rope
from scratch_core.testing import check_two_traces, jitted

V = 11


@dataclasses.dataclass(frozen=True)
class ToyConfig:
    vocab_size: int = V
    max_positions: int = 64


class Block(nnx.Module):
    """One attention layer without a residual stream: a token depends on all earlier tokens."""

    def __init__(self, rngs):
        self.attention = GroupedQueryAttention(16, 2, 1, 8, rope=Rope(), rngs=rngs)

    def __call__(self, x, positions, cache=None):
        return self.attention(x, positions, cache)


class Toy(CausalLM):
    def __init__(self, rngs):
        self.config = ToyConfig()
        self.embedding = nnx.Embed(V, 16, rngs=rngs)
        self.layers = nnx.List([Block(rngs)])
        self.norm = lambda x: x

    def embed(self, input_ids, positions):
        return self.embedding(input_ids)

    def logits(self, x):
        return 9 * self.embedding.attend(x)


@pytest.fixture(scope="module")
def model():
    return Toy(nnx.Rngs(1))


PROMPT = np.array([[3, 1, 4, 1, 5], [2, 7, 1, 8, 2]])


def by_hand(model, row, new, penalty=1.0):
    """Greedy decoding without a cache."""
    ids, forward = np.zeros((1, len(row) + new), int), jitted(model)
    ids[0, : len(row)] = row
    for end in range(len(row), ids.shape[1]):
        logits = np.array(forward(ids))[0, end - 1]
        seen = np.unique(ids[0, :end])
        logits[seen] = np.where(logits[seen] > 0, logits[seen] / penalty, logits[seen] * penalty)
        ids[0, end] = logits.argmax()
    return ids[0].tolist()


def test_greedy_tokens_are_those_of_the_full_pass(model):
    expected = [by_hand(model, row, 12) for row in PROMPT]
    np.testing.assert_array_equal(generate(model, PROMPT, max_new_tokens=12), expected)
    assert len({tuple(row[5:]) for row in expected}) == 2  # the prompts matter


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_padded_row_writes_what_it_writes_alone(model, side):
    ids, mask = np.full((2, 8), 9), np.zeros((2, 8), int)
    for row, length in enumerate((5, 3)):
        real = slice(8 - length, 8) if side == "left" else slice(0, length)
        ids[row, real], mask[row, real] = PROMPT[row, :length], 1
    new = generate(model, ids, mask, max_new_tokens=10)[:, 8:]
    for row, length in enumerate((5, 3)):
        np.testing.assert_array_equal(new[row], by_hand(model, PROMPT[row, :length], 10)[length:])


def test_a_finished_row_is_padded_and_the_batch_ends_with_the_last(model):
    plain = generate(model, PROMPT, max_new_tokens=20)[:, 5:]
    eos = int(plain[0, 3])
    ends = [list(row).index(eos) if eos in row else 20 for row in plain]
    stopped = generate(model, PROMPT, max_new_tokens=20, eos_token_id=eos, pad_token_id=10)[:, 5:]
    assert stopped.shape[1] == min(max(ends) + 1, 20)
    for row, end in enumerate(ends):
        np.testing.assert_array_equal(stopped[row, : end + 1], plain[row, : end + 1])
        assert (stopped[row, end + 1 :] == 10).all()


def test_any_of_several_tokens_ends_a_row(model):
    plain = generate(model, PROMPT, max_new_tokens=20)[:, 5:]
    ends = [int(plain[1, 6]), 9, int(plain[0, 3])]  # not as many as rows, and in another order
    stopped = generate(model, PROMPT, max_new_tokens=20, eos_token_id=ends, pad_token_id=10)[:, 5:]
    for row, whole in zip(stopped, plain):
        end = next(i for i, token in enumerate(whole) if token in ends)
        np.testing.assert_array_equal(row[: end + 1], whole[: end + 1])
        assert (row[end + 1 :] == 10).all()


@pytest.mark.parametrize("every", [1, 4])
def test_streaming_gives_the_same_tokens(model, every):
    chunks = list(stream(model, PROMPT, max_new_tokens=10, every=every))
    np.testing.assert_array_equal(np.concatenate(chunks, axis=1), generate(model, PROMPT, max_new_tokens=10)[:, 5:])
    assert len(chunks) == 10 if every == 1 else len(chunks) < 5


def test_two_programs_serve_all_prompts_of_a_bucket(model):
    check_two_traces(model)
    assert [bucket(n) for n in (1, 16, 17, 64, 65, 128, 129, 1000)] == [16, 16, 32, 64, 128, 128, 256, 1024]


def test_sampling_draws_anew_for_each_token_and_again_for_the_same_key(model):
    kwargs = {"max_new_tokens": 40, "temperature": 5.0}
    once = generate(model, PROMPT, **kwargs, key=jax.random.key(1))
    np.testing.assert_array_equal(generate(model, PROMPT, **kwargs, key=jax.random.key(1)), once)
    assert (generate(model, PROMPT, **kwargs, key=jax.random.key(2)) != once).any()
    assert len(set(once[0, 5:])) > 3


def test_the_repetition_penalty_counts_the_prompt_and_what_was_written(model):
    written = generate(model, PROMPT, max_new_tokens=12, repetition_penalty=1.7)
    np.testing.assert_array_equal(written, [by_hand(model, row, 12, penalty=1.7) for row in PROMPT])
    assert (written != generate(model, PROMPT, max_new_tokens=12)).any()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"input_ids": np.zeros((1, 0), int)}, "at least one token"),
        ({"input_ids": np.array([1, 2])}, "must be integers"),
        ({"input_ids": np.array([[1.0]])}, "must be integers"),
        ({"input_ids": np.array([[V]])}, r"must be in \[0, vocab_size=11\), found 11"),
        ({"attention_mask": np.ones((2, 3))}, "must have the shape of input_ids"),
        ({"attention_mask": np.array([[1] * 5, [0] * 5])}, "at one token or more of every row"),
        ({"max_new_tokens": 0}, "max_new_tokens=0 must be at least 1"),
        ({"max_new_tokens": 60}, "a prompt of 5 tokens and max_new_tokens=60 need 65 positions, the model has 64"),
        ({"max_new_tokens": 10**11}, "max_new_tokens=100000000000 must be at least 1 and less than"),
        ({"input_ids": [[1, 2], [3]]}, "must be an array"),
        ({"eos_token_id": [[1]]}, r"eos_token_id=\[\[1\]\] must be a token"),
        ({"eos_token_id": 10**10}, "eos_token_id=10000000000 must be a token"),
        ({"pad_token_id": None}, "pad_token_id=None must be a token"),
        ({"temperature": -1.0}, "temperature=-1.0 must be 0"),
        ({"top_p": 0.0}, "top_p=0.0 must be above 0"),
        ({"top_k": 0}, "top_k=0 must be at least 1"),
    ],
)
def test_what_cannot_be_generated_says_why(model, arguments, message):
    with pytest.raises((DataError, ConfigError), match=message):
        generate(**{"model": model, "input_ids": PROMPT, "max_new_tokens": 3} | arguments)


def test_streaming_no_token_at_a_time_is_an_error(model):
    with pytest.raises(ConfigError, match="every=0 must be at least 1"):
        next(stream(model, PROMPT, max_new_tokens=3, every=0))


# ------------------------------------------------------------------------------------------------ distributions


def kept(logits, **settings):
    settings = dataclasses.replace(Sampling(temperature=1.0), **settings)
    return np.isfinite(np.asarray(restrict(settings, jnp.log(jnp.array([logits]))))[0]).nonzero()[0].tolist()


def test_what_top_k_top_p_and_min_p_keep():
    probabilities = [0.1, 0.4, 0.05, 0.3, 0.15]
    assert kept(probabilities, top_k=2) == [1, 3]
    assert kept(probabilities, top_p=0.69) == [1, 3]
    assert kept(probabilities, top_p=0.71) == [1, 3, 4]  # the token that crosses p stays
    assert kept(probabilities, top_p=1e-6) == [1]
    assert kept(probabilities, min_p=0.3) == [1, 3, 4]
    assert kept(probabilities, min_p=0.0) == [0, 1, 2, 3, 4]
    assert kept(probabilities, top_k=3, top_p=0.8) == [1, 3]  # 0.4 / 0.85 + 0.3 / 0.85 = 0.82


def test_top_p_of_one_keeps_every_token():
    """The sum of these float32 probabilities reaches 1 some 15,000 tokens before the last."""
    logits = 3 * np.random.default_rng(0).standard_normal((1, 128_256)).astype(np.float32)
    assert np.isfinite(restrict(Sampling(temperature=1.0, top_p=1.0), jnp.asarray(logits))).all()
    for top_p in (1.0, 1.5):
        assert Sampling.create(temperature=1.0, top_p=top_p) == Sampling.create(temperature=1.0)


def test_samples_follow_the_distribution():
    probabilities = np.array([0.1, 0.6, 0.3])
    logits = jnp.log(jnp.asarray(np.tile(probabilities, (20_000, 1)), jnp.float32))
    settings = Sampling.create(temperature=1.0)
    share = np.bincount(np.asarray(sample(settings, logits, None, jax.random.key(0))), minlength=3) / 20_000
    np.testing.assert_allclose(share, probabilities, atol=0.015)
    cold = np.bincount(np.asarray(sample(Sampling.create(temperature=0.5), logits, None, jax.random.key(0))))
    np.testing.assert_allclose(cold / 20_000, probabilities**2 / (probabilities**2).sum(), atol=0.015)


def test_greedy_takes_the_first_of_equals():
    np.testing.assert_array_equal(greedy(jnp.array([[1.0, 3.0, 3.0], [2.0, 0.0, 1.0]])), [1, 0])
