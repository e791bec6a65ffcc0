"""The compatibility report: it says of every method what the method itself says, and of folders what is in them.

`python tests/test_report.py` prints the table of methods × kinds of sets.
"""

import json

import pytest

from lab.cli.main import main as command
from lab.errors import LabError
from lab.export.report import base_layout, describe, inspect, report
from lab.lora.adapter import LoraAdapter
from lab.lora.compatibility import check_compatible
from lab.lora.peft_io import load, save
from lab.lora.stacked import attach
from lab.merging import METHODS, build, freeze, merge, search, solve
from tests.lora.test_adapter import edit_config
from tests.merging.test_merging_static import CASES
from tests.tiny_models import adapter, gpt2, llama, peft_model, two_skills


@pytest.fixture(scope="module")
def base():
    return llama()


def outcome(name, adapters, base) -> str:
    """What really becomes of it: "passes", or the method's own refusal."""
    method = METHODS[name]
    try:
        if method.kind == "search":
            search(name, adapters, lambda adapter: 1.0, 2)
        elif method.kind == "solve":
            solve(name, adapters, base, {a.name: [[1, 2, 3], [4, 5, 6]] for a in adapters})
        elif method.kind == "router" or method.recipe is not None:
            with attach(base, adapters) as stack:
                built = build(name, stack)
                if method.kind != "router":
                    freeze(stack, built)
        else:
            merge(name, adapters)
    except LabError as error:
        return str(error)
    return "passes"


def outcome_table(base) -> list[tuple[str, ...]]:
    """A row per method: its name, then what becomes of each kind of set."""
    sets = [make(base) for make in CASES.values()]
    return [(name, *(outcome(name, adapters, base) for adapters in sets)) for name in METHODS]


def test_the_report_says_what_every_method_really_does(base):
    table = outcome_table(base)
    assert len(table) == len(METHODS) > 20
    for column, (case, make) in enumerate(CASES.items(), 1):
        told = {method.name: method.reason or "passes" for method in report(make(base)).methods}
        assert told == {row[0]: row[column] for row in table}, case
    refusals = {(row[0], case) for row in table for case, cell in zip(CASES, row[1:], strict=True) if cell != "passes"}
    assert refusals == {("slerp", "3 skills"), ("nuslerp", "3 skills"), ("lorahub", "unequal rank")}
    assert all(name in cell for name, *cells in table for cell in cells if cell != "passes")


def test_what_no_method_takes(base):
    a, b = two_skills(base)
    one = report([a])
    assert one.ok and {method.reason for method in one.methods} == {"There is one adapter; a merge needs two or more."}
    apart = LoraAdapter("b", "", {f"x.{module}": factors for module, factors in b.modules.items()})
    found = report([a, apart])
    assert not found.ok and not found.fits and not any(method.open for method in found.methods)
    with pytest.raises(LabError) as refused:
        check_compatible([a, apart])
    assert str(refused.value).startswith(found.methods[0].reason)
    assert "every method: Adapter 'math' has no module in common" in found.text()
    assert any("base model does not have" in problem for problem in report([a, b], gpt2()).problems)


def test_the_text_holds_the_facts(base, tmp_path):
    peft_model(
        base, r=4, lora_alpha=8, use_rslora=True, target_modules=["q_proj", "up_proj"], rank_pattern={"up_proj": 2},
        alpha_pattern={"up_proj": 6},
    ).save_pretrained(tmp_path / "maths", save_embedding_layers=False)  # fmt: skip
    save(tmp_path / "code", adapter(base, "code", 2), dtype="bfloat16")
    found, adapters = inspect([tmp_path / "maths", tmp_path / "code"])
    maths, code = found.adapters
    assert (maths.rank, maths.alpha, maths.rslora) == ((2, 4), (6, 8), True)
    assert maths.scaling == pytest.approx((8 / 4**0.5, 6 / 2**0.5))
    assert dict(maths.kinds) == {"q_proj": 2, "up_proj": 2} and maths.modules == 4
    assert maths.parameters == 2 * (4 * (16 + 16) + 2 * (16 + 24))
    assert maths.size == (tmp_path / "maths/adapter_model.safetensors").stat().st_size
    assert (code.rank, code.alpha, code.scaling, code.dtype) == ((4, 4), (4, 4), (1, 1), "BF16")
    assert [a.digest() for a in adapters] == [load(tmp_path / name).digest() for name in ("maths", "code")]
    text = found.text()
    assert "rank      2 to 4, alpha 6 to 8, scaling 4 to 4.24264 (rsLoRA)" in text
    assert "modules: 2 of 6 are changed by every adapter" in text and "a merge without loss has rank 8 at most" in text
    assert describe(adapters[0]).alpha is None and describe(adapters[0]).size == 4 * maths.parameters


def test_what_cannot_be_read_is_reported_beside_the_others(base, tmp_path):
    for name in ("good", "dora"):
        peft_model(base).save_pretrained(tmp_path / name, save_embedding_layers=False)
    edit_config(tmp_path / "dora", use_dora=True, base_model_name_or_path="owner/base")
    found, adapters = inspect([tmp_path / "good", tmp_path / "dora", tmp_path / "nowhere"])
    assert [a.name for a in adapters] == ["good"] and not found.ok
    good, dora, nowhere = found.adapters
    assert not good.problem and "DoRA" in dora.problem and "not a folder" in nowhere.problem
    assert (dora.base, dora.rank, dora.alpha, dora.parameters) == ("owner/base", (4, 4), (8, 8), None)
    assert not any(method.open for method in found.methods) and "cannot be read" in found.text()


def test_shapes_are_checked_against_the_base_without_its_weights(base, tmp_path, tiny_base):
    base.save_pretrained(tmp_path / "base")
    (tmp_path / "base/model.safetensors").unlink()
    for skill in two_skills(base):
        save(tmp_path / skill.name, skill)
    folders = [tmp_path / "math", tmp_path / "code"]
    assert "shapes: every module" in inspect(folders, base=str(tmp_path / "base"))[0].text()
    assert all(p.is_meta for p in base_layout(str(tmp_path / "base")).parameters())
    assert any("is for another base" in problem for problem in inspect(folders, base=str(tiny_base))[0].problems)
    with pytest.raises(LabError, match="is not there"):
        inspect(folders, base=str(tmp_path / "nowhere"))
    for folder, name in zip(folders, ("a/b", "c/d"), strict=True):
        edit_config(folder, base_model_name_or_path=name)
    assert "different bases" in inspect(folders)[0].problems[0]
    known, adapters = inspect(folders, base=str(tmp_path / "base"))
    assert known.ok and {a.base for a in adapters} == {str(tmp_path / "base")}


def test_a_program_reads_of_the_report_what_people_read(base, tmp_path, capsys):
    """`lab inspect --json`: the facts themselves, not as text."""
    for skill in two_skills(base):
        save(tmp_path / skill.name, skill)
    save(tmp_path / "third", two_skills(base)[0])
    for names in (("math", "code"), ("math", "code", "third")):
        folders = [str(tmp_path / name) for name in names]
        command(["inspect", *folders, "--json"])
        told, (found, adapters) = json.loads(capsys.readouterr().out), inspect(folders)
        assert [(row["name"], row["rank"], row["parameters"]) for row in told["adapters"]] == [
            (a.name, list(a.rank), sum(f.A.numel() + f.B.numel() for f in own.modules.values()))
            for a, own in zip(found.adapters, adapters, strict=True)
        ]
        assert {row["name"]: row["reason"] for row in told["methods"]} == {m.name: m.reason for m in found.methods}
        assert {row["name"] for row in told["methods"]} == METHODS.keys()
        assert bool(next(row for row in told["methods"] if row["name"] == "slerp")["reason"]) == (len(names) == 3)
        assert told["problems"] == list(found.problems) == []


if __name__ == "__main__":
    print("| method | " + " | ".join(CASES) + " |\n" + "|---" * (len(CASES) + 1) + "|")
    for row in outcome_table(llama()):
        print("| " + " | ".join(row) + " |")
