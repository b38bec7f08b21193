"""Draw the semiseparable matrix of a trained Mamba-2 layer, its blocks, and their ranks.

    uv run python shared/docs/mamba2_figure.py CHECKPOINT [PNG]

CHECKPOINT is a folder that `scratch train mamba2` wrote. The matrix is M = L o (C B^T) of eq. 2 in
packages/scratch-mamba2/src/scratch_mamba2/ssd.py, built from the model's own values on a little code. The script also
prints the ranks, and that M times the inputs is what the model's own recurrence computes.
"""

import argparse

import jax.numpy as jnp
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import scratch_core
from scratch_mamba2 import ssd

TEXT = (
    'def mean(values):\n    """Return the arithmetic mean."""\n    total = 0.0\n    for value in values:\n'
    "        total += value\n    return total / len(values)\n\n\ndef variance(values):\n"
    '    """Return the population variance."""\n    centre = mean(values)\n'
    "    return mean([(value - centre) ** 2 for value in values])\n"
)


def operator_inputs(model, ids_BT, layer: int):
    """Return what a layer's operator is called with: x, log_a, B, C and the state before."""
    seen = []
    original = ssd.scan

    def recording(*arrays, chunk_size):
        seen.append(arrays)
        return original(*arrays, chunk_size=chunk_size)

    ssd.scan = recording
    try:
        model(ids_BT)
    finally:
        ssd.scan = original
    return seen[layer]


def numerical_rank(block: np.ndarray) -> int:
    """Number of singular values above 1e-6 of the largest."""
    values = np.linalg.svd(block, compute_uv=False)
    return int((values > 1e-6 * values[0]).sum())


def main() -> None:
    """Draw the figure and print the ranks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("png", nargs="?", default="mamba2_semiseparable.png")
    parser.add_argument("--layer", type=int, default=1)
    parser.add_argument("--chunk", type=int, default=64)
    arguments = parser.parse_args()

    model, Q = scratch_core.load(arguments.checkpoint), arguments.chunk
    ids_BT = np.frombuffer(TEXT.encode(), np.uint8)[None, : 4 * Q].astype(np.int32)
    x, log_a, B_, C_, before = operator_inputs(model, ids_BT, arguments.layer)
    T, H, N = x.shape[1], x.shape[2], B_.shape[3]
    L_HTT = np.asarray(ssd.semiseparable_mask(jnp.swapaxes(log_a[0], 0, 1)), np.float64)
    scores_HTT = np.repeat(np.einsum("tgn,sgn->gts", *map(np.float64, (C_[0], B_[0]))), H // B_.shape[2], axis=0)
    M_HTT = L_HTT * scores_HTT

    y, _ = ssd.recurrent(x, log_a, B_, C_, before)
    by_matrix = np.einsum("hts,shp->thp", M_HTT, np.float64(x[0]))
    print(f"M X against the recurrence: largest difference {np.abs(by_matrix - y[0]).max():.1e}")

    # Of all heads, the one that remembers about half a chunk shows the decay best.
    memory_H = np.array([L[-1].sum() for L in L_HTT])
    head = int(np.abs(memory_H - Q / 2).argmin())
    L, M = L_HTT[head], M_HTT[head]
    print(f"layer {arguments.layer}, head {head}, {T} tokens, N = {N}, chunks of {Q}")
    figure, axes = plt.subplots(1, 3, figsize=(13, 4.4))
    panels = ((L, "mask $L$"), (scores_HTT[head], "scores $C B^\\top$"), (M, "$M = L \\circ (C B^\\top)$"))
    for ax, (matrix, title) in zip(axes, panels):
        scale = np.abs(matrix).max()
        ax.imshow(np.sign(matrix) * np.sqrt(np.abs(matrix) / scale), cmap="RdBu_r", vmin=-1, vmax=1)
        ax.set(title=title, xlabel="read from $s$", ylabel="written to $t$", xticks=[], yticks=[])
    for ax, matrix, name in ((axes[0], L, "L"), (axes[2], M, "M")):
        for row in range(T // Q):
            ranks = []
            for column in range(row + 1):
                block = matrix[row * Q : (row + 1) * Q, column * Q : (column + 1) * Q]
                rank = numerical_rank(block)
                ranks.append(rank)
                ax.text(
                    (column + 0.5) * Q - 0.5, (row + 0.5) * Q - 0.5, str(rank), ha="center", va="center",
                    bbox={"boxstyle": "round", "facecolor": "white", "alpha": 0.75, "linewidth": 0},
                )  # fmt: skip
            print(f"ranks of {name}, block row {row}: {ranks}")
        for edge in range(Q, T, Q):
            ax.axhline(edge - 0.5, color="black", linewidth=0.6)
            ax.axvline(edge - 0.5, color="black", linewidth=0.6)
    figure.suptitle(f"Layer {arguments.layer}, head {head} of a trained Mamba-2 on a little code; numbers: rank")
    figure.tight_layout()
    figure.savefig(arguments.png, dpi=90, bbox_inches="tight")
    print(f"drawn in {arguments.png}")


if __name__ == "__main__":
    main()
