"""Reads the rows of data files in several formats, and handles bad rows.

    .jsonl                      an object in each line
    .csv, .tsv                  a header, then a row in each line; quoted fields may hold line ends
    .parquet, .arrow            tables, read by Hugging Face `datasets` (the extra ``scratch-core[datasets]``)
    a folder of `save_to_disk`  likewise; its split "train", if it has several
    hf:NAME, hf:NAME:CONFIG     likewise; the split "train" of a data set of the Hub

The numbers in Hugging Face's `ClassLabel` columns are replaced by their class names.
"""

import csv
import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from scratch_core.config import size_of_file
from scratch_core.errors import ConfigError, DataError, MissingExtraError

HUB = "hf:"
TABLES = (".parquet", ".arrow")
SUFFIXES = (".jsonl", ".csv", ".tsv", *TABLES)
BAD = (AttributeError, IndexError, KeyError, TypeError, ValueError, RecursionError)

Result = TypeVar("Result")


class Row(NamedTuple):
    """A row's position ("row 3"), its raw text, and its fields, or the error from reading them."""

    where: str
    shown: str
    fields: Any


@dataclasses.dataclass
class Reading:
    """How rows are read: what happens to a bad row, and which columns hold the fields.

    ``on_error`` is "raise", or "skip" to leave bad rows out and count them. ``columns`` maps a field to its column
    where their names differ, such as {"text": "review"}. Raises ConfigError for any other ``on_error``.
    """

    on_error: str = "raise"
    columns: Mapping[str, str] = dataclasses.field(default_factory=dict)
    skipped: int = 0
    first: str = ""

    def __post_init__(self):
        if self.on_error not in ("raise", "skip"):
            raise ConfigError(f"on_error={self.on_error!r} must be 'raise' or 'skip'")

    def bad(self, message: str, cause: BaseException | None = None) -> None:
        """Raise DataError with ``message`` (which names file and row), or count the row as skipped."""
        if self.on_error == "raise":
            raise DataError(f"{message}. Correct it, or leave bad rows out with --on-error skip") from cause
        self.skipped += 1
        self.first = self.first or message

    @property
    def note(self) -> str:
        """A suffix for descriptions: how many rows were skipped, and the first of them; "" if none were."""
        return f", {self.skipped:,} bad rows skipped (first: {self.first})" if self.skipped else ""


def parse_columns(columns: str | None) -> dict[str, str]:
    """Parse an option such as "text=review,label=stars" to a mapping. Raises ConfigError if it is malformed."""
    found = {}
    for part in (columns or "").split(","):
        field, equals, column = (each.strip() for each in part.partition("="))
        if part and not (field and equals and column):
            raise ConfigError(f"--columns {columns}: {part!r} must be FIELD=COLUMN, such as text=review")
        if part:
            found[field] = column
    return found


def is_rows(source: str | Path) -> bool:
    """Return whether :func:`open_rows` reads this source."""
    path = Path(source)
    return str(source).startswith(HUB) or path.suffix.lower() in SUFFIXES or _is_saved(path)


def read_rows(
    source: str | Path, read: Callable[[Any], Result], expected: str, reading: Reading | None = None
) -> Iterator[tuple[str, Result]]:
    """Yield each row's position and ``read(fields)``. ``read`` raises one of ``BAD`` for a bad row.

    ``expected`` ends the sentence "must be a JSON object with ...". Raises DataError that names file and row.
    """
    reading = reading or Reading()
    kind = "a JSON object" if Path(source).suffix.lower() == ".jsonl" else "a row"
    for row in open_rows(source):
        try:
            if isinstance(row.fields, Exception):
                raise row.fields
            result = read(_renamed(row.fields, reading.columns))
        except BAD as error:
            message = f"{source}, {row.where}: must be {kind} with {expected}, found {row.shown[:60]!r}"
            reading.bad(f"{message} ({type(error).__name__}: {error})", error)
        else:
            yield row.where, result


def open_rows(source: str | Path) -> Iterator[Row]:
    """Yield the rows of a source; the module's docstring lists what it may be. Blank lines are skipped.

    Raises DataError if it is missing, unreadable or of another format, MissingExtraError without the extra.
    """
    path = Path(source)
    if str(source).startswith(HUB) or path.suffix.lower() in TABLES or _is_saved(path):
        return _of_datasets(str(source))
    try:
        size_of_file(path, DataError)
    except OSError as error:
        reason = f"no such file: {path}" if not path.exists() else f"{path} cannot be read: {error.strerror}"
        raise DataError(reason) from error
    if path.suffix.lower() == ".jsonl":
        return _of_json_lines(path)
    if path.suffix.lower() in (".csv", ".tsv"):
        return _of_csv(path)
    raise DataError(f"{path} is of no format with rows: give one of {', '.join(SUFFIXES)}")


def text_of(value: Any) -> str:
    """Return a text with at least one character. Raises ValueError for anything else."""
    if not isinstance(value, str) or not value:
        raise ValueError(f"{value!r} must be a text with at least one character")
    value.encode()  # raises for a lone surrogate, which is not valid text
    return value


def _renamed(fields: Any, columns: Mapping[str, str]) -> Any:
    return {**fields, **{field: fields[column] for field, column in columns.items()}} if columns else fields


def _of_json_lines(path: Path) -> Iterator[Row]:
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    try:
                        fields = json.loads(line)
                    except (ValueError, RecursionError) as error:
                        fields = error
                    yield Row(f"row {number}", line[:60].decode(errors="replace").rstrip("\n"), fields)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error


def _of_csv(path: Path) -> Iterator[Row]:
    csv.field_size_limit(2**31 - 1)  # a document may exceed the library's limit of 131,072 characters
    try:
        # Bytes that are not UTF-8 become surrogates, so that the error can name their row.
        with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            rows = csv.reader(file, delimiter="\t" if path.suffix.lower() == ".tsv" else ",", strict=True)
            columns = next(rows, [])
            if not columns:
                raise DataError(f"{path} is empty: its first row must name the columns")
            for values in filter(None, rows):
                shown, found = ",".join(values), dict(zip(columns, values, strict=False))
                if len(values) != len(columns):
                    found = ValueError(f"the row has {len(values)} fields, the header has {len(columns)}")
                elif any("\udc80" <= letter <= "\udcff" for letter in shown):
                    found = ValueError("the row is not UTF-8")
                yield Row(f"row {rows.line_num}", shown.encode(errors="replace").decode(), found)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    except csv.Error as error:
        raise DataError(f"{path}, row {rows.line_num}: cannot be read as CSV: {error}") from error


def _is_saved(path: Path) -> bool:
    """Return whether a folder was written by `save_to_disk` of Hugging Face datasets."""
    return (path / "dataset_dict.json").is_file() or (path / "dataset_info.json").is_file()


def _of_datasets(source: str) -> Iterator[Row]:
    try:
        import datasets
    except ImportError:
        raise MissingExtraError("datasets", source) from None
    path = Path(source)
    try:
        if source.startswith(HUB):
            name, _, config = source.removeprefix(HUB).partition(":")
            table: Any = datasets.load_dataset(name, config or None, split="train")
        elif path.is_dir():
            table = datasets.load_from_disk(source)
        elif path.suffix.lower() == ".parquet":
            table = datasets.Dataset.from_parquet(source)
        else:
            table = datasets.Dataset.from_file(source)
        table = table["train"] if isinstance(table, datasets.DatasetDict) else table
    except Exception as error:  # the library raises exceptions of many types
        raise DataError(f"{source} cannot be read as a data set ({type(error).__name__}): {error}") from error
    for number in range(len(table)):
        fields = table[number]
        try:
            fields = {name: _named(value, table.features[name]) for name, value in fields.items()}
        except ValueError as error:
            fields = error
        yield Row(f"row {number}", str(table[number]), fields)


def _named(value: Any, feature: Any) -> Any:
    """Return a value with class numbers replaced by class names. Raises ValueError for a number out of range."""
    if hasattr(feature, "int2str"):
        if value is None or not 0 <= value < feature.num_classes:
            raise ValueError(f"the label {value} must be in 0 .. {feature.num_classes - 1}")
        return feature.int2str(value)
    inner = getattr(feature, "feature", None)
    if inner is not None and hasattr(inner, "int2str"):
        return [_named(each, inner) for each in value]
    return value
