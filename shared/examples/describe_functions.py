"""Text to text with T5: from the signature of a function to the first line of its docstring.

    uv run --all-packages python shared/examples/describe_functions.py
    uv run --all-packages python shared/examples/describe_functions.py --checkpoint flan-t5-small --steps 2000

Pairs come from Python's standard library: no download. Without a checkpoint, a vocabulary of 1,024 word pieces is
learned from the training pairs, and a tiny T5 starts from random weights. It first learns to copy: it writes the name
of the function, which is in the signature, for names of words drawn at random. Whole files are held out, and each
signature is used once.

A signature is written as words, ``get_it(self, key)`` as "get it ( self , key )", and all is lower case, so that a word
of the signature and the same word of the description are the same pieces, and can be copied.

The metric is the F1 of words, as in SQuAD (Rajpurkar et al. 2016, https://arxiv.org/abs/1606.05250, section 6.1): the
harmonic mean of the shares of the written words that are right and of the right words that are written. Two
baselines are measured beside it: one always writes the same line, the one of 300 targets that scores best on the
training pairs; the other writes the words of the function's name.
"""

import argparse
import ast
import dataclasses
import os
import re
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx
from scratch_core.data.pairs import Pair, Pairs
from scratch_core.data.pipelines import training_batches
from scratch_core.data.sources import standard_library
from scratch_core.data.text import split_by_file
from scratch_core.data.tokenizers import HuggingFaceTokenizer, load_tokenizer
from scratch_core.tasks.seq2seq import write
from scratch_core.train import Trainer, adamw, keep_memory, warmup_cosine
from scratch_t5 import T5, T5Config

SOURCE, TARGET = 48, 24
SPECIAL = ("<pad>", "</s>", "<unk>")


def pairs_of(source: str) -> list[Pair]:
    """Return (signature, first line of the docstring) of the functions of a file, [] if it cannot be parsed."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError):
        return []
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and (text := ast.get_docstring(node)):
            line = text.strip().splitlines()[0].strip()
            if len(line.split()) > 2:
                found.append(Pair(spaced(f"{node.name}({ast.unparse(node.args)})"), line))
    return found


def spaced(signature: str) -> str:
    """Return a signature as words in lower case, names cut at underscores and capitals, with spaces around signs."""
    return " ".join(re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+|[^\s\w]", signature)).lower()


def read_pairs(paths: Sequence[Path]) -> tuple[list[Pair], list[Pair]]:
    """Return the pairs to train on and those held out; one source or target never stands in both, or twice."""
    root, sources = os.path.commonpath(paths), {}
    for path in paths:
        try:
            sources[os.path.relpath(path, root)] = path.read_text(encoding="utf-8")
        except (OSError, ValueError):
            continue
    held_out = split_by_file({name: len(text) for name, text in sources.items()}, 0.1)
    seen: set[str] = set()
    parts: tuple[list[Pair], list[Pair]] = [], []
    for name, text in sources.items():
        for pair in pairs_of(text):
            if not seen & {pair.source, pair.target}:
                seen |= {pair.source, pair.target}
                parts[name in held_out].append(pair)
    return parts


def learn_tokenizer(pairs: Sequence[Pair], folder: Path, vocab_size: int = 1024) -> HuggingFaceTokenizer:
    """Learn byte-level pieces (BPE) from pairs, write tokenizer.json into a folder and return the tokenizer."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    fast = Tokenizer(models.BPE(unk_token=SPECIAL[2]))
    words = [pre_tokenizers.ByteLevel(add_prefix_space=True), pre_tokenizers.Punctuation(), pre_tokenizers.Digits()]
    fast.normalizer = normalizers.Lowercase()
    fast.pre_tokenizer = pre_tokenizers.Sequence(words)
    fast.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=list(SPECIAL), initial_alphabet=alphabet, show_progress=False
    )
    fast.train_from_iterator([text for pair in pairs for text in pair], trainer)
    fast.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}')
    return HuggingFaceTokenizer(folder)


def new_model(tokenizer: HuggingFaceTokenizer) -> T5:
    """Return a tiny T5 with random weights for this tokenizer."""
    config = dataclasses.replace(
        T5Config.tiny(),
        vocab_size=tokenizer.vocab_size,
        decoder_start_token_id=tokenizer.pad_id,
        eos_token_id=tokenizer.eos_id,
        pad_token_id=tokenizer.pad_id,
        bos_token_id=None,
    )
    return T5(config, rngs=nnx.Rngs(0))


def fit(model: T5, pairs: Sequence[Pair], tokenizer: Any, steps: int, rate: float, batch_size: int) -> float:
    """Train on pairs and return the last loss."""
    optimizer = adamw(warmup_cosine(rate, steps), decayed=model.decayed, weight_decay=0.1)
    batches = training_batches(Pairs(pairs, tokenizer, SOURCE, TARGET), batch_size, seed=0)
    return Trainer(model, optimizer).fit(batches, steps).loss


def words(text: str) -> list[str]:
    """Return the words of a text, in lower case: runs of letters and digits."""
    return re.findall(r"[a-z0-9]+", text.lower())


def word_f1(written: str, target: str) -> float:
    """Return the F1 of the written words, each counted as often as it stands in both."""
    found, wanted = words(written), words(target)
    common = sum((Counter(found) & Counter(wanted)).values())
    return 2 * common / max(len(found) + len(wanted), 1)


def mean_f1(written: Sequence[str], pairs: Sequence[Pair]) -> float:
    """Return the mean F1 of what was written for pairs."""
    return float(np.mean([word_f1(text, pair.target) for text, pair in zip(written, pairs, strict=True)]))


def best_constant(pairs: Sequence[Pair]) -> str:
    """Return the one of 300 targets that has the highest mean F1 over as many pairs."""
    sample = list(pairs)[:: max(1, len(pairs) // 300)]
    return max((pair.target for pair in sample), key=lambda line: mean_f1([line] * len(sample), sample))


def name_of(pair: Pair) -> str:
    """Return the words of the name of a pair's function."""
    return pair.source.partition("(")[0].strip()


def names_to_copy(pairs: Sequence[Pair], times: int = 4) -> list[Pair]:
    """Return ``times`` as many pairs: the name in each signature is drawn anew, and is the target.

    Of names that exist, a model learns which words go together, and writes these instead of what it reads.
    """
    rng, found = np.random.default_rng(0), []
    vocabulary = sorted({word for pair in pairs for word in name_of(pair).split()})
    for pair in [*pairs] * times:
        name = name_of(pair)
        drawn = " ".join(rng.choice(vocabulary, max(1, len(name.split()))))
        found.append(Pair(drawn + pair.source[len(name) :], drawn))
    return found


def main(arguments: Sequence[str] | None = None, paths: Sequence[Path] | None = None) -> dict[str, float]:
    """Run the example, on other files if ``paths`` are given; returns the mean F1 of the model and of both others."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--checkpoint", type=Path, help="a folder with a T5 and its tokenizer; the default is a new one"
    )
    parser.add_argument("--out", type=Path, help="where to save the tuned model; the default is a temporary folder")
    parser.add_argument("--steps", type=int, default=900)
    parser.add_argument("--copy-steps", type=int, default=3000, help="of a new model, which first learns to copy")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--learning-rate", type=float, help="the default is 3e-4, and 3e-3 for a new model")
    parser.add_argument("--evaluation-examples", type=int, default=300)
    options = parser.parse_args(arguments)
    keep_memory()
    train, held_out = read_pairs(standard_library() if paths is None else paths)
    held_out = held_out[: options.evaluation_examples]
    print(f"{len(train):,} pairs to train on, {len(held_out)} held out")

    with tempfile.TemporaryDirectory() as temporary:
        if options.checkpoint is None:
            tokenizer: Any = learn_tokenizer(train, Path(temporary))
            model, rate = new_model(tokenizer), options.learning_rate or 3e-3
            loss = fit(model, names_to_copy(train), tokenizer, options.copy_steps, rate, options.batch_size)
            print(f"{options.copy_steps} steps of copying the name: loss {loss:.3f}")
        else:
            tokenizer = load_tokenizer(options.checkpoint)
            model, rate = T5.from_pretrained(options.checkpoint), options.learning_rate or 3e-4
        loss = fit(model, train, tokenizer, options.steps, rate, options.batch_size)
        print(f"{options.steps} steps of describing: loss {loss:.3f}")

        texts = write(model, tokenizer, [pair.source for pair in held_out], TARGET)
        constant = best_constant(train)
        scores = {
            "model": mean_f1(texts, held_out),
            "constant": mean_f1([constant] * len(held_out), held_out),
            "name": mean_f1([name_of(pair) for pair in held_out], held_out),
        }
        print(f"held-out F1 of words: {scores['model']:.3f}")
        print(f"  always {constant!r}: {scores['constant']:.3f}; the words of the name: {scores['name']:.3f}")
        for pair, text in list(zip(held_out, texts, strict=True))[:: max(1, len(held_out) // 6)][:6]:
            print(f"  {pair.source}\n    -> {text!r}\n       {pair.target!r}")
        if options.out:
            model.save_pretrained(options.out)
            tokenizer.save(options.out)
            print(f'saved in {options.out}; next: scratch predict {options.out} "copy file ( source , target )"')
    return scores


if __name__ == "__main__":
    main()
