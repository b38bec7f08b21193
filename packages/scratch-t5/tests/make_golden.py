# /// script
# requires-python = ">=3.11"
# dependencies = ["torch", "transformers>=5", "safetensors", "numpy"]
# ///
"""Make golden folders like those beside this file, with the reference library. The tests never run it.

    uv run packages/scratch-t5/tests/make_golden.py FOLDER            # both models, with their beams
    uv run packages/scratch-t5/tests/make_golden.py FOLDER --beams    # only beams.json, for the models in FOLDER

Each is a tiny random model with its inputs and the outputs that transformers computes from them: eval mode, eager
attention, one thread. Another version of torch draws other weights, so the numbers differ from run to run of this
script, never the relation between them.
"""

import argparse
import itertools
import json
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import save_file
from transformers import T5Config, T5ForConditionalGeneration

V1_0 = {"d_model": 40, "d_ff": 56, "d_kv": 12, "num_heads": 4, "num_layers": 2, "num_decoder_layers": 2}
V1_0 |= {"relative_attention_num_buckets": 8, "relative_attention_max_distance": 16, "feed_forward_proj": "relu"}
V1_1 = {"d_model": 40, "d_ff": 48, "d_kv": 8, "num_heads": 4, "num_layers": 2, "num_decoder_layers": 2}
V1_1 |= {"relative_attention_num_buckets": 16, "relative_attention_max_distance": 32, "feed_forward_proj": "gated-gelu"}
V1_1 |= {"tie_word_embeddings": False}
GOLDENS = {"t5-v1_0": (V1_0, 23, 14), "t5-v1_1": (V1_1, 19, 17)}
GRADIENTS = ("decoder.block.1.layer.1.EncDecAttention.k.weight", "encoder.block.1.layer.1.DenseReluDense.wo.weight")
PAD = 3  # transformers fills with eos where the token of padding is 0
SETTINGS = [
    {"num_beams": beams, "length_penalty": penalty, "early_stopping": early}
    for beams, penalty, early in itertools.product((2, 4), (0.0, 1.5), (True, False))
]


def expected(model: T5ForConditionalGeneration, length: int, target: int) -> dict[str, np.ndarray]:
    """Return inputs and outputs: a right-padded batch with its loss and two gradients, and greedy tokens."""
    vocab, lengths = model.config.vocab_size, [length, 3 * length // 4, length // 3]
    ids = torch.randint(2, vocab, (3, length))
    mask = (torch.arange(length)[None] < torch.tensor(lengths)[:, None]).long()
    ids, labels = ids * mask, torch.randint(2, vocab, (3, target))
    labels[1, target // 2 :] = -100
    out = model(ids, attention_mask=mask, labels=labels, output_hidden_states=True)
    out.loss.backward()
    io = {"input_ids": ids, "attention_mask": mask, "labels": labels, "logits": out.logits, "loss": out.loss}
    io["decoder_input_ids"] = model._shift_right(labels)
    io["encoder_last_hidden_state"] = out.encoder_last_hidden_state
    io["last_hidden_state"] = out.decoder_hidden_states[-1]
    io |= {f"grad.{name}": model.get_parameter(name).grad for name in GRADIENTS}
    io["gen.input_ids"], io["gen.attention_mask"] = ids, mask
    io["generated_ids"] = model.generate(ids, attention_mask=mask, max_new_tokens=16, do_sample=False)
    arrays = {name: np.asarray(tensor.detach().numpy(), order="C") for name, tensor in io.items()}
    return {name: a.astype(np.int32) if a.dtype == np.int64 else a for name, a in arrays.items()}


def beams(model: T5ForConditionalGeneration) -> dict:
    """Return sources, and the beams that transformers finds for them with each of the settings."""
    torch.manual_seed(1)
    ids = torch.randint(2, model.config.vocab_size, (2, 9))
    mask = torch.ones_like(ids)
    ids[1, 6:], mask[1, 6:] = 0, 0
    eos = int(model.generate(ids, attention_mask=mask, max_new_tokens=12, do_sample=False, eos_token_id=None)[0, 5])
    cases = []
    for settings in SETTINGS:
        out = model.generate(
            ids,
            attention_mask=mask,
            do_sample=False,
            max_new_tokens=12,
            eos_token_id=eos,
            pad_token_id=PAD,
            num_return_sequences=settings["num_beams"],
            return_dict_in_generate=True,
            output_scores=True,
            **settings,
        )
        texts = out.sequences.reshape(2, settings["num_beams"], -1)[..., 1:]
        scores = out.sequences_scores.reshape(2, -1)
        settings = {**settings, "num_return_sequences": settings["num_beams"]}
        cases.append({"settings": settings, "new_ids": texts.tolist(), "scores": scores.tolist()})
    shared = {"max_new_tokens": 12, "eos_token_id": eos, "pad_token_id": PAD}
    return {"input_ids": ids.tolist(), "attention_mask": mask.tolist(), **shared, "cases": cases}


def main() -> None:
    """Write the goldens."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--beams", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for name, (settings, length, target) in GOLDENS.items():
        folder = arguments.folder / name
        if arguments.beams:
            model = T5ForConditionalGeneration.from_pretrained(folder, attn_implementation="eager").eval()
        else:
            torch.manual_seed(0)
            config = T5Config(vocab_size=128, decoder_start_token_id=0, **settings)
            model = T5ForConditionalGeneration._from_config(config, attn_implementation="eager").eval()
            for parameter in model.parameters():
                torch.nn.init.normal_(parameter, mean=1.0 if parameter.ndim == 1 else 0.0, std=0.2)
            model.save_pretrained(folder)
            save_file(expected(model, length, target), folder / "io.safetensors")
        (folder / "beams.json").write_text(json.dumps(beams(model)))


if __name__ == "__main__":
    main()
