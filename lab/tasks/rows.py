"""Reading rows of real data sets: .json and .jsonl files of a folder, or the same set from the Hub at a pinned revision."""

import json
from dataclasses import dataclass
from pathlib import Path

from lab.errors import LabError


@dataclass(frozen=True)
class HubSet:
    """A data set on the Hub. revision: a commit, so that the same rows come tomorrow."""

    id: str
    revision: str
    split: str
    config: str | None = None


def read_text(path: Path) -> str:
    """The text of a file. Raises LabError when it is not there, is no UTF-8, or is empty."""
    if not path.is_file():
        raise LabError(f"The data file {path} does not exist; name a folder that holds it.")
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise LabError(f"The data file {path} cannot be read as UTF-8 text: {error}.") from error
    if not text.strip():
        raise LabError(f"The data file {path} is empty.")
    return text


def read_json(path: Path) -> object:
    """What a .json file holds. Raises LabError as read_text does, and for what is no JSON."""
    try:
        return json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise LabError(f"{path}, line {error.lineno}: not valid JSON ({error.msg}).") from error


def read_rows(path: Path, fields: tuple[str, ...]) -> list[dict]:
    """Rows of a .json (a list) or .jsonl file, each checked to hold `fields`. Raises LabError naming file, line and field."""
    if path.suffix == ".jsonl":
        rows = []
        for number, line in enumerate(read_text(path).split("\n"), 1):  # splitlines would also split inside strings
            try:
                rows += [json.loads(line)] if line.strip() else []
            except json.JSONDecodeError as error:
                raise LabError(f"{path}, line {number}: not valid JSON ({error.msg}).") from error
    else:
        rows = read_json(path)
    if not isinstance(rows, list) or not rows:
        raise LabError(f"{path} holds no list of rows.")
    for number, row in enumerate(rows, 1):
        for field in fields:
            if not isinstance(row, dict) or row.get(field) is None:
                raise LabError(f"{path}, row {number}: the field {field!r} is missing.")
    return rows


def hub_rows(source: HubSet, fields: tuple[str, ...]) -> list[dict]:
    """The rows of a Hub data set. Raises LabError when the Hub cannot be reached."""
    import datasets
    import httpx2

    try:
        loaded = datasets.load_dataset(source.id, source.config, revision=source.revision, split=source.split)
    except (OSError, httpx2.HTTPError, datasets.exceptions.DatasetsError) as error:
        raise LabError(
            f"The data set {source.id} could not be fetched from the Hub ({type(error).__name__}); "
            "connect to the network, or name a folder with its files."
        ) from error
    missing = [field for field in fields if field not in loaded.column_names]
    if missing:
        raise LabError(f"The data set {source.id} has no field {missing[0]!r}; it has {', '.join(loaded.column_names)}.")
    return list(loaded)


def take(rows: list, count: int | None, what: str) -> list:
    """The first `count` rows. Raises LabError when there are none."""
    if not rows:
        raise LabError(f"There are no rows for {what}.")
    return rows[:count]
