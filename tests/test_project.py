"""The project itself: one set of pins, clean notebooks, every notebook runs small, no path of a machine."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import nbformat
import pytest

from lab.errors import LabError
from lab.runs import run_notebook
from lab.files import PROJECT

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


def test_atlas_notebook_runs_small(tiny_base, tmp_path):
    given = {name: value for name, value in small(tiny_base, tmp_path).items() if name != "problems"}
    given |= {"rows": 2, "methods": ["cat_static", "rank_cat", "arrow"]}
    run = run_notebook(PROJECT / "notebooks" / "x3_methods.ipynb", tmp_path / "run.ipynb", given)
    assert run.ok, f"cell {run.failed_cell}: {run.error}"


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


def test_base_notebook_runs_small(tmp_path):
    run = run_notebook(PROJECT / "notebooks" / "s0_base_model.ipynb", tmp_path / "run.ipynb", {"cases": 2})
    assert run.ok, f"cell {run.failed_cell}: {run.error}"


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
