"""The command line: what it writes, what its help teaches, and one clear sentence for every kind of bad input."""

import json
import os
import subprocess
import sys

import pytest
import torch

from lab.cli.learn import _rows
from lab.cli.main import main
from lab.experiments.candidates import CANDIDATES
from lab.files import PROJECT
from lab.lora.base import load_base
from lab.lora.peft_io import ENGINE_RANKS, load, save
from lab.lora.stacked import attach
from lab.merging import METHODS, merge
from lab.merging.routing import load_router
from tests.lora.test_adapter import edit_config, edit_weights, with_first
from tests.tiny_models import adapter, peft_model

CONTROLS = {name for name, found in {**CANDIDATES, **METHODS}.items() if found.role in ("control", "data")}


@pytest.fixture(scope="module")
def kept(tmp_path_factory, tiny_base):
    """Two skills of the tiny base, saved; nobody changes them."""
    folder = tmp_path_factory.mktemp("skills")
    model, _ = load_base(str(tiny_base), device="cpu")
    save(folder / "maths", adapter(model, "maths", 1, r=2))
    save(folder / "code", adapter(model, "code", 2, r=3, target_modules=["q_proj", "up_proj"]))
    return folder


@pytest.fixture
def here(kept, tmp_path, monkeypatch):
    """A folder to work in, with links to the two skills."""
    for name in ("maths", "code"):
        (tmp_path / name).symlink_to(kept / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


HEAVY = ("transformers", "peft", "accelerate", "scipy.linalg", "scipy.stats", "sklearn", "nevergrad", "pandas", "bm25s", "datasets")
LOOK = """
import sys
from lab.cli.main import main
code = main(sys.argv[1:])
print(sorted(set({heavy}) & set(sys.modules)), file=sys.stderr)
sys.exit(code)
"""


@pytest.mark.parametrize("command", [("methods",), ("inspect", "maths", "code")])
def test_what_only_looks_starts_without_the_heavy_packages(here, command):
    """Each of them takes longer to import than all of the lab."""
    done = subprocess.run(
        [sys.executable, "-c", LOOK.format(heavy=HEAVY), *command], capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(PROJECT)},
    )  # fmt: skip
    assert done.returncode == 0 and "cat" in done.stdout
    assert done.stderr.strip() == "[]"


def rows_file(path, count=10):
    lines = [json.dumps({"prompt": f"Take {n}. Add 2.\n", "completion": f"total = {n} + 2"}) for n in range(count)]
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def told(capsys, arguments, code=2):
    """What a failing command says: nothing but one line on stderr."""
    assert main(arguments) == code
    out, err = capsys.readouterr()
    assert err.startswith("error: ") and err.count("\n") == 1 and "Traceback" not in out + err
    return err


# What it does


def test_methods_lists_everything_with_source_and_formula(capsys):
    assert main(["methods"]) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line.startswith("  ")}
    assert set(lines) == set(METHODS) | CONTROLS
    for name, method in METHODS.items():
        assert all(text in lines[name] for text in (method.formula, method.kind, method.paper.rpartition("/")[2]))
    assert main(["methods", "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows["ties"]["parameters"][0]["name"] == "density" and rows["ties"]["parameters"][0]["high"] == 1
    assert {name for name, row in rows.items() if row["group"] == "control"} == CONTROLS
    assert rows["random_loras"]["source"].endswith("2602.12323") and all(row["summary"] for row in rows.values())


def test_inspect_prints_the_report(here, capsys, tiny_base):
    assert main(["inspect", "maths", "code", "--base", str(tiny_base)]) == 0
    out = capsys.readouterr().out
    assert "maths\n  base" in out and "shapes: every module" in out and "ranks: 2, 3" in out
    assert main(["inspect", "m=maths", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["adapters"][0]["name"] == "m" and {m["reason"] for m in data["methods"]} == {
        "There is one adapter; a merge needs two or more."
    }
    assert "no module" not in out


def test_merge_is_the_librarys(here, capsys):
    assert main([
        "merge", "maths", "code", "--method", "ties", "--weights", "1", "-0.5", "--density", "0.4", "--rank", "2",
        "--pad-to-rank", "auto", "--dtype", "bfloat16", "--out", "out",
    ]) == 0  # fmt: skip
    assert "rank 2" in capsys.readouterr().out
    expected = merge("ties", [load("maths"), load("code")], [1, -0.5], density=0.4, rank=2)
    found = load("out")
    assert found.recipe == expected.recipe and found.rank == ENGINE_RANKS[0]
    for module in expected.modules:
        torch.testing.assert_close(found.delta_weight(module), expected.delta_weight(module), rtol=0.05, atol=0.05)
    assert "alpha 3" in (here / "out/README.md").read_text()  # read from the folders
    before = (here / "out/adapter_model.safetensors").read_bytes()
    assert "exists already" in told(capsys, ["merge", "maths", "code", "--method", "svd", "--out", "out"])
    assert (here / "out/adapter_model.safetensors").read_bytes() == before
    renamed = ["a=maths", "--out", "out", "--overwrite", "b=code", "--base", "owner/base"]
    assert main(["merge", "--method", "svd", *renamed]) == 0
    written = load("out")
    assert (written.base, written.recipe["method"], written.recipe["inputs"][0]["name"]) == ("owner/base", "svd", "a")
    assert written.recipe["inputs"][0]["digest"] == load("maths").digest()  # of what was given


def test_merge_folds_into_the_base(here, tiny_base, capsys):
    assert main(["merge", "maths", "code", "--method", "ties", "--fold-into", str(tiny_base), "--out", "model"]) == 0
    model, _ = load_base("model", device="cpu")
    reference, _ = load_base(str(tiny_base), device="cpu")
    assert json.loads((here / "model/recipe.json").read_text())["method"] == "ties"
    assert (model.get_submodule("model.layers.0.self_attn.q_proj").weight
            != reference.get_submodule("model.layers.0.self_attn.q_proj").weight).any()  # fmt: skip


@pytest.mark.parametrize("method", sorted(METHODS))
def test_help_teaches_the_parameters_of_every_method(method, capsys):
    command = "merge" if METHODS[method].recipe is None and METHODS[method].kind != "router" else "learn"
    with pytest.raises(SystemExit) as ended:
        main([command, "--method", method, "--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert METHODS[method].formula in text and METHODS[method].paper in text and "examples:" in text
    for parameter in METHODS[method].parameters:
        assert f"-{parameter.name.replace('_', '-')}" in text
        if parameter.help and not (command == "learn" and parameter.name == "seed"):
            assert parameter.help.split()[0] in text
    if method == "ties":
        assert "from 0 to 1; default 0.2" in " ".join(text.split())


def test_learn_gives_an_adapter_and_leaves_no_checkpoint(here, tiny_base, capsys):
    arguments = [
        "learn", "maths", "code", "--base", str(tiny_base), "--method", "cat", "--granularity", "layer", "--data",
        rows_file(here / "a.jsonl", 9), rows_file(here / "b.jsonl", 30), "--rates", "0.1", "0.01", "--steps", "2",
        "--batch-size", "4", "--out", "out",
    ]  # fmt: skip
    assert main(arguments) == 0
    recipe = load("out").recipe
    assert recipe["method"] == "cat" and recipe["parameters"]["granularity"] == "layer"
    learning = recipe["learning"]
    assert learning["rows"] == 18 and learning["steps"] == 2 and set(learning["data"]) == {"a.jsonl", "b.jsonl"}
    assert learning["learning_rate"] in (0.1, 0.01) and len(learning["held_out_loss_by_rate"]) == 2
    assert (here / "out/coefficients.png").exists()
    assert sorted(os.listdir(here)) == ["a.jsonl", "b.jsonl", "code", "maths", "out"]


def test_learn_continues_after_an_interruption_and_only_the_same_learning(here, tiny_base, capsys, monkeypatch):
    from lab.training import loop

    data = rows_file(here / "a.jsonl")

    def arguments(out, seed="0"):
        return ["learn", "maths", "code", "--base", str(tiny_base), "--method", "cat", "--data", data, "--rates", "0.1",
                "--steps", "4", "--batch-size", "2", "--out", out, "--seed", seed]  # fmt: skip

    assert main(arguments("whole")) == 0
    monkeypatch.setitem(loop.fit.__kwdefaults__, "checkpoint_seconds", -1.0)
    steps, loss = [], loop.token_loss

    def counted(model, batch):
        if model.training:
            steps.append(1)
            if len(steps) == 3:
                raise KeyboardInterrupt
        return loss(model, batch)

    monkeypatch.setattr("lab.merging.learn.token_loss", counted)
    assert main(arguments("out")) == 130
    assert "interrupted; the same command continues" in capsys.readouterr().err
    hidden = {name for name in os.listdir(here) if name.startswith(".out.")}
    assert len(hidden) == 1 and not (here / "out").exists()
    steps[:] = [1] * 10
    assert main(arguments("out")) == 0
    assert len(steps) == 12  # two of four steps were done before
    assert load("out").digest() == load("whole").digest()
    assert not [name for name in os.listdir(here) if name.startswith(".")]


def test_learn_gives_a_router_where_the_method_is_one(here, tiny_base, capsys):
    learned = ["learn", "maths", "code", "--base", str(tiny_base)]
    data = rows_file(here / "a.jsonl")
    assert main([*learned, "--method", "moe", "--data", data, "--steps", "1", "--out", "moe"]) == 0
    assert main([*learned, "--method", "arrow", "--top-k", "1", "--out", "arrow"]) == 0  # nothing to learn
    model, _ = load_base(str(tiny_base), device="cpu")
    with attach(model, [load("maths"), load("code")]) as stack:
        assert load_router("moe", stack).recipe["method"] == "moe"
        assert load_router("arrow", stack).recipe["parameters"]["top_k"] == 1
    capsys.readouterr()
    assert "leave out --dtype" in told(capsys, [*learned, "--method", "arrow", "--dtype", "float16", "--out", "new"])


def test_the_embedded_world_is_data_too():
    examples, digests = _rows(["world"], 3, 0)
    assert [skill for skill, _ in examples] == ["maths"] * 3 + ["code"] * 3 and digests
    assert all(e.prompt and e.completion for _, e in examples)


def test_every_command_line_error_is_one_sentence_and_help_is_quick():
    code = (
        "import sys; from lab.cli.main import main; assert main(['--help']) == 0\n"
        "try: main(['learn', '--help'])\nexcept SystemExit: pass\n"
        "print(sorted({'torch', 'transformers', 'peft', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.endswith("[]\n") and "examples:" in done.stdout
    done = subprocess.run([sys.executable, "-m", "lab", "mrege"], cwd=PROJECT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: There is no command 'mrege'; did you mean merge?")
    assert done.stderr.count("\n") == 1
    assert main([]) == 2


# Bad input

MERGE = ["merge", "maths", "code", "--method", "ties", "--out", "out"]
LEARN = ["learn", "maths", "code", "--method", "cat", "--data", "rows.jsonl", "--out", "out"]
BAD_ARGUMENTS = {
    "There are 3 weights for 2 adapters": [*MERGE, "--weights", "1", "2", "3"],
    "contain NaN or infinite": [*MERGE, "--weights", "1", "nan"],
    "The weights [1.0, inf]": [*MERGE, "--weights", "1", "inf"],
    "density is 1.5; give a number from 0 to 1": [*MERGE, "--density", "1.5"],
    "density is nan": [*MERGE, "--density", "nan"],
    "'x' is not a number": [*MERGE, "--density", "x"],
    "rank is 6; give a whole number from 1 to 5": [*MERGE, "--rank", "6"],
    "'0' is not a whole number of 1 or more": [*MERGE, "--rank", "0"],
    "which does not fit into rank 4": [*MERGE, "--pad-to-rank", "4"],
    "--pad-to-rank is 'many'": [*MERGE, "--pad-to-rank", "many"],
    "invalid choice: 'int4'": [*MERGE, "--dtype", "int4"],
    "There is one adapter; a merge needs two": ["merge", "maths", "--method", "ties", "--out", "out"],
    "There are no adapters": ["merge", "--method", "ties", "--out", "out"],
    "2 adapters are called 'maths'": ["merge", "maths", "maths", "--method", "ties", "--out", "out"],
    "did you mean 'ties'?": ["merge", "maths", "code", "--method", "tise", "--out", "out"],
    "did you mean --density?": [*MERGE, "--densty", "0.2"],
    "arguments are required: --out": ["merge", "maths", "code", "--method", "ties"],
    "rgument --method: expected one argument": ["merge", "maths", "code", "--out", "out", "--method"],
    "are required: --method": ["merge", "maths", "code", "--out", "out"],
    "cat learns its coefficients": ["merge", "maths", "code", "--method", "cat", "--out", "out"],
    "moe routes per token": ["merge", "maths", "code", "--method", "moe", "--out", "out"],
    "base model folder nowhere does not exist": [*MERGE, "--fold-into", "./nowhere"],
    "leave out --pad-to-rank": [*MERGE, "--fold-into", "./nowhere", "--pad-to-rank", "8"],
    "nowhere is not a folder": ["merge", "maths", "./nowhere", "--method", "ties", "--out", "out"],
    "maths exists already": ["merge", "maths", "code", "--method", "ties", "--out", "maths"],
    "lost is not there": ["inspect", "maths", "--base", "./lost"],
    "'./nowhere' cannot be read": ["inspect", "maths", "./nowhere"],
    "rows.jsonl cannot be read": LEARN,
    "ties has nothing to learn": ["learn", "maths", "code", "--method", "ties", "--data", "world", "--out", "out"],
    "give --data": ["learn", "maths", "code", "--method", "cat", "--out", "out"],
    "'-1' is not a number above 0": [*LEARN, "--rates", "-1"],
    "not allowed with argument": [*LEARN, "--steps", "3", "--epochs", "3"],
}


@pytest.mark.parametrize("says", BAD_ARGUMENTS)
def test_bad_arguments(here, capsys, says):
    before = sorted(os.listdir(here))
    arguments = BAD_ARGUMENTS[says]
    said = (inspected if arguments[0] == "inspect" else told)(capsys, arguments)
    assert says.replace("'./nowhere'", "'nowhere'") in said
    assert sorted(os.listdir(here)) == before


def inspected(capsys, arguments):
    """`inspect` prints its report first."""
    assert main(arguments) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1
    return err


BAD_FOLDERS = {
    "has no adapter_model.safetensors": lambda f: (f / "adapter_model.safetensors").unlink(),
    "truncated": lambda f: (f / "adapter_model.safetensors").write_bytes(b"\x08"),
    "has no adapter_config.json": lambda f: (f / "adapter_config.json").unlink(),
    "has no peft_type": lambda f: edit_config(f, peft_type="REMOVE"),
    "uses DoRA": lambda f: edit_config(f, use_dora=True),
    "as a pickle": lambda f: (f / "adapter_model.safetensors").rename(f / "adapter_model.bin"),
    "NaN or infinite values in module": lambda f: edit_weights(f, with_first(lambda t: t.fill_(torch.nan))),
    "no module in common": lambda f: edit_weights(
        f, lambda tensors: {key.replace(".model.layers", ".model.blocks"): t for key, t in tensors.items()}
    ),
    "different bases": lambda f: edit_config(f, base_model_name_or_path="owner/other"),
}


@pytest.mark.parametrize("says", BAD_FOLDERS)
def test_bad_folders(here, tiny_base, capsys, says):
    model, _ = load_base(str(tiny_base), device="cpu")
    peft_model(model).save_pretrained(here / "bad", save_embedding_layers=False)
    edit_config(here / "bad", base_model_name_or_path="owner/one")
    peft_model(model).save_pretrained(here / "good", save_embedding_layers=False)
    edit_config(here / "good", base_model_name_or_path="owner/one")
    BAD_FOLDERS[says](here / "bad")
    before = sorted(os.listdir(here))
    capsys.readouterr()  # whether loading the base shows a bar depends on the tests before
    for command in ("merge", "learn"):
        method = {"merge": ["cat_static"], "learn": ["cat", "--data", rows_file(here.parent / "rows.jsonl")]}[command]
        assert says in told(capsys, [command, "good", "bad", "--out", "out", "--method", *method])
    assert says in inspected(capsys, ["inspect", "good", "bad"])
    assert sorted(os.listdir(here)) == before


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('{"prompt": "a"}', "line 3: the field 'completion' is missing"),
        ('{"prompt": 5, "completion": "b"}', "line 3: the field 'prompt' is missing or no text"),
        ('["a", "b"]', "line 3: the field 'prompt'"),
        ('{"prompt": "a", ', "line 3: not valid JSON"),
    ],
)
def test_bad_rows_are_named_by_line(here, tiny_base, capsys, line, says):
    (here / "rows.jsonl").write_text('{"prompt": "a", "completion": "b"}\n\n' + line + "\n")
    assert says in told(capsys, [*LEARN, "--base", str(tiny_base)])
    (here / "rows.jsonl").write_text("\n")
    assert "has no rows" in told(capsys, LEARN)
    (here / "rows.jsonl").write_bytes(b"\xff\xfe")
    assert "not UTF-8" in told(capsys, LEARN)
    assert not (here / "out").exists()


def test_a_base_that_is_not_there_and_one_that_nobody_names(here, kept, capsys):
    data = rows_file(here / "rows.jsonl")
    for name in ("maths", "code"):
        (here / name).unlink()
        save(here / name, load(kept / name, base=""))
    assert "give it by --base" in told(capsys, LEARN)
    for name in ("maths", "code"):
        edit_config(here / name, base_model_name_or_path="./gone")
    assert "gone" in told(capsys, [*LEARN[:-4], "--data", data, "--out", "out"])
    assert not (here / "out").exists()


def test_a_full_disk_leaves_nothing(here):
    """For real: no file of this process may grow beyond 64 kB."""
    command = f"ulimit -f 64; exec {sys.executable} -m lab merge maths code --method svd --pad-to-rank 512 --out out"
    before = sorted(os.listdir(here))
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    done = subprocess.run(["bash", "-c", command], cwd=here, env=environment, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: Could not write") and done.stderr.count("\n") == 1
    assert sorted(os.listdir(here)) == before


def test_unexpected_failures_are_not_hidden(here, monkeypatch):
    """Python's own exit code 1, with where it happened: an error of ours is no bad input."""

    def broken(*args, **kwargs):
        raise ZeroDivisionError

    monkeypatch.setattr("lab.merging.merge", broken)
    with pytest.raises(ZeroDivisionError):
        main(MERGE)
