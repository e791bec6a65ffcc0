"""`python -m lab compare`: adapters merged by several methods, and asked the same rows."""

import argparse
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING

from lab.cli.evaluate import ROWS_HELP, add_asking, ask, prepare, tell
from lab.cli.learn import learn
from lab.cli.merge import merge
from lab.cli.options import ADAPTERS_HELP, command_parser, named, natural, positive, whole
from lab.errors import LabError

if TYPE_CHECKING:
    from lab.merging import Method


def compare(arguments: Sequence[str]) -> int:
    parser = command_parser(
        "compare",
        "Merge adapters by several methods and ask them, the base and each adapter alone the same rows: one table and one figure\n"
        "per file of rows, as python -m lab evaluate makes them. Static methods merge as they are (python -m lab merge); learned\n"
        "ones and routers learn on --learn (python -m lab learn), with the methods' default parameters. The merges are kept in DIR/merges.\n"
        "After an interruption the same command continues.",
        f"{ROWS_HELP}\n\n"
        "examples:\n"
        "  python -m lab compare maths/ code/ --methods cat_static ties cat rank_cat --learn maths.jsonl code.jsonl "
        "--data both_test.jsonl --out compared/\n"
        "  python -m lab compare maths/ code/ --methods svd ties --data maths=maths_test.jsonl code=code_test.jsonl --metric number "
        "--out compared/",
    )
    parser.add_argument("adapters", nargs="*", metavar="ADAPTER", help=ADAPTERS_HELP)
    parser.add_argument("--methods", nargs="+", required=True, metavar="METHOD", help="methods of: python -m lab methods")
    parser.add_argument("--learn", nargs="+", default=[], metavar="ROWS", help="JSONL files that learned methods learn on")
    parser.add_argument(
        "--rates", nargs="+", type=positive, default=[], metavar="R", help="learning rates to try (default: each method's own)"
    )
    parser.add_argument("--steps", type=whole, metavar="N", help="steps of learning (default: each method's own)")
    parser.add_argument("--seed", type=natural, default=0, help="of learning and of what a method draws (default 0)")
    add_asking(parser)
    options = parser.parse(arguments)
    from lab.export.report import check_several
    from lab.merging import get_method

    sources = list(map(named, options.adapters))
    check_several(options.adapters)
    methods = list(map(get_method, dict.fromkeys(options.methods)))
    learning = [method.name for method in methods if method.recipe is not None]
    if learning and not options.learn:
        raise LabError(f"{learning[0]} learns from data; give --learn with JSONL files.")
    prepared = prepare(options, sources)
    merges = prepared.work / f"merges-{_key(options, sources, methods)[:12]}"
    for number, method in enumerate(methods, 1):
        folder = merges / method.name
        if folder.is_dir():
            continue
        print(f"{method.name} ({number} of {len(methods)})", file=sys.stderr, flush=True)
        shared = [*options.adapters, "--method", method.name, "--out", str(folder), *(["--base", options.base] if options.base else [])]
        with redirect_stdout(sys.stderr):
            seed = ["--seed", str(options.seed)]
            if method.recipe is None and method.kind != "router":
                merge([*shared, *(seed if "seed" in {p.name for p in method.parameters} else [])])
            elif method.recipe is None:
                learn([*shared, *seed])
            else:
                rates = ["--rates", *map(str, options.rates)] if options.rates and method.recipe.learning_rate else []
                length = ["--steps", str(options.steps)] if options.steps else []
                learn([*shared, *seed, *rates, *length, *(["--chat"] if options.chat else []), "--data", *options.learn])
    merged = [(method.name, str(merges / method.name)) for method in methods]
    tell(ask(options, [*sources, *merged], prepared, merges), options)
    return 0


def _key(options: argparse.Namespace, sources: Sequence[tuple[str | None, str]], methods: Sequence["Method"]) -> str:
    """What all merges depend on: an interrupted comparison goes on with those of the same."""
    from lab.files import content_hash
    from lab.lora.peft_io import find_folder

    inputs = [part for name, source in sources for part in (name, find_folder(source))]
    rows = [Path(file) for file in options.learn if Path(file).is_file()]
    settings = [options.base, options.learn, options.rates, options.steps, options.seed, options.chat]
    return content_hash(*inputs, *rows, settings, [[method.name, method.version] for method in methods])
