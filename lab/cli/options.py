"""What commands share: a parser whose errors are one sentence, a method's options from its signature, adapters by name."""

import argparse
import difflib
import math
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lab.errors import LabError

if TYPE_CHECKING:
    from lab.export.report import SetReport

ADAPTERS_HELP = "PEFT folders or Hub ids; NAME=FOLDER names one, where folders are called alike"


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one sentence, and which option was perhaps meant."""

    def error(self, message: str):
        raise LabError(f"{message[0].upper()}{message[1:]}; {self.prog} --help tells the options.")

    def parse(self, arguments: Sequence[str]) -> argparse.Namespace:
        # Intermixed: adapters may stand before, between and after the options.
        options, unknown = self.parse_known_intermixed_args(arguments)
        if unknown:
            name = next((text for text in unknown if text.startswith("-")), unknown[0]).partition("=")[0]
            near = difflib.get_close_matches(name, self._option_string_actions, n=1)
            self.error(f"there is no option {name}" + (f"; did you mean {near[0]}?" if near else ""))
        return options


def command_parser(command: str, description: str, epilog: str = "") -> Parser:
    return Parser(
        prog=f"python -m lab {command}",
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def add_common(parser: Parser) -> None:
    parser.add_argument("adapters", nargs="*", metavar="ADAPTER", help=ADAPTERS_HELP)
    parser.add_argument("--method", required=True, metavar="NAME", help="a method of: python -m lab methods")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder to write")
    parser.add_argument(
        "--dtype", choices=("float32", "float16", "bfloat16"),
        help="of the weights written (default float32; a folded model: its base's)",
    )
    parser.add_argument(
        "--pad-to-rank", metavar="N", help="pad with zeros to this rank; auto: the next one that engines accept"
    )
    parser.add_argument(
        "--fill-layers", action="store_true", help="write updates of zero where a layer lacks a kind of module, as some engines need"
    )
    parser.add_argument("--gguf", action="store_true", help="also as a GGUF adapter, for llama.cpp and Ollama")
    parser.add_argument("--overwrite", action="store_true", help="replace the folder when it exists")


def add_parameters(parser: Parser, arguments: Sequence[str], shared: Sequence[str] = ()):
    """Give the parser the options of the method that the arguments name, and return that method (None: none is named).

    shared: parameters that the command has an option for already.
    """
    first = Parser(prog=parser.prog, add_help=False, allow_abbrev=False)
    first.add_argument("--method")
    name = first.parse_known_args([a for a in arguments if a not in ("-h", "--help")])[0].method
    if name is None:
        return None
    from lab.merging import get_method

    method = get_method(name)
    text = f"{method.summary}\n{method.formula}\n{method.paper}"
    if method.recipe is not None:
        recipe = method.recipe
        rate = f"learning rate {recipe.learning_rate:g}, " if recipe.learning_rate else "no gradients, "
        length = f"{recipe.steps} steps" if recipe.steps else f"{recipe.epochs} epoch{'s' if recipe.epochs > 1 else ''}"
        text += f"\nIts source: {rate}{length}, batches of {recipe.batch_size}, data: {_DATA[recipe.data]}."
    group = parser.add_argument_group(f"method {name}", text)
    for parameter in method.parameters:
        if parameter.name in shared:
            continue
        option = f"--{parameter.name.replace('_', '-')}"
        if option in parser._option_string_actions:  # the command's own comes first
            option = f"--{name.replace('_', '-')}-{parameter.name.replace('_', '-')}"
        settings = {"dest": f"parameter {parameter.name}", "default": argparse.SUPPRESS, "help": _help(parameter)}
        if parameter.type is bool:
            group.add_argument(option, action=argparse.BooleanOptionalAction, **settings)
        else:
            kind = {int: integer, float: number, str: str}[parameter.type]
            group.add_argument(option, type=kind, metavar=parameter.type.__name__.upper(), **settings)
    return method


_DATA = {
    "mix": "the skills' own, with completions",
    "prompts": "the skills' own, of which it sees the prompts only",
    "target": "a few examples of the target task",
}


def _help(parameter) -> str:
    bounds = ""
    if parameter.choices:
        bounds = f"one of {', '.join(parameter.choices)}"
    elif math.isfinite(parameter.low) or math.isfinite(parameter.high):
        low, high = bound(parameter.low), bound(parameter.high)
        bounds = f"from {low:g}" if high is None else f"up to {high:g}" if low is None else f"from {low:g} to {high:g}"
    default = "" if parameter.default is None else f"default {parameter.default}"
    return "; ".join(filter(None, [parameter.help, bounds, default])).replace("%", "%%")


def parameters_of(options: argparse.Namespace) -> dict:
    prefix = "parameter "
    return {name.removeprefix(prefix): value for name, value in vars(options).items() if name.startswith(prefix)}


def named(text: str) -> tuple[str | None, str]:
    """NAME=FOLDER; a folder that has = in its own name is one as it stands."""
    name, separator, source = text.partition("=")
    try:
        whole = Path(text).expanduser().exists()
    except (OSError, RuntimeError):  # a name that no file can have
        whole = False
    return (name, source) if separator and re.fullmatch(r"[\w.-]+", name) and not whole else (None, text)


def load_all(sources: Sequence[str], base: str | None) -> "tuple[list, SetReport]":
    """The adapters and their report. Raises LabError for the first that cannot be read."""
    from lab.export.report import describe, on_one_base, report
    from lab.lora.peft_io import find_folder, load

    folders = [(name, source, find_folder(source)) for name, source in map(named, sources)]
    adapters = [load(source, name=name) for name, source, _ in folders]
    for adapter in adapters:
        for note in adapter.notes:
            print(f"note: {adapter.name}: {note}.", file=sys.stderr)
    described = [describe(adapter, folder) for adapter, (_, _, folder) in zip(adapters, folders, strict=True)]
    if base:
        adapters = on_one_base(adapters, base, note=lambda text: print(f"note: {text}", file=sys.stderr))
    return adapters, report(adapters, described=described)


def padded(wanted: str | None, rank: int) -> int | None:
    if wanted is None:
        return None
    if wanted == "auto":
        from lab.lora.peft_io import engine_rank

        return engine_rank(rank)
    if not wanted.isdecimal() or int(wanted) < 1:
        raise LabError(f"--pad-to-rank is {wanted!r}; give a whole number of 1 or more, or auto.")
    return int(wanted)


def tell(folder: str | Path, merged) -> None:
    lost = merged.recipe.get("discarded_energy", {}).get("total")
    kept = f"; {100 * lost:.3g} % of the energy was cut" if lost else ""
    rank = f"rank {merged.rank}, " if hasattr(merged, "rank") else ""
    print(f"{merged.name} is in {folder} ({rank}{len(merged.modules)} modules{kept}).")


def quiet() -> None:
    """No progress bar or advice of transformers among our own."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


def _typed(read: Callable, allowed: Callable, wanted: str) -> Callable:
    def convert(text: str):
        try:
            value = read(text)
        except ValueError:
            value = None
        if value is None or not allowed(value):
            raise argparse.ArgumentTypeError(f"{text!r} is not {wanted}")
        return value

    return convert


number = _typed(float, lambda value: True, "a number")
integer = _typed(int, lambda value: True, "a whole number")
whole = _typed(int, lambda value: value >= 1, "a whole number of 1 or more")
natural = _typed(int, lambda value: value >= 0, "a whole number of 0 or more")
share = _typed(float, lambda value: 0 <= value < 1, "a number from 0 to below 1")
positive = _typed(float, lambda value: 0 < value < math.inf, "a number above 0")


def bound(value: float) -> float | None:
    return value if math.isfinite(value) else None
