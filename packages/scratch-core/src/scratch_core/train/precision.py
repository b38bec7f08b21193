"""Mixed precision: layers compute in one dtype, parameters stay in another."""

from typing import Any

from flax import nnx


def compute_in(model: Any, dtype: Any) -> None:
    """Let a model's layers compute in ``dtype``, in place; its parameters stay as they are.

    Each layer gets the dtype that ``Model(config, dtype=dtype)`` gives it, so that one which is float32 in any case,
    such as a router, stays so. With bfloat16 over float32 parameters the optimizer adds small updates without loss
    (Micikevicius et al. 2017, https://arxiv.org/abs/1710.03740, section 3.1).
    """
    built = nnx.eval_shape(lambda: type(model)(model.config, dtype=dtype, rngs=nnx.Rngs(0)))
    dtypes = {path: getattr(module, "dtype", None) for path, module in nnx.iter_modules(built)}
    for path, module in nnx.iter_modules(model):
        found = dtypes.get(tuple(part for part in path if part != "kinds"))  # scanned blocks stand for the first few
        if found is not None:
            setattr(module, "dtype", found)  # noqa: B010, whatever the module's class
