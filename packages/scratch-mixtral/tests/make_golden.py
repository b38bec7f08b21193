# /// script
# requires-python = ">=3.11"
# dependencies = ["torch", "transformers>=5", "safetensors", "numpy"]
# ///
"""Make a golden folder like the one beside this file, with the reference library. The tests never run this script.

    uv run packages/scratch-mixtral/tests/make_golden.py FOLDER

It is a tiny random model with its inputs and the outputs that transformers computes from them: eval mode, eager
attention and experts, one thread. Another version of torch draws other weights, so that the files hold other numbers;
the tests must pass with those too.
"""

import argparse
import itertools
import json
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import save_file
from transformers import MixtralConfig, MixtralForCausalLM
from transformers.core_model_loading import revert_weight_conversion

EAGER = {"attn_implementation": "eager", "experts_implementation": "eager"}
CONFIG = {"hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2, "vocab_size": 128}
CONFIG |= {"num_attention_heads": 4, "num_key_value_heads": 2, "num_local_experts": 4, "num_experts_per_tok": 2}
CONFIG |= {"max_position_embeddings": 128, "router_aux_loss_coef": 0.02}


def randomise(model: torch.nn.Module) -> None:
    """Draw weights so large that every part of the model changes the outputs."""
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, mean=1.0 if parameter.ndim == 1 else 0.0, std=0.2)


def expected(model: MixtralForCausalLM, length: int) -> dict[str, np.ndarray]:
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
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    # The model stacks the matrices of all experts; the files hold them apart.
    gradients = revert_weight_conversion(model, gradients)
    for name in ("0.block_sparse_moe.gate.weight", "1.block_sparse_moe.experts.2.w3.weight"):
        io[f"grad.model.layers.{name}"] = gradients[f"model.layers.{name}"]
    routed = model(ids, attention_mask=mask, labels=labels, output_router_logits=True)
    io["aux_loss"], io["loss_with_aux"] = routed.aux_loss, routed.loss
    for layer, logits in enumerate(routed.router_logits):
        io[f"router_logits.{layer}"] = logits.view(3, length, -1)
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
    narrow = MixtralForCausalLM.from_pretrained(folder, dtype=torch.float32, **EAGER).eval()
    wide = MixtralForCausalLM.from_pretrained(
        folder, dtype=torch.float64, attn_implementation="sdpa", experts_implementation="eager"
    ).eval()
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
    for num_beams, early in itertools.product((2, 4), (False, True, "never")):
        case = {"num_beams": num_beams, "length_penalty": 0.5 * num_beams, "early_stopping": early}
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


def legacy(fields: dict) -> dict:
    """Return the config as transformers before version 5 writes it."""
    fields = dict(fields)
    rope = fields.pop("rope_parameters")
    fields["torch_dtype"], fields["rope_theta"] = fields.pop("dtype"), rope.pop("rope_theta")
    return fields if rope["rope_type"] == "default" else {**fields, "rope_scaling": rope}


def main() -> None:
    """Write the golden folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder / "mixtral"
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = MixtralForCausalLM(MixtralConfig(**CONFIG, **EAGER))
    randomise(model.eval())
    model.save_pretrained(folder)
    save_file(expected(model, 19), folder / "io.safetensors")
    fields = json.loads((folder / "config.json").read_text())
    (folder / "config.legacy.json").write_text(json.dumps(legacy(fields), indent=1))
    write_beams(folder)


if __name__ == "__main__":
    main()
