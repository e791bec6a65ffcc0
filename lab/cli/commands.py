"""The command line: `python -m lab`. A method's options come from its signature; heavy imports wait until needed.

Exit codes: 0 done; 1 a run failed; 2 bad input, with one line "error: …" on stderr; 130 interrupted.
"""

import argparse
import difflib
import glob
import json
import math
import os
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from lab.errors import LabError

if TYPE_CHECKING:
    from lab.export.report import SetReport

COMMANDS = {
    "methods": "list every merging method with its source and formula",
    "inspect": "tell what adapters are, what fits together, and which methods are open to them",
    "merge": "merge adapters by a static method into an adapter, or into a base model",
    "learn": "learn a merge's coefficients (or a router) on a little data",
    "results": "run the sections' notebooks and make the pages",
    "plan": "tell what a preset will fetch, need and take, without fetching anything",
}
EXAMPLES = """examples:
  python -m lab methods
  python -m lab inspect maths/ code/ --base owner/base
  python -m lab merge maths/ code/ --method ties --density 0.3 --out merged/
  python -m lab learn maths/ code/ --method cat --data maths.jsonl code.jsonl --out merged/

python -m lab COMMAND --help tells each command's options."""
LORA_SOUPS = "2410.13025"
ADAPTERS_HELP = "PEFT folders or Hub ids; NAME=FOLDER names one, where folders are called alike"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code. --help raises SystemExit(0) as argparse does."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments or arguments[0] in ("-h", "--help"):
        listed = "\n".join(f"  {name:10} {text}" for name, text in COMMANDS.items())
        print(f"usage: python -m lab COMMAND ...\n\n{listed}\n\n{EXAMPLES}")
        return 0 if arguments else 2
    command, rest = arguments[0], arguments[1:]
    try:
        if command == "results":
            from lab.runner import notebooks

            return notebooks.main(rest)
        if command not in _RUN:
            near = difflib.get_close_matches(command, COMMANDS, n=1)
            hint = f"did you mean {near[0]}? " if near else ""
            raise LabError(f"There is no command {command!r}; {hint}Choose {', '.join(COMMANDS)}.")
        return _RUN[command](rest)
    except LabError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        again = "; the same command continues where it stopped" if command in ("learn", "results") else ""
        print(f"interrupted{again}", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


# methods


def methods(arguments: Sequence[str]) -> int:
    parser = _parser("methods", "List every merging method: name, kind, source and formula.")
    parser.add_argument("--json", action="store_true", help="as a JSON list, with parameters, for programs")
    options = parser.parse(arguments)
    rows = method_rows()
    if options.json:
        print(json.dumps(rows, indent=2, ensure_ascii=False))
        return 0
    titles = {
        "static": "Static: python -m lab merge A B --method NAME",
        "learned": "Learned: python -m lab learn A B --method NAME --data ROWS",
        "router": "Routers, coefficients per token: python -m lab learn",
        "control": "Controls: what a merge has to beat (the notebooks run them; those with a kind are methods too)",
    }
    width = max(len(row["name"]) for row in rows)
    for group, title in titles.items():
        print(title)
        for row in (row for row in rows if row["group"] == group):
            source = row["source"].removeprefix("https://").replace("arxiv.org/abs/", "arXiv ")
            what = row["formula"] or row["summary"]
            print(f"  {row['name']:{width}}  {row['kind'] or '-':12}  {what}  [{source}]")
        print()
    print("python -m lab merge --method NAME --help (or learn) tells a method's parameters.")
    return 0


def method_rows() -> list[dict]:
    """Every method and what is a control: name, group (its role), kind, source, formula, summary, parameters."""
    from lab.experiments.candidates import CANDIDATES
    from lab.merging import METHODS

    rows = [
        {
            "name": name,
            "group": method.role,
            "kind": method.kind,
            "source": method.paper,
            "formula": method.formula,
            "summary": method.summary,
            "parameters": [
                {**asdict(p), "type": p.type.__name__, "low": _bound(p.low), "high": _bound(p.high)}
                for p in method.parameters
            ],
        }
        for name, method in METHODS.items()
    ]
    for name, found in CANDIDATES.items():
        if name not in METHODS and found.role in ("control", "data"):
            summary = found.summary.removeprefix("Control: ")
            row = {"name": name, "group": "control", "kind": "", "source": found.source, "formula": ""}
            rows.append({**row, "summary": summary[0].upper() + summary[1:], "parameters": []})
    order = ("static", "learned", "router", "control")
    return sorted(rows, key=lambda row: (order.index(row["group"]), row["name"]))


# inspect


def inspect(arguments: Sequence[str]) -> int:
    parser = _parser(
        "inspect",
        "Tell what adapters are, what of them fits together and why not, and which methods are open to them.",
        "examples:\n  python -m lab inspect maths/\n  python -m lab inspect maths/ code/ --base owner/base",
    )
    parser.add_argument("adapters", nargs="+", metavar="ADAPTER", help=ADAPTERS_HELP)
    parser.add_argument("--base", help="check every module against this base model: a folder, a Hub id, or embedded")
    parser.add_argument("--json", action="store_true", help="the report as JSON, for programs")
    options = parser.parse(arguments)
    from lab.export.report import inspect as inspect_adapters

    names, sources = zip(*map(_named, options.adapters), strict=True)
    report, _ = inspect_adapters(sources, names=names, base=options.base)
    print(json.dumps(asdict(report), indent=2, ensure_ascii=False) if options.json else report.text(), end="")
    if not report.ok:
        more = f" ({len(report.problems) - 1} more in the report.)" if len(report.problems) > 1 else ""
        raise LabError(report.problems[0] + more)
    return 0


# plan


def plan(arguments: Sequence[str]) -> int:
    parser = _parser("plan", "Tell what a preset will fetch, need and take, without fetching anything.")
    parser.add_argument("--preset", default="embedded", metavar="NAME", help="embedded (default), small or paper")
    parser.add_argument("--only", nargs="+", default=[], metavar="SECTION", help="names (or their beginnings) of sections")
    parser.add_argument("--base", default="", metavar="DIR", help="another base: a folder with its config.json, best with its tokenizer")
    parser.add_argument("--data", default="", metavar="DIR", help="a folder with real data in place of the preset's")
    parser.add_argument("--full", action="store_true", help="with the seeds and problems of `results --full`")
    parser.add_argument("--tflops", type=_positive, help="10^12 operations a second that the machine really reaches")
    parser.add_argument("--bandwidth", type=_positive, help="10^9 bytes a second that it reads from its memory")
    options = parser.parse(arguments)
    from lab.runner.plan import plan as told

    print(told(options.preset, options.only, options.base, options.data, options.full, options.tflops, options.bandwidth))
    return 0


# merge


def merge(arguments: Sequence[str]) -> int:
    parser = _parser(
        "merge",
        "Merge two or more LoRA adapters by a static method. The result is an ordinary PEFT folder with a model card;\n"
        "with --fold-into, a whole model.",
        "examples:\n"
        "  python -m lab merge maths/ code/ --method cat_static --weights 0.7 0.3 --out merged/\n"
        "  python -m lab merge maths/ code/ --method ties --density 0.3 --rank 32 --dtype bfloat16 --out merged/\n"
        "  python -m lab merge maths/ code/ --method cat_static --alphas 'code: 0.5; layers 0-5 q,v: maths 0.3' --out merged/\n"
        "  python -m lab merge m=runs/1/final c=runs/2/final --method tsv --fold-into owner/base --out model/\n\n"
        "python -m lab merge --method NAME --help tells a method's parameters; python -m lab methods lists them all.",
    )
    _add_common(parser)
    parser.add_argument(
        "--weights", nargs="+", type=_number, metavar="W", help="one per adapter (default: the method's, 1/k or 1)"
    )
    parser.add_argument(
        "--alphas", metavar="RULES",
        help="rules over the weights of cat_static, such as 'maths: 0.8; layers 0-5 q,v: maths 0.3; code mlp: late 0.2 1'",
    )
    parser.add_argument("--rank", type=_whole, help="cut every module to this rank by SVD; what is lost is recorded")
    parser.add_argument(
        "--fold-into", metavar="BASE",
        help="add the merge to this base model (folder, Hub id, embedded), uncut unless --rank is given",
    )
    parser.add_argument("--base", help="the base's name to write down, instead of what the adapters state")
    method = _add_parameters(parser, arguments)
    options = parser.parse(arguments)
    from tqdm import tqdm

    from lab import merging
    from lab.export.folders import check_free, export, fold_into
    from lab.export.report import check_several

    if options.fold_into and options.pad_to_rank:
        raise LabError("A folded model has no rank to pad; leave out --pad-to-rank or --fold-into.")
    _padded(options.pad_to_rank, 1)  # a typing error should not wait for the merge
    check_free(options.out, options.overwrite)
    check_several(options.adapters)
    adapters, report = _load(options.adapters, options.base)
    parameters = _parameters_of(options)
    if options.fold_into and not options.rank:
        merged = merging.merge_full_rank(method.name, adapters, options.weights, alphas=options.alphas, **parameters)
    else:
        modules = len({module for adapter in adapters for module in adapter.modules})
        with tqdm(total=modules, desc=method.name, unit="module", disable=None) as bar:
            settings = {"alphas": options.alphas, "rank": options.rank, "on_module": lambda _: bar.update(), **parameters}
            merged = merging.merge(method.name, adapters, options.weights, **settings)
    if options.base:
        merged = replace(merged, base=options.base)
    if options.fold_into:
        _quiet()
        fold_into(
            options.fold_into, merged, options.out, report=report, dtype=options.dtype, overwrite=options.overwrite
        )
    else:
        rank = _padded(options.pad_to_rank, merged.rank)
        export(
            options.out, merged, report=report, dtype=options.dtype or "float32", pad_to_rank=rank,
            overwrite=options.overwrite,
        )  # fmt: skip
    _tell(options.out, merged)
    return 0


# learn


def learn(arguments: Sequence[str]) -> int:
    parser = _parser(
        "learn",
        "Learn the coefficients of a merge (or a router) on a little of the skills' own data, on a frozen base. Rows\n"
        "that are held out choose the learning rate. After an interruption the same command continues.",
        'rows: JSON lines with two texts each, {"prompt": …, "completion": …}; one file that mixes the skills, or one\n'
        'per skill, of which equally many rows are taken. "world" is the embedded world\'s own maths and code. A\n'
        "method may want rows of the target task instead (lorahub), or look at prompts only (adamerging): see its help.\n\n"
        "examples:\n"
        "  python -m lab learn maths/ code/ --method cat --data mix.jsonl --out merged/\n"
        "  python -m lab learn maths/ code/ --base embedded --method cat --data world --rates 0.1 --out merged/\n\n"
        "python -m lab learn --method NAME --help tells the parameters of a method and its source's rates and steps.",
    )
    _add_common(parser)
    parser.add_argument("--base", help="model to learn on: folder, Hub id, embedded (default: what the adapters name)")
    parser.add_argument(
        "--data", nargs="+", metavar="ROWS",
        help="JSONL files (see below), or world; needed unless nothing is to learn",
    )
    parser.add_argument(
        "--rows", type=_whole, metavar="N",
        help="at most so many rows of each file or skill (default: all, of world 400)",
    )
    parser.add_argument(
        "--max-tokens", type=_whole, default=512, metavar="N", help="rows are cut to so many tokens (default 512)"
    )
    parser.add_argument(
        "--rates", nargs="+", type=_positive, metavar="R",
        help="learning rates to try (default: the method's source's)",
    )
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--steps", type=_whole, help="optimizer steps")
    length.add_argument("--epochs", type=_whole, help="passes over the rows (default: the method's source's)")
    parser.add_argument("--batch-size", type=_whole, metavar="N", help="rows per step (default: the method's source's)")
    parser.add_argument(
        "--seed", type=_natural, default=0, help="of the order of rows and of a method's own draws (default 0)"
    )
    parser.add_argument(
        "--precision", default="no", choices=("no", "bf16", "fp16"), help="mixed precision while learning (default no)"
    )
    method = _add_parameters(parser, arguments, shared=("seed",))
    options = parser.parse(arguments)
    from lab.export.folders import check_free, export
    from lab.export.report import check_several
    from lab.files import content_hash
    from lab.lora.base import load_base
    from lab.lora.stacked import attach
    from lab.merging import build, learn
    from lab.merging.routing import save_router
    from lab.training.lora import encode_examples

    router = method.kind == "router"
    if method.recipe is None and not router:
        raise LabError(f"{method.name} has nothing to learn; use it with python -m lab merge.")
    if router and (options.dtype or options.pad_to_rank):
        raise LabError(f"{method.name} is a router, not an adapter; leave out --dtype and --pad-to-rank.")
    if method.recipe is not None and not options.data:
        raise LabError(f"{method.name} learns from data; give --data with a JSONL file.")
    _padded(options.pad_to_rank, 1)  # a typing error should not wait for the merge
    check_free(options.out, options.overwrite)
    check_several(options.adapters)
    if method.recipe is not None:
        examples, digests = _examples(options.data, options.rows or method.recipe.rows, options.seed)
    adapters, report = _load(options.adapters, options.base)
    base = options.base or next((adapter.base for adapter in adapters if adapter.base), "")
    if not base:
        raise LabError("The adapters do not name their base model; give it by --base.")
    if report.problems:
        raise LabError(report.problems[0])
    parameters = _parameters_of(options)
    if "seed" in {p.name for p in method.parameters}:
        parameters["seed"] = options.seed
    _quiet()
    model, tokenizer = load_base(base)
    out = Path(options.out)
    if method.recipe is None:
        with attach(model, adapters) as stack:
            save_router(out, build(method.name, stack, **parameters), overwrite=options.overwrite)
        print(f"{method.name} needs no learning; its router is in {out}.")
        return 0
    rows = encode_examples(tokenizer, examples, options.max_tokens)
    settings = {
        "rates": options.rates, "batch_size": options.batch_size, "epochs": options.epochs, "steps": options.steps,
        "seed": options.seed, "precision": options.precision, "parameters": parameters,
    }  # fmt: skip
    data = [[row.ids, row.prompt_length] for row in rows]
    key = content_hash(method.name, settings, [adapter.digest() for adapter in adapters], data, base)
    checkpoint = out.parent / f".{out.name}.{key[:12]}.checkpoint"
    found = learn.learn(
        method.name, model, adapters, rows, tokenizer.pad_token_id, checkpoint=checkpoint, **settings
    )
    if found.router_state is not None:
        with attach(model, adapters) as stack:
            built = build(method.name, stack, **parameters)
            built.load_state_dict(found.router_state)
            save_router(out, built, overwrite=options.overwrite)
        print(f"The router {method.name} is in {out}; it works with the {len(adapters)} adapters beside it.")
    else:
        facts = {"learning_rate": found.learning_rate, "steps": found.steps, "rows": len(rows), "data": digests}
        sweep = {f"{rate:g}": loss for rate, loss in found.sweep}
        facts |= {"seed_of_rows": options.seed, "held_out_loss_by_rate": sweep}
        adapter = replace(found.adapter, recipe={**found.adapter.recipe, "learning": facts})
        rank = _padded(options.pad_to_rank, adapter.rank)
        dtype = options.dtype or "float32"
        export(out, adapter, report=report, dtype=dtype, pad_to_rank=rank, overwrite=options.overwrite)
        _tell(out, adapter)
    for leftover in out.parent.glob(f".{glob.escape(out.name)}.*.checkpoint*"):
        leftover.unlink()
    return 0


def read_pairs(path: Path) -> list[tuple[int, str, str]]:
    """(line, prompt, completion) of a JSONL file. Raises LabError naming file and line of the first bad row."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise LabError(f"The data file {path} cannot be read: {error.strerror}; name a JSONL file.") from error
    except UnicodeDecodeError as error:
        raise LabError(f"The data file {path} is not UTF-8 text; save it as UTF-8.") from error
    pairs = []
    for number, line in enumerate(text.split("\n"), 1):  # splitlines would also split inside texts
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise LabError(f"{path}, line {number}: not valid JSON ({error.msg}); one object per line.") from error
        for field in ("prompt", "completion"):
            if not isinstance(row, dict) or not isinstance(row.get(field), str):
                raise LabError(f"{path}, line {number}: the field {field!r} is missing or no text.")
        pairs.append((number, row["prompt"], row["completion"]))
    if not pairs:
        raise LabError(f"The data file {path} has no rows.")
    return pairs


def _examples(sources: Sequence[str], count: int | None, seed: int):
    """Rows of every source, equally many of each, and what names the data in the recipe."""
    import hashlib

    from lab.tasks import Example

    if sources == ["world"]:
        from lab.tasks import code, maths

        parts = [task.load("world", "calibration", count or 400, seed) for task in (maths.TASK, code.TASK)]
        return [example for part in parts for example in part], {"world": f"seed {seed}"}
    parts, digests = [], {}
    for source in sources:
        path = Path(source).expanduser()
        parts.append([Example(f"{path.name}:{line}", *texts, "") for line, *texts in read_pairs(path)])
        digests[path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
    share = min([len(part) for part in parts] + ([count] if count else []))
    return [example for part in parts for example in part[:share]], digests


# Shared


class _Parser(argparse.ArgumentParser):
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


def _parser(command: str, description: str, epilog: str = "") -> _Parser:
    return _Parser(
        prog=f"python -m lab {command}",
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def _add_common(parser: _Parser) -> None:
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
    parser.add_argument("--overwrite", action="store_true", help="replace the folder when it exists")


def _add_parameters(parser: _Parser, arguments: Sequence[str], shared: Sequence[str] = ()):
    """Give the parser the options of the method that the arguments name, and return that method (None: none is named).

    shared: parameters that the command has an option for already.
    """
    first = _Parser(prog=parser.prog, add_help=False, allow_abbrev=False)
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
            kind = {int: _integer, float: _number, str: str}[parameter.type]
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
        low, high = _bound(parameter.low), _bound(parameter.high)
        bounds = f"from {low:g}" if high is None else f"up to {high:g}" if low is None else f"from {low:g} to {high:g}"
    default = "" if parameter.default is None else f"default {parameter.default}"
    return "; ".join(filter(None, [parameter.help, bounds, default])).replace("%", "%%")


def _parameters_of(options: argparse.Namespace) -> dict:
    prefix = "parameter "
    return {name.removeprefix(prefix): value for name, value in vars(options).items() if name.startswith(prefix)}


def _named(text: str) -> tuple[str | None, str]:
    """NAME=FOLDER; a folder that has = in its own name is one as it stands."""
    name, separator, source = text.partition("=")
    if separator and re.fullmatch(r"[\w.-]+", name) and not Path(text).expanduser().exists():
        return name, source
    return None, text


def _load(sources: Sequence[str], base: str | None) -> "tuple[list, SetReport]":
    """The adapters and their report. Raises LabError for the first that cannot be read."""
    from lab.export.report import describe, on_one_base, report
    from lab.lora.adapter import find_folder, load

    folders = [(name, source, find_folder(source)) for name, source in map(_named, sources)]
    adapters = [load(source, name=name) for name, source, _ in folders]
    described = [describe(adapter, folder) for adapter, (_, _, folder) in zip(adapters, folders, strict=True)]
    adapters = on_one_base(adapters, base) if base else adapters
    return adapters, report(adapters, described=described)


def _padded(wanted: str | None, rank: int) -> int | None:
    if wanted is None:
        return None
    if wanted == "auto":
        from lab.lora.adapter import engine_rank

        return engine_rank(rank)
    if not wanted.isdecimal() or int(wanted) < 1:
        raise LabError(f"--pad-to-rank is {wanted!r}; give a whole number of 1 or more, or auto.")
    return int(wanted)


def _tell(folder: str | Path, merged) -> None:
    lost = merged.recipe.get("discarded_energy", {}).get("total")
    kept = f"; {100 * lost:.3g} % of the energy was cut" if lost else ""
    rank = f"rank {merged.rank}, " if hasattr(merged, "rank") else ""
    print(f"{merged.name} is in {folder} ({rank}{len(merged.modules)} modules{kept}).")


def _quiet() -> None:
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


_number = _typed(float, lambda value: True, "a number")
_integer = _typed(int, lambda value: True, "a whole number")
_whole = _typed(int, lambda value: value >= 1, "a whole number of 1 or more")
_natural = _typed(int, lambda value: value >= 0, "a whole number of 0 or more")
_positive = _typed(float, lambda value: 0 < value < math.inf, "a number above 0")


def _bound(value: float) -> float | None:
    return value if math.isfinite(value) else None


_RUN = {"methods": methods, "inspect": inspect, "merge": merge, "learn": learn, "plan": plan}
