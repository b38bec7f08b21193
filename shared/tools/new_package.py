"""Make ``packages/scratch-NAME``: a complete model package that passes its own tests.

    uv run python shared/tools/new_package.py NAME

It is a copy of ``shared/tools/template`` under another name: a small decoder, to be turned file by file into the model
of a paper. Nothing outside the new folder changes; the row for the README's table is printed.
"""

import argparse
import re
import subprocess
import sys
from pathlib import Path

TOOLS = Path(__file__).resolve().parent
KEPT = {".py", ".toml", ".md", ".typed"}


def create(name: str, packages: Path) -> Path:
    """Write the package and return its folder. Raises ValueError for a name that cannot be one, or is taken."""
    if not re.fullmatch(r"[a-z][a-z0-9]*", name):
        raise ValueError(f"{name!r} must be lower-case letters and digits, as in scratch-mamba2")
    folder = packages / f"scratch-{name}"
    if folder.exists():
        raise ValueError(f"{folder} exists: choose another name, or remove it first")
    if name in ("core", "template"):
        raise ValueError(f"scratch-{name} is not a model's name: choose another")
    names = {"template": name, "Template": name.capitalize()}
    template = TOOLS / "template"
    for source in sorted(template.rglob("*")):
        if source.suffix in KEPT and source.is_file():
            target = folder / re.sub("template", name, source.relative_to(template).as_posix())
            target.parent.mkdir(parents=True, exist_ok=True)
            text = re.sub("[Tt]emplate", lambda found: names[found[0]], source.read_text(encoding="utf-8"))
            target.write_text(text, encoding="utf-8")
    # The name changes the order of imports and the length of lines.
    for command in (["check", "--quiet", "--select", "I", "--fix"], ["format", "--quiet"]):
        subprocess.run([sys.executable, "-m", "ruff", *command, str(folder)], check=False, stderr=subprocess.DEVNULL)
    return folder


def main() -> int:
    """Run the command; returns its exit code."""
    parser = argparse.ArgumentParser(
        description="Make packages/scratch-NAME, a model package that passes its own tests."
    )
    parser.add_argument("name", help="lower-case letters and digits, such as mamba2")
    parser.add_argument(
        "--packages", type=Path, default=TOOLS.parent.parent / "packages", help="the folder to make it in"
    )
    arguments = parser.parse_args()
    try:
        folder = create(arguments.name.removeprefix("scratch-"), arguments.packages)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    name = folder.name
    print(f"made {folder}; to test it: uv run --all-packages pytest {folder}\n\nThe row for the README's table:\n")
    install = f'`uv pip install "{name} @ $SCRATCH#subdirectory=packages/{name}"`'
    print(f"| [{name}](packages/{name}) | what it is | its paper | what agrees | {install} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
