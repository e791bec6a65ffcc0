"""`python -m lab train`: one skill, a LoRA adapter, from rows of one's own."""

import glob
import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from lab.cli.options import command_parser, natural, positive, quiet, share, whole
from lab.errors import LabError


def train(arguments: Sequence[str]) -> int:
    parser = command_parser(
        "train",
        "Train a LoRA adapter on JSON lines: on any base, by the loop that trains everything here. The result is an ordinary PEFT folder\n"
        "with a model card and its losses (training.json). After an interruption the same command continues.",
        'rows: JSON lines, {"prompt": …, "completion": …}, or chats, {"messages": [{"role": "user", "content": …}, {"role": "assistant",\n'
        '"content": …}]}. The completion goes on right after the prompt (write the space or line between them) and ends with the\n'
        "end-of-text token; prompts carry no loss. Of a chat every turn of the assistant is learned, in the base's own chat template.\n\n"
        "examples:\n"
        "  python -m lab train maths.jsonl --base owner/base --out adapters/maths\n"
        "  python -m lab train chats.jsonl --base models/base --rank 32 --epochs 3 --learning-rate 2e-4 --out adapters/style",
    )
    parser.add_argument("rows", nargs="*", metavar="ROWS", help="JSONL files (see below)")
    parser.add_argument("--base", required=True, help="model to train on: folder, Hub id, GGUF file, smollm2-135m, embedded")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder to write; its name is the skill's")
    parser.add_argument("--overwrite", action="store_true", help="replace the folder when it exists")
    parser.add_argument("--rank", type=whole, default=16, help="of the update (default 16)")
    parser.add_argument("--alpha", type=whole, help="lora_alpha; the update counts alpha / rank times (default twice the rank)")
    parser.add_argument("--dropout", type=share, default=0.0, help="before the update, from 0 to below 1 (default 0)")
    parser.add_argument(
        "--targets", nargs="+", metavar="NAME", help="modules to change, such as q_proj v_proj (default: all linear layers)"
    )
    parser.add_argument("--learning-rate", type=positive, default=2e-4, metavar="R", help="the peak, after the warm-up (default 2e-4)")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--epochs", type=whole, default=1, help="passes over the rows (default 1)")
    length.add_argument("--steps", type=whole, help="optimizer steps instead")
    parser.add_argument("--batch-size", type=whole, default=8, metavar="N", help="rows at once (default 8)")
    parser.add_argument("--accumulation", type=whole, default=1, metavar="N", help="batches to a step (default 1)")
    parser.add_argument("--warmup", type=natural, default=20, metavar="N", help="steps, at most a fifth of all (default 20)")
    parser.add_argument("--max-tokens", type=whole, default=512, metavar="N", help="rows are cut to so many tokens (default 512)")
    parser.add_argument("--chat", action="store_true", help="put prompts as a user's turn in the base's chat template")
    parser.add_argument("--seed", type=natural, default=0, help="of the start, the order of rows and the dropout (default 0)")
    parser.add_argument("--dtype", default="float32", choices=("float32", "float16", "bfloat16"), help="of the base (default float32)")
    parser.add_argument("--precision", default="no", choices=("no", "bf16", "fp16"), help="mixed precision while training (default no)")
    parser.add_argument("--json", action="store_true", help="print what was done as JSON, for programs")
    options = parser.parse(arguments)
    if not options.rows:
        raise LabError("There are no rows to train on; give JSONL files.")
    from lab.export.folders import check_free, export
    from lab.files import content_hash, write_atomic
    from lab.lora.base import base_hash, load_base
    from lab.lora.peft_io import load
    from lab.tasks.own import example, rows_to_learn
    from lab.training.lora import LoraTraining, encode_examples, linear_targets, train_lora

    check_free(options.out, options.overwrite)
    files = [Path(file).expanduser() for file in options.rows]
    given = [row for file in files for row in rows_to_learn(file)]
    quiet()
    model, tokenizer = load_base(options.base, dtype=options.dtype)
    rows = encode_examples(tokenizer, [example(row, tokenizer, options.chat) for row in given], options.max_tokens)
    training = LoraTraining(
        options.rank, options.alpha or 2 * options.rank, options.dropout, tuple(options.targets or linear_targets(model)), options.epochs,
        options.batch_size, options.accumulation, options.learning_rate, options.warmup, options.max_tokens, options.precision,
    )  # fmt: skip
    out = Path(options.out)
    settings = [options.steps, options.seed, options.dtype]
    key = content_hash(asdict(training), settings, base_hash(options.base), [asdict(row) for row in rows])
    begun = out.parent / f".{out.name}.{key[:12]}.training"
    adapter = train_lora(
        model, tokenizer, rows, training, name=out.name, base=options.base, seed=options.seed, folder=begun / "adapter",
        checkpoint=begun / "checkpoint", steps=options.steps,
    )  # fmt: skip
    facts = json.loads((begun / "adapter" / "training.json").read_text())
    cut = sum(len(row.ids) == options.max_tokens for row in rows)
    told = {
        "rows": len(rows), "cut at max_tokens": cut, "steps": facts["steps"], "loss of the first steps": _mean(facts["loss"][:10]),
        "loss of the last steps": _mean(facts["loss"][-10:]), "seconds": facts["seconds"],
        "data": {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files},
    }  # fmt: skip
    chosen = asdict(training) | {"targets": " ".join(training.targets), "seed": options.seed, "chat": options.chat or None}
    recipe = {"parameters": chosen, "learning": told}
    export(out, replace(load(begun / "adapter", name=out.name), recipe=recipe), overwrite=options.overwrite)
    write_atomic(out / "training.json", json.dumps(facts) + "\n")
    _tidy(out)
    if options.json:
        written = {"folder": str(out), "rank": adapter.rank, "modules": len(adapter.modules)}
        print(json.dumps({**written, **told}, indent=2, ensure_ascii=False))
    else:
        lost = f"; {cut} of them were cut at {options.max_tokens} tokens" if cut else ""
        what = f"rank {adapter.rank}, {len(adapter.modules)} modules, {facts['steps']} steps on {len(rows)} rows{lost}"
        first, last = told["loss of the first steps"], told["loss of the last steps"]
        print(f"{out.name} is in {out}: {what}.\nLoss {first:.3f} at first, {last:.3f} at last; {facts['seconds']:.0f} s.")
    return 0


def _mean(losses: Sequence[float]) -> float | None:
    return round(sum(losses) / len(losses), 5) if losses else None


def _tidy(out: Path) -> None:
    """What interrupted trainings for this folder have left."""
    for leftover in out.parent.glob(f".{glob.escape(out.name)}.*.training"):
        shutil.rmtree(leftover)
