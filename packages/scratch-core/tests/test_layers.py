"""The shared layers against their definitions, against each other, and against jax's own attention."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scratch_core.errors import ConfigError, DataError
from scratch_core.layers import (
    MLP,
    GatedMLP,
    GroupedQueryAttention,
    KeyValueCache,
    LayerNorm,
    LearnedPositions,
    Linear,
    LinearScaling,
    Llama3Scaling,
    MultiHeadAttention,
    MultiQueryAttention,
    RMSNorm,
    Rope,
    attend,
    causal_mask,
    gelu,
    interleaved_to_half_split,
    positions_from_mask,
    tied_logits,
)
from scratch_core.layers.linear import dot_rows
from scratch_core.testing import jitted

B, T, D, N, H = 2, 9, 24, 4, 8


@pytest.fixture
def normal(random):
    return lambda *shape: jnp.asarray(random.normal(size=shape), jnp.float32)


# ------------------------------------------------------------------------------------------------ attention


@pytest.mark.parametrize("num_kv_heads", [1, 2, 4])
def test_attend_equals_jax(num_kv_heads, normal):
    query, key, value = normal(B, T, N, H), normal(B, T, num_kv_heads, H), normal(B, T, num_kv_heads, H)
    mask = causal_mask(*[jnp.arange(T)[None].repeat(B, 0)] * 2)
    expected = jax.nn.dot_product_attention(query, key, value, mask=mask[:, None])
    np.testing.assert_allclose(attend(query, key, value, mask), expected, atol=1e-5)


def test_multi_query_equals_grouped_query_with_one_key_value_head(normal):
    multi = MultiQueryAttention(D, N, H, rngs=nnx.Rngs(0))
    grouped = GroupedQueryAttention(D, N, 1, H, rngs=nnx.Rngs(1))
    grouped.query.kernel[...], grouped.out.kernel[...] = multi.query.kernel[...], multi.out.kernel[...]
    grouped.key.kernel[...], grouped.value.kernel[...] = (
        multi.key.kernel[...][:, None],
        multi.value.kernel[...][:, None],
    )
    x, positions = normal(B, T, D), jnp.arange(T)[None].repeat(B, 0)
    y, _ = grouped(x, positions)
    np.testing.assert_allclose(multi(x, mask=causal_mask(positions, positions)), y, atol=1e-5)


def test_multi_head_equals_grouped_query_with_as_many_key_value_heads(normal):
    multi = MultiHeadAttention(D, N, H, use_bias=False, rngs=nnx.Rngs(0))
    grouped = GroupedQueryAttention(D, N, N, H, rngs=nnx.Rngs(1))
    nnx.update(grouped, nnx.state(multi))
    x, positions = normal(B, T, D), jnp.arange(T)[None].repeat(B, 0)
    y, _ = grouped(x, positions)
    np.testing.assert_allclose(multi(x, mask=causal_mask(positions, positions)), y, atol=1e-5)


@pytest.mark.parametrize("kind", [MultiHeadAttention, MultiQueryAttention])
def test_cross_attention_equals_jax(kind, normal, random):
    layer = kind(D, N, H, d_memory=16, rngs=nnx.Rngs(0))
    x, memory = normal(B, T, D), normal(B, 5, 16)
    mask = jnp.asarray(random.random((B, 1, 5)) < 0.7)
    key, value = layer.key(memory), layer.value(memory)
    if kind is MultiQueryAttention:
        key, value = key[:, :, None], value[:, :, None]
    expected = jax.nn.dot_product_attention(layer.query(x), key, value, mask=mask[:, None])
    np.testing.assert_allclose(layer(x, memory, mask), layer.out(expected), atol=1e-5)


def test_self_attention_without_positions_is_equivariant_to_permutations(normal, random):
    layer = MultiHeadAttention(D, N, rngs=nnx.Rngs(0))
    x, order = normal(1, T, D), random.permutation(T)
    np.testing.assert_allclose(layer(x[:, order]), layer(x)[:, order], atol=1e-5)


def test_a_query_that_may_read_nothing_is_finite(normal):
    query, key = normal(1, 3, N, H), normal(1, 3, N, H)
    assert np.isfinite(attend(query, key, key, jnp.zeros((1, 3, 3), bool))).all()


@pytest.mark.parametrize("layer", ["attend", "multi-query"])
def test_a_mask_without_a_batch_is_the_same_for_all_rows_and_heads(layer, normal):
    """T equals the number of heads here, so that a mask read as [heads, S] would go unnoticed."""
    T = 4
    mask_TS = np.tril(np.ones((T, T), bool))
    if layer == "attend":
        query, key, value = normal(B, T, N, H), normal(B, T, N, H), normal(B, T, N, H)
        run = lambda mask: attend(query, key, value, mask)  # noqa: E731
    else:
        attention, x = MultiQueryAttention(D, N, rngs=nnx.Rngs(0)), normal(B, T, D)
        run = lambda mask: attention(x, mask=mask)  # noqa: E731
    whole = np.broadcast_to(mask_TS, (B, T, T))
    for mask in (mask_TS, mask_TS[None], np.broadcast_to(mask_TS, (1, T, T))):
        np.testing.assert_array_equal(run(jnp.asarray(mask)), run(jnp.asarray(whole)))
    assert np.abs(run(jnp.asarray(whole)) - run(None)).max() > 0.01


def test_bias_and_scale_enter_the_scores(normal):
    query, key, value = normal(B, T, N, H), normal(B, T, 2, H), normal(B, T, 2, H)
    bias_NTS, mask = normal(N, T, T), np.tril(np.ones((T, T), bool))
    scores = jnp.einsum("btnh,bsnh->bnts", query, key.repeat(2, axis=2)) * 0.3 + bias_NTS
    weights = jax.nn.softmax(jnp.where(mask, scores, -jnp.inf), axis=-1)
    expected = jnp.einsum("bnts,bsnh->btnh", weights, value.repeat(2, axis=2))
    actual = attend(query, key, value, jnp.asarray(mask), bias=bias_NTS, scale=0.3)
    np.testing.assert_allclose(actual, expected, atol=1e-5)


def test_dropout_acts_on_the_weights(normal):
    query, key, value = normal(B, T, N, H), normal(B, T, N, H), normal(B, T, N, H)
    np.testing.assert_allclose(
        attend(query, key, value, dropout=lambda weights: 2 * weights), 2 * attend(query, key, value), rtol=1e-6
    )


def test_head_counts_that_do_not_divide_are_errors():
    with pytest.raises(ConfigError, match="num_kv_heads=3 must divide num_heads=4"):
        GroupedQueryAttention(D, 4, 3, H, rngs=nnx.Rngs(0))
    with pytest.raises(ConfigError, match="num_heads=5 must divide d_model=24"):
        MultiHeadAttention(D, 5, rngs=nnx.Rngs(0))


def test_bfloat16_layers_return_bfloat16_from_float32_parameters(normal):
    layer = GroupedQueryAttention(D, N, 2, H, rope=Rope(), dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    y, _ = layer(normal(B, T, D).astype(jnp.bfloat16), jnp.arange(T)[None].repeat(B, 0))
    assert (y.dtype, layer.query.kernel.dtype) == (jnp.bfloat16, jnp.float32)


# ------------------------------------------------------------------------------------------------ positions


def test_interleaved_rope_is_half_split_rope_on_permuted_features(normal, random):
    query, positions = normal(B, T, N, H), jnp.asarray(random.integers(0, 50, (B, T)))
    angle = positions[..., None] * Rope().frequencies(H)
    pairs = query.reshape(B, T, N, H // 2, 2)  # feature 2i with 2i + 1, as the paper writes them
    cos, sin = jnp.cos(angle)[:, :, None], jnp.sin(angle)[:, :, None]
    turned = jnp.stack(
        [pairs[..., 0] * cos - pairs[..., 1] * sin, pairs[..., 0] * sin + pairs[..., 1] * cos], axis=-1
    ).reshape(B, T, N, H)
    order = interleaved_to_half_split(H)
    np.testing.assert_allclose(Rope()(query[..., order], positions), turned[..., order], atol=1e-5)


def test_rope_scores_depend_on_distance_alone(normal):
    query, key, positions = normal(1, T, N, H), normal(1, T, N, H), jnp.arange(T)[None]
    near = jnp.einsum("btnh,bsnh->bnts", Rope()(query, positions), Rope()(key, positions))
    far = jnp.einsum("btnh,bsnh->bnts", Rope()(query, positions + 100), Rope()(key, positions + 100))
    np.testing.assert_allclose(near, far, atol=1e-4)
    assert np.abs(near - jnp.einsum("btnh,bsnh->bnts", query, key)).max() > 0.1


def test_llama3_scaling_keeps_fast_pairs_and_slows_slow_ones():
    plain = Rope(500_000.0).frequencies(64)
    scaled = Rope(500_000.0, Llama3Scaling(8.0, 1.0, 4.0, 8192)).frequencies(64)
    turns = 8192 * plain / (2 * np.pi)
    np.testing.assert_allclose(scaled[turns > 4], plain[turns > 4])
    np.testing.assert_allclose(scaled[turns < 1], plain[turns < 1] / 8, rtol=1e-6)
    between = (turns > 1) & (turns < 4)
    assert between.any()
    assert ((scaled < plain) & (scaled > plain / 8))[between].all()
    np.testing.assert_allclose(Rope(scaling=LinearScaling(4.0)).frequencies(64) * 4, Rope().frequencies(64))


def test_learned_positions_are_rows_of_a_table_and_never_clamped():
    layer = LearnedPositions(5, D, rngs=nnx.Rngs(0))
    table = layer.embedding[...]
    np.testing.assert_array_equal(layer(jnp.array([[-1, 0, 4]])), table[jnp.array([[0, 0, 4]])])
    with pytest.raises(DataError, match="a text of 6 tokens needs 6 positions, the model has 5"):
        layer(jnp.array([[5]]))
    assert np.isnan(jitted(layer)(jnp.array([[5]]))).all()


def test_positions_count_real_tokens_on_either_side():
    mask = np.array([[0, 0, 1, 1], [1, 1, 1, 0], [0, 0, 0, 0]])
    expected = [[-1, -1, 0, 1], [0, 1, 2, -1], [-1, -1, -1, -1]]
    np.testing.assert_array_equal(positions_from_mask(mask), expected)
    np.testing.assert_array_equal(positions_from_mask(mask, jnp.array([3, 0, 9]))[0], [-1, -1, 3, 4])


def test_a_window_of_w_reads_w_positions():
    positions = jnp.arange(6)[None]
    mask = np.asarray(causal_mask(positions, positions, window=3))[0]
    np.testing.assert_array_equal(mask.sum(axis=1), [1, 2, 3, 3, 3, 3])
    assert mask[5].tolist() == [False, False, False, True, True, True]


# ------------------------------------------------------------------------------------------------ caches


@pytest.mark.parametrize("window", [None, 4])
@pytest.mark.parametrize("chunks", [[9], [1] * 9, [2, 5, 1, 1], [6, 3]])
def test_cached_attention_equals_the_full_pass(window, chunks, normal):
    layer = GroupedQueryAttention(D, N, 2, H, rope=Rope(), window=window, rngs=nnx.Rngs(0))
    x = normal(3, T, D)
    mask = np.ones((3, T), np.int32)
    mask[1, :4], mask[2, 6:] = 0, 0  # a row padded on the left, one on the right
    positions = positions_from_mask(mask)
    run = jitted(layer)
    expected, _ = run(x, positions)
    cache, parts, start = layer.empty_cache(3, T + 3), [], 0
    assert cache.is_ring == (window is not None)
    for length in chunks:
        y, cache = run(x[:, start : start + length], positions[:, start : start + length], cache)
        parts.append(y)
        start += length
    actual, real = np.concatenate(parts, axis=1), mask == 1
    np.testing.assert_allclose(actual[real], np.asarray(expected)[real], atol=1e-5)
    kept = T if window is None else window
    for row, length in enumerate(mask.sum(axis=1)):
        held = np.sort(cache.position_BS[row])
        np.testing.assert_array_equal(held[held >= 0], np.arange(max(0, length - kept), length))


def test_a_ring_takes_the_memory_of_its_window():
    layer = GroupedQueryAttention(D, N, 2, H, window=4, rngs=nnx.Rngs(0))
    assert layer.empty_cache(1, 1000).key_BSKH.shape == (1, 4, 2, H)
    assert layer.empty_cache(1, 3).key_BSKH.shape == (1, 3, 2, H)


@pytest.mark.parametrize("chunks", [[9], [1] * 9, [2, 5, 1, 1]])
def test_a_layer_may_skip_tokens(chunks, normal):
    """Only stored tokens are read, as if there were no others. Positions still count all tokens of the row."""
    layer = GroupedQueryAttention(D, N, 2, H, rope=Rope(), rngs=nnx.Rngs(0))
    x, stored = normal(1, T, D), np.array([0, 3, 4, 7])
    positions = np.full((1, T), -1, np.int32)
    positions[0, stored] = stored
    run = jitted(layer)
    expected, _ = run(x[:, stored], jnp.asarray(stored)[None])
    cache, parts, start = layer.empty_cache(1, T), [], 0
    for length in chunks:
        y, cache = run(x[:, start : start + length], positions[:, start : start + length], cache)
        parts.append(y)
        start += length
    np.testing.assert_allclose(np.concatenate(parts, axis=1)[:, stored], expected, atol=1e-5)
    np.testing.assert_array_equal(cache.position_BS, positions)


def test_writing_past_the_end_is_dropped_not_clamped():
    cache = KeyValueCache.empty(1, 2, 1, 1)
    new, positions = jnp.array([1.0, 2.0, 3.0]).reshape(1, 3, 1, 1), jnp.arange(3)[None]
    key_BSKH, *_ = cache.append(new, new, positions)
    np.testing.assert_array_equal(key_BSKH.ravel(), [1, 2])


# ------------------------------------------------------------------------------------------------ the rest


def test_norms_equal_their_formulas(normal):
    x, scale, bias = normal(B, T, D), normal(D), normal(D)
    rms, layer = RMSNorm(D, epsilon=1e-3), LayerNorm(D, epsilon=1e-3)
    rms.scale[...], layer.scale[...], layer.bias[...] = scale, scale, bias
    x64 = np.asarray(x, np.float64)
    expected = x64 / np.sqrt((x64**2).mean(-1, keepdims=True) + 1e-3) * scale
    np.testing.assert_allclose(rms(x), expected, atol=1e-5)
    expected = (x64 - x64.mean(-1, keepdims=True)) / np.sqrt(x64.var(-1, keepdims=True) + 1e-3) * scale + bias
    np.testing.assert_allclose(layer(x), expected, atol=1e-5)


@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.float32, 1e-6), (jnp.bfloat16, 0.02)])
def test_gelu_equals_its_formula(dtype, tolerance):
    x = jnp.linspace(-6, 6, 101, dtype=dtype)
    expected = [value * 0.5 * (1 + math.erf(value / math.sqrt(2))) for value in np.asarray(x, np.float64)]
    assert gelu(x).dtype == dtype
    np.testing.assert_allclose(np.asarray(gelu(x), np.float64), expected, atol=tolerance)


@pytest.mark.parametrize("rows", [(), (1, 1), (3, 2), (5, 7)])
def test_the_tied_head_is_a_product_with_the_embedding(rows, normal):
    embedding, x = nnx.Embed(50, D, rngs=nnx.Rngs(0)), normal(*rows, D)
    np.testing.assert_allclose(nnx.jit(tied_logits)(embedding, x), x @ embedding.embedding[...].T, atol=1e-5)
    half = nnx.Embed(50, D, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    assert tied_logits(half, x).dtype == jnp.bfloat16


@pytest.mark.parametrize("activation", [jax.nn.silu, jax.nn.gelu])
def test_feed_forward_equals_its_formula(activation, normal):
    x = normal(B, T, D)
    plain, gated = (
        MLP(D, 40, activation=activation, rngs=nnx.Rngs(0)),
        GatedMLP(D, 40, activation=activation, rngs=nnx.Rngs(0)),
    )
    up, gate, down = (getattr(gated, name).kernel[...] for name in ("up", "gate", "down"))
    np.testing.assert_allclose(gated(x), (activation(x @ gate) * (x @ up)) @ down, atol=1e-5)
    expected = activation(x @ plain.up.kernel[...] + plain.up.bias[...]) @ plain.down.kernel[...]
    np.testing.assert_allclose(plain(x), expected, atol=1e-5)


# ------------------------------------------------------------------------------------------------- linear


@pytest.mark.parametrize(("shape", "kernel"), [((B, T, D), (D, N, H)), ((B, T, N, H), (N, H, D)), ((D,), (D, H))])
def test_dot_rows_is_dot_general_and_so_is_its_gradient(shape, kernel, normal):
    num_axes = 2 if len(kernel) == 3 and kernel[-1] == D else 1
    axes = tuple(range(len(shape) - num_axes, len(shape)))
    dimensions = ((axes, tuple(range(num_axes))), ((), ()))
    operands = normal(*shape), normal(*kernel)

    def value_and_gradients(product):
        return jax.value_and_grad(lambda x, w: jnp.sum(jnp.sin(product(x, w))), argnums=(0, 1))(*operands)

    ours = value_and_gradients(lambda x, w: dot_rows(x, w, num_axes))
    theirs = value_and_gradients(lambda x, w: jax.lax.dot_general(x, w, dimensions))
    for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("use_bias", [True, False])
@pytest.mark.parametrize(("inputs", "outputs"), [(D, H), (D, (N, H)), ((N, H), D)])
def test_linear_starts_and_computes_like_flax(inputs, outputs, use_bias, normal):
    """With the same random streams, so that models keep their initial values."""
    axis = (-2, -1) if isinstance(inputs, tuple) else -1
    ours, theirs = nnx.Rngs(3), nnx.Rngs(3)
    layer = Linear(inputs, outputs, use_bias=use_bias, rngs=ours)
    flax = nnx.LinearGeneral(inputs, outputs, axis=axis, use_bias=use_bias, rngs=theirs)
    assert ours.params.count[...] == theirs.params.count[...]
    np.testing.assert_array_equal(layer.kernel[...], flax.kernel[...])
    if use_bias:
        layer.bias[...] = flax.bias[...] = normal(*flax.bias.shape)
    assert (layer.bias is None) is not use_bias
    x = normal(B, T, *(inputs if isinstance(inputs, tuple) else (inputs,)))
    np.testing.assert_allclose(layer(x), flax(x), atol=1e-5)


def test_linear_computes_in_its_dtype(normal):
    layer = Linear(D, H, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    assert (layer(normal(T, D)).dtype, layer.kernel.dtype) == (jnp.bfloat16, jnp.float32)
