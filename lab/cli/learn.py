"""`python -m lab learn`: a merge's coefficients, or a router, on a little data."""

import glob
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from lab.cli.options import (
    add_common,
    add_parameters,
    command_parser,
    load_all,
    natural,
    padded,
    parameters_of,
    positive,
    quiet,
    tell,
    whole,
)  # fmt: skip
from lab.errors import LabError


def learn(arguments: Sequence[str]) -> int:
    parser = command_parser(
        "learn",
        "Learn the coefficients of a merge (or a router) on a little of the skills' own data, on a frozen base. Rows\n"
        "that are held out choose the learning rate. After an interruption the same command continues.",
        'rows: JSON lines with two texts each, {"prompt": …, "completion": …}, or chats, {"messages": [{"role": "user", "content": …},\n'
        '{"role": "assistant", "content": …}]}; one file that mixes the skills, or one per skill (called as the adapter is: some\n'
        'methods need to know), of which equally many rows are taken. "world" is the embedded world\'s own maths and code. A method may\n'
        "want rows of the target task instead (lorahub), or look at prompts only (adamerging): see its help.\n\n"
        "examples:\n"
        "  python -m lab learn maths/ code/ --method cat --data mix.jsonl --out merged/\n"
        "  python -m lab learn maths/ code/ --base embedded --method cat --data world --rates 0.1 --out merged/\n\n"
        "python -m lab learn --method NAME --help tells the parameters of a method and its source's rates and steps.",
    )
    add_common(parser)
    parser.add_argument("--base", help="model to learn on: folder, Hub id, embedded (default: what the adapters name)")
    parser.add_argument(
        "--data", nargs="+", metavar="ROWS",
        help="JSONL files (see below), or world; needed unless nothing is to learn",
    )
    parser.add_argument(
        "--rows", type=whole, metavar="N",
        help="at most so many rows of each file or skill (default: all, of world 400)",
    )
    parser.add_argument("--chat", action="store_true", help="put prompts as a user's turn in the base's chat template")
    parser.add_argument(
        "--max-tokens", type=whole, default=512, metavar="N", help="rows are cut to so many tokens (default 512)"
    )
    parser.add_argument(
        "--rates", nargs="+", type=positive, metavar="R",
        help="learning rates to try (default: the method's source's)",
    )
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--steps", type=whole, help="optimizer steps")
    length.add_argument("--epochs", type=whole, help="passes over the rows (default: the method's source's)")
    parser.add_argument("--batch-size", type=whole, metavar="N", help="rows per step (default: the method's source's)")
    parser.add_argument(
        "--seed", type=natural, default=0, help="of the order of rows and of a method's own draws (default 0)"
    )
    parser.add_argument(
        "--precision", default="no", choices=("no", "bf16", "fp16"), help="mixed precision while learning (default no)"
    )
    method = add_parameters(parser, arguments, shared=("seed",))
    options = parser.parse(arguments)
    from lab.export.folders import check_free, export
    from lab.export.report import check_several
    from lab.files import content_hash, remove_leftover
    from lab.lora.base import load_base
    from lab.lora.stacked import attach
    from lab.merging import build, learn
    from lab.merging.routing import save_router
    from lab.tasks.own import example
    from lab.training.lora import encode_examples

    router = method.kind == "router"
    if method.recipe is None and not router:
        raise LabError(f"{method.name} has nothing to learn; use it with python -m lab merge.")
    if router and (options.dtype or options.pad_to_rank or options.fill_layers or options.gguf):
        raise LabError(f"{method.name} is a router, not an adapter; leave out --dtype, --pad-to-rank, --fill-layers and --gguf.")
    if method.recipe is not None and not options.data:
        raise LabError(f"{method.name} learns from data; give --data with a JSONL file.")
    padded(options.pad_to_rank, 1)  # a typing error should not wait for the merge
    check_free(options.out, options.overwrite)
    check_several(options.adapters)
    if method.recipe is not None:
        given, digests = _rows(options.data, options.rows or method.recipe.rows, options.seed)
    adapters, report = load_all(options.adapters, options.base)
    base = options.base or next((adapter.base for adapter in adapters if adapter.base), "")
    if not base:
        raise LabError("The adapters do not name their base model; give it by --base.")
    if report.problems:
        raise LabError(report.problems[0])
    parameters = parameters_of(options)
    if "seed" in {p.name for p in method.parameters}:
        parameters["seed"] = options.seed
    quiet()
    model, tokenizer = load_base(base)
    out = Path(options.out)
    if method.recipe is None:
        with attach(model, adapters) as stack:
            save_router(out, build(method.name, stack, **parameters), overwrite=options.overwrite)
        print(f"{method.name} needs no learning; its router is in {out}.")
        return 0
    world = "world" in digests
    asked = [(name, row if world else example(row, tokenizer, options.chat)) for name, row in given]
    asked = [replace(e, metadata={**e.metadata, "skill": name}) for name, e in asked]
    rows = encode_examples(tokenizer, asked, options.max_tokens, options.chat and world)
    settings = {
        "rates": options.rates, "batch_size": options.batch_size, "epochs": options.epochs, "steps": options.steps,
        "seed": options.seed, "precision": options.precision, "parameters": parameters,
    }  # fmt: skip
    data = [[row.ids, row.prompt_length, row.skill] for row in rows]
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
        rank = padded(options.pad_to_rank, adapter.rank)
        dtype = options.dtype or "float32"
        written = {"fill_layers": options.fill_layers, "gguf": options.gguf}
        export(out, adapter, report=report, dtype=dtype, pad_to_rank=rank, overwrite=options.overwrite, **written)
        tell(out, adapter)
    for leftover in out.parent.glob(f".{glob.escape(out.name)}.*.checkpoint*"):
        remove_leftover(leftover)
    return 0


def _rows(sources: Sequence[str], count: int | None, seed: int) -> tuple[list, dict]:
    """Rows of every source, equally many of each (of the embedded world as Examples), each with the source's name, and what names the
    data in the recipe."""
    import hashlib

    if sources == ["world"]:
        from lab.tasks import code, maths

        tasks = (maths.TASK, code.TASK)
        parts = [(task.name, task.load("world", "calibration", count or 400, seed)) for task in tasks]
        return [(name, example) for name, part in parts for example in part], {"world": f"seed {seed}"}
    from lab.tasks.own import rows_to_learn

    parts, digests = [], {}
    for source in sources:
        path = Path(source).expanduser()
        parts.append([(path.stem, row) for row in rows_to_learn(path)])
        digests[path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
    share = min([len(part) for part in parts] + ([count] if count else []))
    return [row for part in parts for row in part[:share]], digests
