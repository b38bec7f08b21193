"""Search the docstrings of Python's standard library by meaning.

    uv run --all-packages python shared/examples/search_docstrings.py FOLDER "is it a leap year?" "merge sorted lists"

FOLDER holds a sentence encoder, such as sentence-transformers/all-MiniLM-L6-v2 (a folder or a Hub id). Each docstring
is indexed by its paragraphs: a question may be about what a function does or about how it does it, and the mean of a
long text is close to neither. A paragraph stands behind the name of its function, which often says what the first line
does not. A function is as close to a question as its closest paragraph.

Without questions, the program asks those below, and counts the answers that are right.
"""

import argparse
import ast
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from scratch_bert import SentenceEncoder
from scratch_bert.sentences import cosine_similarity
from scratch_core.data.sources import standard_library

PARAGRAPHS, CHARACTERS = 4, 400  # of each docstring, and of each of its paragraphs
TOOLS = {
    "distutils",
    "ensurepip",
    "idlelib",
    "lib2to3",
    "pydoc_data",
    "turtledemo",
}  # programs, and what they are made of

QUESTIONS = {  # written before the search was; each with the functions that are right answers
    "is it a leap year?": ("calendar.isleap",),
    "duplicate a whole folder": ("shutil.copytree",),
    "free space on the hard drive": ("shutil.disk_usage",),
    "remove common indentation": ("textwrap.dedent",),
    "how spread out are the numbers of a sample": ("statistics.stdev",),
    "convert an object to JSON": ("json.dumps",),
    "split a command line as a shell does": ("shlex.split",),
    "find the middle value of some numbers": ("statistics.median",),
    "make a zip archive of a folder": ("shutil.make_archive",),
    "find words that are spelled similarly": ("difflib.get_close_matches",),
    "keep the results of a function so that it is not computed twice": ("functools.lru_cache", "functools.cache"),
    "open a web page in the browser": ("webbrowser.open",),
    "run a program and wait until it ends": ("subprocess.run", "subprocess.call"),
    "ask the user for a password": ("getpass.unix_getpass", "getpass.win_getpass"),
    "merge several sorted lists": ("heapq.merge",),
    "delete a directory and everything in it": ("shutil.rmtree",),
    "undo the percent encoding of a URL": ("urllib.parse.unquote", "urllib.parse.unquote_plus"),
    "go through all files of a directory and its subdirectories": ("os.walk",),
    "how long does a small piece of code take to run": ("timeit.timeit", "timeit.Timer"),
}


class Search:
    """The public functions and classes of the standard library: ``names``, and the embeddings of their docstrings."""

    def __init__(self, encoder: SentenceEncoder, *, progress: bool = False):
        self.encoder, docstrings = encoder, public_docstrings()
        self.names, passages, owners = list(docstrings), [], []
        for number, (name, text) in enumerate(docstrings.items()):
            paragraphs = [" ".join(each.split())[:CHARACTERS] for each in text.split("\n\n") if each.strip()]
            passages += [f"{name.replace('.', ' ').replace('_', ' ')}: {each}" for each in paragraphs[:PARAGRAPHS]]
            owners += [number] * len(paragraphs[:PARAGRAPHS])
        self.firsts = np.searchsorted(owners, np.arange(len(self.names)))
        self.embeddings = encoder.encode(passages, progress=progress)

    def find(self, questions: list[str]) -> list[list[tuple[str, float]]]:
        """Return for each question all names with their cosines, the closest first."""
        cosines = np.maximum.reduceat(
            cosine_similarity(self.encoder.encode(questions), self.embeddings), self.firsts, axis=1
        )
        return [[(self.names[i], float(row[i])) for i in np.argsort(-row)] for row in cosines]


def public_docstrings() -> dict[str, str]:
    """Return {module.name: docstring} of the public functions and classes of the standard library's modules."""
    root, found = Path(ast.__file__).parent, {}
    for path in standard_library():
        *package, last = path.relative_to(root).with_suffix("").parts
        module = package if last == "__init__" else [*package, last]
        if not module or module[0] in TOOLS or any(part.startswith("_") for part in module):
            continue
        try:
            tree = ast.parse(path.read_text(encoding="utf-8"))
        except (SyntaxError, ValueError):
            continue
        for node in definitions(tree.body):
            if not node.name.startswith("_") and (text := ast.get_docstring(node)):
                found.setdefault(".".join([*module, node.name]), text)
    return found


def definitions(body: list[ast.stmt]) -> Iterator[ast.FunctionDef | ast.ClassDef]:
    """Yield the functions and classes of a module, also those inside an ``if`` or a ``try``: shutil.disk_usage is."""
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node
        elif isinstance(node, ast.If | ast.Try):
            handlers = node.handlers if isinstance(node, ast.Try) else []
            yield from definitions([*node.body, *(line for each in handlers for line in each.body), *node.orelse])


def rank(found: list[tuple[str, float]], right: tuple[str, ...]) -> int:
    """Return the place of the first right answer, counted from 1."""
    return 1 + next(place for place, (name, _) in enumerate(found) if name in right)


def main() -> None:
    """Print the five closest functions for each question."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder")
    parser.add_argument("questions", nargs="*")
    options = parser.parse_args()
    search = Search(SentenceEncoder.from_pretrained(options.folder), progress=True)
    asked = options.questions or list(QUESTIONS)
    ranks = []
    for question, found in zip(asked, search.find(asked), strict=True):
        print(question)
        for name, cosine in found[:5]:
            print(f"  {cosine:.3f}  {name}")
        if not options.questions:
            ranks.append(rank(found, QUESTIONS[question]))
            print(f"  right: {' or '.join(QUESTIONS[question])}, at place {ranks[-1]}")
    for place in (1, 3, 10) if ranks else ():
        print(f"right at place {place} or before: {sum(each <= place for each in ranks)} of {len(ranks)}")


if __name__ == "__main__":
    main()
