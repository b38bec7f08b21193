"""Every task of BERT is trained from a small file of a real format, and `scratch predict` answers a file of rows."""

import json

import pytest
from scratch_core import cli

WORDS = ("red", "green", "blue", "dog", "cat", "house")
SENTENCES = [f"the {a} {b} is here" for a in WORDS[:3] for b in WORDS[3:]] * 4
TEXTS = [f"{text} {number}" for number, text in enumerate(SENTENCES)]
OPTIONS = ["--steps", "1", "--batch-size", "2", "--sequence-length", "16", "--learning-rate", "1e-4"]


def conll(text):
    return "".join(f"{word} NN {'B-C' if word in WORDS[:3] else 'O'}\n" for word in text.split()) + "\n"


def squad(texts):
    asked = [
        {
            "context": text,
            "qas": [{"id": str(n), "question": "which?", "answers": [{"text": "the", "answer_start": 0}]}],
        }
        for n, text in enumerate(texts)
    ]
    return json.dumps({"version": "1.1", "data": [{"title": "t", "paragraphs": asked}]})


FILES = {
    "sequence_classification": ("rows.csv", "text,label\n" + "".join(f"{t},{t.split()[1]}\n" for t in TEXTS)),
    "token_classification": ("train.conll", "".join(map(conll, TEXTS))),
    "question_answering": ("train.json", squad(TEXTS)),
    "masked_lm": ("rows.jsonl", "".join(json.dumps({"text": f"{text} " * 4}) + "\n" for text in TEXTS)),
}
ROWS = {
    "sequence_classification": ({"text": "the red dog", "id": 7}, "text"),
    "token_classification": ({"text": "the red dog", "id": 7}, "text"),
    "question_answering": ({"question": "which?", "context": "the red dog", "id": 7}, "context"),
    "masked_lm": ({"text": "the [MASK] dog", "id": 7}, "text"),
}


@pytest.mark.parametrize("task", FILES)
def test_a_task_is_trained_from_a_file_and_predicts_one(task, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    name, content = FILES[task]
    (tmp_path / name).write_text(content + ("\xff\n" if name.endswith("l") and task == "masked_lm" else ""))
    skip = ["--on-error", "skip"] if task == "masked_lm" else []
    assert cli.main(["train", "bert", "--task", task, "--data", name, "--out", "run", *OPTIONS, *skip]) == 0
    out = capsys.readouterr().out
    assert name in out
    assert ("1 bad rows skipped (first: " in out) == bool(skip)

    row, field = ROWS[task]
    rows = [row, {**row, field: row[field] + " is here"}, {**row, "id": 8}]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(each) + "\n" for each in rows))
    assert cli.main(["predict", "run", "in.jsonl", "--out", "out.jsonl"]) == 0
    assert "3 predictions in out.jsonl" in capsys.readouterr().out
    found = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [{k: v for k, v in each.items() if k != "prediction"} for each in found] == rows
    assert found[0]["prediction"] == found[2]["prediction"]
    assert isinstance(found[0]["prediction"], list)

    (tmp_path / "in.jsonl").write_text(json.dumps(row) + "\n\n" + json.dumps({**row, field: 5}) + "\n")
    before = (tmp_path / "out.jsonl").read_bytes()
    assert cli.main(["predict", "run", "in.jsonl", "--out", "out.jsonl"]) == 2
    error = capsys.readouterr().err
    assert "in.jsonl, line 3: must be a JSON object with " in error
    assert f"{field}=5 must be a text" in error
    if task == "masked_lm":
        (tmp_path / "in.jsonl").write_text(json.dumps(row) + "\n" + json.dumps({"text": "no blank"}) + "\n")
        assert cli.main(["predict", "run", "in.jsonl", "--out", "out.jsonl"]) == 2
        assert "in.jsonl, line 2: 'no blank' has no [MASK]" in capsys.readouterr().err
    assert (tmp_path / "out.jsonl").read_bytes() == before
    assert not list(tmp_path.glob("*.partial"))
