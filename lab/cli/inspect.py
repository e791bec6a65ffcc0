"""`python -m lab inspect`: what adapters are and what of them fits together."""

import json
from collections.abc import Sequence
from dataclasses import asdict

from lab.cli.options import ADAPTERS_HELP, command_parser, named
from lab.errors import LabError


def inspect(arguments: Sequence[str]) -> int:
    parser = command_parser(
        "inspect",
        "Tell what adapters are, what of them fits together and why not, and which methods are open to them.",
        "examples:\n  python -m lab inspect maths/\n  python -m lab inspect maths/ code/ --base owner/base",
    )
    parser.add_argument("adapters", nargs="+", metavar="ADAPTER", help=ADAPTERS_HELP)
    parser.add_argument("--base", help="check every module against this base model: a folder, a Hub id, or embedded")
    parser.add_argument("--serve", action="store_true", help="tell which engines take each folder as it is, and why not")
    parser.add_argument("--json", action="store_true", help="the report as JSON, for programs")
    options = parser.parse(arguments)
    from lab.export.report import inspect as inspect_adapters

    names, sources = zip(*map(named, options.adapters), strict=True)
    report, _ = inspect_adapters(sources, names=names, base=options.base)
    serving = {}
    if options.serve:
        from lab.export.serving import engines

        serving = {found.name: engines(source) for found, source in zip(report.adapters, sources, strict=True)}
    if options.json:
        told = asdict(report) | ({"serving": {name: list(map(asdict, found)) for name, found in serving.items()}} if serving else {})
        print(json.dumps(told, indent=2, ensure_ascii=False), end="")
    else:
        print(report.text(), end="")
        for name, found in serving.items():
            print("\n".join(["", f"Engines that take {name}", *(f"  {engine.text()}" for engine in found)]))
    if not report.ok:
        more = f" ({len(report.problems) - 1} more in the report.)" if len(report.problems) > 1 else ""
        raise LabError(report.problems[0] + more)
    return 0
