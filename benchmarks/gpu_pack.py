"""What benchmarks/gpu.py needs where nothing can be fetched: packages of Python alone, and the base's GGUF in two parts.

make gpu-pack                          # ARGS="--data FOLDER" takes real rows of 5.1 along
"""

import argparse
import hashlib
import json
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lab.errors import LabError
from lab.files import PROJECT, atomic_folder, write_atomic
from lab.lora.gguf import PACKED, packed_file

PACK = PROJECT / "artifacts" / "gpu-pack"
PACKAGES = ("peft", "gguf")  # in no other package's requirements; pinned as the project pins them
BASE = "smollm2-135m"
PARTS = 2
DATA = Path("2") / "data"  # rows of 5.1, in the folders that its tasks read
ROWS = ("word_problems", "gsm8k", "code_alpaca", "gsm_hard")
LARGEST = 64 * 10**6  # bytes of one of the folders


def pack(folder: Path, file: Path, packages: tuple[str, ...] = PACKAGES, data: Path | None = None) -> None:
    """Write folder/1 (site/, the packages; manifest.json; base.part) and folder/2 (base.part, data/).

    file: the base's. data: a folder with those of ROWS.

    Raises LabError when a part would be larger than LARGEST, data lacks a folder, or the packages cannot be had.
    """
    pins = {
        pin.partition("==")[0]: pin for pin in tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]["dependencies"]
    }
    for name in ROWS if data else ():
        if not (data / name).is_dir():
            raise LabError(f"{data} has no folder {name}, which 5.1 reads.")
    with atomic_folder(folder, overwrite=True) as temporary:
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "--no-compile"]
        command += ["--only-binary=:all:", "--target", str(temporary / "1" / "site"), *(pins[name] for name in packages)]
        if packages and subprocess.run(command, check=False).returncode:
            raise LabError(f"{' and '.join(packages)} could not be downloaded; connect to a package index.")
        content = file.read_bytes()
        size = -(-len(content) // PARTS)
        for part in range(PARTS):
            write_atomic(temporary / str(part + 1) / "base.part", content[part * size : (part + 1) * size])
        for name in ROWS if data else ():
            shutil.copytree(data / name, temporary / DATA / name)
        manifest = {"package": PACKED[BASE].package, "file": file.name, "sha256": hashlib.sha256(content).hexdigest()}
        write_atomic(temporary / "1" / "manifest.json", json.dumps(manifest) + "\n")
        for part in range(PARTS):
            taken = sum(f.stat().st_size for f in (temporary / str(part + 1)).rglob("*") if f.is_file())
            if taken > LARGEST:
                raise LabError(f"Part {part + 1} would take {taken / 1e6:.0f} MB, more than {LARGEST / 1e6:.0f}.")
            print(f"{folder / str(part + 1)}: {taken / 1e6:.1f} MB")


def unpacked(folder: Path, work: Path) -> list[Path]:
    """Folders for the module search path: the packages, and the base as the wheel would have it. What is not there is left out.

    Raises LabError when the parts together are not the file that was packed.
    """
    site, manifest = folder / "1" / "site", folder / "1" / "manifest.json"
    found = [site] if site.is_dir() else []
    parts = [folder / str(part + 1) / "base.part" for part in range(PARTS)]
    if not manifest.is_file() or not all(part.is_file() for part in parts):
        return found
    told, joined = json.loads(manifest.read_text()), work / "site"
    file = joined / told["package"] / told["file"]
    if not file.is_file() or file.stat().st_size != sum(part.stat().st_size for part in parts):
        content = b"".join(part.read_bytes() for part in parts)
        if hashlib.sha256(content).hexdigest() != told["sha256"]:
            raise LabError(f"The parts of the base in {folder} do not belong together; run make gpu-pack again.")
        shutil.rmtree(joined, ignore_errors=True)
        write_atomic(file.with_name("__init__.py"), "")
        write_atomic(file, content)
    return [*found, joined]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, help=f"folder with {', '.join(ROWS)}: real rows of 5.1")
    try:
        pack(PACK, packed_file(BASE), data=parser.parse_args().data)
    except LabError as error:
        sys.exit(str(error))
