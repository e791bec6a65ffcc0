"""Export: the folder with its card and figure, and the merge folded into the base at full rank."""

import errno
import json
import os
import shutil

import pytest
import torch
from huggingface_hub import ModelCard
from peft import PeftModel
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from lab.errors import LabError
from lab.export import folders as lab_export
from lab.export.card import FIGURE
from lab.export.folders import export, fold_into
from lab.export.report import group, report
from lab.lora.adapter import LoraAdapter
from lab.lora.base import load_base
from lab.lora.peft_io import load
from lab.lora.stacked import fold
from lab.merging import METHODS, factor_delta, merge, merge_full_rank
from tests.tiny_models import adapter, llama, logits, relative_error, two_skills


@pytest.fixture(scope="module")
def base():
    return llama()


@pytest.fixture(scope="module")
def skills(tiny_base):
    """Two skills on the tiny base with a tokenizer, of unequal rank and modules."""
    model, _ = load_base(str(tiny_base), device="cpu")
    return [
        adapter(model, "maths", 1, r=2, target_modules=["q_proj", "up_proj"]),
        adapter(model, "code", 2, r=3, use_rslora=True, target_modules=["q_proj", "down_proj"]),
    ]


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_an_export_is_what_peft_loads_and_has_a_card_that_the_hub_reads(base, tmp_path):
    adapters = [LoraAdapter(a.name, "owner/base", a.modules) for a in two_skills(base)]
    merged = merge("ties", adapters, [1, 2], rank=3, density=0.4)
    export(tmp_path / "out", merged, report=report(adapters), pad_to_rank=8)
    assert load(tmp_path / "out").recipe == merged.recipe
    live = PeftModel.from_pretrained(llama(), tmp_path / "out")
    assert relative_error(logits(live), logits(fold(llama(), merged))) < 1e-5
    card = ModelCard.load(tmp_path / "out/README.md")
    assert card.data.base_model == "owner/base" and card.data.library_name == "peft"
    assert card.data.tags == ["lora", "merge", "ties"]
    lost = 100 * merged.recipe["discarded_energy"]["total"]
    for fact in (
        METHODS["ties"].paper, METHODS["ties"].formula, "rank 8", "| density | `0.4` |", "math: 1", "code: 2",
        f"{lost:.3g} % of", *(a.digest() for a in adapters), "What fits", 'from_pretrained("owner/base")',
    ):  # fmt: skip
        assert fact in card.text, fact
    assert {p.stat().st_mode & 0o777 for p in (tmp_path / "out").iterdir()} == {0o644}
    assert FIGURE not in os.listdir(tmp_path / "out")


def test_coefficients_are_shown_as_a_figure(base, tmp_path):
    export(tmp_path / "out", merge("cat_random", two_skills(base), seed=3))
    assert (tmp_path / "out" / FIGURE).read_bytes().startswith(b"\x89PNG")
    card = (tmp_path / "out/README.md").read_text()
    assert f"({FIGURE})" in card and "base_model:" not in card  # "" is no name that the Hub knows
    assert "none: nothing was truncated" in card


def test_a_full_rank_merge_is_what_truncation_cuts(base):
    adapters = two_skills(base)
    for name in (n for n, method in METHODS.items() if group(method) == "static"):
        full, cut = merge_full_rank(name, adapters), merge(name, adapters)
        assert list(full.modules) == list(cut.modules) and full.recipe["inputs"] == cut.recipe["inputs"]
        lost = cut.recipe.get("discarded_energy", {}).get("modules", {})
        for module, update in full.modules.items():
            delta = update.delta_weight()
            assert tuple(delta.shape) == update.shape == cut.modules[module].shape
            error = (delta - cut.delta_weight(module)).norm() ** 2 / delta.norm().clamp(min=1e-9) ** 2
            assert error.item() == pytest.approx(lost.get(module, 0.0), abs=1e-5), (name, module)
    dense = merge_full_rank("ties", adapters, density=0.9)
    module = "model.layers.0.self_attn.q_proj"
    assert factor_delta(dense.modules[module].delta_weight(), 6)[1] > 0  # 4 + 2 are not enough: something would be lost


def test_folding_at_full_rank_is_the_base_plus_the_whole_update(skills, tiny_base, tmp_path):
    before, tokenizer = load_base(str(tiny_base), device="cpu")
    weights = {name: tensor.clone() for name, tensor in before.state_dict().items()}
    full = merge_full_rank("ties", skills, density=0.7)
    fold_into(str(tiny_base), full, tmp_path / "model", report=report(skills))
    after = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    for name, tensor in after.state_dict().items():
        module = name.removesuffix(".weight")
        delta = full.modules[module].delta_weight() if module in full.modules else 0
        torch.testing.assert_close(tensor, weights[name] + delta, rtol=0, atol=1e-6)
    text = "Question: 2 plus 3"
    assert AutoTokenizer.from_pretrained(tmp_path / "model")(text)["input_ids"] == tokenizer(text)["input_ids"]
    recipe = json.loads((tmp_path / "model/recipe.json").read_text())
    assert recipe["method"] == "ties" and recipe["folded_into"] == str(tiny_base)
    card = ModelCard.load(tmp_path / "model/README.md")
    assert card.data.library_name == "transformers" and "folded in at full rank" in card.text
    assert {p.stat().st_mode & 0o777 for p in (tmp_path / "model").iterdir()} == {0o644}


def test_folding_keeps_the_bases_dtype_unless_another_is_wanted(skills, tiny_base, tmp_path):
    model, tokenizer = load_base(str(tiny_base), device="cpu")
    half = tmp_path / "half"
    model.to(torch.bfloat16).save_pretrained(half)
    tokenizer.save_pretrained(half)
    merged = merge("cat_static", skills)
    module = "model.layers.0.self_attn.q_proj"
    stored = load_file(half / "model.safetensors")[f"{module}.weight"]
    for dtype, kind in ((None, torch.bfloat16), ("float32", torch.float32)):
        fold_into(str(half), merged, tmp_path / f"{dtype}", dtype=dtype)
        found = load_file(tmp_path / f"{dtype}" / "model.safetensors")[f"{module}.weight"]
        assert found.dtype == kind  # one rounding only, of the exact sum
        assert torch.equal(found, (stored.float() + merged.delta_weight(module)).to(kind))
    large = merge("cat_static", skills, [1e6, 1e6])
    with pytest.raises(LabError, match="overflows float16"):
        fold_into(str(half), large, tmp_path / "new", dtype="float16")
    assert sorted(os.listdir(tmp_path)) == ["None", "float32", "half"]


def test_nothing_half_written_stays(skills, tiny_base, tmp_path, monkeypatch):
    merged = merge("cat_static", skills)
    export(tmp_path / "out", merged)
    before = contents(tmp_path / "out")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("years of work")

    def write(folder, **options):
        export(folder, merged, **options)

    def whole(folder, **options):
        fold_into(str(tiny_base), merged, folder, **options)

    for make in (write, whole):
        with pytest.raises(LabError, match="exists already"):
            make(tmp_path / "out")
        with pytest.raises(LabError, match="not overwritten"):
            make(tmp_path / "mine", overwrite=True)
        with pytest.raises(LabError, match="dtype 'int4'"):
            make(tmp_path / "new", dtype="int4")
    for error in (OSError(errno.ENOSPC, "No space left on device"), SafetensorError("No space left on device")):

        def full(*args, error=error, **kwargs):
            raise error

        monkeypatch.setattr("lab.lora.peft_io.save_file", full)
        monkeypatch.setattr("transformers.modeling_utils.safe_save_file", full)
        for make in (write, whole):
            for target in ("new", "out"):
                with pytest.raises(LabError, match="No space left.*free some space"):
                    make(tmp_path / target, overwrite=True)
    assert sorted(os.listdir(tmp_path)) == ["mine", "out"]
    assert contents(tmp_path / "out") == before
    monkeypatch.undo()
    lab_export.export(tmp_path / "out", merge("svd", skills), overwrite=True)
    assert load(tmp_path / "out").recipe["method"] == "svd"


def test_folding_refuses_another_base(base, skills, tiny_base, tmp_path):
    with pytest.raises(LabError, match="is for another base"):
        fold_into(str(tiny_base), merge("cat_static", two_skills(base)), tmp_path / "out")
    with pytest.raises(LabError, match="does not exist"):
        fold_into(str(tmp_path / "nowhere"), merge("cat_static", skills), tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_folded_model_that_reads_back_otherwise_is_not_written(skills, tiny_base, tmp_path, monkeypatch):
    merged = merge("cat_static", skills)
    honest = LlamaForCausalLM.save_pretrained

    def other(self, folder, **settings):
        with torch.no_grad():
            self.model.layers[0].mlp.up_proj.weight.mul_(1.1)
        honest(self, folder, **settings)

    monkeypatch.setattr(LlamaForCausalLM, "save_pretrained", other)
    with pytest.raises(LabError, match="read again, answers otherwise"):
        fold_into(str(tiny_base), merged, tmp_path / "out")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("method", ["fp8", "gptq", "bitsandbytes"])
def test_nothing_is_folded_into_quantised_weights(skills, tiny_base, tmp_path, method):
    base = tmp_path / "base"
    shutil.copytree(tiny_base, base)
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": method}}))
    with pytest.raises(LabError, match=rf"quantised \({method}\).*unquantised"):
        fold_into(str(base), merge("cat_static", skills), tmp_path / "out")
    assert not (tmp_path / "out").exists()
