r"""The head of a language model that reads the embedding itself: $\mathrm{logits} = x E^\top$.

Source: Press and Wolf 2017, https://arxiv.org/abs/1608.05859. Decoding multiplies few rows by a large table, which
should cost the time to read the table once. XLA's CPU compiler takes longer for ``x @ E.T``: for one row inside a loop
it writes a transposed copy of E for every token, and for a few rows it reads E slowly. With E as the left operand it
does neither; it would swap the operands of a product that is transposed at once, which the barrier prevents
(shared/docs/cpu.md).

Shapes: V vocabulary, M rows.
"""

import math

import jax
from flax import nnx

FEW_ROWS = 16
"""Up to how many rows E is the left operand; more of them hide the time to read it."""


def tied_logits(embedding: nnx.Embed, x: jax.Array) -> jax.Array:
    """Return logits [..., V] in the embedding's dtype for x [..., D]: the value of ``embedding.attend(x)``."""
    rows = math.prod(x.shape[:-1])
    if rows > FEW_ROWS:
        return embedding.attend(x)
    x, table = embedding.promote_dtype((x, embedding.embedding[...]), dtype=embedding.dtype)
    logits_VM = jax.lax.dot_general(table, x.reshape(rows, -1), (((1,), (1,)), ((), ())))
    return jax.lax.optimization_barrier(logits_VM).T.reshape(*x.shape[:-1], -1)
