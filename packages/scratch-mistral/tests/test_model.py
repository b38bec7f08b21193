"""What must hold of Mistral for any weights: the contract of decoders, its window, and its configurations."""

import dataclasses

import jax
import numpy as np
import pytest
from flax import nnx
from scratch_core.errors import ConfigError
from scratch_core.generation.generate import decode_loop, prefill
from scratch_core.generation.sampling import Sampling
from scratch_core.testing import CACHED, CausalLMContract, assert_close, jitted
from scratch_mistral import Mistral, MistralConfig

WINDOW = 7
CONFIG = MistralConfig(
    128, 48, 1, num_heads=4, num_kv_heads=2, head_dim=16, d_ff=96, window=WINDOW, tie_embeddings=True
)


class TestMistral(CausalLMContract):
    """The window is shorter than the texts of the tests, so that the cache is a ring."""

    model_class = Mistral
    config = CONFIG
    overfit_rate = 1e-2
    decayed = (
        "layers.*.attention.key.kernel",
        "layers.*.attention.out.kernel",
        "layers.*.attention.query.kernel",
        "layers.*.attention.value.kernel",
        "layers.*.feed_forward.down.kernel",
        "layers.*.feed_forward.gate.kernel",
        "layers.*.feed_forward.up.kernel",
    )


def create(window: int | None) -> Mistral:
    """Return a small model of two layers; its weights are always the same."""
    return Mistral(dataclasses.replace(CONFIG, num_layers=2, window=window), rngs=nnx.Rngs(0))


def test_two_layers_see_back_two_windows_and_no_further():
    """Each layer adds W - 1 positions, as in figure 1 of the paper. The two positions tested are one apart."""
    reach = 2 * (WINDOW - 1)
    ids = np.random.default_rng(0).integers(0, 127, (1, reach + 2))
    forward = jitted(create(WINDOW))
    last = np.asarray(forward(ids))[0, -1]
    for position, reaches in ((0, False), (1, True)):
        changed = ids.copy()
        changed[0, position] += 1
        moved = np.abs(np.asarray(forward(changed))[0, -1] - last).max()
        assert (moved > 0) == reaches, f"position {position} moves the last logits by {moved}"


def test_a_window_as_long_as_the_text_changes_nothing():
    """With the same weights, a window as long as the text gives the logits of a model without a window."""
    ids = np.random.default_rng(0).integers(0, 128, (1, 20))
    wide, full = (jitted(create(window))(ids) for window in (20, None))
    np.testing.assert_array_equal(wide, full)


def bytes_of(tree) -> int:
    """Return the bytes of all arrays."""
    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))


def test_memory_does_not_grow_over_10_000_tokens():
    """The ring has W slots for any number of generated tokens, and holds the last of them."""
    model, NEW = create(WINDOW), 10_000
    graphdef, state = nnx.split(model)
    prompt, eos, settings = np.array([[5, 9, 2]], np.int32), np.array([-1], np.int32), Sampling(temperature=1.0)

    def write(new: int):
        decoding = prefill(graphdef, new, state, prompt, np.ones_like(prompt), eos, settings, jax.random.key(0))
        loop = decode_loop.lower(graphdef, state, decoding, np.int32(new), eos, np.int32(0), settings).compile()
        memory = loop.memory_analysis()
        size = memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes
        return loop(state, decoding, np.int32(new), eos, np.int32(0), settings), size

    (early, size_100), (late, size_10_000) = write(100), write(NEW)
    assert (int(late.step), int(late.cache.length_B[0])) == (NEW, prompt.size + NEW - 1)
    assert bytes_of(late.cache) == bytes_of(early.cache) < bytes_of(create(None).init_cache(1, NEW)) / 1_000
    more = (size_10_000 - size_100) / (NEW - 100)
    print(f"each further token adds {more:.1f} bytes to the compiled loop")
    assert more <= 8  # a token is an int32 in the argument and one in the result

    # The next logits equal those of a text that has only the tokens within reach.
    ids = np.asarray(late.tokens_BR)[:, -1 - 2 * (WINDOW - 1) :]
    logits, _ = jitted(model, "decode")(ids[:, -1:], late.cache)
    assert_close(logits[:, 0], np.asarray(jitted(model)(ids))[:, -1], CACHED, "the logits after 10,000 tokens")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_key_value_heads": 3}, "num_kv_heads=3 must divide num_heads=4"),
        ({"hidden_act": "gelu"}, "hidden_act='gelu'"),
        ({"is_causal": False}, "is_causal=False"),
        ({"attention_dropout": 0.1}, "attention_dropout=0.1"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "rope_type='yarn' is not implemented"),
        ({"head_dim": 33}, "head_dim=33 must be even"),
        ({"sliding_window": 0}, "window=0 must be greater than 0"),
        ({"layer_types": ["sliding_attention", "full_attention"]}, "must all be 'sliding_attention'"),
        ({"vocab_size": None}, "no field 'vocab_size'"),
    ],
)
def test_a_config_that_cannot_be_built_says_why(change, message):
    with pytest.raises(ConfigError, match=message):
        MistralConfig.from_hf({**MistralConfig.tiny().to_hf(), **change})


def test_a_field_that_is_absent_and_one_that_is_null_mean_different_things():
    """As in transformers' MistralConfig: an absent sliding_window means 4096, null means none; so for other fields."""
    fields = MistralConfig.tiny().to_hf()
    names = ("sliding_window", "num_key_value_heads", "bos_token_id", "eos_token_id", "pad_token_id")
    null = MistralConfig.from_hf({**fields, **dict.fromkeys(names)})
    assert (null.window, null.num_kv_heads) == (None, null.num_heads)
    assert (null.bos_token_id, null.eos_token_id, null.pad_token_id) == (None, None, None)
    absent = MistralConfig.from_hf(
        {name: value for name, value in fields.items() if name not in names} | {"num_attention_heads": 16}
    )
    assert (absent.window, absent.num_kv_heads) == (4096, 8)
    assert (absent.bos_token_id, absent.eos_token_id, absent.pad_token_id) == (1, 2, None)


def test_head_dim_is_independent_of_d_model():
    config = MistralConfig.nemo_12b()
    assert config.num_heads * config.head_dim == 4096 != config.d_model
    older = MistralConfig.from_hf({**MistralConfig.mistral_7b_v0_1().to_hf(), "head_dim": None})
    assert older == MistralConfig.mistral_7b_v0_1()
