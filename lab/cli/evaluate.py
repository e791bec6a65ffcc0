"""`python -m lab evaluate`: a base, adapters, merges and routers on rows with answers."""

import argparse
import json
import re
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lab.cli.options import ADAPTERS_HELP, Parser, command_parser, named, quiet, whole
from lab.errors import LabError

MARK = "evaluation.json"  # in every folder that this command writes
ROWS_HELP = """rows: JSON lines, {"prompt": …, "answer": …} or a chat, {"messages": [{"role": "user", "content": …}, …], "answer": …}.
"answers" is a list of which each counts. Where neither is there, the completion (or the assistant's last turn) is the answer,
so held-out rows of a skill's own training data serve as they are; of a program its value, of a worked solution its number.
"choices" makes a row multiple choice: texts that go on right after the prompt. "id" names a row (else its line)."""


def evaluate(arguments: Sequence[str]) -> int:
    parser = command_parser(
        "evaluate",
        "Ask a base model, and adapters, merges and routers on it, rows with answers: a table per file of rows, with 95 %\n"
        "intervals, n, and paired tests (exact McNemar or by permutation, p adjusted by Holm) against the base; and skill\n"
        "retention: what each merge keeps of a skill's gain over the base on that skill's own held-out rows, where --data gives\n"
        "them under the skill's name.\n"
        "After an interruption the same command continues.",
        f"{ROWS_HELP}\n\n"
        "written into --out: per file of rows a table (.csv, .md, .tex), a figure (.svg) and every answer (.jsonl); retention.*;\n"
        "records/, which python -m lab records reads.\n\n"
        "examples:\n"
        "  python -m lab evaluate maths/ code/ both/ --data maths=maths_test.jsonl code=code_test.jsonl --metric maths=number "
        "code=program --out scores/\n"
        "  python -m lab evaluate both/ --base owner/base --data quiz.jsonl --metric choice --out scores/\n"
        "  python -m lab evaluate --base model/ --data rows.jsonl --metric judge --judge http://localhost:8000/v1 --judge-model NAME "
        "--out scores/",
    )
    parser.add_argument(
        "contenders", nargs="*", metavar="ADAPTER", help=f"{ADAPTERS_HELP}; or a router that learn wrote, beside its adapters"
    )
    add_asking(parser)
    options = parser.parse(arguments)
    sources = list(map(named, options.contenders))
    tell(ask(options, sources, prepare(options, sources)), options)
    return 0


def add_asking(parser: Parser) -> None:
    """The options that evaluate and compare share."""
    from lab.tasks.metrics import METRICS

    parser.add_argument("--base", help="model that they are for: folder, Hub id, embedded (default: what the adapters name)")
    parser.add_argument(
        "--data", nargs="+", required=True, metavar="[NAME=]ROWS", help="JSONL files (see below), named by the file's name"
    )
    metrics = "; ".join(f"{name}: {metric.summary}" for name, metric in METRICS.items())
    parser.add_argument(
        "--metric", nargs="+", default=[], metavar="[NAME=]METRIC",
        help=f"for all data, or NAME=METRIC for one; default choice where the rows have choices, else exact. {metrics}".replace("%", "%%"),
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="folder to write")
    parser.add_argument("--overwrite", action="store_true", help="replace the folder; what it holds already is not asked again")
    parser.add_argument("--rows", type=whole, metavar="N", help="at most so many rows of each file (default all)")
    parser.add_argument("--reference", metavar="NAME", help="whom the others are compared with (default the base)")
    parser.add_argument("--without-base", action="store_true", help="do not ask the base alone")
    parser.add_argument("--chat", action="store_true", help="put prompts as a user's turn in the base's chat template")
    parser.add_argument("--max-new-tokens", type=whole, metavar="N", help="longest answer (default 200; of a program 300)")
    parser.add_argument("--stop", nargs="+", default=[], metavar="TEXT", help="an answer ends before these, e.g. --stop $'\\n\\n'")
    parser.add_argument("--batch-size", type=whole, default=32, metavar="N", help="rows at once (default 32)")
    parser.add_argument("--dtype", default="float32", choices=("float32", "float16", "bfloat16"), help="of the base (default float32)")
    parser.add_argument(
        "--judge", metavar="URL", help="of the metric judge: an OpenAI-compatible endpoint; without it, a rule counts words"
    )
    parser.add_argument("--judge-model", default="", metavar="NAME", help="its model; the key is read from SOUP_LAB_JUDGE_KEY")
    parser.add_argument("--json", action="store_true", help="print the tables as JSON, for programs")


@dataclass(frozen=True)
class Prepared:
    """work: the hidden folder in which everything goes on until it is whole. data: lab.experiments.own_data.OwnData."""

    work: Path
    data: list


def prepare(options: argparse.Namespace, sources: Sequence[tuple[str | None, str]]) -> Prepared:
    """Read the rows. Raises LabError for bad ones, and for an output folder that may not be written."""
    out = Path(options.out)
    if out.exists() and not options.overwrite:
        raise LabError(f"{out} exists already; choose another folder or ask to overwrite it.")
    if out.exists() and any(out.iterdir() if out.is_dir() else [out]) and not (out / MARK).is_file():
        raise LabError(f"{out} holds no evaluation, so it is not overwritten; choose another folder.")
    if not sources and not options.base:
        raise LabError("There is nothing to evaluate; give adapters, or a model by --base.")
    if not sources and options.without_base:
        raise LabError("There is nothing to evaluate without the base; give adapters.")
    work = out.parent / f".{out.name}.evaluation"
    data = _data(options, work)
    if (out / "records").is_dir():
        shutil.copytree(out / "records", work / "records", dirs_exist_ok=True)
        for log in out.glob("judge-*.jsonl"):
            shutil.copy2(log, work)
    return Prepared(work, data)


def ask(options: argparse.Namespace, sources: Sequence[tuple[str | None, str]], prepared: Prepared, merges: Path | None = None) -> dict:
    """Ask everybody everything and write the folder; what was found, as JSON, and as "text". merges: a folder that goes along."""
    work, data = prepared.work, prepared.data
    quiet()
    base, contenders = _contenders(options, sources)
    from lab.experiments import own_data
    from lab.export.tables import write_table
    from lab.files import atomic_folder, write_atomic
    from lab.pages.figures import method_bars, svg
    from lab.records.record import jsonl, save_record
    from lab.records.tables import format_table

    reference = own_data.check_reference(options.reference, contenders)
    records = own_data.ask_all(
        base, contenders, data, dtype=options.dtype, chat=options.chat, batch_size=options.batch_size, work=work,
        told=lambda text: print(text, file=sys.stderr, flush=True),
    )  # fmt: skip
    found = {"folder": options.out, "base": base, "reference": reference, "data": {}, "retention": []}
    texts = []
    with atomic_folder(options.out, options.overwrite) as folder:
        for one in data:
            own = [record for record in records if record.section == one.name]
            table = own_data.own_table(own, reference)
            shown = format_table(table)
            write_table(folder, one.name, table, shown.reset_index(names="contender"))
            title = f"{one.name}, {one.task.name}"
            write_atomic(folder / f"{one.name}.svg", svg(method_bars(table, title)))
            write_atomic(folder / f"{one.name}.jsonl", jsonl(own_data.answers(own)))
            found["data"][one.name] = {"metric": one.task.name, "table": own_data.as_json(table)}
            texts.append(f"{title} (against {reference})\n{shown.drop(columns='seconds').to_string()}")
            for record in own:
                save_record(record, record.rows(), folder / "records")
        kept = own_data.retention(records)
        if len(kept):
            shown = own_data.format_retention(kept)
            write_table(folder, "retention", kept, shown)
            found["retention"] = own_data.as_json(kept)
            texts.append(f"Skill retention, on each skill's own rows\n{shown.to_string(index=False)}")
        for log in work.glob("judge-*.jsonl"):
            shutil.copy2(log, folder)
        if merges:
            shutil.copytree(merges, folder / "merges")
        write_atomic(folder / MARK, json.dumps(found, indent=2, ensure_ascii=False) + "\n")
    shutil.rmtree(work)
    return {**found, "text": "\n\n".join(texts)}


def tell(found: dict, options: argparse.Namespace) -> None:
    text = found.pop("text")
    told = json.dumps(found, indent=2, ensure_ascii=False)
    print(told if options.json else f"{text}\n\nTables, figures and answers are in {options.out}.")


def _data(options: argparse.Namespace, work: Path) -> list:
    from lab.evaluation.judge import Deterministic, Endpoint
    from lab.experiments.own_data import OwnData
    from lab.tasks.metrics import METRICS, read_asked, task_of

    files = [(name or Path(source).stem, Path(source).expanduser()) for name, source in map(named, options.data)]
    names = [_usable(name, "data") for name, _ in files]
    if len(set(names)) < len(names):
        raise LabError(f"Two files of rows are called {max(names, key=names.count)}; name them: --data one=FILE other=FILE.")
    wanted = dict(text.partition("=")[::2] if "=" in text else ("", text) for text in options.metric)
    for name, metric in wanted.items():
        if name and name not in names:
            raise LabError(f"--metric names the data {name!r}, which is not there; there is {', '.join(names)}.")
        if metric not in METRICS:
            raise LabError(f"There is no metric {metric!r}; choose one of {', '.join(METRICS)}.")
    judge = Endpoint(options.judge, options.judge_model) if options.judge else Deterministic()
    found = []
    for name, file in files:
        metric, rows = read_asked(file, wanted.get(name, wanted.get("")))
        log = work / f"judge-{name}.jsonl"
        task = task_of(name, metric, max_new_tokens=options.max_new_tokens, stop=options.stop, judge=judge, log=log)
        found.append(OwnData(name, task, rows[: options.rows], judge.identity if metric == "judge" else ""))
    return found


def _contenders(options: argparse.Namespace, sources: Sequence[tuple[str | None, str]]) -> tuple[str, list]:
    """(the base, the base alone and all others). Routers get the adapters that they were learned for."""
    from lab.experiments.context import Routed
    from lab.experiments.own_data import BASE, Contender, contender
    from lab.export.report import on_one_base
    from lab.lora.peft_io import find_folder, load
    from lab.merging.routing import WEIGHTS, learned_for

    routers = [name or source for name, source in sources if (Path(source).expanduser() / WEIGHTS).is_file()]
    adapters = [load(source, name=name) for name, source in sources if (name or source) not in routers]
    bases = dict.fromkeys(adapter.base for adapter in adapters if adapter.base)
    base = options.base or next(iter(bases), "")
    if not base:
        raise LabError("The adapters do not name their base model; give it by --base.")
    for adapter in adapters:
        for note in adapter.notes:
            print(f"note: {adapter.name}: {note}.", file=sys.stderr)
    adapters = on_one_base(adapters, base, note=lambda text: print(f"note: {text}", file=sys.stderr))
    by_name = {_usable(adapter.name, "adapter"): contender(adapter, adapter.name) for adapter in adapters}
    for name, source in sources:
        if (name or source) not in routers:
            continue
        folder = find_folder(source)
        name = _usable(name or folder.resolve().name, "router")
        wanted = learned_for(folder)
        missing = [skill for skill in wanted if skill not in by_name]
        if missing:
            raise LabError(f"The router {name} was learned for {', '.join(wanted)}; give {missing[0]} beside it, under this name.")
        by_name[name] = Contender(name, "router", Routed([by_name[skill].what for skill in wanted], folder))
    count = len(sources)
    if len(by_name) < count:
        raise LabError("Two of the adapters are called alike; name one: NAME=FOLDER.")
    if BASE in by_name:
        raise LabError(f"An adapter is called {BASE}, as the base alone is; name it otherwise: NAME=FOLDER.")
    alone = [] if options.without_base else [Contender(BASE, "base", None)]
    return base, [*alone, *by_name.values()]


def _usable(name: str, what: str) -> str:
    if not re.fullmatch(r"[\w.-]+", name):
        raise LabError(f"The name {name!r} of the {what} has other characters than letters, digits, '.', '-' and '_'; name it: NAME=…")
    return name
