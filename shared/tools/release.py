"""Check that a tag may release a package, and put the repository's address into the package's metadata.

    python3 shared/tools/release.py scratch-llama-v0.1.0 --repository https://example.org/scratch

Prints the name of the package. The tag is `<distribution>-v<version>`; the version must be the one in the package's
pyproject.toml, which is at the top of its changelog. The address is written into pyproject.toml here and not committed,
so that a fork releases under its own. Standard library only.
"""

import argparse
import re
import sys
import tomllib
from pathlib import Path

PACKAGES = Path(__file__).resolve().parents[2] / "packages"


def package_of(tag: str, packages: Path = PACKAGES) -> Path:
    """Return the folder of the package that ``tag`` releases. Raises ValueError if the tag fits no package."""
    parts = re.fullmatch(r"(scratch-[a-z0-9]+)-v(\d+\.\d+\.\d+)", tag)
    if not parts:
        raise ValueError(f"the tag {tag!r} is not <distribution>-v<version>, as in scratch-llama-v0.1.0")
    name, version = parts.groups()
    file = packages / name / "pyproject.toml"
    if not file.is_file():
        known = ", ".join(sorted(path.parent.name for path in packages.glob("*/pyproject.toml")))
        raise ValueError(f"the tag {tag!r} names {name}, which is not a package; the packages are: {known}")
    project = tomllib.loads(file.read_text(encoding="utf-8"))["project"]
    if version != project["version"]:
        raise ValueError(
            f"the tag {tag!r} is of version {version}, but {name} is at {project['version']}: change the version and "
            "the changelog first, then tag that commit"
        )
    return file.parent


def add_urls(file: Path, repository: str, tag: str) -> None:
    """Write the addresses of the repository into [project.urls] of a pyproject.toml, before the existing ones."""
    repository = repository.rstrip("/")
    folder = f"{repository}/blob/{tag}/packages/{file.parent.name}"
    lines = (
        "[project.urls]\n"
        f'Repository = "{repository}"\n'
        f'Issues = "{repository}/issues"\n'
        f'Changelog = "{folder}/CHANGELOG.md"\n'
    )
    text = file.read_text(encoding="utf-8")
    if "\n[project.urls]\n" not in text:
        text = f"{text.rstrip()}\n\n[project.urls]\n"
    file.write_text(text.replace("[project.urls]\n", lines, 1), encoding="utf-8")


def main() -> int:
    """Run the command; returns its exit code."""
    parser = argparse.ArgumentParser(description="Check that a tag may release a package; print the package's name.")
    parser.add_argument("tag", help="<distribution>-v<version>, as in scratch-llama-v0.1.0")
    parser.add_argument("--repository", help="its address, to be written into the package's pyproject.toml")
    parser.add_argument("--packages", type=Path, default=PACKAGES, help="the folder of the packages")
    arguments = parser.parse_args()
    try:
        folder = package_of(arguments.tag, arguments.packages)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    if arguments.repository:
        add_urls(folder / "pyproject.toml", arguments.repository, arguments.tag)
    print(folder.name)
    return 0


if __name__ == "__main__":
    sys.exit(main())
