# /// script
# requires-python = ">=3.11"
# dependencies = ["torch", "transformers>=5", "safetensors"]
# ///
"""Make golden folders like those beside this file, with the reference library. The tests never run it.

    uv run packages/scratch-bert/tests/make_golden.py FOLDER

Each is a tiny random model of transformers with its inputs, outputs, loss and gradients: eval mode, eager attention,
one thread. ``bert-mlm-legacy-names`` is bert-mlm under the keys of the first files, gamma and beta. Another version of
torch draws other weights, so the numbers differ from run to run of this script, never the relation between them.
"""

import json
import sys
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file, save_file

SIZES = {
    "vocab_size": 128,
    "hidden_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 72,
    "max_position_embeddings": 64,
    "attn_implementation": "eager",
}
HEADS = {
    "bert-mlm": ("BertForMaskedLM", {}),
    "bert-pretraining": ("BertForPreTraining", {}),
    "bert-sequence-classification": ("BertForSequenceClassification", {"num_labels": 3}),
    "bert-regression": ("BertForSequenceClassification", {"num_labels": 1, "problem_type": "regression"}),
    "bert-multi-label": (
        "BertForSequenceClassification",
        {"num_labels": 4, "problem_type": "multi_label_classification", "hidden_act": "gelu_new"},
    ),
    "bert-token-classification": ("BertForTokenClassification", {"num_labels": 5}),
    "bert-question-answering": ("BertForQuestionAnswering", {}),
    "bert-sentence-embedding": ("BertModel", {}),
}


def targets(name, shape):
    """Return the labels of a head under the names of transformers' arguments."""
    if name == "bert-question-answering":  # the last answer ends outside of the text, and is not counted
        return {"start_positions": torch.tensor([1, 2, 3]), "end_positions": torch.tensor([3, 5, shape[1] + 4])}
    if name == "bert-regression":
        return {"labels": torch.randn(3)}
    if name == "bert-multi-label":
        return {"labels": torch.randint(0, 2, (3, 4)).float()}
    if name == "bert-sequence-classification":
        return {"labels": torch.tensor([2, 0, 1])}
    if name == "bert-sentence-embedding":
        return {}
    labels = torch.randint(0, 5, shape)
    labels[:, ::3] = -100
    following = {"next_sentence_label": torch.tensor([0, 1, 1])} if name == "bert-pretraining" else {}
    return {"labels": labels, **following}


def make(folder, name, architecture, options):
    torch.manual_seed(0)
    model = getattr(transformers, architecture)(transformers.BertConfig(**SIZES, **options)).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    lengths, T = torch.tensor([24, 17, 9]), 24
    mask = (torch.arange(T) < lengths[:, None]).int()
    inputs = {
        "input_ids": torch.randint(0, 128, (3, T)) * mask,
        "attention_mask": mask,
        "token_type_ids": (torch.arange(T) >= lengths[:, None] // 2).int() * mask,
    }
    given = targets(name, (3, T))
    if "labels" in given and given["labels"].shape == (3, T):
        given["labels"] = torch.where(mask == 1, given["labels"], -100)
    out = model(**inputs, **given, output_hidden_states=True)
    io = {**inputs, **given, "last_hidden_state": (out.hidden_states[-1])}
    for key in ("logits", "prediction_logits", "seq_relationship_logits", "start_logits", "end_logits", "loss"):
        if out.get(key) is not None:
            io["logits" if key == "prediction_logits" else key] = out[key]
    if out.get("loss") is not None:
        out.loss.backward()
        heads = ("classifier.weight", "qa_outputs.weight", "cls.seq_relationship.weight")
        ends = ("layer.0.attention.self.query.weight", "pooler.dense.weight", "predictions.bias")
        for key, parameter in model.named_parameters():
            if key in heads or key.endswith(ends):
                io[f"grad.{key}"] = parameter.grad
    else:
        weights = mask[..., None].float()
        mean = (out.last_hidden_state * weights).sum(1) / weights.sum(1)
        io["pooler_output"] = out.pooler_output
        io["embeddings"] = torch.nn.functional.normalize(mean, dim=1)
        io["cosine"] = io["embeddings"] @ io["embeddings"].T
    io = {key: value.int() if value.dtype == torch.int64 else value for key, value in io.items()}
    save_file({key: value.detach().contiguous() for key, value in io.items()}, folder / "io.safetensors")
    fields = json.loads((folder / "config.json").read_text())
    fields["torch_dtype"] = fields.pop("dtype")
    (folder / "config.legacy.json").write_text(json.dumps(fields, indent=1))


def with_legacy_names(source, folder):
    folder.mkdir()
    for name in ("config.json", "config.legacy.json", "io.safetensors"):
        (folder / name).write_bytes((source / name).read_bytes())
    old = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    tensors = {}
    for key, tensor in load_file(source / "model.safetensors").items():
        for new, legacy in old.items():
            key = key.replace(new, legacy)
        tensors[key] = tensor
    save_file(tensors, folder / "model.safetensors")


def main():
    torch.set_num_threads(1)
    root = Path(sys.argv[1])
    for name, (architecture, options) in HEADS.items():
        if not (root / name).exists():  # an existing one is kept, so that others can be added to it
            make(root / name, name, architecture, options)
    if not (root / "bert-mlm-legacy-names").exists():
        with_legacy_names(root / "bert-mlm", root / "bert-mlm-legacy-names")


if __name__ == "__main__":
    main()
