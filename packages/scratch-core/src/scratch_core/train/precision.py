"""Mixed precision: layers compute in one dtype, parameters stay in another."""

from typing import Any

from flax import nnx


def compute_in(model: Any, dtype: Any) -> None:
    """Let a model's layers compute in ``dtype``, in place; its parameters stay as they are.

    Each layer gets the dtype that ``Model(config, dtype=dtype)`` gives it, so that a layer that always computes in
    float32, such as a router, still does. Parameters in float32 keep small updates that bfloat16 would round away
    (Micikevicius et al. 2017, https://arxiv.org/abs/1710.03740, section 3.1).
    """
    built = nnx.eval_shape(lambda: type(model)(model.config, dtype=dtype, rngs=nnx.Rngs(0)))
    dtypes = {path: getattr(module, "dtype", None) for path, module in nnx.iter_modules(built)}
    for path, module in nnx.iter_modules(model):
        found = dtypes.get(tuple(part for part in path if part != "kinds"))  # kinds.k of scanned blocks is like block k
        if found is not None:
            setattr(module, "dtype", found)  # noqa: B010, whatever the module's class
