"""The base model: the shipped one is what its recipe says, and a wrong folder is named."""

import importlib.util
import json
import shutil

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from lab.errors import LabError
from lab.evaluation.generate import generate
from lab.experiments.presets import PRESETS, get_preset
from lab.export.report import base_layout
from lab.lora.base import base_folder, base_hash, check_base, load_base
from lab.lora.peft_io import to_peft
from lab.lora.stacked import attach, fold
from tests.tiny_models import adapter


def test_embedded_base_loads_with_plain_transformers_and_is_small():
    folder = base_folder("embedded")
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert isinstance(model, LlamaForCausalLM)
    facts = json.loads((folder / "recipe.json").read_text())
    assert sum(p.numel() for p in model.parameters()) == facts["parameters"]
    assert sum(f.stat().st_size for f in folder.iterdir()) < 16e6
    assert len(AutoTokenizer.from_pretrained(folder)) == model.config.vocab_size


def test_embedded_base_is_a_language_model_of_its_world():
    model, tokenizer = load_base("embedded")
    prompts = ["Take 48213. Add 5907. Subtract 311.\nPython:\ntotal = 48213\n", "23 plus 4 is 27. 31 minus 5 is", "731 ; river ; 5502\n"]
    python, total, copied = generate(model, tokenizer, prompts, max_new_tokens=24)
    assert python.startswith("total = total + 5907\ntotal = total - 311")
    assert total.startswith(" 26.")
    assert copied == "731 ; river ; 5502"


def test_wrong_folders_are_named(tmp_path, tiny_base):
    with pytest.raises(LabError, match="does not exist"):
        load_base(str(tmp_path / "nowhere"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(LabError, match="config.json is missing"):
        load_base(str(tmp_path / "empty"))
    pickled = tmp_path / "pickled"
    shutil.copytree(tiny_base, pickled)
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    with pytest.raises(LabError, match="pickled"):
        load_base(str(pickled))
    truncated = tmp_path / "truncated"
    shutil.copytree(tiny_base, truncated)
    whole = (truncated / "model.safetensors").read_bytes()
    (truncated / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(LabError, match="could not be loaded"):
        load_base(str(truncated))


def _quantised(tiny_base, folder, settings):
    shutil.copytree(tiny_base, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": settings}))
    return str(folder)


@pytest.mark.parametrize("method", ["fp8", "gptq", "awq", "compressed-tensors", "hqq", "something_new"])
def test_quantised_bases_are_refused_by_name_wherever_a_base_is_read(tiny_base, tmp_path, method):
    base = _quantised(tiny_base, tmp_path / "base", {"quant_method": method, "weight_block_size": [128, 128]})
    for read in (load_base, check_base, base_layout):
        with pytest.raises(LabError, match=rf"quantised \({method}\)"):
            read(base)


def test_bitsandbytes_is_named_where_it_is_not_installed(tiny_base, tmp_path, monkeypatch):
    base = _quantised(tiny_base, tmp_path / "base", {"quant_method": "bitsandbytes", "load_in_4bit": True})
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "bitsandbytes" else found(name, *rest))
    for read in (load_base, check_base, base_layout):
        with pytest.raises(LabError, match="bitsandbytes, which is not installed"):
            read(base)


@pytest.mark.parametrize("bits", [4, 8])
def test_skills_work_on_a_base_that_bitsandbytes_quantised(tmp_path, bits):
    """Attached, they give PEFT's logits; folding is refused. On the shipped base: its blocks are wider than the tiny ones."""
    pytest.importorskip("bitsandbytes")
    whole = base_folder("embedded")
    from transformers import BitsAndBytesConfig

    settings = BitsAndBytesConfig(load_in_4bit=bits == 4, load_in_8bit=bits == 8)
    AutoModelForCausalLM.from_pretrained(whole, quantization_config=settings, device_map="cpu").save_pretrained(tmp_path / "base")
    AutoTokenizer.from_pretrained(whole).save_pretrained(tmp_path / "base")
    skill = adapter(AutoModelForCausalLM.from_pretrained(whole), "maths", target_modules=["q_proj", "down_proj"])
    model, tokenizer = load_base(str(tmp_path / "base"), device="cpu")
    ids = torch.tensor([tokenizer("2 plus 3")["input_ids"]])
    with torch.no_grad(), attach(model, [skill]) as stack:
        stack.set_coefficients(torch.ones(1, len(skill.modules)))
        ours = model(input_ids=ids).logits
        text = generate(model, tokenizer, ["2 plus 3"], max_new_tokens=4)
    with pytest.raises(LabError, match="quantised"):
        fold(model, skill)
    with torch.no_grad():
        live = to_peft(load_base(str(tmp_path / "base"), device="cpu")[0], skill)
        assert torch.allclose(live(input_ids=ids).logits.float(), ours.float(), atol=1e-2 if bits == 8 else 1e-4)
    assert len(text) == 1


def test_scales_beside_the_weights_are_not_overlooked(tiny_base, tmp_path):
    """Blocks of fp8 whose configuration lost its word of them would be read without their scales."""
    shutil.copytree(tiny_base, tmp_path / "base")
    weights = load_file(tmp_path / "base/model.safetensors")
    key = next(key for key in weights if key.endswith("q_proj.weight"))
    save_file(weights | {f"{key}_scale_inv": torch.ones(1, 1)}, tmp_path / "base/model.safetensors", metadata={"format": "pt"})
    with pytest.raises(LabError, match="weight_scale_inv.*says nothing"):
        load_base(str(tmp_path / "base"))


def test_hub_without_network_is_one_sentence(monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(LabError, match="somebody/nothing.*Hub"):
        load_base("somebody/nothing")


def test_no_gpu_is_named(tiny_base):
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(LabError, match="no GPU"):
        load_base(str(tiny_base), device="cuda")


def test_base_hash_follows_the_weights(tmp_path, tiny_base):
    copied = tmp_path / "copy"
    shutil.copytree(tiny_base, copied)
    assert base_hash(str(copied)) == base_hash(str(tiny_base))
    (copied / "config.json").write_text("{}")
    assert base_hash(str(copied)) != base_hash(str(tiny_base))


def test_generation_does_not_depend_on_the_batch(tiny_base):
    model, tokenizer = load_base(str(tiny_base))
    prompts = ["Take 5.", "Begin with 7. Add 3. Subtract 2. Then add 4.", "Ann has 3 nuts."]
    together = generate(model, tokenizer, prompts, max_new_tokens=8)
    alone = [generate(model, tokenizer, [p], max_new_tokens=8)[0] for p in prompts]
    assert together == alone
    assert generate(model, tokenizer, prompts[::-1], max_new_tokens=8) == together[::-1]


def test_generation_stops_at_stop_strings_and_refuses_bad_prompts():
    model, tokenizer = load_base("embedded")
    (text,) = generate(model, tokenizer, ["Take 5. Add 3.\nSigns:"], max_new_tokens=12)
    assert text.startswith(" 5, + 3.")
    assert generate(model, tokenizer, ["Take 5. Add 3.\nSigns:"], max_new_tokens=12, stop=("3", "+")) == [" 5, "]
    with pytest.raises(LabError, match="empty"):
        generate(model, tokenizer, [""], max_new_tokens=4)
    with pytest.raises(LabError, match="exceed the model's 1024"):
        generate(model, tokenizer, ["12 " * 600], max_new_tokens=4)


def test_generation_goes_on_where_it_was(tiny_base, tmp_path):
    model, tokenizer = load_base(str(tiny_base))
    prompts = [f"Take {n}." for n in range(7)]
    options = {"max_new_tokens": 5, "temperature": 1.0, "batch_size": 3, "seed": 4}
    whole = generate(model, tokenizer, prompts, **options, partial=tmp_path / "whole")
    (tmp_path / "part").write_text(json.dumps(json.loads((tmp_path / "whole").read_text())[:1]))
    assert generate(model, tokenizer, prompts, **options, partial=tmp_path / "part") == whole
    other = {**options, "batch_size": 2, "temperature": 0.0}
    assert generate(model, tokenizer, prompts, **other, partial=tmp_path / "part") == generate(model, tokenizer, prompts, **other)


def test_generation_ignores_the_base_models_own_settings(tiny_base):
    model, tokenizer = load_base(str(tiny_base))
    before = generate(model, tokenizer, ["Take 5. Add 3."], max_new_tokens=12)
    model.generation_config.repetition_penalty = 5.0
    model.generation_config.no_repeat_ngram_size = 1
    assert generate(model, tokenizer, ["Take 5. Add 3."], max_new_tokens=12) == before


def test_sampling_is_seeded(tiny_base):
    model, tokenizer = load_base(str(tiny_base))
    options = {"max_new_tokens": 10, "temperature": 1.0, "top_p": 0.95}
    first = generate(model, tokenizer, ["Take 5."], seed=1, **options)
    assert first == generate(model, tokenizer, ["Take 5."], seed=1, **options)
    assert first != generate(model, tokenizer, ["Take 5."], seed=2, **options)


def test_presets_reject_nonsense():
    with pytest.raises(LabError, match="no preset 'embeded'; did you mean 'embedded'"):
        get_preset("embeded")
    with pytest.raises(LabError, match="no field 'rnk'; did you mean 'rank'"):
        get_preset("embedded", rnk=3)
    wrong = {
        "rank": 0, "dropout": 1.0, "coefficient_share": 0.0, "train_rows": "500", "precision": "int8", "learning_rate": "3e-4",
        "coefficient_rates": 0.1, "dtype": "fp16", "targets": "q_proj", "temperature": -1, "max_new_tokens": 0, "top_p": 0, "warmup": -1,
        "data": "", "lora_alpha": True,
    }  # fmt: skip
    for field, value in wrong.items():
        with pytest.raises(LabError, match=f"{field} is "):
            get_preset("embedded", **{field: value})
    assert set(PRESETS) == {"embedded", "laptop", "small", "paper"}
    paper = PRESETS["paper"]
    assert (paper.rank, paper.lora_alpha, paper.dropout, paper.learning_rate, paper.epochs) == (32, 64, 0.05, 3e-4, 3)
