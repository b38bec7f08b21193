# /// script
# requires-python = ">=3.11"
# dependencies = ["torch", "transformers>=5", "safetensors", "numpy"]
# ///
"""Make golden folders like those beside this file, with the reference library. The tests never run this script.

    uv run packages/scratch-olmo/tests/make_golden.py FOLDER

Each is a tiny random model with its inputs and the outputs that transformers computes from them: eval mode, eager
attention, one thread. Another version of torch draws other weights, so that the files hold other numbers; the tests
must pass with those too.
"""

import argparse
import itertools
import json
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import save_file
from transformers import AutoModelForCausalLM, Olmo2Config, OlmoConfig, PreTrainedModel

SHAPE = {"vocab_size": 128, "hidden_size": 48, "intermediate_size": 72, "num_hidden_layers": 2}
SHAPE |= {"num_attention_heads": 4, "max_position_embeddings": 128, "eos_token_id": 2, "pad_token_id": 0}
DOWN = "model.layers.1.mlp.down_proj.weight"

# name: (config, length of the longest row, the parameters whose gradients are kept)
GOLDENS = {
    "olmo": (OlmoConfig(**SHAPE), 22, ("model.layers.0.self_attn.k_proj.weight", DOWN)),
    "olmo-clip": (
        OlmoConfig(**SHAPE, num_key_value_heads=2, clip_qkv=0.9),
        17,
        ("model.layers.0.self_attn.k_proj.weight", DOWN),
    ),
    "olmo2": (
        Olmo2Config(**SHAPE, rms_norm_eps=1e-6, rope_parameters={"rope_type": "default", "rope_theta": 5e5}),
        21,
        ("model.layers.0.self_attn.q_norm.weight", DOWN),
    ),
}


def create(config: OlmoConfig | Olmo2Config) -> PreTrainedModel:
    """Return a model with weights so large that every part of it changes the outputs."""
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, mean=1.0 if parameter.ndim == 1 else 0.0, std=0.2)
    return model


def expected(model: PreTrainedModel, length: int, gradients: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Return inputs and outputs: a right-padded batch with its loss and two gradients, and greedy tokens."""
    vocab, lengths = model.config.vocab_size, [length, 3 * length // 4, length // 3]
    ids = torch.randint(1, vocab, (3, length))
    mask = (torch.arange(length)[None] < torch.tensor(lengths)[:, None]).long()
    ids, labels = ids * mask, torch.where(mask == 1, ids, -100)
    labels[:, 2] = -100
    out = model(ids, attention_mask=mask, labels=labels, output_hidden_states=True)
    out.loss.backward()
    io = {"input_ids": ids, "attention_mask": mask, "labels": labels, "logits": out.logits, "loss": out.loss}
    io["last_hidden_state"] = out.hidden_states[-1]
    for name in gradients:
        io[f"grad.{name}"] = model.get_parameter(name).grad
    prompt = torch.randint(1, vocab, (2, 9))
    padded, padding = prompt.clone(), torch.ones_like(prompt)
    padded[1, :4], padding[1, :4] = 0, 0
    run = {"max_new_tokens": 16, "do_sample": False, "pad_token_id": 0}
    io["gen.input_ids"], io["gen_leftpad.input_ids"], io["gen_leftpad.attention_mask"] = prompt, padded, padding
    io["generated_ids"] = model.generate(prompt, attention_mask=torch.ones_like(prompt), eos_token_id=None, **run)
    io["generated_ids_leftpad"] = model.generate(padded, attention_mask=padding, eos_token_id=None, **run)
    eos = io["generated_ids"][0, 12]
    io["gen.eos_token_id"] = eos
    io["generated_ids_eos"] = model.generate(
        prompt, attention_mask=torch.ones_like(prompt), eos_token_id=int(eos), **run
    )
    arrays = {name: np.asarray(tensor.detach().numpy(), order="C") for name, tensor in io.items()}
    return {name: a.astype(np.int32 if a.dtype == np.int64 else np.float32) for name, a in arrays.items()}


def write_beams(folder: Path) -> None:
    """Write beams.json, the results of beam search with six settings, into the folder of a checkpoint.

    The middle prompt is the longest; the others are padded on the left. Raises ValueError if float64 gives other
    tokens, because rounding then decides between two candidates.
    """
    # In float64, eager attention gives NaN for padding on the left; sdpa does not.
    narrow = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    wide = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64, attn_implementation="sdpa").eval()
    torch.manual_seed(4)
    prompt, new, pad = torch.randint(1, narrow.config.vocab_size, (3, 7)), 12, 5
    padding = (torch.arange(7)[None] >= torch.tensor([3, 0, 5])[:, None]).long()
    run = {"attention_mask": padding, "max_new_tokens": new, "do_sample": False, "pad_token_id": pad}
    run |= {"return_dict_in_generate": True, "output_scores": True}
    # End tokens from early and late in the best continuations, so that rows end at different times.
    plain = narrow.generate(prompt, num_beams=2, eos_token_id=None, **run).sequences[:, 7:]
    eos = sorted({int(plain[row, step]) for row, step in ((0, 2), (0, 5), (1, 4), (2, 3), (2, 8))})
    cases = []
    for penalty, early in itertools.product((0.5, 2.0), (False, True, "never")):
        case = {"num_beams": 3, "length_penalty": penalty, "early_stopping": early, "num_return_sequences": 2}
        out, exact = (model.generate(prompt, eos_token_id=eos, **case, **run) for model in (narrow, wide))
        if not torch.equal(out.sequences, exact.sequences):
            raise ValueError(f"{case}: float32 and float64 give different tokens; draw other prompts")
        new_ids = out.sequences[:, 7:].unflatten(0, (3, -1)).tolist()
        scores = [[float(f"{score:.7g}") for score in row] for row in out.sequences_scores.view(3, -1).tolist()]
        cases.append({"settings": case, "new_ids": new_ids, "scores": scores})
    shared = {"input_ids": prompt.tolist(), "attention_mask": padding.tolist(), "max_new_tokens": new}
    lines = ",\n".join(json.dumps(case) for case in cases)
    head = json.dumps(shared | {"eos_token_id": eos, "pad_token_id": pad})[1:-1]
    (folder / "beams.json").write_text(f'{{{head},\n"cases": [\n{lines}\n]}}\n')


def legacy(fields: dict) -> dict:
    """Return the config as transformers before version 5 writes it."""
    fields = dict(fields)
    fields["torch_dtype"] = fields.pop("dtype")
    return fields | {"rope_theta": fields.pop("rope_parameters")["rope_theta"], "rope_scaling": None}


def main() -> None:
    """Write every golden folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    torch.set_num_threads(1)
    for seed, (name, (config, length, gradients)) in enumerate(GOLDENS.items()):
        torch.manual_seed(seed)
        model = create(config)
        model.save_pretrained(folder / name)
        save_file(expected(model, length, gradients), folder / name / "io.safetensors")
        fields = json.loads((folder / name / "config.json").read_text())
        (folder / name / "config.legacy.json").write_text(json.dumps(legacy(fields), indent=1))
        if name != "olmo":
            write_beams(folder / name)


if __name__ == "__main__":
    main()
