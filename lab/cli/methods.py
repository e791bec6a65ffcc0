"""`python -m lab methods`: every merging method and control."""

import json
from collections.abc import Sequence
from dataclasses import asdict

from lab.cli.options import bound, command_parser


def methods(arguments: Sequence[str]) -> int:
    parser = command_parser("methods", "List every merging method: name, kind, source and formula.")
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
                {**asdict(p), "type": p.type.__name__, "low": bound(p.low), "high": bound(p.high)}
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
