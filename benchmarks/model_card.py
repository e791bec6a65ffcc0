"""A base's scores on commonsense sets beside its model card: do loading, tokenizer and likelihoods agree with the field's?

    python benchmarks/model_card.py --data FOLDER_WITH_THE_SETS

Zero-shot, in the cloze form of lm-evaluation-harness and lighteval: the question, then each answer's text as a continuation, with
no letters and no list of choices. "accuracy" takes the most likely continuation, "per character" divides its log-likelihood by its
length. Resumable: what was scored is kept under artifacts/.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import common  # before lab: it makes the package importable
import torch

from lab.evaluation.likelihood import likelihoods
from lab.evaluation.statistics import proportion_interval
from lab.files import PROJECT, content_hash, write_atomic
from lab.lora.base import base_hash, load_base
from lab.tasks.choice import Question, questions_of
from lab.training.loop import encode_prompt

CLOZE = "Question: {text}\nAnswer:"
PROTOCOLS = {"piqa": CLOZE, "ARC-Easy": CLOZE, "ARC-Challenge": CLOZE, "openbookqa": "{text}"}
# SmolLM2-135M-Instruct's and SmolLM2-135M's, percent, zero-shot (lighteval); ARC is the mean of both sets.
CARDS = {
    "smollm2-135m": {
        "piqa": {"instruct": 66.3, "base": 68.4}, "ARC": {"instruct": 37.3, "base": 43.9}, "openbookqa": {"base": 34.6},
    },
}  # fmt: skip
AT_A_TIME = 100  # questions between two writes
TOY = [Question("toy", f"{a} and {b}?", (str(a + b), f"{a} or {b}"), 1) for a in range(2) for b in range(2)]


def log_likelihoods(
    model, tokenizer, name: str, questions: Sequence[Question], batch: int, partial: Path | None
) -> list[list[float]]:
    """Of each question's choices (nats). partial: a file that keeps what is done."""
    done: list[list[float]] = json.loads(partial.read_text()) if partial is not None and partial.exists() else []
    for start in range(len(done), len(questions), AT_A_TIME):
        chunk = questions[start : start + AT_A_TIME]
        prompts = [PROTOCOLS.get(name, CLOZE).format(text=question.text) for question in chunk]
        choices = [[f" {choice}" for choice in question.choices] for question in chunk]
        found = likelihoods(model, tokenizer, prompts, choices, ended=False, batch_size=batch, label=f"{name} {start}")
        done += [[one.total for one in given] for given in found]
        if partial is not None:
            write_atomic(partial, json.dumps(done))
            print(f"{name}: {len(done)} of {len(questions)}", flush=True)
    return done


def row(name: str, questions: Sequence[Question], totals: Sequence[Sequence[float]], card: dict) -> dict:
    """Percent right, and by characters with its 95 % interval, beside the card's."""

    def right(score) -> int:
        return sum(
            max(range(len(given)), key=lambda i: score(given[i], question.choices[i])) == question.right - 1
            for question, given in zip(questions, totals, strict=True)
        )

    plain, by_length = right(lambda total, _: total), right(lambda total, choice: total / len(choice))
    n = len(questions)
    low, high = proportion_interval(by_length, n)
    percent = {"accuracy": plain / n, "per character": by_length / n, "low": low, "high": high}
    return {"set": name, "n": n, **{name: 100 * share for name, share in percent.items()}, **beside(card)}


def beside(card: dict) -> dict:
    return {"card": card.get("instruct"), "card of the base model": card.get("base")}


@torch.no_grad()
def check(model, tokenizer, question: Question) -> dict:
    """The likelihood of a choice against the model's plain logits."""
    prompt, choice = CLOZE.format(text=question.text), f" {question.choices[0]}"
    ((found,),) = likelihoods(model, tokenizer, [prompt], [[choice]], ended=False)
    head, tail = encode_prompt(tokenizer, prompt), tokenizer(choice, add_special_tokens=False)["input_ids"]
    ids = torch.tensor([[*head, *tail]], device=model.device)
    log_p = model(input_ids=ids).logits[0, len(head) - 1 : -1].float().log_softmax(-1)
    reference = log_p.gather(1, ids[0, len(head) :, None]).sum()
    return common.check("log-likelihood of a choice", torch.tensor([found.total]), reference.cpu()[None], 1e-4)


def main(argv: Sequence[str] | None = None) -> None:
    about = __doc__.partition("\n")[0]
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--base", default="smollm2-135m")
    parser.add_argument("--data", default="hub", help="folder with the commonsense sets, or hub")
    parser.add_argument("--sets", nargs="+", default=list(PROTOCOLS), choices=list(PROTOCOLS))
    parser.add_argument("--bos", action="store_true", help="begin with the beginning-of-text token, as this project's tasks do")
    parser.add_argument("--batch", type=int, default=16, help="continuations at a time")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--quick", action="store_true", help="toy questions: shows that it runs, measures nothing")
    parser.add_argument("--out", type=Path, default=common.RESULTS, help="folder of the JSON record")
    options = parser.parse_args(argv)
    if options.quick:
        options.base, options.sets = "embedded", []
    device = common.find_device(options.device)
    model, tokenizer = load_base(options.base, device=device.type)
    if not options.bos:
        tokenizer.bos_token = None
    sets = {name: questions_of(name, options.data, "test") for name in options.sets} or {"toy": TOY}
    checks = [check(model, tokenizer, next(iter(sets.values()))[0])]
    cards = CARDS.get(options.base, {})
    rows = []
    for name, questions in sets.items():
        key = content_hash(base_hash(options.base), options.bos, PROTOCOLS.get(name, CLOZE), [q.text for q in questions])
        partial = None if options.quick else PROJECT / "artifacts" / f"model-card-{name}-{key[:16]}.json"
        totals = log_likelihoods(model, tokenizer, name, questions, options.batch, partial)
        rows.append(row(name, questions, totals, cards.get(name, {})))
    both = [found for found in rows if found["set"].startswith("ARC")]
    if len(both) == 2:
        mean = {name: sum(found[name] for found in both) / 2 for name in ("accuracy", "per character")}
        n = sum(found["n"] for found in both)
        rows.append({"set": "ARC, mean", "n": n, **mean, "low": None, "high": None, **beside(cards.get("ARC", {}))})
    options.data = "hub" if options.data == "hub" else "folder"
    notes = [f"Zero-shot, cloze; {options.base} in float32. Percent; low, high: 95 % of per character."]
    common.report("model_card", device, options, rows, checks, notes)


if __name__ == "__main__":
    common.start(main)
