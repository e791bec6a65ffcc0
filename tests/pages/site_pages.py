"""Made-up records for the tests of the site."""

import dataclasses
from pathlib import Path

from lab.files import content_hash
from lab.records.record import make_record, save_record

HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)><b onclick=alert(3)>bold</b>"
QUESTIONS = ("first", "second", "third", HOSTILE)
SCORES = {
    "base": (0, 0, 0, 0),
    "few_shot": (0, 0, 0, 0),
    "maths": (1, 0, 0, 0),
    "code": (0, 0, 0, 0),
    "cat": (1, 1, 1, 0),
    "rank_cat": (0, 0, 0, 1),
    "data_mix": (1, 0, 1, 0),
}
MODULES = ["model.layers.0.self_attn.q_proj", "model.layers.0.mlp.up_proj"]
PER_MODULE = {"skills": ["maths", "code"], "modules": MODULES, "values": [[0.25, 0.5], [0.75, 0.5]]}
PER_RANK = {
    "skills": ["maths[0]", "maths[1]", "code[0]", "code[1]"],
    "modules": MODULES,
    "values": [[0.2, 0.5], [0.4, 0.5], [0.8, 0.5], [0.6, 0.5]],
}


def make_results(
    folder,
    sections=("s5_1_math_code", "s5_4_prompt_formats_1_4"),
    *,
    preset="embedded",
    base="embedded",
    data="world",
    rank=16,
    salt="",
):
    """Records under `folder`/records: base and few-shot base with one seed, cat with two, data_mix without its completions."""
    saved = []
    for section in sections:
        for method, scores in SCORES.items():
            for seed in (0, 1) if method == "cat" else (0,):
                rows = [_row(i, method, seed, score) for i, score in enumerate(scores)]
                record = make_record(
                    rows,
                    section=section,
                    preset=preset,
                    method=method,
                    seed=seed,
                    task="hard_math_code",
                    task_version=1,
                    key=content_hash(section, method, seed, salt),
                    own={"maths": 0.6, "code": 0.4},
                    seconds={"make": 1235.0},
                    parameters={"preset": {"base": base, "data": data, "rank": rank}}
                    | ({"rank": 32} if method == "cat" else {}),
                    coefficients={"cat": PER_MODULE, "rank_cat": PER_RANK}.get(method),
                )
                # Where and when a test runs must not change the pages' bytes.
                record = save_record(
                    dataclasses.replace(record, environment=_PLACE), rows, Path(folder) / "records"
                )
                if method == "data_mix":
                    record.path.with_suffix(".jsonl.gz").unlink()
                saved.append(record)
    return saved


_PLACE = {"commit": None, "dirty": None, "versions": {}, "device": "Test CPU", "cores": 2, "system": "Linux"}


def _row(number, method, seed, score):
    before = "Question: how?\nProgram: so.\n\n" if method == "few_shot" else ""
    return {
        "id": f"hard-{number}",
        "question": "",
        "group": "",
        "metadata": {},
        "prompt": f"{before}Question: {QUESTIONS[number]}?\nProgram:",
        "completion": f"{method} {seed} {HOSTILE}",
        "extracted": str(number) if score else "",
        "targets": [str(number)] if number else ["0", "none"],
        "score": float(score),
        "reason": "right" if score else "no code" if number == 3 else "wrong",
        "extras": {"last_number": float(number == 0)},
    }
