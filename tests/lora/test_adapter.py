"""LoraAdapter: reading what PEFT writes, writing what PEFT and engines read, refusing the rest."""

import json
import math
import os
import warnings

import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from peft import PeftModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from lab.errors import LabError
from lab.lora import peft_io
from lab.lora.adapter import LoraAdapter, LoraFactors
from lab.lora.compatibility import check_compatible, compatibility_problems
from lab.lora.peft_io import engine_rank, from_peft, load, save, to_peft
from tests.tiny_models import adapter, gpt2, llama, logits, peft_model, relative_error, tokens, two_skills

SETTINGS = {
    "plain": {},
    "rslora": {"use_rslora": True},
    "rank_pattern": {
        "rank_pattern": {"q_proj": 3, "^model.layers.1.self_attn.v_proj": 2},
        "use_rslora": True,
    },
    "alpha_pattern": {"alpha_pattern": {r".*\.1\..*q_proj": 5}},
    "regex targets": {"target_modules": r".*layers\.1.*(up|down)_proj"},
    "all-linear": {"target_modules": "all-linear"},
    "one layer": {"target_modules": ["q_proj"], "layers_to_transform": [1]},
    "gaussian init": {"init_lora_weights": "gaussian"},
    "eva without data": {"init_lora_weights": "eva"},
}


@pytest.fixture(scope="module")
def base():
    return llama()


@pytest.fixture
def folder(base, tmp_path):
    """A plain adapter as PEFT saves it."""
    peft_model(base).save_pretrained(tmp_path / "skill", save_embedding_layers=False)
    return tmp_path / "skill"


def edit_config(folder, **changes):
    config = json.loads((folder / "adapter_config.json").read_text())
    config.update(changes)
    (folder / "adapter_config.json").write_text(
        json.dumps({k: v for k, v in config.items() if v != "REMOVE"})
    )


def edit_weights(folder, change):
    path = folder / "adapter_model.safetensors"
    save_file(change(load_file(path)), path)


def with_first(tensor_change):
    def change(tensors):
        key = next(iter(tensors))
        return tensors | {key: tensor_change(tensors[key])}

    return change


# Reading


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_delta_weights_are_those_of_peft(base, tmp_path, settings):
    model = peft_model(base, **settings)
    model.save_pretrained(tmp_path / "skill", save_embedding_layers=False)
    ours = load(tmp_path / "skill")
    layers = {
        n.removeprefix("base_model.model."): m for n, m in model.named_modules() if hasattr(m, "lora_A")
    }
    assert set(ours.modules) == set(layers)
    for module, layer in layers.items():
        torch.testing.assert_close(ours.delta_weight(module), layer.get_delta_weight("default").detach())
    assert ours.digest() == from_peft(model).digest()


def test_conv1d_delta_weights_are_out_by_in(tmp_path):
    model = peft_model(gpt2(), target_modules=["c_attn", "c_fc"], fan_in_fan_out=True)
    model.save_pretrained(tmp_path / "skill", save_embedding_layers=False)
    ours = load(tmp_path / "skill")
    module = "transformer.h.0.attn.c_attn"
    assert ours.delta_weight(module).shape == (48, 16)
    reference = model.get_submodule(f"base_model.model.{module}").get_delta_weight("default").detach()
    torch.testing.assert_close(ours.delta_weight(module), reference.T)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_held_as_fp32(folder, dtype):
    exact = load(folder)
    edit_weights(folder, lambda tensors: {k: v.to(dtype) for k, v in tensors.items()})
    half = load(folder)
    for module, factors in half.modules.items():
        assert factors.A.dtype == factors.B.dtype == torch.float32
        assert torch.equal(factors.A, exact.modules[module].A.to(dtype).float())


@pytest.mark.parametrize(
    "rename",
    [
        lambda key: key.removeprefix("base_model.model."),
        lambda key: key.replace(".weight", ".default.weight"),
        lambda key: key.removeprefix("base_model.model.").replace(".weight", ".my-skill.weight"),
    ],
)
def test_every_form_of_key_is_read(folder, rename):
    expected = load(folder).digest()
    edit_weights(folder, lambda tensors: {rename(k): v for k, v in tensors.items()})
    assert load(folder).digest() == expected


def test_modules_are_in_natural_order_and_names_default_to_the_folder(folder):
    factors = LoraFactors(torch.ones(1, 2), torch.ones(3, 1))
    names = ["model.layers.10.q", "model.layers.2.q", "lm_head", "model.layers.2.k"]
    ordered = LoraAdapter("a", "", {name: factors for name in names})
    assert list(ordered.modules) == ["lm_head", "model.layers.2.k", "model.layers.2.q", "model.layers.10.q"]
    assert load(folder).name == "skill"
    assert load(str(folder) + "/", name="maths", base="owner/base").name == "maths"


BAD_CONFIGS = {
    "DoRA": {"use_dora": True},
    "lora_bias": {"lora_bias": True},
    "bias='all'": {"bias": "all"},
    "modules_to_save": {"modules_to_save": ["lm_head"]},
    "trainable tokens": {"trainable_token_indices": [1, 2]},
    "layer_replication": {"layer_replication": [[0, 2], [1, 2]]},
    "target_parameters": {"target_parameters": ["experts.gate_up_proj"]},
    "QALoRA": {"use_qalora": True},
    "BD-LoRA": {"use_bdlora": {"nblocks": 2}},
    "Arrow": {"arrow_config": {"top_k": 2}},
    "aLoRA": {"alora_invocation_tokens": [1]},
    "KaSA": {"kasa_config": {"beta": 1e-4}},
    "VeLoRA": {"velora_config": {"scale": 1.0}},
    "MonteCLoRA": {"monteclora_config": {"num_samples": 2}},
    "pissa": {"init_lora_weights": "pissa_niter_4"},
    "olora": {"init_lora_weights": "olora"},
    "loftq": {"init_lora_weights": "loftq"},
    "IA3": {"peft_type": "IA3"},
    "use_something_new": {"use_something_new": True},
    "no peft_type": {"peft_type": "REMOVE"},
    "null as r": {"r": None},
    "rank 5": {"r": 5},
    "rank 0": {"r": 0},
    "rank 3": {"rank_pattern": {"q_proj": 3}},
}


@pytest.mark.parametrize("says", BAD_CONFIGS)
def test_a_config_that_factors_cannot_represent_is_refused_by_name(folder, says):
    edit_config(folder, **BAD_CONFIGS[says])
    with pytest.raises(LabError, match=says):
        load(folder)


def test_real_peft_variants_are_refused_live_and_saved(base, tmp_path):
    for says, settings in {"DoRA": {"use_dora": True}, "lora_bias": {"lora_bias": True}}.items():
        model = peft_model(base, **settings)
        model.save_pretrained(tmp_path / says, save_embedding_layers=False)
        with pytest.raises(LabError, match=says):
            load(tmp_path / says)
        with pytest.raises(LabError, match=says):
            from_peft(model)
    embedding = peft_model(base, target_modules=["embed_tokens", "q_proj"])
    embedding.save_pretrained(tmp_path / "embedding", save_embedding_layers=False)
    for read in (lambda: load(tmp_path / "embedding"), lambda: from_peft(embedding)):
        with pytest.raises(LabError, match="embedding"):
            read()


BAD_WEIGHTS = {
    "NaN": with_first(lambda t: t.fill_(math.nan)),
    "infinite": with_first(lambda t: t.fill_(math.inf)),
    "int8": with_first(lambda t: t.to(torch.int8)),
    "only linear": with_first(lambda t: t[:, :, None, None].contiguous()),
    "only lora_": lambda tensors: dict(list(tensors.items())[1:]),
    "no LoRA weights": lambda tensors: {},
    "whole weights": lambda tensors: tensors | {"base_model.model.lm_head.weight": torch.ones(2, 2)},
    "DoRA": lambda tensors: tensors | {"base_model.model.a.lora_magnitude_vector": torch.ones(2)},
    "lora_bias": lambda tensors: tensors | {"base_model.model.a.lora_B.bias": torch.ones(2)},
    "on an embedding": lambda tensors: tensors | {"base_model.model.a.lora_embedding_A": torch.ones(2, 2)},
    "two adapter names": lambda tensors: (
        tensors | {k.replace(".weight", ".other.weight"): v.clone() for k, v in tensors.items()}
    ),
    "rank 4": with_first(lambda t: t[:2, :2].contiguous()),
}


@pytest.mark.parametrize("says", BAD_WEIGHTS)
def test_bad_weights_are_refused_with_a_reason(folder, says):
    edit_weights(folder, BAD_WEIGHTS[says])
    with pytest.raises(LabError, match=says):
        load(folder)


def test_missing_broken_and_pickled_files_are_refused(folder, tmp_path):
    weights = folder / "adapter_model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[: len(content) // 2])
    with pytest.raises(LabError, match="truncated"):
        load(folder)
    weights.unlink()
    with pytest.raises(LabError, match=r"has no adapter_model.safetensors"):
        load(folder)
    (folder / "adapter_model.bin").write_bytes(b"never read")
    with pytest.raises(LabError, match="pickle"):
        load(folder)
    (folder / "adapter_config.json").write_text("{half")
    with pytest.raises(LabError, match="JSON"):
        load(folder)
    (folder / "adapter_config.json").unlink()
    with pytest.raises(LabError, match="has no adapter_config.json"):
        load(folder)
    with pytest.raises(LabError, match="not a folder"):
        load(tmp_path / "nowhere")


def test_a_hub_id_is_fetched_without_pickles_and_says_when_there_is_no_network(folder, monkeypatch):
    asked = {}

    def snapshot(repo, revision, allow_patterns):
        asked.update(repo=repo, revision=revision, patterns=allow_patterns)
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    assert load("owner/maths", revision="abc").name == "maths"
    assert asked == {
        "repo": "owner/maths",
        "revision": "abc",
        "patterns": ["adapter_config.json", "adapter_model.safetensors"],
    }

    def offline(*args, **kwargs):
        raise LocalEntryNotFoundError("no connection")

    monkeypatch.setattr("huggingface_hub.snapshot_download", offline)
    with pytest.raises(LabError, match="Hub cannot be reached"):
        load("owner/maths")


# Writing


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_saved_adapter_gives_the_same_logits_in_peft(base, tmp_path, settings):
    """Also PEFT #3737 (rank_pattern) and #3449 (rsLoRA flag): the export has neither."""
    model = peft_model(base, **settings)
    save(tmp_path / "out", from_peft(model))
    config = json.loads((tmp_path / "out/adapter_config.json").read_text())
    assert config["r"] == config["lora_alpha"] and not config["use_rslora"]
    assert config["rank_pattern"] == config["alpha_pattern"] == {}
    reloaded = PeftModel.from_pretrained(llama(), tmp_path / "out")
    assert relative_error(logits(reloaded), logits(model)) < 1e-5
    assert relative_error(logits(reloaded.merge_and_unload()), logits(model)) < 1e-5
    assert relative_error(logits(to_peft(llama(), from_peft(model))), logits(model)) < 1e-5


def test_saved_conv1d_adapter_gives_the_same_logits_in_peft(tmp_path):
    model = peft_model(gpt2(), target_modules=["c_attn", "c_proj"], rank_pattern={"c_attn": 2})
    save(tmp_path / "out", from_peft(model))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        reloaded = PeftModel.from_pretrained(gpt2(), tmp_path / "out")
    assert relative_error(logits(reloaded), logits(model)) < 1e-5


def test_save_keeps_base_and_recipe_and_pads(base, tmp_path):
    recipe = {"method": "cat_static", "weights": {"maths": 0.5}}
    original = LoraAdapter("a", "owner/base", two_skills(base)[1].modules, recipe)
    save(tmp_path / "out", original, pad_to_rank=engine_rank(original.rank), dtype="bfloat16")
    assert json.loads((tmp_path / "out/recipe.json").read_text()) == recipe
    with safe_open(tmp_path / "out/adapter_model.safetensors", "pt") as file:
        assert json.loads(file.metadata()["recipe"]) == recipe
        assert {file.get_tensor(key).dtype for key in file.keys()} == {torch.bfloat16}
    reloaded = load(tmp_path / "out")
    assert reloaded.base == "owner/base" and reloaded.recipe == recipe
    assert {factors.rank for factors in reloaded.modules.values()} == {8}
    for module in original.modules:
        assert relative_error(reloaded.delta_weight(module), original.delta_weight(module)) < 0.01


def test_save_refuses_and_leaves_nothing_behind(base, tmp_path, monkeypatch):
    skill = adapter(base, "a")
    save(tmp_path / "out", skill)
    before = {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()}
    with pytest.raises(LabError, match="exists"):
        save(tmp_path / "out", skill)
    with pytest.raises(LabError, match="does not fit into rank 2"):
        save(tmp_path / "new", skill, pad_to_rank=2)
    with pytest.raises(LabError, match="dtype 'int4'"):
        save(tmp_path / "new", skill, dtype="int4")
    module, factors = next(iter(skill.modules.items()))
    with pytest.raises(LabError, match="overflows float16"):
        save(
            tmp_path / "new",
            LoraAdapter("a", "", {module: LoraFactors(factors.A * 1e6, factors.B)}),
            dtype="float16",
        )

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(peft_io, "save_file", full)
    for target in ("new", "out"):
        with pytest.raises(LabError, match="No space left"):
            save(tmp_path / target, skill, overwrite=True)
    assert os.listdir(tmp_path) == ["out"]
    assert {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()} == before


def test_engine_ranks():
    assert [engine_rank(r) for r in (1, 8, 9, 64, 257)] == [8, 8, 16, 64, 320]
    with pytest.raises(LabError, match="above 512"):
        engine_rank(513)


def test_to_peft_refuses_a_taken_name(base):
    """Peer defect (documented as the pinned PEFT has it): add_weighted_adapter returns silently when the name
    exists.
    """
    first, second = two_skills(base)
    model = to_peft(llama(), first, "a")
    before = from_peft(model, "a").digest()
    model.add_weighted_adapter(["a"], [5.0], "a", combination_type="cat")
    assert from_peft(model, "a").digest() == before
    with pytest.raises(LabError, match="'a' already"):
        to_peft(model, second, "a")
    to_peft(model, second, "b")
    model.set_adapter("b")
    assert relative_error(logits(model), logits(to_peft(llama(), second))) < 1e-6


# What fits together


def test_unequal_ranks_and_modules_fit(base):
    assert compatibility_problems(two_skills(base), base) == []
    check_compatible(two_skills(base), base)


def renamed(skill, **changes):
    return LoraAdapter(**({"name": skill.name, "base": skill.base, "modules": skill.modules} | changes))


def test_what_does_not_fit_is_said(base):
    first, second = two_skills(base)
    with pytest.raises(LabError, match="no adapter to merge"):
        check_compatible([])
    with pytest.raises(LabError, match="2 adapters are called 'math'"):
        check_compatible([first, renamed(second, name="math")])
    with pytest.raises(LabError, match="different bases.*'math' on a/b.*'code' on c/d"):
        check_compatible([renamed(first, base="a/b"), renamed(second, base="c/d")])
    assert compatibility_problems([renamed(first, base="a/b"), renamed(second, base="")]) == []
    module = "model.layers.0.self_attn.q_proj"
    wide = {**second.modules, module: LoraFactors(torch.ones(2, 99), torch.ones(16, 2))}
    with pytest.raises(LabError, match=f"{module}.*different shapes.*99"):
        check_compatible([first, renamed(second, modules=wide)])
    with pytest.raises(LabError, match="no module in common"):
        check_compatible([first, renamed(second, modules={f"x.{m}": f for m, f in second.modules.items()})])
    with pytest.raises(LabError, match="q_proj.*does not have"):
        check_compatible([first], gpt2())
    with pytest.raises(LabError, match="is for another base"):
        check_compatible([renamed(second, modules=wide)], base)
    with pytest.raises(LabError, match="is a Embedding"):
        check_compatible([renamed(first, modules={"model.embed_tokens": first.modules[module]})], base)
    with pytest.raises(LabError, match="does not change module 'x'"):
        first.delta_weight("x")
    with pytest.raises(LabError, match="do not fit together"):
        LoraFactors(torch.ones(2, 3), torch.ones(3, 3))
    with pytest.raises(LabError, match="changes no module"):
        LoraAdapter("a", "", {})


def test_the_helpers_make_adapters_that_matter(base):
    assert relative_error(logits(peft_model(base)), logits(base)) > 1e-3
    assert tokens().shape == (2, 7)
