"""The parts of benchmarks/gpu.py, each run as a program of its own: `gpu_parts.py NAME --result FILE …`."""

import argparse
import dataclasses
import json
import os
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from importlib.metadata import distributions, version
from pathlib import Path
from unittest import mock

import common  # before lab: it makes the package importable
import torch
from torch import Tensor

from lab.errors import LabError
from lab.files import write_atomic

BENCHMARKS = {
    "step": ["--graphs"],
    "generate": ["--graphs"],
    # Those that compute on the GPU, and of the others those that PEFT has and the SVD's family.
    "merge": [
        "--rounds", "1", "--methods", "ties", "dare_linear", "dare_ties", "della", "breadcrumbs", "cat_static", "linear_factors",
        "ties_factors", "magnitude_prune_factors", "svd", "knots", "tsv",
    ],
    "change": [],
}  # fmt: skip
# In the order of their worth: a run that is cut keeps the first.
METHODS = {
    "math_code": ("base", "maths", "code", "cat_static", "cat", "cat_softmax", "rank_cat", "data_mix"),
    "rewriting": (
        "base", "rewriting_past_named", "rewriting_passive_named", "cat_static", "cat", "cat_softmax", "rank_cat", "data_mix",
    ),
}  # fmt: skip
BF16 = {"dtype": "bfloat16", "precision": "bf16", "generation_batch": 100}
DRY = {
    "rank": 2, "lora_alpha": 4, "train_rows": 8, "max_tokens": 512, "coefficient_share": 0.25, "coefficient_rates": [0.01],
    "own_test": 1, "max_new_tokens": 4,
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Run:
    """What a part is told. seed: of a section's part, else 0. keep(**found) writes what there is so far."""

    name: str
    seed: int
    result: Path
    out: Path
    work: Path
    dry: bool
    data: str
    needs: float

    @property
    def device(self) -> torch.device:
        return torch.device("cpu" if self.dry else "cuda")

    def keep(self, status: str = "under way", **found: object) -> None:
        write_atomic(self.result, json.dumps({"status": status, **found}) + "\n")


def machine(run: Run) -> dict:
    device = torch.device("cuda" if torch.cuda.is_available() and not run.dry else "cpu")
    name = common.device_name(device)
    there = {distribution.name for distribution in distributions()}
    versions = {name: version(name) for name in ("torch", "transformers", "accelerate", "peft") if name in there}
    return {"device": name, "slug": common.slug(device), "versions": versions, "gigabytes": free_gigabytes(device)}


def free_gigabytes(device: torch.device) -> float | None:
    """None on a CPU."""
    return torch.cuda.mem_get_info()[0] / 1e9 if device.type == "cuda" else None


def benchmark(run: Run) -> dict:
    """One of the scripts beside this one, by its name; its own record lies beside the whole one."""
    script = __import__(run.name)
    path = script.main(
        ["--device", run.device.type, "--out", str(run.out), *BENCHMARKS[run.name], *(["--quick"] if run.dry else [])]
    )
    record = json.loads(path.read_text())
    return {"record": path.name, **{name: record[name] for name in ("rows", "checks", "notes")}}


# Is it right?


def random_base(folder: Path, hidden: int, layers: int) -> Path:
    """A Llama of random weights with the embedded world's tokenizer: knows nothing, goes through every path."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from lab.world.recipe import BaseRecipe, make_tokenizer

    if not (folder / "config.json").is_file():
        tokenizer = make_tokenizer(BaseRecipe())
        config = LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=hidden, intermediate_size=common.intermediate_size(hidden),
            num_hidden_layers=layers, num_attention_heads=4, num_key_value_heads=2,
            max_position_embeddings=1024, pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
        )  # fmt: skip
        model = LlamaForCausalLM(config)
        common.fill(model)
        tokenizer.save_pretrained(folder)
        model.save_pretrained(folder)
    return folder


class Checks:
    """Comparisons, each kept as it is made. Unlike with common.check, the others follow a difference."""

    def __init__(self, run: Run):
        self.run, self.rows = run, []

    def add(self, what: str, found: Tensor, expected: Tensor, tolerance: float) -> None:
        error = common.relative_error(found, expected)
        self.rows.append({"check": what, "relative error": error, "tolerance": tolerance, "right": error <= tolerance})
        self.run.keep(rows=self.rows)


def check(run: Run) -> dict:
    from lab.lora.base import load_base

    hidden, layers = (32, 2) if run.dry else (512, 8)
    folder = random_base(run.work / "random-base", hidden, layers)
    checks = Checks(run)
    model, tokenizer = load_base(str(folder), device="cpu")
    adapters = common.random_adapters(common.adapted_shapes(model), 2, 4)
    on = {dtype: load_base(str(folder), dtype=dtype, device=run.device.type)[0] for dtype in ("float32", "bfloat16")}
    check_logits(run, checks, adapters, model, on)
    check_asking(checks, adapters, tokenizer, model, on["float32"])
    check_training(run, checks, adapters, tokenizer, model, on)
    check_merges(checks, 64 if run.dry else 1024)
    check_scoring(checks)
    wrong = [row["check"] for row in checks.rows if not row["right"]]
    if wrong:
        return {"status": "failed", "reason": f"not right: {'; '.join(wrong)}", "rows": checks.rows}
    return {"rows": checks.rows}


@torch.no_grad()
def check_logits(run: Run, checks: Checks, adapters, model, on: dict) -> None:
    """Live, folded and reloaded from a PEFT folder, in both precisions, against the CPU's live ones in fp32."""
    from lab.lora.peft_io import load, save
    from lab.lora.stacked import attach, folded
    from lab.merging import concatenate

    ids = torch.randint(3, model.config.vocab_size, (4, 32), generator=torch.Generator().manual_seed(0))
    count = len(adapters[0].modules)
    values = torch.linspace(0.2, 0.9, 2 * count).view(2, count)
    merged = concatenate(adapters, values, name="merged", recipe={})
    save(run.work / "merged", merged, overwrite=True)
    reloaded = load(run.work / "merged", name="reloaded", base=merged.base)

    def logits(of) -> Tensor:
        return of(input_ids=ids.to(of.device)).logits

    def live(of, skills, coefficients: Tensor) -> Tensor:
        with attach(of, skills) as stack:
            stack.set_coefficients(coefficients)
            return logits(of)

    expected = live(model, adapters, values)
    for dtype, other in on.items():
        tolerance = 1e-4 if dtype == "float32" else 0.05
        checks.add(f"base's logits, {dtype}", logits(other), logits(model), tolerance)
        checks.add(f"live logits, {dtype}", live(other, adapters, values), expected, tolerance)
        with folded(other, merged):
            checks.add(f"folded logits, {dtype}", logits(other), expected, tolerance)
        checks.add(f"reloaded logits, {dtype}", live(other, [reloaded], torch.ones(1, count)), expected, tolerance)
        checks.add(f"base's logits after all that, {dtype}", logits(other), logits(model), tolerance)


def check_asking(checks: Checks, adapters, tokenizer, model, other) -> None:
    """Greedy answers and likelihoods with skills attached."""
    from lab.evaluation.generate import generate
    from lab.evaluation.likelihood import likelihoods
    from lab.lora.stacked import attach

    prompts = [f"Question: {a} and {b}?\nAnswer:" for a in range(4) for b in range(a, 4)]
    choices = [["one", "two or three"]] * len(prompts)
    answers, totals = [], []
    for of in (other, model):
        with attach(of, adapters):
            answers.append(generate(of, tokenizer, prompts, max_new_tokens=8))
            totals.append([one.total for given in likelihoods(of, tokenizer, prompts, choices) for one in given])
    # Rounding may decide between two tokens that are as good as equally likely, and all after them differ then.
    same = sum(a == b for a, b in zip(*answers, strict=True)) / len(prompts)
    checks.add("share of greedy answers that are the CPU's", torch.tensor(same), torch.ones(()), 0.25)
    checks.add("likelihoods", torch.tensor(totals[0]), torch.tensor(totals[1]), 1e-4)


def check_training(run: Run, checks: Checks, adapters, tokenizer, model, on: dict) -> None:
    """The losses of three steps: a skill (PEFT, accelerate), and coefficients, in fp32 and in bf16's mixed precision."""
    from lab.merging.learn import learn
    from lab.training.loop import Encoded
    from lab.training.lora import LoraTraining, train_lora

    ids = torch.randint(3, model.config.vocab_size, (20, 24), generator=torch.Generator().manual_seed(1)).tolist()
    rows = [Encoded(tuple(row), 8) for row in ids]

    def losses(of, precision: str) -> tuple[Tensor, Tensor]:
        training = LoraTraining(4, 8, 0.0, common.ADAPTED, 1, 4, 1, 1e-2, 1, 64, precision)
        train_lora(
            of, tokenizer, rows, training, name="skill", base="", seed=0, folder=run.work / "skill", checkpoint=None, steps=3
        )
        skill = json.loads((run.work / "skill" / "training.json").read_text())["loss"]
        found = learn(
            "cat", of, adapters, rows, tokenizer.pad_token_id, rates=(1e-2,), batch_size=4, steps=3, precision=precision
        )
        return torch.tensor(skill), torch.tensor(found.losses)

    expected = losses(model, "no")
    if model.device.type != "cpu":
        raise LabError("Training moved the CPU's model to the GPU.")
    for dtype, precision in (("float32", "no"), ("float32", "bf16"), ("bfloat16", "bf16")):
        found = losses(on[dtype], precision)
        for what, ours, reference in zip(("skill", "coefficients"), found, expected, strict=True):
            tolerance = 1e-3 if precision == "no" else 0.02
            checks.add(f"losses of three steps of a {what}, {dtype}, mixed precision {precision}", ours, reference, tolerance)


@contextmanager
def without_gpu():
    with mock.patch("torch.cuda.is_available", return_value=False):
        yield


def check_merges(checks: Checks, hidden: int) -> None:
    """Methods that work on whole updates, which are computed on the GPU: before the truncation, and after."""
    from lab.merging import merge, merge_full_rank

    adapters = common.random_adapters(common.adapted_shapes(common.skeleton(hidden, 1)), 2, 8)
    for name in ("ties", "dare_linear", "dare_ties", "della", "breadcrumbs"):
        with without_gpu():
            expected = {m: u.delta_weight() for m, u in merge_full_rank(name, adapters).modules.items()}
        for module, update in merge_full_rank(name, adapters).modules.items():
            # An entry at a threshold may be kept here and not there: rounding decides.
            checks.add(f"{name} of {module}", update.delta_weight(), expected[module], 1e-2)
    if hidden > 512:  # under it the truncation needs scipy, and is done on the CPU
        with without_gpu():
            expected = merge("ties", adapters)
        found = merge("ties", adapters)
        for module in expected.modules:
            checks.add(f"ties of {module}, truncated", found.delta_weight(module), expected.delta_weight(module), 0.05)


def check_scoring(checks: Checks) -> None:
    """Programs in the sandbox, beside a process that holds the GPU."""
    from lab.evaluation.sandbox import isolation_level
    from lab.tasks import Example
    from lab.tasks.hard_math_code import TASK

    wanted = {
        "right": "def solution():\n    return 6 * 7", "wrong": "def solution():\n    return 41",
        "timed out": "def solution():\n    while True: pass",
        "raised": "def solution():\n    return 1 / 0", "no code": "The answer is 42.",
    }  # fmt: skip
    found = [verdict.reason for verdict in TASK.score(list(wanted.values()), [Example("x", "", targets=("42",))] * len(wanted))]
    right = torch.tensor([float(reason == expected) for reason, expected in zip(found, wanted, strict=True)])
    checks.add(f"sandboxed verdicts ({isolation_level().name})", right, torch.ones(len(wanted)), 0.0)


# A base of the shape of Llama-7B


def seven_b(run: Run) -> dict:
    """Seconds of a step and peak memory of training a skill and of learning coefficients; the weights are random."""
    import generate
    from peft import LoraConfig, get_peft_model

    from lab.merging.learn import learn
    from lab.training.loop import Batch, Encoded, TrainConfig, fit

    hidden, layers, vocabulary, rank, rows, tokens = (32, 2, 64, 2, 2, 16) if run.dry else (4096, 32, 32000, 32, 4, 512)
    base = generate.make_base(hidden, layers, vocabulary, run.device, torch.bfloat16)
    shape = {"parameters": sum(p.numel() for p in base.parameters()), "tokens a step": rows * tokens, "rank": rank}
    found: list[dict] = []

    def measured(what: str, work: Callable[[Callable[[int, float], None]], object]) -> None:
        ends: list[float] = []

        def on_step(step: int, loss: float) -> None:
            common.wait(run.device)
            ends.append(time.perf_counter())

        if run.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        work(on_step)
        seconds = [after - before for before, after in zip(ends, ends[1:], strict=False)]  # the first step sets things up
        peak = torch.cuda.max_memory_allocated() / 1e9 if run.device.type == "cuda" else None
        found.append({"what": what, "s a step": min(seconds), "peak GB": peak, **shape})
        run.keep(rows=found)

    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, vocabulary, (5 * rows, tokens), generator=generator)
    batch = Batch(ids[:rows], ids[:rows], torch.ones_like(ids[:rows]))
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=list(common.ADAPTED), task_type="CAUSAL_LM")
    adapted = get_peft_model(base, config)
    schedule = TrainConfig(steps=4, learning_rate=3e-4, precision="bf16")
    measured("a skill", lambda on_step: fit(adapted, lambda step: [batch], schedule, label="a skill", on_step=on_step))
    adapted.unload()
    adapters = common.random_adapters(common.adapted_shapes(base), 2, rank)
    encoded = [Encoded(tuple(row), 1) for row in ids.tolist()]
    options = {"rates": (1e-2,), "batch_size": rows, "steps": 4, "precision": "bf16"}
    measured("coefficients of 2 skills", lambda on_step: learn("cat", base, adapters, encoded, 0, on_step=on_step, **options))
    return {"rows": found}


# The sections


def real_base(run: Run) -> dict:
    from lab.lora.base import base_folder

    started = time.monotonic()
    folder = random_base(run.work / "random-base", 32, 2) if run.dry else base_folder("smollm2-135m")
    return {"rows": [{"base": folder.name, "s": round(time.monotonic() - started, 1)}]}


def section(run: Run) -> dict:
    """Candidates of a section with preset `laptop` in bf16 and one seed; a row each, kept when it is there."""
    from lab.experiments import comparison, rewriting
    from lab.experiments.sections import MATH_CODE, math_code

    real_rows = math_code("laptop") if run.data else MATH_CODE
    chosen = real_rows if run.name == "math_code" else rewriting.section(("past", "passive"), "named")
    base = str(random_base(run.work / "random-base", 32, 2)) if run.dry else ""
    preset = chosen.preset("laptop", base, run.data if run.name == "math_code" else "", BF16 | (DRY if run.dry else {}))
    rows: list[dict] = []

    def on_record(record) -> None:
        low, high = record.interval
        asked = {f"s {stage}": seconds for stage, seconds in record.seconds.items()}
        rows.append(
            {"section": record.section, "method": record.method, "seed": record.seed, "n": record.n}
            | {"right": record.scores["right"], "low": low, "high": high, **asked}
        )
        run.keep(rows=rows)

    methods = [name for name in METHODS[run.name] if name != "base" or run.seed == 0]  # the base is the same for every seed
    if run.dry:
        methods = ["base", "cat"]
    where = {"out": run.work / "records", "artifacts": run.work / "artifacts"}
    comparison.compare(chosen, preset, methods, [run.seed], 2 if run.dry else 100, **where, on_record=on_record)
    settings = {name: getattr(preset, name) for name in ("dtype", "precision", "train_rows", "rank", "generation_batch")}
    return {"rows": rows, "settings": settings}


PARTS: dict[str, Callable[[Run], dict]] = {
    "machine": machine, "check": check, **dict.fromkeys(BENCHMARKS, benchmark), "seven_b": seven_b, "base": real_base,
    **dict.fromkeys(METHODS, section),
}  # fmt: skip


def perform(run: Run) -> dict:
    """The part's result with its status: done, skipped (too little memory) or failed."""
    free = free_gigabytes(run.device)
    if free is not None and free < run.needs:
        return {"status": "skipped", "reason": f"needs {run.needs:g} GB of the GPU's memory, {free:.0f} are free"}
    try:
        return {"status": "done", **PARTS[run.name](run)}
    except torch.OutOfMemoryError as error:
        return {"status": "skipped", "reason": f"the GPU's memory was not enough: {str(error).partition('.')[0]}"}
    except LabError as error:
        return {"status": "failed", "reason": str(error)}
    except Exception as error:  # the log has the rest; the other parts go on
        traceback.print_exc()
        return {"status": "failed", "reason": f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"}


def end_with(parent: int) -> None:
    """Ends this process when the one that started it is gone, however that ended."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part")
    parser.add_argument("--dry", action="store_true")
    parser.add_argument("--data", default="")
    parser.add_argument("--needs", type=float, default=0.0)
    for name in ("result", "out", "work"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    options = parser.parse_args(argv)
    end_with(os.getppid())
    group, _, seed = options.part.partition("-")
    run = Run(group, int(seed or 0), options.result, options.out, options.work, options.dry, options.data, options.needs)
    found = perform(run)
    earlier = json.loads(run.result.read_text()) if run.result.is_file() else {}
    run.keep(**{**earlier, **found})  # what a failed part had found stays


if __name__ == "__main__":
    main()
