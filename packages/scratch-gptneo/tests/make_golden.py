# /// script
# requires-python = ">=3.11"
# dependencies = ["torch", "transformers>=5", "safetensors", "numpy"]
# ///
"""Make a golden folder like the one beside this file, with the reference library. The tests never run this script.

    uv run packages/scratch-gptneo/tests/make_golden.py FOLDER

It is a tiny random model with its inputs and the outputs that transformers computes from them: eval mode, eager
attention, one thread. Another version of torch draws other weights, so that the files hold other numbers; the tests
must pass with those too.

With ``--beams``, the script only writes beams.json for the existing checkpoint in FOLDER/gpt-neo.
"""

import argparse
import itertools
import json
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import save_file
from transformers import GPTNeoConfig, GPTNeoForCausalLM

SHAPE = {"hidden_size": 48, "num_heads": 4, "num_layers": 2, "max_position_embeddings": 64, "vocab_size": 128}
SHAPE |= {"attention_types": [[["global", "local"], 1]], "window_size": 6}
LENGTH = 21


def randomise(model: torch.nn.Module) -> None:
    """Draw weights so large that every part of the model changes the outputs."""
    for name, parameter in model.named_parameters():
        norm_scale = parameter.ndim == 1 and name.endswith("weight")
        torch.nn.init.normal_(parameter, mean=1.0 if norm_scale else 0.0, std=0.2)


def expected(model: GPTNeoForCausalLM) -> dict[str, np.ndarray]:
    """Return inputs and outputs: a right-padded batch with its loss and two gradients, and greedy tokens."""
    vocab, lengths = model.config.vocab_size, [LENGTH, 3 * LENGTH // 4, LENGTH // 3]
    ids = torch.randint(1, vocab, (3, LENGTH))
    mask = (torch.arange(LENGTH)[None] < torch.tensor(lengths)[:, None]).long()
    ids, labels = ids * mask, torch.where(mask == 1, ids, -100)
    labels[:, 2] = -100
    out = model(ids, attention_mask=mask, labels=labels, output_hidden_states=True)
    out.loss.backward()
    io = {"input_ids": ids, "attention_mask": mask, "labels": labels, "logits": out.logits, "loss": out.loss}
    io["last_hidden_state"] = out.hidden_states[-1]
    for name in ("transformer.h.0.attn.attention.k_proj.weight", "transformer.h.1.mlp.c_proj.weight"):
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
    narrow = GPTNeoForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    wide = GPTNeoForCausalLM.from_pretrained(folder, dtype=torch.float64, attn_implementation="eager").eval()
    torch.manual_seed(4)
    # The pad token is not an end token, and not 0, which transformers 5.23's beam search takes for no pad token.
    prompt, new, pad = torch.randint(1, narrow.config.vocab_size, (3, 7)), 12, 127
    padding = (torch.arange(7)[None] >= torch.tensor([3, 0, 5])[:, None]).long()
    run = {"attention_mask": padding, "max_new_tokens": new, "do_sample": False, "pad_token_id": pad}
    run |= {"return_dict_in_generate": True, "output_scores": True}
    # End tokens from early and late in the best continuations, so that rows end at different times.
    plain = narrow.generate(prompt, num_beams=2, eos_token_id=None, **run).sequences[:, 7:]
    eos = sorted({int(plain[row, step]) for row, step in ((0, 2), (0, 5), (1, 4), (2, 3), (2, 8))})
    cases = []
    for num_beams, early in itertools.product((2, 3), (False, True, "never")):
        case = {"num_beams": num_beams, "length_penalty": 0.5 * num_beams, "early_stopping": early}
        case |= {"num_return_sequences": 2}
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


def main() -> None:
    """Write the golden folder, or only the beams of an existing one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--beams", action="store_true", help="write only FOLDER/gpt-neo/beams.json")
    options = parser.parse_args()
    golden = options.folder / "gpt-neo"
    torch.set_num_threads(1)
    if not options.beams:
        torch.manual_seed(0)
        model = GPTNeoForCausalLM(GPTNeoConfig(**SHAPE, bos_token_id=1, eos_token_id=2, attn_implementation="eager"))
        randomise(model.eval())
        model.save_pretrained(golden)
        save_file(expected(model), golden / "io.safetensors")
        fields = json.loads((golden / "config.json").read_text())
        fields["torch_dtype"] = fields.pop("dtype")
        (golden / "config.legacy.json").write_text(json.dumps(fields, indent=1))
    write_beams(golden)


if __name__ == "__main__":
    main()
