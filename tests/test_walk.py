"""Protects shared/docs/from_text_to_model.md: its commands run in their order, offline, in an empty folder.

Lines `$ scratch ...` run in this process, because ten starts of Python would take longer than all the rest.
"""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
from safetensors.numpy import load_file
from scratch_core.cli import main

PAGE = Path(__file__).resolve().parent.parent / "shared" / "docs" / "from_text_to_model.md"


def test_the_page_runs_from_texts_to_a_merged_and_exported_model(blocks, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("scratch_core.tasks.causal_lm.SAMPLE_TOKENS", 0)  # samples take longer than the training
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    text, names = PAGE.read_text(encoding="utf-8"), {}
    found = [(first, language, block) for language in ("python", "console") for first, block in blocks(text, language)]
    for _, language, block in sorted(found):
        if language == "python":
            exec(compile(block, str(PAGE), "exec"), names)
            continue
        for line in block.splitlines():
            command = line.removeprefix("$ ")
            if command.startswith("scratch "):
                assert main(shlex.split(command)[1:]) == 0, command
            else:
                subprocess.run(["bash", "-c", command], check=True)
    printed = capsys.readouterr().out
    assert "LlamaForCausalLM, read by Llama of scratch-llama" in printed
    assert {"base", "tuned", "tuned-lora", "merged"} <= set(os.listdir())
    base, tuned, merged, again = (
        load_file(f"{n}/model.safetensors") for n in ("base", "tuned", "tuned-lora", "merged")
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), merged, again)
    changed = {name for name in base if not np.array_equal(base[name], merged[name])}
    assert changed == {name for name in base if "self_attn" in name}
    assert all(not np.array_equal(base[name], tuned[name]) for name in base)
