"""Decoders of about 125 M parameters, float32: ours beside Hugging Face transformers on PyTorch, taking turns.

    uv run --all-packages python shared/benchmarks/decoder.py NAME ... --reference-python PYTHON

Each NAME is a key of ``FAMILIES``. Llama is always measured first, in the same run, and each ratio is also given
relative to Llama's. PYTHON is an interpreter that has torch, transformers and safetensors (a CPU build is enough). A
family takes one and a half minutes on two cores. For a model that uses every weight for every token, decoding is also
given as a share of the memory bandwidth that a plain matrix-vector product reaches here, and prefill and training as a
share of the rate of a large matrix product.
"""

import gc
import json
import tempfile
from pathlib import Path
from typing import Any

from language_model import Ours, serve_transformers
from side_by_side import Reference, arguments, machine, print_setting, print_table, take_turns

PREFILL, NEW, TRAINING = 256, 64, (4, 256)
TASKS = {
    "prefill 1 x 256": ("prefill", PREFILL),
    "decode 64, batch 1": ("decode", 1),
    "decode 64, batch 8": ("decode", 8),
    "training step 4 x 256": ("train", TRAINING[0]),
}

SHAPE = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "vocab_size": 32_000}
SHAPE |= {"max_position_embeddings": 2048, "tie_word_embeddings": False}
GEMMA = SHAPE | {"num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 256, "intermediate_size": 2816}
GEMMA |= {"hidden_activation": "gelu_pytorch_tanh", "tie_word_embeddings": True}
NO_DROPOUT = {"embd_pdrop": 0.0, "attn_pdrop": 0.0, "resid_pdrop": 0.0}  # the other families have none

# name: (transformers' class, the fields of config.json)
FAMILIES = {
    "llama": ("LlamaForCausalLM", SHAPE | {"intermediate_size": 1728}),
    "gpt2": ("GPT2LMHeadModel", {"vocab_size": 50_257, "n_embd": 768, "n_layer": 12, "n_head": 12} | NO_DROPOUT),
    "gptneo": (
        "GPTNeoForCausalLM",
        {"vocab_size": 50_257, "hidden_size": 768, "num_layers": 12, "num_heads": 12, "window_size": 256}
        | {"attention_types": [[["global", "local"], 6]], "max_position_embeddings": 2048},
    ),
    "mpt": ("MptForCausalLM", {"vocab_size": 50_368, "d_model": 768, "n_layers": 12, "n_heads": 12}),
    "olmo": ("OlmoForCausalLM", SHAPE | {"intermediate_size": 1728}),
    "olmo2": ("Olmo2ForCausalLM", SHAPE | {"intermediate_size": 1728}),
    "mistral": (
        "MistralForCausalLM",
        SHAPE | {"num_key_value_heads": 4, "intermediate_size": 2048, "sliding_window": 128},
    ),
    "mixtral": (
        "MixtralForCausalLM",
        SHAPE | {"num_key_value_heads": 4, "intermediate_size": 256, "num_local_experts": 8, "num_experts_per_tok": 2},
    ),
    "gemma": ("GemmaForCausalLM", GEMMA),
    "gemma2": ("Gemma2ForCausalLM", GEMMA | {"sliding_window": 128, "query_pre_attn_scalar": 256}),
}
REFERENCE_SETTINGS = {"MixtralForCausalLM": {"experts_implementation": "eager"}}


def compare(name: str, python: str, rounds: int, bandwidth: float, rate: float) -> dict[str, tuple[float, float]]:
    """Measure one family, print its table, and return {task: (our best seconds, the reference's)}.

    ``bandwidth`` in GB/s and ``rate`` in GFLOP/s are those of this machine.
    """
    from flax import nnx
    from scratch_core.registry import find_class
    from scratch_core.testing import count_parameters

    architecture, fields = FAMILIES[name]
    model_class = find_class({"architectures": [architecture]})
    config: Any = model_class.Config.from_hf(fields)
    count = count_parameters(model_class, config)
    with tempfile.TemporaryDirectory() as folder:
        model_class(config, rngs=nnx.Rngs(0)).save_pretrained(folder)
        with Reference(python, __file__, folder) as reference:
            ours = Ours(folder, NEW, TRAINING)
            print(f"{name}, {count / 1e6:.0f} M parameters")
            print_setting(reference.hello, ours.difference(reference.hello))
            best = take_turns(TASKS, ours, reference, rounds)

    notes = {}
    if not hasattr(config, "num_experts"):
        table = config.vocab_size * config.d_model
        weights = count if config.tie_embeddings else count - table  # only rows of an embedding are read
        flops = {  # per weight and token 2 forward, 6 in a training step; a prefill's head reads one token
            "prefill 1 x 256": 2 * PREFILL * (weights - table),
            "training step 4 x 256": 6 * TRAINING[0] * TRAINING[1] * weights,
        }
        notes = {
            name: f"{n / best[name][0] / 1e9 / rate:.0%} of the matrix product's rate" for name, n in flops.items()
        }
        for name in best.keys() - flops.keys():
            notes[name] = f"{4 * weights * NEW / best[name][0] / 1e9 / bandwidth:.0%} of the memory bandwidth"
    print_table(best, notes)
    return best


def main() -> None:
    """Measure Llama and the families named, and print their tables."""
    parser = arguments(__doc__, rounds=2)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"a family: {', '.join(FAMILIES)}")
    options = parser.parse_args()
    if options.serve:
        (architecture,) = json.loads(Path(options.serve, "config.json").read_text())["architectures"]
        settings = REFERENCE_SETTINGS.get(architecture, {})
        return serve_transformers(architecture, options.serve, NEW, TRAINING, **settings)
    if not options.names or not options.reference_python:
        parser.error("name a family, and the interpreter to compare with: gpt2 --reference-python PYTHON")
    if unknown := [name for name in options.names if name not in FAMILIES]:
        parser.error(f"{', '.join(unknown)}: choose from {', '.join(FAMILIES)}")

    import jax
    from scratch_core.train import keep_memory

    keep_memory()
    bandwidth, rate = machine()
    print(f"matrix-vector product {bandwidth:.0f} GB/s, matrix product {rate:.0f} GFLOP/s\n")
    llama = None
    for name in dict.fromkeys(["llama", *options.names]):
        best = compare(name, options.reference_python, options.rounds, bandwidth, rate)
        llama = llama or best
        for task, (ours, theirs) in best.items():
            print(f"{task:28}{theirs / ours / (llama[task][1] / llama[task][0]):7.2f} of Llama's ratio")
        print(flush=True)
        jax.clear_caches()
        gc.collect()


if __name__ == "__main__":
    main()
