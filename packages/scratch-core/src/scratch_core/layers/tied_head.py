r"""The head of a language model that shares the weights of the embedding: $\mathrm{logits} = x E^\top$.

Source: Press and Wolf 2017, https://arxiv.org/abs/1608.05859. Decoding multiplies few rows by a large table, which
should cost the time to read the table once. XLA's CPU compiler takes longer for ``x @ E.T``: for one row inside a loop
it writes a transposed copy of E for every token, and for a few rows it reads E slowly. With E as the left operand, it
does neither. The barrier keeps the compiler from merging the final transpose into the product, which would swap the
operands again (shared/docs/cpu.md).

Shapes: V vocabulary, M rows.
"""

import math

import jax
from flax import nnx

FEW_ROWS = 16
"""The largest number of rows for which E is the left operand. With more, the product takes longer than reading E."""


def tied_logits(embedding: nnx.Embed, x: jax.Array) -> jax.Array:
    """Return logits [..., V] in the embedding's dtype for x [..., D]: the value of ``embedding.attend(x)``."""
    rows = math.prod(x.shape[:-1])
    if rows > FEW_ROWS:
        return embedding.attend(x)
    x, table = embedding.promote_dtype((x, embedding.embedding[...]), dtype=embedding.dtype)
    logits_VM = jax.lax.dot_general(table, x.reshape(rows, -1), (((1,), (1,)), ((), ())))
    return jax.lax.optimization_barrier(logits_VM).T.reshape(*x.shape[:-1], -1)
