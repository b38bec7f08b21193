# /// script
# requires-python = ">=3.11"
# dependencies = ["torch", "transformers>=5", "safetensors", "numpy"]
# ///
"""Make golden folders like those beside this file, with the reference library. The tests never run this script.

    uv run packages/scratch-mamba2/tests/make_golden.py FOLDER

Each is a tiny random model with its inputs and the outputs that transformers computes from them: eval mode, one
thread. Another version of torch draws other weights, so that the files hold other numbers; the tests must pass with
those too.
"""

import argparse
import json
import math
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import save_file
from transformers import Mamba2Config, Mamba2ForCausalLM

SHAPE = {"num_hidden_layers": 2, "vocab_size": 128, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
ONE = {"hidden_size": 40, "num_heads": 5, "head_dim": 16, "n_groups": 1, "state_size": 16, "chunk_size": 8}
TWO = {"hidden_size": 32, "num_heads": 8, "head_dim": 8, "n_groups": 2, "state_size": 12, "chunk_size": 16}

# name: (config, length of the longest row)
GOLDENS = {"mamba2": (ONE, 21), "mamba2-groups": (TWO, 37)}


def randomise(model: torch.nn.Module) -> None:
    """Draw weights so large that every part of the model changes the outputs."""
    for name, parameter in model.named_parameters():
        if name.endswith("A_log"):
            torch.nn.init.uniform_(parameter, 0.0, 2.0)
        elif name.endswith("dt_bias"):
            torch.nn.init.uniform_(parameter, -4.0, 0.0)
        else:
            torch.nn.init.normal_(
                parameter, mean=1.0 if name.endswith(("norm.weight", "norm_f.weight")) else 0.0, std=0.2
            )


def expected(model: Mamba2ForCausalLM, length: int) -> dict[str, np.ndarray]:
    """Return inputs and outputs: a right-padded batch with its loss and two gradients, and greedy tokens."""
    vocab, lengths = model.config.vocab_size, [length, 3 * length // 4, length // 3]
    ids = torch.randint(3, vocab, (3, length))
    mask = (torch.arange(length)[None] < torch.tensor(lengths)[:, None]).long()
    ids, labels = ids * mask, torch.where(mask == 1, ids, -100)
    labels[:, 2] = -100
    out = model(ids, attention_mask=mask, labels=labels, output_hidden_states=True, use_cache=False)
    out.loss.backward()
    io = {"input_ids": ids, "attention_mask": mask, "labels": labels, "logits": out.logits, "loss": out.loss}
    io["last_hidden_state"] = out.hidden_states[-1]
    for name in ("backbone.layers.0.mixer.A_log", "backbone.layers.1.mixer.in_proj.weight"):
        io[f"grad.{name}"] = model.get_parameter(name).grad
    prompt = torch.randint(3, vocab, (2, 9))
    padded, padding = prompt.clone(), torch.ones_like(prompt)
    padded[1, :4], padding[1, :4] = 0, 0
    run = {"max_new_tokens": 16, "do_sample": False, "pad_token_id": 0}
    io["gen.input_ids"], io["gen_leftpad.input_ids"], io["gen_leftpad.attention_mask"] = prompt, padded, padding
    model.generation_config.eos_token_id = None
    whole = torch.ones_like(prompt)
    io["generated_ids"] = model.generate(prompt, attention_mask=whole, **run)
    io["generated_ids_leftpad"] = model.generate(padded, attention_mask=padding, **run)
    io["gen.eos_token_id"] = io["generated_ids"][0, 12]
    io["generated_ids_eos"] = model.generate(
        prompt, attention_mask=whole, eos_token_id=int(io["gen.eos_token_id"]), **run
    )
    arrays = {name: np.asarray(tensor.detach().numpy(), order="C") for name, tensor in io.items()}
    return {name: a.astype(np.int32 if a.dtype == np.int64 else np.float32) for name, a in arrays.items()}


def legacy(fields: dict) -> dict:
    """Return the config as transformers before version 5 writes it: a bare Infinity, torch_dtype."""
    fields = {**fields, "time_step_limit": [0.0, math.inf]}
    fields["torch_dtype"] = fields.pop("dtype")
    return fields


def main() -> None:
    """Write every golden folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    torch.set_num_threads(1)
    for seed, (name, (config, length)) in enumerate(GOLDENS.items()):
        torch.manual_seed(seed)
        model = Mamba2ForCausalLM(Mamba2Config(**SHAPE, **config))
        randomise(model.eval())
        model.save_pretrained(folder / name)
        save_file(expected(model, length), folder / name / "io.safetensors")
        fields = json.loads((folder / name / "config.json").read_text())
        (folder / name / "config.legacy.json").write_text(json.dumps(legacy(fields), indent=1))


if __name__ == "__main__":
    main()
