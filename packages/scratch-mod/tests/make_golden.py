# /// script
# requires-python = ">=3.11"
# dependencies = ["torch", "transformers>=5", "safetensors", "numpy"]
# ///
"""Make golden folders like those beside this file, with the reference library. The tests never run this script.

    uv run packages/scratch-mod/tests/make_golden.py FOLDER

No library has Mixture-of-Depths. At capacity 1.0 it must equal the plain transformer, Llama. So each golden is a tiny
random Llama of transformers, with its inputs and outputs (eval mode, eager attention, one thread) and our config.json.
Another version of torch draws other weights, so that the files hold other numbers; the tests must pass with those too.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import save_file
from transformers import LlamaConfig, LlamaForCausalLM

ROPE = {"rope_type": "default", "rope_theta": 10_000.0}
SHAPE = {"hidden_size": 48, "intermediate_size": 72, "num_hidden_layers": 2, "vocab_size": 128, "rope_parameters": ROPE}
SHAPE |= {"num_attention_heads": 6, "num_key_value_heads": 3, "head_dim": 8, "max_position_embeddings": 128}
GOLDENS = {"plain": {"tie_word_embeddings": False}, "plain-tied": {"tie_word_embeddings": True}}
OURS = {"architectures": ["MixtureOfDepthsForCausalLM"], "model_type": "mixture_of_depths"}
OURS |= {"capacity": 1.0, "route_every": 2, "predictor_size": 16}


def expected(model: LlamaForCausalLM, length: int) -> dict[str, np.ndarray]:
    """Return inputs and outputs: a right-padded batch with its loss and two gradients, and greedy tokens."""
    vocab, lengths = model.config.vocab_size, [length, 3 * length // 4, length // 3]
    ids = torch.randint(1, vocab, (3, length))
    mask = (torch.arange(length)[None] < torch.tensor(lengths)[:, None]).long()
    ids, labels = ids * mask, torch.where(mask == 1, ids, -100)
    out = model(ids, attention_mask=mask, labels=labels, output_hidden_states=True)
    out.loss.backward()
    io = {"input_ids": ids, "attention_mask": mask, "labels": labels, "logits": out.logits, "loss": out.loss}
    io["last_hidden_state"] = out.hidden_states[-1]
    for name in ("model.layers.0.self_attn.k_proj.weight", "model.layers.1.mlp.down_proj.weight"):
        io[f"grad.{name}"] = model.get_parameter(name).grad
    prompt = torch.randint(1, vocab, (2, 9))
    padded, padding = prompt.clone(), torch.ones_like(prompt)
    padded[1, :4], padding[1, :4] = 0, 0
    run = {"max_new_tokens": 16, "do_sample": False, "pad_token_id": 0}
    io["gen.input_ids"], io["gen_leftpad.input_ids"], io["gen_leftpad.attention_mask"] = prompt, padded, padding
    io["generated_ids"] = model.generate(prompt, attention_mask=torch.ones_like(prompt), eos_token_id=None, **run)
    io["generated_ids_leftpad"] = model.generate(padded, attention_mask=padding, eos_token_id=None, **run)
    io["gen.eos_token_id"] = eos = io["generated_ids"][0, 12]
    io["generated_ids_eos"] = model.generate(
        prompt, attention_mask=torch.ones_like(prompt), eos_token_id=int(eos), **run
    )
    arrays = {name: np.asarray(tensor.detach().numpy(), order="C") for name, tensor in io.items()}
    return {name: a.astype(np.int32 if a.dtype == np.int64 else np.float32) for name, a in arrays.items()}


def main() -> None:
    """Write every golden folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for seed, (name, config) in enumerate(GOLDENS.items()):
        folder = arguments.folder / name
        torch.manual_seed(seed)
        model = LlamaForCausalLM(LlamaConfig(**SHAPE, **config, attn_implementation="eager")).eval()
        for parameter in model.parameters():  # so large that every part of the model changes the outputs
            torch.nn.init.normal_(parameter, mean=1.0 if parameter.ndim == 1 else 0.0, std=0.2)
        model.save_pretrained(folder)
        save_file(expected(model, 22), folder / "io.safetensors")
        fields = json.loads((folder / "config.json").read_text()) | OURS
        (folder / "config.json").write_text(json.dumps(fields, indent=1))
        rope = fields.pop("rope_parameters")
        fields |= {"torch_dtype": fields.pop("dtype"), "rope_theta": rope["rope_theta"], "rope_scaling": None}
        (folder / "config.legacy.json").write_text(json.dumps(fields, indent=1))


if __name__ == "__main__":
    main()
