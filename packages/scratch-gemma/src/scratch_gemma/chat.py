"""Gemma's dialogue format, as token ids and labels.

    <bos><start_of_turn>user
    {prompt}<end_of_turn>
    <start_of_turn>model
    {answer}<end_of_turn><eos>

Source: Gemma Team 2024, https://arxiv.org/abs/2403.08295, table 5. The text begins with exactly one <bos>. Without it,
or with two, the released models predict badly.
"""

from typing import Any

import numpy as np
from scratch_core.errors import DataError
from scratch_core.losses import IGNORED

START, END = "<start_of_turn>", "<end_of_turn>"


def encode_chat(tokenizer: Any, prompt: str, answer: str | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Return input_ids and labels, int32 [T], of a prompt and its answer. Without an answer, they end where it begins.

    Labels are -100 over the prompt, so that only the answer, its <end_of_turn> and eos are learned. They are aligned
    with input_ids; the loss shifts them. Raises DataError if the tokenizer has no bos or eos, and for a text that
    already contains control tokens, which would add a second <bos> or turn.
    """
    if tokenizer.bos_id is None or tokenizer.eos_id is None:
        raise DataError(
            f"the tokenizer has bos_id={tokenizer.bos_id} and eos_id={tokenizer.eos_id}, but Gemma needs both: "
            "name bos_token and eos_token in its tokenizer_config.json"
        )
    for what, text in (("prompt", prompt), ("answer", answer or "")):
        if found := [token for token in ("<bos>", "<eos>", START, END) if token in text]:
            raise DataError(f"the {what} {text[:40]!r} already has {', '.join(found)}: give the text without them")
    question = [tokenizer.bos_id, *tokenizer.encode(f"{START}user\n{prompt}{END}\n{START}model\n")]
    reply = [] if answer is None else [*tokenizer.encode(f"{answer}{END}"), tokenizer.eos_id]
    return np.array(question + reply, np.int32), np.array([IGNORED] * len(question) + reply, np.int32)
