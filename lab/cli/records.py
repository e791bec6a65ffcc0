"""`python -m lab records`: what was run and measured, from the records that lie in a folder."""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from fnmatch import fnmatch
from pathlib import Path

from lab.cli.options import command_parser, whole
from lab.errors import LabError

FIELDS = ("section", "preset", "method", "task")


def records(arguments: Sequence[str]) -> int:
    parser = command_parser(
        "records",
        "List what was run: a line per record, the best of each section first; patterns such as 's5_*' choose.",
        "examples:\n"
        "  python -m lab records --section 's5_1*' --method cat data_mix\n"
        "  python -m lab records scores/records --show 2 --answers 5\n"
        "  python -m lab records --task technical_reading --json",
    )
    parser.add_argument("folder", nargs="?", help="of records: results/records (default), or records/ of an evaluation")
    for field in FIELDS:
        parser.add_argument(f"--{field}", nargs="+", default=[], metavar="PATTERN", help=f"only records of such a {field}")
    parser.add_argument("--seed", nargs="+", type=int, default=[], help="only records of these seeds")
    parser.add_argument("--show", type=whole, metavar="N", help="all that the record of the N-th line says")
    parser.add_argument("--answers", type=whole, metavar="N", help="with --show: its first N answers too")
    parser.add_argument("--json", action="store_true", help="the records as a JSON list, whole, for programs")
    options = parser.parse(arguments)
    from lab.files import PROJECT
    from lab.records.record import read_records

    if options.answers and not options.show:
        raise LabError("--answers tells those of one record; choose it by --show.")
    folder = Path(options.folder).expanduser() if options.folder else PROJECT / "results" / "records"
    if not folder.is_dir():
        raise LabError(f"The folder {folder} does not exist; name one that holds records.")
    found, skipped = read_records(folder)
    if skipped:
        print(f"note: not a record, or damaged, in {folder}: {', '.join(skipped)}.", file=sys.stderr)
    if not found:
        raise LabError(f"There are no records in {folder}; name the folder that holds the sections' folders.")
    wanted = {field: getattr(options, field) for field in FIELDS if getattr(options, field)}
    chosen = [
        record for record in found
        if all(any(fnmatch(getattr(record, field), pattern) for pattern in patterns) for field, patterns in wanted.items())
        and (not options.seed or record.seed in options.seed)
    ]  # fmt: skip
    if not chosen:
        what = "; ".join(f"{field} {' '.join(patterns)}" for field, patterns in {**wanted, "seed": map(str, options.seed)}.items())
        raise LabError(f"None of the {len(found)} records in {folder} is of {what}.")
    chosen.sort(key=lambda record: (record.section, -record.scores["right"], record.method, record.seed))
    if options.show:
        if options.show > len(chosen):
            raise LabError(f"There is no line {options.show}; the records chosen are {len(chosen)}.")
        chosen = [chosen[options.show - 1]]
    if options.json:
        answers = options.answers or 0
        whole_records = [_plain(r) | ({"answers": r.rows()[:answers]} if answers else {}) for r in chosen]
        print(json.dumps(whole_records, indent=2, ensure_ascii=False))
    elif options.show:
        _show(chosen[0], options.answers or 0)
    else:
        _list(chosen)
    return 0


def _plain(record) -> dict:
    return asdict(replace(record, path=None)) | {"path": str(record.path)}


def _list(chosen: Sequence) -> None:
    from lab.records.format import percent_range

    rows = [("", "section", "method", "seed", "task", "right, % (95 %)", "n", "preset", "commit")]
    for number, r in enumerate(chosen, 1):
        score = percent_range(r.scores["right"], *r.interval)
        commit = f"{(r.environment.get('commit') or 'no git')[:7]}{'+' if r.environment.get('dirty') else ''}"
        rows.append((str(number), r.section, r.method, str(r.seed), r.task, score, str(r.n), r.preset, commit))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _show(record, answers: int) -> None:
    for name, value in _plain(record).items():
        if name in ("coefficients", "loss") and value is not None:
            value = f"{len(value['skills'])} skills × {len(value['modules'])} modules" if name == "coefficients" else f"{len(value)} steps"
        print(f"{name}: {value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}")
    for row in record.rows()[:answers]:
        print(f"\n{row['id']}, {row['reason']} ({row['score']}), right: {' or '.join(row['targets'])}")
        print(f"  {row['prompt']!r}\n  → {row['completion']!r}")
