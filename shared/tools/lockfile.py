"""Remove every download address from a uv.lock: standard input to standard output.

The committed lockfile pins versions and hashes but names no package index, so that it installs from
whichever index or mirror the user has configured. Given such a file, ``uv run`` and ``uv sync``
resolve again within a second, keep every pin, and restore the addresses of their own index.

Set it up once per clone, before the first ``git add uv.lock``::

    git config filter.index-free.clean "python3 shared/tools/lockfile.py clean"
"""

import re
import sys


def clean(text: str) -> str:
    """Return the index-free form of a lockfile; cleaning twice changes nothing."""
    text = re.sub(r'registry = "[^"]*"', 'registry = "index"', text)
    text = re.sub(r'url = "[^"]*/([^"/]+)"', r'path = "\1"', text)
    # uv treats a lock without its manifest as incomplete, and fills in the addresses again.
    return re.sub(r"^\[manifest\]\n(?:(?!\[).*\n)*", "", text, flags=re.MULTILINE)


if __name__ == "__main__":
    if sys.argv[1:] != ["clean"]:
        sys.exit("usage: python3 shared/tools/lockfile.py clean < uv.lock > cleaned")
    # Bytes, because a platform's text mode could change the encoding or the line ends.
    sys.stdout.buffer.write(clean(sys.stdin.buffer.read().decode("utf-8")).encode("utf-8"))
