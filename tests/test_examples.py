"""Protects the examples: they run, and the tests that a page names exist."""

import dataclasses
import importlib.util
import json
import re

import numpy as np
import pytest
from flax import nnx
from scratch_core.data.tokenizers import ByteTokenizer
from scratch_core.errors import DataError
from scratch_core.testing import read_tensors
from scratch_gemma import Gemma2, Gemma2Config
from scratch_t5 import T5Config


def load_example(root, name):
    spec = importlib.util.spec_from_file_location(name, root / "shared/examples" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_fine_tuning_gemma2_goes_from_a_checkpoint_to_a_checkpoint(root, tmp_path, capsys):
    config = Gemma2Config(
        264, 32, 1, num_heads=2, num_kv_heads=1, head_dim=16, d_ff=32, window=8,
        bos_token_id=256, eos_token_id=257, pad_token_id=258,
    )  # fmt: skip
    Gemma2(config, rngs=nnx.Rngs(0)).save_pretrained(tmp_path / "base")
    ByteTokenizer().save(tmp_path / "base")
    rows = [{"prompt": f"Say {n}", "answer": str(n)} for n in range(20)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    arguments = ["--checkpoint", "base", "--data", "rows.jsonl", "--out", "tuned"]
    arguments = [str(tmp_path / word) if not word.startswith("--") else word for word in arguments]
    example = load_example(root, "fine_tune_gemma2")
    base = read_tensors(tmp_path / "base")
    for method, share in (
        (["--steps", "12", "--learning-rate", "0.01"], 0.8),
        (["--steps", "60", "--learning-rate", "0.1", "--lora", "4"], 0.95),  # the random embedding stays as it is
    ):
        example.main([*arguments, "--batch-size", "4", *method])
        printed = capsys.readouterr().out
        before, after, again = map(float, re.findall(r"held-out loss (?:is )?([\d.]+)", printed))
        assert after < share * before
        assert again == after
    changed = {key for key, value in read_tensors(tmp_path / "tuned").items() if not np.array_equal(value, base[key])}
    assert changed == {key for key in base if "_proj" in key}  # LoRA leaves embedding and norms as they were
    assert (tmp_path / "tuned/adapter/adapter_model.safetensors").exists()


def test_a_row_without_an_answer_is_named(root, tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "answer": "b"}\n{"prompt": "a"}\n')
    with pytest.raises(DataError, match=r'rows\.jsonl, row 2: must have a "prompt" and an "answer"'):
        load_example(root, "fine_tune_gemma2").read_rows(tmp_path / "rows.jsonl")


def test_the_tests_that_the_page_on_gemma2_names_exist(root):
    named = set(
        re.findall(r"`(test_\w+)[`\[]", (root / "shared/docs/fine_tuning_gemma2.md").read_text(encoding="utf-8"))
    )
    sources = [
        *root.glob("packages/scratch-gemma/tests/*.py"),
        *root.glob("packages/scratch-core/src/scratch_core/testing/*.py"),
    ]
    defined = set(re.findall(r"def (test_\w+)", "".join(path.read_text(encoding="utf-8") for path in sources)))
    assert len(named) > 10
    assert named - defined == set()


def test_describing_functions_runs_and_measures_words(root, tmp_path, capsys, monkeypatch):
    """A short run over a few made-up files; pairs and metric equal those worked out by hand."""
    example = load_example(root, "describe_functions")
    small = dataclasses.replace(T5Config.tiny(), d_model=16, num_layers=1, num_decoder_layers=1)
    monkeypatch.setattr(T5Config, "tiny", lambda: small)
    source = 'class A:\n    def get_it(self, key, default=None):\n        """Return the item.\n\n        More."""\n'
    assert example.pairs_of(source) == [("get it ( self , key , default = none )", "Return the item.")]
    assert example.name_of(example.pairs_of(source)[0]) == "get it"
    assert example.spaced("readHTTPLine2(x)") == "read http line 2 ( x )"
    assert example.pairs_of("def (") == []
    assert example.word_f1("return the the key", "Return the key of it.") == pytest.approx(2 * 3 / 9)
    assert example.word_f1("", "Return it") == 0
    for number in range(20):
        lines = [f'def get_{number}_{n}(key):\n    """Return the value {number} of {n}."""\n' for n in range(5)]
        (tmp_path / f"{number}.py").write_text("".join(lines))
    out = tmp_path / "out"
    arguments = [
        "--steps",
        "2",
        "--copy-steps",
        "1",
        "--batch-size",
        "2",
        "--evaluation-examples",
        "4",
        "--out",
        str(out),
    ]
    scores = example.main(arguments, sorted(tmp_path.glob("*.py")))
    assert scores["constant"] >= 2 * 4 / 12  # the words "return the value of" of six are always right
    assert "held-out F1 of words:" in capsys.readouterr().out
    assert {path.name for path in out.iterdir()} >= {"config.json", "model.safetensors", "tokenizer.json"}
