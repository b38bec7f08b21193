"""Llama of 125 M parameters, float32: ours beside Hugging Face transformers on PyTorch, interleaved in one run.

    uv run python shared/benchmarks/llama.py --reference-python PYTHON

PYTHON is an interpreter that has torch, transformers and safetensors (a CPU build is enough). Decoding is also given as
a share of the memory bandwidth that a plain matrix-vector product reaches here, prefill and training as a share of the
rate of a large matrix product.
"""

import tempfile

from language_model import Ours, serve_transformers
from side_by_side import Reference, arguments, machine, parse, print_setting, print_table, take_turns

PREFILL, NEW, TRAINING = 256, 64, (4, 256)
SIZES = {"vocab_size": 32_000, "d_model": 768, "num_layers": 12, "num_heads": 12, "num_kv_heads": 12}
SIZES |= {"head_dim": 64, "d_ff": 1728, "max_positions": 2048}
TASKS = {
    "prefill 1 x 256": ("prefill", PREFILL),
    "decode 64, batch 1": ("decode", 1),
    "decode 64, batch 8": ("decode", 8),
    "training step 4 x 256": ("train", TRAINING[0]),
}


def main() -> None:
    """Run both sides and print the table."""
    parser = arguments(__doc__, rounds=4)
    options = parse(parser, lambda folder: serve_transformers("LlamaForCausalLM", folder, NEW, TRAINING))

    from flax import nnx
    from scratch_core.testing import count_parameters
    from scratch_core.train import keep_memory
    from scratch_llama import Llama, LlamaConfig

    keep_memory()
    config = LlamaConfig(**SIZES)
    count, table = count_parameters(Llama, config), config.vocab_size * config.d_model
    with tempfile.TemporaryDirectory() as folder:
        Llama(config, rngs=nnx.Rngs(0)).save_pretrained(folder)
        with Reference(options.reference_python, __file__, folder) as reference:
            ours = Ours(folder, NEW, TRAINING)
            print(f"Llama, {count / 1e6:.0f} M parameters")
            print_setting(reference.hello, ours.difference(reference.hello))
            best = take_turns(TASKS, ours, reference, options.rounds)

    bandwidth, rate = machine()
    print(f"matrix-vector product {bandwidth:.0f} GB/s, matrix product {rate:.0f} GFLOP/s\n")
    weights = count - table  # of the embedding, only the tokens' rows are read
    flops = {  # per weight and token 2 forward, 6 in a training step; a prefill's head reads one token
        "prefill 1 x 256": 2 * PREFILL * (weights - table),
        "training step 4 x 256": 6 * TRAINING[0] * TRAINING[1] * weights,
    }
    notes = {name: f"{n / best[name][0] / 1e9 / rate:.0%} of the matrix product's rate" for name, n in flops.items()}
    for name in best.keys() - flops.keys():
        notes[name] = f"{4 * weights * NEW / best[name][0] / 1e9 / bandwidth:.0%} of the memory bandwidth"
    print_table(best, notes)


if __name__ == "__main__":
    main()
