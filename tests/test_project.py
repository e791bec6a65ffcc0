"""The project itself: one set of pins, clean notebooks, every notebook runs small, no path of a machine."""

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import nbformat
import pytest

from lab.errors import LabError
from lab.files import PROJECT
from lab.runner.notebooks import run_notebook

NOTEBOOKS = sorted((PROJECT / "notebooks").glob("*.ipynb"))
SECTION = PROJECT / "notebooks" / "s5_1_math_code.ipynb"


def test_environment_and_pyproject_have_the_same_exact_pins():
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    wanted = {*project["dependencies"], *(pin for extra in project["optional-dependencies"].values() for pin in extra)}
    named = re.findall(r"^      - (\S+)$", (PROJECT / "environment.yml").read_text(), re.MULTILINE)
    assert set(named) - {"-e"} == wanted
    assert all("==" in pin for pin in wanted)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook_is_committed_clean(path):
    nb = nbformat.read(path, as_version=4)
    code = [c for c in nb.cells if c.cell_type == "code"]
    assert all(not c.outputs and c.execution_count is None for c in code)
    assert sum("parameters" in c.metadata.get("tags", []) for c in nb.cells) == 1
    assert not any(re.match(r"(def|class) ", line) for c in code for line in c.source.splitlines())
    assert len(code) <= 10


def small(tiny_base, tmp_path) -> dict:
    return {
        "base": str(tiny_base), "problems": 3, "out": str(tmp_path / "out"), "artifacts": str(tmp_path / "artifacts"),
        "settings": {"rank": 2, "lora_alpha": 4, "train_rows": 24, "coefficient_share": 0.5, "coefficient_rates": [0.01, 0.1],
                     "own_test": 2, "max_new_tokens": 4},
    }  # fmt: skip


def test_section_notebook_runs_small(tiny_base, tmp_path):
    run = run_notebook(SECTION, tmp_path / "run.ipynb", small(tiny_base, tmp_path))
    assert run.ok, f"cell {run.failed_cell}: {run.error}"
    records = list((tmp_path / "out" / "records" / "s5_1_math_code").glob("*.json"))
    assert len(records) == len(run.parameters["methods"])


def test_bases_notebook_runs_small(tmp_path):
    run = run_notebook(PROJECT / "notebooks" / "s0_base_model.ipynb", tmp_path / "run.ipynb", {"worlds": ["embedded-letters", "embedded"], "cases": 2})
    assert run.ok, f"cell {run.failed_cell}: {run.error}"


def test_atlas_notebook_runs_small(tiny_base, tmp_path):
    given = small(tiny_base, tmp_path) | {"methods": ["cat_static", "rank_cat", "arrow"], "sections": ["s5_1_math_code", "s5_3_reading"]}
    run = run_notebook(PROJECT / "notebooks" / "x3_methods.ipynb", tmp_path / "run.ipynb", given)
    assert run.ok, f"cell {run.failed_cell}: {run.error}"
    assert {p.name for p in (tmp_path / "out" / "records").iterdir()} == {"x3_methods", "x3_methods_s5_3_reading"}


def test_controls_notebook_runs_small_and_finds_what_a_section_has(tiny_base, tmp_path):
    given = small(tiny_base, tmp_path) | {"sections": ["s5_1_math_code", "s5_3_reading"], "problems_of": {"s5_3_reading": 2}}
    run = run_notebook(PROJECT / "notebooks" / "x1_controls.ipynb", tmp_path / "run.ipynb", given)
    assert run.ok, f"cell {run.failed_cell}: {run.error}"
    assert len(list((tmp_path / "out" / "records" / "s5_1_math_code").glob("*.json"))) == 13


def test_more_skills_notebook_runs_small(tiny_base, tmp_path):
    run = run_notebook(
        PROJECT / "notebooks" / "x2_more_skills.ipynb", tmp_path / "run.ipynb", small(tiny_base, tmp_path) | {"methods": ["cat", "new_lora"]}
    )
    assert run.ok, f"cell {run.failed_cell}: {run.error}"
    assert len(list((tmp_path / "out" / "records").iterdir())) == 10
    assert len(list((tmp_path / "artifacts").glob("skill-*"))) == 5 and len(list((tmp_path / "artifacts").glob("cat-*"))) == 5


def test_formats_notebook_runs_small(tiny_base, tmp_path):
    given = small(tiny_base, tmp_path) | {"problems": 5, "methods": ["data_mix", "cat"], "choice_methods": ["data_mix", "cat"]}
    run = run_notebook(PROJECT / "notebooks" / "s5_4_prompt_formats.ipynb", tmp_path / "run.ipynb", given)
    assert run.ok, f"cell {run.failed_cell}: {run.error}"
    assert len(list((tmp_path / "out" / "records").glob("s5_4_prompt_formats_*/*.json"))) == 4 * 5


def test_qabot_notebook_runs_small(tiny_base, tmp_path):
    given = small(tiny_base, tmp_path)
    given["methods"] = ["base", "few_shot", "manual", "instruction", "data_mix_continual", "cat_static", "moe", "lorahub", "cat", "retrieval_bm25"]
    run = run_notebook(PROJECT / "notebooks" / "s5_2_qabot.ipynb", tmp_path / "run.ipynb", given)
    assert run.ok, f"cell {run.failed_cell}: {run.error}"
    assert len(list((tmp_path / "out" / "records" / "s5_2_qabot").glob("*.json"))) == len(given["methods"])


def test_skills_notebook_runs_small(tiny_base, tmp_path):
    given = small(tiny_base, tmp_path) | {"problems": 5, "seeds": [0, 1], "sections": ["s5_1_math_code", "s5_4_prompt_formats_1_4"]}
    run = run_notebook(PROJECT / "notebooks" / "s4_skills.ipynb", tmp_path / "run.ipynb", given)
    assert run.ok, f"cell {run.failed_cell}: {run.error}"


def test_ablations_notebook_runs_small(tiny_base, tmp_path):
    given = {name: value for name, value in small(tiny_base, tmp_path).items() if name != "problems"}
    given |= {"compared": {"s5_1_math_code": 3, "s5_2_qabot": 3}, "methods": ["cat_static", "cat"], "sweep_problems": 2, "densities": [0.0, 1.0]}
    given |= {"weights": [1.0], "granularities": ["model"], "shares": [0.5], "confirm": True}
    run = run_notebook(PROJECT / "notebooks" / "s5_5_ablations.ipynb", tmp_path / "run.ipynb", given)
    assert run.ok, f"cell {run.failed_cell}: {run.error}"
    assert len(list((tmp_path / "out" / "records" / "sweeps").glob("*.jsonl"))) == 3


def test_reading_notebook_runs_small(tiny_base, tmp_path):
    methods = ["base", "few_shot", "terms", "terms_few_shot", "extraction", "data_mix_continual", "cat_static", "moe", "lorahub", "cat"]
    given = small(tiny_base, tmp_path) | {"methods": methods, "judged": ["base", "terms_few_shot", "extraction", "data_mix_continual", "cat"]}
    run = run_notebook(PROJECT / "notebooks" / "s5_3_reading.ipynb", tmp_path / "run.ipynb", given)
    assert run.ok, f"cell {run.failed_cell}: {run.error}"
    assert len(list((tmp_path / "out" / "records" / "s5_3_reading").glob("*.json"))) == len(methods)


def test_section_notebook_runs_on_real_rows_and_another_base(tmp_path, tokenizer, data_folder):
    """The same path with GSM8K, Code Alpaca and GSM-Hard rows and a base of another shape, straight through papermill."""
    import papermill
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(1)
    shape = {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 64}
    config = LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=4096, pad_token_id=0, bos_token_id=1, eos_token_id=2, **shape)
    LlamaForCausalLM(config).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    given = small(tmp_path / "base", tmp_path) | {"data": str(data_folder.resolve()), "methods": ["base", "maths", "code", "cat"]}
    papermill.execute_notebook(str(SECTION), str(tmp_path / "run.ipynb"), given, kernel_name="python3", progress_bar=False)
    assert len(list((tmp_path / "out" / "records" / "s5_1_math_code").glob("*.json"))) == 4


@pytest.fixture(scope="module")
def bases(tmp_path_factory, tokenizer) -> dict[str, Path]:
    """Random tiny bases of the classes that the presets' bases have."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 48}
    common = {"vocab_size": len(tokenizer), "max_position_embeddings": 8192, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    found = {}
    for preset, config, model in (("paper", LlamaConfig, LlamaForCausalLM), ("small", Qwen2Config, Qwen2ForCausalLM)):
        torch.manual_seed(2)
        found[preset] = tmp_path_factory.mktemp(preset)
        model(config(**common, **shape, tie_word_embeddings=preset == "small")).save_pretrained(found[preset])
        tokenizer.save_pretrained(found[preset])
    return found


@pytest.mark.parametrize(
    ("preset", "section"),
    [
        ("paper", "s5_1_math_code"), ("small", "s5_1_math_code"), ("small", "s5_2_qabot"), ("paper", "s5_3_reading"),
        ("small", "s5_4_prompt_formats_1_4"), ("paper", "s5_4_prompt_formats_two_prompts"),
    ],
)  # fmt: skip
def test_presets_run_a_few_steps_on_real_rows(preset, section, bases, tmp_path, data_folder):
    """As on a GPU with the real base, but for sizes and precision: the preset's rows, templates, worked examples and methods."""
    from lab.experiments.comparison import compare
    from lab.experiments.sections import get_section
    from lab.tasks import prompts

    section = get_section(section)
    few = {"rank": 2, "lora_alpha": 4, "train_rows": 8, "coefficient_share": 0.5, "own_test": 1, "max_new_tokens": 2, "max_tokens": 1024}
    chosen = section.preset(preset, str(bases[preset]), str(data_folder), {**few, "dtype": "float32", "precision": "no"})
    skills, target, source = section.skills, section.target, chosen.source(section.target.folder)
    methods = [*(task.name for task in skills), "data_mix", "cat"]
    records = compare(section, chosen, methods, [0], 2, out=tmp_path / "records", artifacts=tmp_path / "artifacts")
    # Asked are the folder's rows, after as many worked examples as the preset shows.
    shown = prompts.demonstrate(target.template, target.demonstrations(source)[: chosen.shots]) if chosen.shots else ""
    asked = [(e.id, shown + e.prompt, list(e.targets)) for e in target.load(source, "test", 2, 0)]
    scored = {t.name for t in skills if any(e.targets for e in t.load(chosen.source(t.folder), "test", 1, 0))}
    for record in records:
        assert [(row["id"], row["prompt"], row["targets"]) for row in record.rows()] == asked
        assert record.own.keys() == scored and (record.n, record.preset) == (2, preset)
    assert [r.parameters["rank"] for r in records] == [2] * len(skills) + [2 * len(skills)] * 2
    # Trained as the preset says, on the folder's rows: its modules, its steps.
    for config in (tmp_path / "artifacts").glob("*/adapter_config.json"):
        assert {name.rpartition(".")[2] for name in json.loads(config.read_text())["target_modules"]} == set(chosen.targets)
    told = {file.parent.name.rpartition("-")[0]: json.loads(file.read_text()) for file in (tmp_path / "artifacts").glob("*/training.json")}
    rows = {f"skill-{t.name}": len(t.load(chosen.source(t.folder), "train", 8, 0)) for t in skills}
    rows["data_mix"] = sum(rows.values())
    assert {kind: (facts["rows"], facts["steps"]) for kind, facts in told.items()} == {
        kind: (count, chosen.training.steps(count)) for kind, count in rows.items()
    }


def test_rewriting_notebook_runs_small(tiny_base, tmp_path):
    given = small(tiny_base, tmp_path) | {"preset": "embedded", "styles": ["named"], "methods": ["cat_static", "cat"]}
    run = run_notebook(PROJECT / "notebooks" / "x4_rewriting.ipynb", tmp_path / "run.ipynb", given)
    assert run.ok, f"cell {run.failed_cell}: {run.error}"
    (folder,) = (tmp_path / "out" / "records").iterdir()
    assert folder.name == "x4_rewriting_named_past_passive" and len(list(folder.glob("*.json"))) == 5


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"problem": 3}, "no parameter problem.*Did you mean problems"),
        ({"problems": "many"}, "problems is 'many'"),
    ],
)
def test_wrong_parameters_stop_before_anything_runs(tmp_path, parameters, message):
    with pytest.raises(LabError, match=message):
        run_notebook(SECTION, tmp_path / "run.ipynb", parameters)
    assert not list(tmp_path.iterdir())


def test_unknown_preset_is_told_in_the_notebook(tmp_path):
    run = run_notebook(SECTION, tmp_path / "run.ipynb", {"preset": "embeded"})
    assert not run.ok and "did you mean 'embedded'" in run.error


def test_command_line_names_what_is_wrong():
    done = subprocess.run([sys.executable, "-m", "lab", "resluts"], cwd=PROJECT, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("error: There is no command 'resluts'") and "Traceback" not in done.stderr


def test_tracked_text_names_no_machine():
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=PROJECT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    suspicious = re.compile(r"/(?:root|home)/\w|/work/")
    for name in filter(None, listed.stdout.split("\0")):
        path = PROJECT / name
        if path.suffix in (".py", ".md", ".toml", ".yml", ".ipynb", ".j2") and path != Path(__file__) and path.exists():
            assert not suspicious.search(path.read_text()), name
