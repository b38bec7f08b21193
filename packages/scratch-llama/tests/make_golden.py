# /// script
# requires-python = ">=3.11"
# dependencies = ["torch", "transformers>=5", "peft", "safetensors", "numpy"]
# ///
"""Make golden folders like those beside this file, with the reference library. The tests never run this script.

    uv run packages/scratch-llama/tests/make_golden.py FOLDER

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
from peft import LoraConfig, get_peft_model
from safetensors.numpy import save_file
from transformers import LlamaConfig, LlamaForCausalLM

LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA3 |= {"original_max_position_embeddings": 32, "rope_theta": 500_000.0}
PLAIN = {"rope_type": "default", "rope_theta": 10_000.0}
SHAPE = {"hidden_size": 48, "intermediate_size": 72, "num_hidden_layers": 2, "vocab_size": 128}

# name: (config, length of the longest row, maximum size of a shard)
GOLDENS = {
    "llama2": ({"num_attention_heads": 4, "num_key_value_heads": 4, "rope_parameters": PLAIN}, 24, None),
    "llama2-bf16": ({"num_attention_heads": 4, "num_key_value_heads": 2, "rope_parameters": PLAIN}, 20, None),
    "llama2-sharded": ({"num_attention_heads": 4, "num_key_value_heads": 2, "rope_parameters": PLAIN}, 16, "80KB"),
    "llama3": ({"num_attention_heads": 4, "num_key_value_heads": 2, "rope_parameters": LLAMA3}, 41, None),
    "llama3-plain": (
        {
            "num_attention_heads": 6,
            "num_key_value_heads": 3,
            "head_dim": 8,
            "rope_parameters": {**PLAIN, "rope_theta": 5e5},
        },
        18,
        None,
    ),
}


def randomise(model: torch.nn.Module) -> None:
    """Draw weights so large that every part of the model changes the outputs."""
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, mean=1.0 if parameter.ndim == 1 else 0.0, std=0.2)


def expected(model: LlamaForCausalLM, length: int) -> dict[str, np.ndarray]:
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
    for name in ("model.layers.0.self_attn.k_proj.weight", "model.layers.1.mlp.down_proj.weight"):
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
    """Write beams.json, the results of beam search with 27 settings, into the folder of a checkpoint.

    The middle prompt is the longest; the others are padded on the left. Raises ValueError if float64 gives other
    tokens, because rounding then decides between two candidates.
    """
    # In float64, eager attention gives NaN for padding on the left; sdpa does not.
    narrow = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    wide = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float64, attn_implementation="sdpa").eval()
    torch.manual_seed(4)
    prompt, new, pad = torch.randint(1, narrow.config.vocab_size, (3, 7)), 12, 5
    padding = (torch.arange(7)[None] >= torch.tensor([3, 0, 5])[:, None]).long()
    run = {"attention_mask": padding, "max_new_tokens": new, "do_sample": False, "pad_token_id": pad}
    run |= {"return_dict_in_generate": True, "output_scores": True}
    # End tokens from early and late in the best continuations: rows end at different times, and the three values of
    # early_stopping give different results.
    plain = narrow.generate(prompt, num_beams=2, eos_token_id=None, **run).sequences[:, 7:]
    eos = sorted({int(plain[row, step]) for row, step in ((0, 2), (0, 5), (1, 4), (2, 3), (2, 8))})
    cases = []
    for num_beams, penalty, early in itertools.product((2, 3, 4), (0.5, 1.0, 2.0), (False, True, "never")):
        case = {"num_beams": num_beams, "length_penalty": penalty, "early_stopping": early}
        case |= {"num_return_sequences": 1 + num_beams // 2}
        out, exact = (model.generate(prompt, eos_token_id=eos, **case, **run) for model in (narrow, wide))
        if not torch.equal(out.sequences, exact.sequences):
            raise ValueError(f"{case}: float32 and float64 give different tokens; draw other prompts")
        new_ids = out.sequences[:, 7:].unflatten(0, (3, -1)).tolist()
        scores = [[float(f"{score:.7g}") for score in row] for row in out.sequences_scores.view(3, -1).tolist()]
        cases.append({"settings": case, "new_ids": new_ids, "scores": scores})
    for first, second in ((0, 1), (0, 2), (1, 2)):
        if all(cases[k + first]["new_ids"] == cases[k + second]["new_ids"] for k in range(0, len(cases), 3)):
            raise ValueError("two values of early_stopping give the same tokens in every case; draw other prompts")
    shared = {"input_ids": prompt.tolist(), "attention_mask": padding.tolist(), "max_new_tokens": new}
    lines = ",\n".join(json.dumps(case) for case in cases)
    head = json.dumps(shared | {"eos_token_id": eos, "pad_token_id": pad})[1:-1]
    (folder / "beams.json").write_text(f'{{{head},\n"cases": [\n{lines}\n]}}\n')


def write_adapter(folder: Path, target: Path) -> None:
    """Write a PEFT adapter for the checkpoint in ``folder``, with input tokens and the adapted model's logits."""
    torch.manual_seed(6)
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    targets = ["q_proj", "v_proj", "o_proj", "down_proj", "lm_head"]
    adapted = get_peft_model(model, LoraConfig(r=4, lora_alpha=6, target_modules=targets)).eval()
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    ids = torch.randint(1, model.config.vocab_size, (2, 14))
    logits = adapted(ids).logits
    adapted.save_pretrained(target)
    (target / "README.md").unlink()
    fields = json.loads((target / "adapter_config.json").read_text()) | {"base_model_name_or_path": folder.name}
    (target / "adapter_config.json").write_text(json.dumps(fields, indent=2) + "\n")
    save_file({"input_ids": ids.int().numpy(), "logits": logits.detach().numpy()}, target / "io.safetensors")


def legacy(fields: dict) -> dict:
    """Return the config as transformers before version 5 writes it."""
    fields = dict(fields)
    rope = fields.pop("rope_parameters")
    fields["torch_dtype"], fields["rope_theta"] = fields.pop("dtype"), rope.pop("rope_theta")
    return fields if rope["rope_type"] == "default" else {**fields, "rope_scaling": rope}


def main() -> None:
    """Write every golden folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    torch.set_num_threads(1)
    for seed, (name, (config, length, shards)) in enumerate(GOLDENS.items()):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(
            LlamaConfig(**SHAPE, **config, max_position_embeddings=256, attn_implementation="eager")
        )
        randomise(model.eval())
        stored = torch.bfloat16 if name.endswith("bf16") else torch.float32
        model.to(stored).save_pretrained(folder / name, **({"max_shard_size": shards} if shards else {}))
        if stored == torch.bfloat16:
            narrow = model
            model = LlamaForCausalLM.from_pretrained(folder / name, dtype=torch.float32, attn_implementation="eager")
        io = expected(model, length)
        if stored == torch.bfloat16:
            ids, mask = torch.tensor(io["input_ids"]), torch.tensor(io["attention_mask"])
            io["logits_bf16"] = narrow(ids, attention_mask=mask).logits.float().detach().numpy()
        save_file(io, folder / name / "io.safetensors")
        fields = json.loads((folder / name / "config.json").read_text())
        (folder / name / "config.legacy.json").write_text(json.dumps(legacy(fields), indent=1))
    write_beams(folder / "llama2")
    write_adapter(folder / "llama3", folder.parent / "adapter")


if __name__ == "__main__":
    main()
