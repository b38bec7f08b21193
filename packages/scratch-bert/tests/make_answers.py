# /// script
# requires-python = ">=3.11"
# dependencies = ["torch", "transformers==4.56.2"]
# ///
"""Record answers.json: what the question-answering pipeline of transformers answers. The tests never run this script.

    uv run packages/scratch-bert/tests/make_answers.py

The model is golden/bert-question-answering with a vocabulary of letters and a few words. transformers 5 no longer has
this pipeline.
"""

import json
import string
import tempfile
from pathlib import Path

from transformers import BertForQuestionAnswering, BertTokenizerFast, pipeline

HERE = Path(__file__).parent
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
LETTERS = string.ascii_lowercase
WORDS = (
    "the cat sat on mat of and is in who where what dog dogs house river bridge town old another open un re ##er ##ed"
)
VOCABULARY = [*SPECIAL, *".,?!-'_12", *LETTERS, *(f"##{letter}" for letter in LETTERS), *WORDS.split()]

ASKED = [
    ("Who sat on the mat?", "The old cat sat on the mat, and the unopened house and the dog sat in the town."),
    ("Where is the bridge?", "An old bridge is in the town of Aix-en-Provence; another is on the river, re-opened."),
    ("What?", "Dogs, dogs, DOGS! The caf\u00e9 is old, and the house is in the old town. The Caf\u00e9 is open."),
    ("Who is in town?", "The cat and the dog and the re_opened house and the river, " * 3 + "the dogs."),
]
SETTINGS = [  # no window cuts a word, where scratch widens the answer to the whole word and transformers does not
    {},
    {"max_tokens": 36, "stride": 12, "no_answer": True},
    {"max_tokens": 35, "stride": 11, "top": 3, "max_answer_tokens": 5},
    {"max_tokens": 26, "stride": 9, "top": 3, "no_answer": True, "align_to_words": False},
]
THEIRS = {
    "max_tokens": "max_seq_len",
    "stride": "doc_stride",
    "top": "top_k",
    "max_answer_tokens": "max_answer_len",
    "no_answer": "handle_impossible_answer",
    "align_to_words": "align_to_words",
}


def main():
    model = BertForQuestionAnswering.from_pretrained(HERE / "golden" / "bert-question-answering").eval()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "vocab.txt"
        path.write_text("".join(f"{word}\n" for word in VOCABULARY), encoding="utf-8")
        tokenizer = BertTokenizerFast(str(path), model_max_length=model.config.max_position_embeddings)
    pipe = pipeline("question-answering", model=model, tokenizer=tokenizer)
    cases = []
    for settings in SETTINGS:
        options = {THEIRS[name]: value for name, value in settings.items()}
        for question, context in ASKED:
            found = pipe(question=question, context=context, **options)
            rows = [found] if isinstance(found, dict) else found
            answers = [[each[key] for key in ("answer", "start", "end", "score")] for each in rows]
            cases.append({"question": question, "context": context, "options": settings, "answers": answers})
    recorded = {"vocabulary": VOCABULARY, "cases": cases}
    (HERE / "answers.json").write_text(json.dumps(recorded, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
