"""What people bring: adapters from folders, the Hub or uploads, rows from files; checked before anything is kept."""

import csv
import os
import re
import shutil
import socket
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from lab.app.showcase import WORD_PROBLEMS, Showcase
from lab.errors import LabError
from lab.files import temporary_folder
from lab.lora import peft_io
from lab.lora.adapter import LoraAdapter
from lab.lora.peft_io import CONFIG, WEIGHTS
from lab.tasks.rows import read_rows, read_text

ZIP_BYTES = 4 << 30  # unpacked
ZIP_RATIO = 100  # unpacked to packed; weights hardly shrink
ZIP_ENTRIES = 10_000
CONFIG_BYTES = 1 << 20
TEXT_BYTES = 64 << 20  # of a file with rows, prompts or a recipe
HUB_SECONDS = 2
RESERVED = ("base", "merge", "A", "B", "layer", "layers")
TEXT_FIELDS = (("prompt", "completion"), ("instruction", "output"), ("question", "answer"), ("input", "output"))


@dataclass(frozen=True)
class Access:
    """Which places a visitor may name. roots None: any folder and the Hub, when only this machine reaches the page."""

    roots: tuple[Path, ...] | None = None

    def check(self, source: str) -> None:
        """Raise LabError, the same whether or not anything is there, for a place outside the roots."""
        if self.roots is None:
            return
        try:
            real = Path(source).expanduser().resolve()
            allowed = any(real.is_relative_to(root.resolve()) for root in self.roots)
        except (OSError, RuntimeError, ValueError):
            allowed = False
        if not allowed:
            raise LabError(
                "This page is shared, so only folders that its owner named may be read; upload the adapter instead."
            )


def clean_name(name: str, taken: Sequence[str] = ()) -> str:
    """A name that can stand in rules and columns, unlike any of `taken`."""
    name = re.sub(r"[^\w.-]+", "-", name).strip("-.")[:40] or "adapter"
    if name in RESERVED:
        name = f"{name}-skill"
    unique, number = name, 2
    while unique in taken:
        unique, number = f"{name}-{number}", number + 1
    return unique


def shipped_skills(showcase: Showcase = WORD_PROBLEMS) -> list[LoraAdapter]:
    """The skills that ship for a showcase's base."""
    return [peft_io.load(folder, name=name, base=showcase.base) for name, folder in showcase.folders().items()]


def open_adapter(source: str, access: Access = Access(), *, taken: Sequence[str] = ()) -> LoraAdapter:
    """An adapter from a folder or Hub id as typed by somebody, NAME=FOLDER to call it otherwise. Raises LabError."""
    source = source.strip()
    if not source:
        raise LabError("Name the folder of a PEFT adapter, or a Hub id such as owner/name.")
    if "\0" in source or len(source) > 1000 or any(len(part.encode()) > 255 for part in source.split("/")):
        raise LabError("That is no folder and no Hub id.")
    named = re.fullmatch(r"([\w.-]+)=(.+)", source)
    name, source = (named[1], named[2]) if named and not Path(source).exists() else ("", source)
    access.check(source)
    try:
        name = name or Path(source).expanduser().resolve().name
        there = Path(source).expanduser().exists()
    except (OSError, RuntimeError) as error:  # a loop of links, or a home that nobody has
        raise LabError("That is no folder and no Hub id.") from error
    if not there and re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", source):
        check_hub(source, CONFIG)
    return peft_io.load(source, name=clean_name(name, taken))


def check_hub(source: str, file: str) -> None:
    """Raise LabError within HUB_SECONDS where the Hub cannot be reached and has not given this file before.

    The Hub's own client tries for half a minute. Behind a proxy only that client knows the way.
    """
    from huggingface_hub import constants, try_to_load_from_cache

    proxied = any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"))
    if proxied or isinstance(try_to_load_from_cache(source, file), str):
        return
    address = urlsplit(constants.ENDPOINT)
    try:
        port = address.port or (443 if address.scheme == "https" else 80)
        socket.create_connection((address.hostname, port), timeout=HUB_SECONDS).close()
    except OSError as error:
        raise LabError(f"{source} is not a folder here and the Hub cannot be reached; give a local folder or connect to the network.") from error


def open_uploads(files: Sequence[str | Path], *, taken: Sequence[str] = ()) -> list[LoraAdapter]:
    """Adapters from uploaded files: each zip is one, the loose files together are one. Raises LabError."""
    found: list[LoraAdapter] = []
    loose = [Path(f) for f in files if not str(f).lower().endswith(".zip")]
    parcels: list[tuple[str, Path | list[Path]]] = [
        (Path(f).stem, Path(f)) for f in files if str(f).lower().endswith(".zip")
    ]
    if loose:
        parcels.append(("", loose))
    if not parcels:
        raise LabError("Choose a zip of a PEFT folder, or its files adapter_config.json and adapter_model.safetensors.")
    for label, parcel in parcels:
        with temporary_folder("upload") as folder:
            inside = folder / "adapter"
            inside.mkdir()
            if isinstance(parcel, Path):
                label = _unpack(parcel, inside) or label
            else:
                _collect(parcel, inside)
            name = clean_name(label or "upload", [*taken, *(a.name for a in found)])
            try:
                found.append(peft_io.load(inside, name=name))
            except LabError as error:
                raise LabError(str(error).replace(str(inside), f"The upload {label}".rstrip())) from error
    return found


def _collect(files: Sequence[Path], folder: Path) -> None:
    for file in files:
        if file.name == CONFIG and file.stat().st_size > CONFIG_BYTES:
            raise LabError(f"{CONFIG} is larger than 1 MB, so it is no adapter's.")
        if file.name in (CONFIG, WEIGHTS):
            shutil.copyfile(file, folder / file.name)
        elif file.suffix in (".bin", ".pt", ".pth", ".pkl", ".ckpt"):
            raise LabError(f"{file.name} holds pickled weights, which can run code; convert them to {WEIGHTS}.")


def _unpack(archive: Path, folder: Path) -> str:
    """Take the two files of an adapter out of a zip, wherever in it they lie; the name of their folder, if any."""
    refused = f"The zip {archive.name} cannot be used: "
    try:
        with zipfile.ZipFile(archive) as packed:
            entries = [entry for entry in packed.infolist() if not entry.is_dir()]
            for entry in entries:
                parts = re.split(r"[\\/]", entry.filename)
                if ".." in parts or entry.filename.startswith(("/", "\\")) or ":" in parts[0]:
                    raise LabError(f"{refused}it names a file outside its own folder.")
            wanted = [e for e in entries if Path(e.filename).name in (CONFIG, WEIGHTS) and "__MACOSX" not in e.filename]
            if len(entries) > ZIP_ENTRIES:
                raise LabError(f"{refused}it holds more than {ZIP_ENTRIES:,} files.")
            if any(entry.file_size > CONFIG_BYTES for entry in wanted if Path(entry.filename).name == CONFIG):
                raise LabError(f"{refused}its {CONFIG} is larger than 1 MB.")
            size = sum(entry.file_size for entry in wanted)
            if size > ZIP_BYTES or size > ZIP_RATIO * max(archive.stat().st_size, 1 << 16):
                raise LabError(
                    f"{refused}it would unpack to {size / 1e9:.1f} GB from {archive.stat().st_size / 1e6:.1f} MB."
                )
            if len({Path(entry.filename).name for entry in wanted}) < len(wanted):
                raise LabError(f"{refused}it holds several adapters; upload one zip for each.")
            names = {Path(entry.filename).name for entry in entries}
            if WEIGHTS not in names and any(name.endswith((".bin", ".pt", ".pth", ".pkl", ".ckpt")) for name in names):
                raise LabError(f"{refused}its weights are pickled, which can run code; convert them to {WEIGHTS}.")
            for entry in wanted:
                with packed.open(entry) as source, open(folder / Path(entry.filename).name, "wb") as target:
                    left = entry.file_size
                    while block := source.read(1 << 20):
                        left -= len(block)
                        if left < 0:
                            raise LabError(f"{refused}a file in it is larger than it says.")
                        target.write(block)
            return next((Path(entry.filename).parent.name for entry in wanted), "")
    except (zipfile.BadZipFile, zipfile.LargeZipFile, NotImplementedError, RuntimeError, EOFError, OSError) as error:
        if isinstance(error, LabError):
            raise
        raise LabError(f"{refused}it is damaged, encrypted or no zip.") from error


def check_size(file: Path) -> None:
    """Raise LabError for a text file that is too large to be read at once."""
    if file.stat().st_size > TEXT_BYTES:
        raise LabError(f"{file.name} is larger than {TEXT_BYTES >> 20} MB; give a part of it.")


@dataclass(frozen=True)
class Rows:
    """Rows of a file. pairs: (prompt, completion). told: how many there are, and which fields they were made of."""

    pairs: list[tuple[str, str]]
    told: str


def read_pairs(file: str | Path) -> Rows:
    """The rows of a .jsonl, .json or .csv file with two text fields. Raises LabError naming the row.

    Alpaca's `input` is put under its instruction, as in the tasks of this project.
    """
    file = Path(file)
    try:
        rows = _rows(file)
        first = rows[0] if isinstance(rows[0], dict) else {}
        fields = next((pair for pair in TEXT_FIELDS if set(pair) <= set(first)), None)
        if fields is None and len(first) == 2:
            fields = tuple(first)
        if fields is None:
            raise LabError(f"{file.name}, row 1: it needs two text fields, such as prompt and completion.")
        more = "input" if fields == ("instruction", "output") and "input" in first else ""
        pairs = []
        for number, row in enumerate(rows, 1):
            for name in fields:
                if not isinstance(row, dict) or row.get(name) is None:
                    raise LabError(f"{file.name}, row {number}: the field {name!r} is missing.")
                if not isinstance(row[name], str) or not row[name].strip():
                    raise LabError(f"{file.name}, row {number}: the field {name!r} is no text or empty.")
            beside = row.get(more) or ""
            if not isinstance(beside, str):
                raise LabError(f"{file.name}, row {number}: the field {more!r} is no text.")
            pairs.append((f"{row[fields[0]]}\n{beside}".strip() if beside else row[fields[0]], row[fields[1]]))
        left = [name for name in first if name not in (*fields, more)]
        told = f"{file.name}: {len(pairs):,} rows; prompt from {fields[0]}{f' and {more}' if more else ''}, completion from {fields[1]}"
        return Rows(pairs, told + (f"; not used: {', '.join(map(str, left))}." if left else "."))
    except LabError as error:
        raise LabError(str(error).replace(str(file), file.name)) from error


def _rows(file: Path) -> list:
    """Of a .jsonl, .json or .csv file, as they are. Raises LabError."""
    if file.suffix not in (".jsonl", ".json", ".csv"):
        raise LabError(f"{file.name} is no .jsonl, .json or .csv file; give one JSON object per line, with prompt and completion.")
    check_size(file)
    if file.suffix != ".csv":
        return read_rows(file, ())
    try:
        rows = list(csv.DictReader(read_text(file).removeprefix("\ufeff").splitlines(keepends=True), strict=True))
    except csv.Error as error:
        raise LabError(f"{file.name} is no CSV table ({error}); its first line names the columns.") from error
    if not rows:
        raise LabError(f"{file.name} holds no rows under its first line, which names the columns.")
    return rows


def read_prompts(file: str | Path) -> list[tuple[str, str]]:
    """(prompt, gold answer or "") of a .txt (a prompt a line), .jsonl, .json or .csv file. Raises LabError."""
    file = Path(file)
    if file.suffix == ".txt":
        check_size(file)
        try:
            lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
        except (OSError, UnicodeDecodeError) as error:
            raise LabError(f"{file.name} cannot be read as UTF-8 text.") from error
        if not lines:
            raise LabError(f"{file.name} holds no prompt; write one to a line.")
        return [(line, "") for line in lines]
    try:
        rows = _rows(file)
        found = []
        for number, row in enumerate(rows, 1):
            texts = {k: v for k, v in row.items() if isinstance(v, (str, int, float))} if isinstance(row, dict) else {}
            name = next((n for n in ("prompt", "input", "question", "instruction", "text") if n in texts), None)
            if name is None or not str(texts[name]).strip():
                raise LabError(f"{file.name}, row {number}: the field 'prompt' is missing.")
            gold = next((texts[n] for n in ("answer", "target", "gold", "output", "completion") if n in texts), "")
            found.append((str(texts[name]), str(gold)))
        return found
    except LabError as error:
        raise LabError(str(error).replace(str(file), file.name)) from error
