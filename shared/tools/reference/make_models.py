# /// script
# requires-python = ">=3.11"
# dependencies = ["torch", "transformers>=5", "safetensors"]
# ///
"""Build the reference models of ``shared/tools/differential.py``; run by the Python that has torch and transformers.

    PYTHON make_models.py FOLDER

FOLDER/request.json names the architecture, the task and the seed. Each FOLDER/<number>/given/config.json is one
configuration. Beside it this writes ``saved/`` (transformers' own checkpoint of the random model), the weights again in
``given/``, io.safetensors (inputs and outputs) and facts.json; or refused.txt, with the error of transformers.

To compare another task, add a function to ``OUTPUTS`` here and one to ``COMPARISONS`` in differential.py.
"""

import json
import math
import os
import shutil
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
import transformers
from safetensors.torch import save_file

LENGTH, PROMPT, PADDED, NEW = 19, 7, 3, 8
GAIN = 1.5
CONVOLUTION_GAIN = 1.0  # a ResNet sums its blocks: a larger gain gives logits of 400, rounded beyond the tolerance


def randomise(model):
    """Draw weights that keep activations at a size of 1 or more, and move biases, norms and statistics off 0 and 1."""
    gains = {torch.nn.Linear: GAIN, torch.nn.Conv1d: GAIN, torch.nn.Conv2d: CONVOLUTION_GAIN}
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if isinstance(module, torch.nn.Embedding):
                torch.nn.init.normal_(parameter)
            elif type(module) in gains and name == "weight":
                torch.nn.init.normal_(parameter, std=gains[type(module)] / math.sqrt(parameter[0].numel()))
            else:
                parameter.data += 0.3 * torch.randn_like(parameter)
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(std=0.3)
            module.running_var.uniform_(0.5, 1.5)
    model.tie_weights()


def causal_lm(model):
    """Return logits and loss of a right-padded batch, and greedy tokens, without padding and padded on the left."""
    vocab, longest = model.config.vocab_size, getattr(model.config, "max_position_embeddings", LENGTH)
    length = min(LENGTH, longest)
    lengths = torch.tensor([length, 3 * length // 4, max(2, length // 3)])
    ids = torch.randint(0, vocab, (3, length))
    mask = (torch.arange(length)[None] < lengths[:, None]).long()
    labels = torch.where(mask == 1, ids, -100)
    labels[0, 2] = -100
    out = model(ids, attention_mask=mask, labels=labels, use_cache=False)
    io = {"input_ids": ids, "attention_mask": mask, "labels": labels, "logits": out.logits, "loss": out.loss}
    prompt = torch.randint(0, vocab, (2, PROMPT))
    padding = torch.ones_like(prompt)
    padding[1, :PADDED] = 0
    io |= {"prompt": prompt, "padding": padding}
    model.generation_config.eos_token_id = None
    # Without a cache, and a padded row alone: in transformers 5.23 the cached step of Mamba-2 does not apply
    # time_step_limit, and with use_bias its convolution reads padding. Our padded row must equal the row alone.
    run = {"max_new_tokens": NEW, "do_sample": False, "pad_token_id": 0, "use_cache": False}
    io["tokens"] = model.generate(prompt, attention_mask=torch.ones_like(prompt), **run)
    alone = model.generate(prompt[1:, PADDED:], attention_mask=torch.ones_like(prompt[1:, PADDED:]), **run)
    io["tokens_leftpad"] = torch.cat([io["tokens"][:1], torch.cat([prompt[1:, :PADDED], alone], dim=1)])
    return io


def image_classification(model):
    """Return logits of images of the size that the configuration names, 40 x 33 pixels if it names none."""
    size = getattr(model.config, "image_size", (40, 33))
    rows, columns = size if isinstance(size, list | tuple) else (size, size)
    images = torch.randn(3, model.config.num_channels, rows, columns)
    return {"pixel_values": images, "logits": model(images).logits}


def encoder_inputs(model):
    """Return ids and mask of a right-padded batch."""
    ids = torch.randint(0, model.config.vocab_size, (3, LENGTH))
    mask = (torch.arange(LENGTH)[None] < torch.tensor([LENGTH, 3 * LENGTH // 4, 4])[:, None]).long()
    return ids, mask


def masked_lm(model):
    """Return logits and loss of a right-padded batch; every third token is counted."""
    ids, mask = encoder_inputs(model)
    labels = torch.where((torch.arange(LENGTH)[None] % 3 == 0) & (mask == 1), ids, -100)
    out = model(ids, attention_mask=mask, labels=labels)
    return {"input_ids": ids, "attention_mask": mask, "labels": labels, "logits": out.logits, "loss": out.loss}


def seq2seq(model):
    """Return logits and loss for a right-padded source, and greedy tokens."""
    ids, mask = encoder_inputs(model)
    labels = torch.randint(0, model.config.vocab_size, (3, 11))
    out = model(ids, attention_mask=mask, labels=labels)
    io = {"input_ids": ids, "attention_mask": mask, "labels": labels, "logits": out.logits, "loss": out.loss}
    model.generation_config.eos_token_id = None
    # Without a cache: the cache of transformers 5.23 has as many layers as the encoder, even if the decoder has more.
    io["tokens"] = model.generate(ids, attention_mask=mask, max_new_tokens=NEW, do_sample=False, use_cache=False)
    return io


OUTPUTS = {
    "causal_lm": causal_lm,
    "image_classification": image_classification,
    "masked_lm": masked_lm,
    "seq2seq": seq2seq,
}


def build(folder, architecture, task, seed):
    """Build the model of FOLDER/given/config.json; write its checkpoint, inputs and outputs."""
    transformers.set_seed(seed)
    model_class = getattr(transformers, architecture)
    config = model_class.config_class.from_pretrained(folder / "given", attn_implementation="eager")
    model = model_class(config).eval()
    randomise(model)
    if task == "seq2seq" and json.loads((folder / "given/config.json").read_text()).get("tie_word_embeddings") is False:
        # transformers 5.23 ties the head of every new T5, but keeps the head of a loaded one, as of the released v1.1.
        model.lm_head.weight = torch.nn.Parameter(torch.randn_like(model.lm_head.weight) * GAIN / model.model_dim**0.5)
        model.config.tie_word_embeddings = False
    model.save_pretrained(folder / "saved")
    shutil.copy(folder / "saved/model.safetensors", folder / "given")
    with torch.no_grad():
        io = OUTPUTS[task](model)
    save_file({k: v.contiguous() for k, v in io.items()}, folder / "io.safetensors")
    facts = {name: getattr(config, name, None) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    (folder / "facts.json").write_text(json.dumps(facts))


def main():
    """Build every model of the request."""
    root = Path(sys.argv[1])
    request = json.loads((root / "request.json").read_text())
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    for number in range(request["count"]):
        folder = root / str(number)
        try:
            build(folder, request["architecture"], request["task"], request["seed"] + number)
        except Exception as error:  # transformers raises many types for a configuration that it refuses
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            (folder / "refused.txt").write_text(f"{type(error).__name__}: {' '.join(lines)}")


if __name__ == "__main__":
    main()
