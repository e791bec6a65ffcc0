"""What people bring: adapters from folders, the Hub or uploads, rows from files; checked before anything is kept."""

import re
import shutil
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lab.app.showcase import WORD_PROBLEMS, Showcase
from lab.errors import LabError
from lab.lora import peft_io
from lab.lora.adapter import LoraAdapter
from lab.lora.peft_io import CONFIG, WEIGHTS
from lab.tasks.rows import read_rows

ZIP_BYTES = 4 << 30  # unpacked
ZIP_RATIO = 100  # unpacked to packed; weights hardly shrink
ZIP_ENTRIES = 10_000
CONFIG_BYTES = 1 << 20
TEXT_BYTES = 64 << 20  # of a file with rows, prompts or a recipe
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
    if "\0" in source or len(source) > 1000:
        raise LabError("That is no folder and no Hub id.")
    named = re.fullmatch(r"([\w.-]+)=(.+)", source)
    name, source = (named[1], named[2]) if named and not Path(source).exists() else ("", source)
    access.check(source)
    return peft_io.load(source, name=clean_name(name or Path(source).expanduser().resolve().name, taken))


def open_uploads(files: Sequence[str | Path], *, taken: Sequence[str] = ()) -> list[LoraAdapter]:
    """Adapters from uploaded files: each zip is one, the loose files together are one. Raises LabError."""
    found: list[LoraAdapter] = []
    loose = [Path(f) for f in files if not str(f).lower().endswith(".zip")]
    parcels: list[tuple[str, Path | list[Path]]] = [
        (Path(f).stem, Path(f)) for f in files if str(f).lower().endswith(".zip")
    ]
    if loose:
        parcels.append(("upload", loose))
    if not parcels:
        raise LabError("Choose a zip of a PEFT folder, or its files adapter_config.json and adapter_model.safetensors.")
    for label, parcel in parcels:
        with tempfile.TemporaryDirectory(prefix="adapter-") as folder:
            inside = Path(folder) / "adapter"
            inside.mkdir()
            if isinstance(parcel, Path):
                label = _unpack(parcel, inside) or label
            else:
                _collect(parcel, inside)
            name = clean_name(label, [*taken, *(a.name for a in found)])
            try:
                found.append(peft_io.load(inside, name=name))
            except LabError as error:
                raise LabError(str(error).replace(str(inside), f"The upload {label}")) from error
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


def read_pairs(file: str | Path) -> list[tuple[str, str]]:
    """(prompt, completion) rows of a .jsonl or .json file with two text fields. Raises LabError naming the row."""
    file = Path(file)
    if file.suffix not in (".jsonl", ".json"):
        raise LabError(f"{file.name} is no .jsonl file; give one JSON object per line, with prompt and completion.")
    check_size(file)
    try:
        rows = read_rows(file, ())
        first = rows[0] if isinstance(rows[0], dict) else {}
        fields = next((pair for pair in TEXT_FIELDS if set(pair) <= set(first)), None)
        if fields is None and len(first) == 2:
            fields = tuple(first)
        if fields is None:
            raise LabError(f"{file.name}, row 1: it needs two text fields, such as prompt and completion.")
        pairs = []
        for number, row in enumerate(read_rows(file, fields), 1):
            for name in fields:
                if not isinstance(row[name], str) or not row[name].strip():
                    raise LabError(f"{file.name}, row {number}: the field {name!r} is no text or empty.")
            pairs.append((row[fields[0]], row[fields[1]]))
        return pairs
    except LabError as error:
        raise LabError(str(error).replace(str(file), file.name)) from error


def read_prompts(file: str | Path) -> list[tuple[str, str]]:
    """(prompt, gold answer or "") of a .txt (a prompt a line), .jsonl or .json file. Raises LabError."""
    file = Path(file)
    check_size(file)
    if file.suffix == ".txt":
        try:
            lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
        except (OSError, UnicodeDecodeError) as error:
            raise LabError(f"{file.name} cannot be read as UTF-8 text.") from error
        if not lines:
            raise LabError(f"{file.name} holds no prompt; write one to a line.")
        return [(line, "") for line in lines]
    try:
        rows = read_rows(file, ())
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
