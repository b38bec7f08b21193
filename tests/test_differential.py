"""Protects ``shared/tools/differential.py`` without a reference: the outputs of goldens take its place."""

import importlib
import json
import shutil
import sys

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from scratch_core.errors import ConfigError
from scratch_core.registry import find_class


@pytest.fixture(scope="module")
def tool(root):
    sys.path.insert(0, str(root / "shared/tools"))
    return importlib.import_module("differential")


def folder_of(root, folder):
    """Return a folder as the reference writes it, made from a golden of Llama."""
    golden = root / "packages/scratch-llama/tests/golden/llama3"
    for name in ("given", "saved"):
        shutil.copytree(golden, folder / name)
    io = load_file(golden / "io.safetensors")
    kept = {name: io[name] for name in ("input_ids", "attention_mask", "labels", "logits", "loss")}
    kept |= {"prompt": io["gen_leftpad.input_ids"], "padding": io["gen_leftpad.attention_mask"]}
    kept |= {"tokens_leftpad": io["generated_ids_leftpad"], "tokens": unpadded(golden, io)}
    save_file(kept, folder / "io.safetensors")
    (folder / "facts.json").write_text(json.dumps({"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": None}))
    return folder


def unpadded(golden, io):
    """Return the greedy tokens of left-padded prompts read without their mask, which the golden does not hold."""
    import scratch_core

    new = io["generated_ids"].shape[1] - io["gen.input_ids"].shape[1]
    return scratch_core.generate(scratch_core.load(golden), io["gen_leftpad.input_ids"], max_new_tokens=new)


def test_equal_refused_and_different_are_told_apart(tool, root, tmp_path):
    folder = folder_of(root, tmp_path / "0")
    assert tool.check(folder, tool.LOGITS) == tool.Result("equal")

    io = load_file(folder / "io.safetensors")
    for name, wrong in (("logits", io["logits"] + np.float32(1e-3)), ("tokens", io["tokens"] + 1)):
        save_file(io | {name: wrong}, folder / "io.safetensors")
        result = tool.check(folder, tool.LOGITS)
        assert (result.status, result.message.partition(":")[0]) == ("DIFFERENT", name)
    save_file(io, folder / "io.safetensors")

    fields = json.loads((folder / "saved/config.json").read_text())
    for place, changed, status, message in (
        ("facts.json", {"bos_token_id": None, "eos_token_id": 2, "pad_token_id": None}, "DIFFERENT", "bos_token_id: 1"),
        ("saved/config.json", fields | {"rms_norm_eps": 1e-3}, "DIFFERENT", "norm_epsilon: 1e-05, but 0.001"),
        ("given/config.json", fields | {"hidden_act": "relu"}, "refused", "config.json has values that are not"),
    ):
        before = (folder / place).read_bytes()
        (folder / place).write_text(json.dumps(changed))
        result = tool.check(folder, tool.LOGITS)
        assert result.status == status
        assert result.message.startswith(message)
        (folder / place).write_bytes(before)

    (folder / "refused.txt").write_text("ValueError: no")
    assert tool.check(folder, tool.LOGITS) == tool.Result("not built", "ValueError: no")


def test_every_family_draws_configurations_that_its_package_reads(tool):
    for name in tool.families():
        family = importlib.import_module(f"families.{name}")
        drawn = tool.draw(family, 30, 0)
        assert drawn == tool.draw(family, 30, 0)
        assert drawn != tool.draw(family, 30, 1)
        model_class, read = find_class(drawn[0]), 0
        assert model_class.task in tool.COMPARISONS
        for fields in drawn:
            try:
                model_class.Config.from_hf(fields)
                read += 1
            except ConfigError:
                pass
        assert read > 10, name


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: --reference-python, --family"),
        (["--family", "nothing"], "--family nothing is not one of: bert, gemma, gemma2"),
        (["--family", "llama", "--count", "0"], "--count 0 must be at least 1"),
        (["--family", "llama", "--count", "x"], "argument --count: invalid int value: 'x'"),
        (["--family", "llama", "--seed", "-1"], "--seed -1 must be at least 0"),
        (["--family", "llama", "--reference-python", "no/python"], "--reference-python no/python is not a program"),
        (["--family", "llama", "--count", "1", "--reference-python", "false"], "--reference-python false failed"),
        (["--family", "llama", "--keep", "."], "--keep . exists"),
    ],
)
def test_wrong_arguments_are_one_line(tool, capsys, arguments, message):
    if arguments and "--reference-python" not in arguments:
        arguments = ["--reference-python", sys.executable, *arguments]
    assert tool.main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {message}")
    assert error.count("\n") == 1
