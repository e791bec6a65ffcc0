"""The app: `python app.py` opens the lab in a browser; everything it shows comes from lab.app and the library."""

import os

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # before gradio is imported
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

import gc
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

import gradio as gr
import torch

from lab.app import scratch
from lab.app.context import Context
from lab.app.engine import Engine
from lab.app.page import build_page
from lab.app.server import Server, check_port, is_loopback
from lab.app.showcase import of_base
from lab.app.sources import Access, open_adapter, shipped_skills
from lab.cli.options import Parser, integer
from lab.errors import LabError
from lab.experiments.presets import get_preset, preset_for
from lab.export.report import base_config
from lab.files import PROJECT, in_project
from lab.lora.peft_io import DTYPES


def build_app(
    base: str = "",
    adapters: Sequence[str] = (),
    *,
    preset: str = "",
    device: str | None = None,
    results: Path | str = "results",
    files: Path | str = "artifacts/app",
    shared: bool = False,
    roots: Sequence[Path | str] = (),
) -> gr.Blocks:
    """The page, ready to be served (lab.app.server.Server), with the base in memory. Raises LabError when base or adapters cannot be read.

    base: "embedded", a folder or a Hub id; default the preset's. preset: default the base's own, else what suits the base.
    adapters: PEFT folders or Hub ids (NAME=FOLDER); default the shipped skills of the base, if it has some. results: folder with
    the records. files: where votes and visitors' work are kept.
    shared: others than this machine can reach the page; then visitors may only name folders under `roots` and upload.
    """
    os.environ.setdefault("GRADIO_TEMP_DIR", str(scratch.root() / "gradio"))  # uploads of a killed app are not left for ever
    chosen = get_preset(preset or "embedded") if preset or not base else preset_for(base, dtype=_dtype(base, device))
    source = base or chosen.base
    showcase = of_base(source)
    engine = Engine(source, revision=chosen.revision if source == chosen.base else None, dtype=chosen.dtype, device=device)
    if chosen.name == "own":
        chosen = chosen.change(chat=engine.chat)
    found, sources = [], {}
    for adapter in adapters:
        found.append(open_adapter(str(adapter), taken=[a.name for a in found]))
        sources[found[-1].name] = str(adapter).rpartition("=")[2]
    start = None
    if not found and source == showcase.base:
        found, start = shipped_skills(showcase), showcase.recipe()
        sources = {name: str(folder.relative_to(PROJECT)) for name, folder in showcase.folders().items()}
    records = in_project(results) / "records"
    access = Access(tuple(map(Path, roots)) if shared else None)
    folder = records if records.is_dir() else in_project(results)
    context = Context(engine, chosen, tuple(found), folder, in_project(files), access, sources, start, showcase=showcase)
    if found:  # refuse at once what no visitor could use
        context.session().take(found, engine.model, source)
    blocks = build_page(context)
    blocks.context = context
    return blocks


def _dtype(base: str, device: str | None) -> str:
    """In which a base that no preset is for is held: as it is stored on a GPU; processors are slow in anything but float32."""
    if device == "cpu" or not torch.cuda.is_available():
        return "float32"
    stored = str(base_config(base).dtype).removeprefix("torch.")
    return stored if stored in DTYPES else "float32"


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve the page until interrupted. 0 when it ended well, 2 with one line on stderr for bad input."""
    parser = Parser(prog="python app.py", description="Load LoRA skills, set or learn their alphas, compare, take the merge home.")
    parser.add_argument("--base", default="", help="embedded, a model folder or a Hub id (default: the preset's)")
    parser.add_argument(
        "--adapters",
        nargs="+",
        default=[],
        metavar="ADAPTER",
        help="PEFT folders or Hub ids; NAME=FOLDER names one (default: the shipped skills)",
    )
    parser.add_argument(
        "--preset", default="", help="embedded, laptop, small or paper: base, dtype and data (default: the base's own)"
    )
    parser.add_argument("--port", type=integer, default=7860, help="port to listen on (default 7860)")
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen on (default 127.0.0.1: this machine only)"
    )
    parser.add_argument(
        "--roots",
        nargs="+",
        default=[],
        metavar="FOLDER",
        help="folders that visitors may read from when --host is not this machine",
    )
    parser.add_argument("--device", default=None, help="cpu, cuda, cuda:1 … (default: a GPU when there is one)")
    parser.add_argument("--results", default="results", help="folder of the records (default results)")
    try:
        options = parser.parse(sys.argv[1:] if arguments is None else arguments)
    except LabError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    logging.getLogger("httpx").setLevel(logging.WARNING)
    if options.device == "cpu":
        os.environ["ACCELERATE_USE_CPU"] = "true"  # learning goes where the model is
    try:
        check_port(options.port)  # a typing error should not wait for the base
        blocks = build_app(
            options.base,
            options.adapters,
            preset=options.preset,
            device=options.device,
            results=options.results,
            shared=not is_loopback(options.host),
            roots=[*options.roots, *options.adapters, PROJECT / "artifacts"],
        )
        with Server(blocks, options.host, options.port) as server:
            print(f"Soup Lab is open at {server.url} (Ctrl+C ends it)", flush=True)
            try:
                server.wait()
            finally:
                blocks.context.end()
    except LabError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        pass
    return 0


if __name__ == "__main__":
    code = main()
    gc.freeze()  # without it the interpreter's last collection goes through all of torch: seconds after Ctrl+C
    sys.exit(code)
