# /// script
# requires-python = ">=3.11"
# dependencies = ["torch", "transformers>=5", "safetensors", "numpy"]
# ///
"""Make golden folders like those beside this file, with the reference library. The tests never run this script.

    uv run packages/scratch-gemma/tests/make_golden.py FOLDER
    uv run packages/scratch-gemma/tests/make_golden.py FOLDER --beams-only   # beams of the checkpoints in FOLDER

Each is a tiny random model with its inputs and the outputs that transformers computes from them: eval mode, eager
attention, one thread. Another version of torch draws other weights, so that the files hold other numbers; the tests
must pass with those too.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import save_file
from transformers import AutoModelForCausalLM, Gemma2Config, GemmaConfig

ROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0}}
SHAPE = {"hidden_size": 48, "num_attention_heads": 4, "num_hidden_layers": 2, "vocab_size": 128} | ROPE
SHAPE |= {"max_position_embeddings": 128, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2}
# Heads wider than D / N; caps, scale and window so small that they change the outputs.
GEMMA2 = {"intermediate_size": 80, "num_key_value_heads": 2, "head_dim": 16, "query_pre_attn_scalar": 24}
GEMMA2 |= {"sliding_window": 6, "attn_logit_softcapping": 2.5, "final_logit_softcapping": 5.0}
GOLDENS = {
    "gemma": GemmaConfig(**SHAPE, intermediate_size=72, num_key_value_heads=1, head_dim=20),
    "gemma2": Gemma2Config(**SHAPE, **GEMMA2),
}
PAD = 5  # for beam search: transformers takes 0 for no pad token
GRADIENTS = ("model.layers.0.self_attn.k_proj.weight", "model.layers.1.mlp.down_proj.weight")


def randomise(model: torch.nn.Module) -> None:
    """Draw weights large enough for every part of the model to matter; norms multiply by 1 + w, so w has mean 0."""
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)


def expected(model: torch.nn.Module, length: int) -> dict[str, np.ndarray]:
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
    for name in GRADIENTS:
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


def write_beams(folder: Path) -> None:
    """Write beams.json, the results of beam search with six settings, into the folder of a checkpoint.

    Prompts are drawn until no two beams have scores so close that rounding decides which is better.
    """
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    for seed in range(100):
        torch.manual_seed(seed)
        beams = draw_beams(model, torch.randint(3, model.config.vocab_size, (3, 7)))
        if beams is not None:
            break
    else:
        raise ValueError(f"{folder}: for every prompt, two beams have nearly equal scores")
    cases = ",\n".join(json.dumps(case) for case in beams.pop("cases"))
    (folder / "beams.json").write_text(f'{{{json.dumps(beams)[1:-1]},\n"cases": [\n{cases}\n]}}\n')


def draw_beams(model: torch.nn.Module, prompt: torch.Tensor) -> dict | None:
    """Return the beams of a prompt [3, 7], or None if two have nearly equal scores.

    The middle row is the longest; the others are padded on the left.
    """
    padding = (torch.arange(7)[None] >= torch.tensor([3, 0, 5])[:, None]).long()
    run = {"attention_mask": padding, "max_new_tokens": 12, "do_sample": False, "pad_token_id": PAD}
    run |= {"return_dict_in_generate": True, "output_scores": True}
    plain = model.generate(prompt, num_beams=2, eos_token_id=None, **run).sequences[:, 7:]
    eos = sorted({int(plain[row, step]) for row, step in ((0, 2), (0, 5), (1, 4), (2, 3), (2, 8))})
    cases = []
    for num_beams, penalty in ((2, 1.0), (4, 2.0)):
        for early in (False, True, "never"):
            case = {"num_beams": num_beams, "length_penalty": penalty, "early_stopping": early}
            case |= {"num_return_sequences": 1 + num_beams // 2}
            out = model.generate(prompt, eos_token_id=eos, **case, **run)
            scores = out.sequences_scores.view(3, -1)
            if ((scores[:, :-1] - scores[:, 1:]) / scores[:, 1:].abs()).min() < 1e-4:
                return None
            new_ids = out.sequences[:, 7:].unflatten(0, (3, -1)).tolist()
            rounded = [[float(f"{score:.7g}") for score in row] for row in scores.tolist()]
            cases.append({"settings": case, "new_ids": new_ids, "scores": rounded})
    inputs = {"input_ids": prompt.tolist(), "attention_mask": padding.tolist(), "max_new_tokens": 12}
    return inputs | {"eos_token_id": eos, "pad_token_id": PAD, "cases": cases}


def legacy(fields: dict) -> dict:
    """Return the config as transformers before version 5 writes it."""
    fields = dict(fields)
    rope = fields.pop("rope_parameters")
    return {**fields, "torch_dtype": fields.pop("dtype"), "rope_theta": rope["rope_theta"], "rope_scaling": None}


def main() -> None:
    """Write every golden folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--beams-only", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for seed, (name, config) in enumerate(GOLDENS.items()):
        folder = arguments.folder / name
        if not arguments.beams_only:
            torch.manual_seed(seed)
            model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
            randomise(model.eval())
            model.save_pretrained(folder)
            save_file(expected(model, 22), folder / "io.safetensors")
            fields = json.loads((folder / "config.json").read_text())
            (folder / "config.legacy.json").write_text(json.dumps(legacy(fields), indent=1))
        write_beams(folder)


if __name__ == "__main__":
    main()
