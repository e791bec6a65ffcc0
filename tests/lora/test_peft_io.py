"""Adapters as they are in the wild: what PEFT drops is left out and said, what it cannot mean is refused in one sentence, in bounded time."""

import dataclasses
import json
import re
import shutil
import time
import warnings

import pytest
import torch
from peft import LoraConfig, PeftModel
from safetensors.torch import load_file, save_file

from lab.errors import LabError
from lab.export.report import inspect
from lab.lora.adapter import LoraAdapter, LoraFactors
from lab.lora.compatibility import compatibility_problems
from lab.lora.module_names import natural_order
from lab.lora.peft_io import load, save
from tests.campaigns.adapters import HANGING, campaign
from tests.tiny_models import llama, logits, peft_model, relative_error

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


@pytest.fixture
def folder(tmp_path):
    peft_model(llama(), target_modules=["q_proj", "down_proj"]).save_pretrained(tmp_path / "skill", save_embedding_layers=False)
    return tmp_path / "skill"


def settings(folder, **changes):
    config = json.loads((folder / CONFIG).read_text()) | changes
    (folder / CONFIG).write_text(json.dumps({key: value for key, value in config.items() if value != "REMOVE"}))


def keys(folder, rename):
    save_file({rename(key): tensor for key, tensor in load_file(folder / WEIGHTS).items()}, folder / WEIGHTS)


def from_peft_folder(folder):
    return logits(PeftModel.from_pretrained(llama(), folder).eval())


@pytest.mark.parametrize(
    ("changes", "left", "setting"),
    [
        ({"target_modules": ["q_proj"]}, ["0.self_attn.q_proj", "1.self_attn.q_proj"], "target_modules"),
        ({"target_modules": r".*\.1\..*(q_proj|down_proj)"}, ["1.mlp.down_proj", "1.self_attn.q_proj"], "target_modules"),
        ({"exclude_modules": ["mlp.down_proj"]}, ["0.self_attn.q_proj", "1.self_attn.q_proj"], "exclude_modules"),
        ({"exclude_modules": ".*q_proj"}, ["0.mlp.down_proj", "1.mlp.down_proj"], "exclude_modules"),
        ({"layers_to_transform": 1}, ["1.mlp.down_proj", "1.self_attn.q_proj"], "layers_to_transform"),
        ({"layers_to_transform": [0], "layers_pattern": "layers"}, ["0.mlp.down_proj", "0.self_attn.q_proj"], "layers_to_transform"),
        (  # a module listed by its whole name is in, whatever its layer
            {"layers_to_transform": [1], "target_modules": ["model.layers.0.mlp.down_proj", "q_proj"]},
            ["0.mlp.down_proj", "1.self_attn.q_proj"], "target_modules",
        ),
    ],
)  # fmt: skip
def test_what_the_configuration_leaves_out_is_left_out_as_in_peft_and_said(folder, tmp_path, changes, left, setting):
    settings(folder, **changes)
    adapter = load(folder)
    assert list(adapter.modules) == [f"model.layers.{module}" for module in left]
    assert any(note.startswith(f"{setting} leaves out") for note in adapter.notes)
    save(tmp_path / "out", adapter)
    assert relative_error(from_peft_folder(tmp_path / "out"), from_peft_folder(folder)) < 1e-6
    assert load(tmp_path / "out").notes == ()
    report, _ = inspect([folder])
    assert f"{setting} leaves out" in report.text()


def test_an_empty_setting_that_peft_refuses_is_refused(folder):
    """PEFT takes null for "not asked for"; of an empty value of another kind it refuses some, and says so."""
    refused = []
    for name in sorted(field.name for field in dataclasses.fields(LoraConfig)):
        for value in (None, False, 0, -0.0, "", [], {}):
            config = json.loads((folder / CONFIG).read_text()) | {name: value}
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    LoraConfig(**config)
            except Exception:  # whatever it raises, it refuses
                refused.append((name, value))
                settings(folder.parent / shutil.copytree(folder, folder.with_name(f"case-{len(refused)}")), **{name: value})
    assert ("corda_config", -0.0) in refused and ("kasa_config", False) in refused
    for number, case in enumerate(refused, 1):
        with pytest.raises(LabError):
            load(folder.with_name(f"case-{number}"))
            raise AssertionError(case)


def test_an_empty_list_of_trainable_tokens_is_refused_as_peft_fails_on_it(folder):
    settings(folder, trainable_token_indices=[])
    with pytest.raises(KeyError, match="trainable_tokens"):
        from_peft_folder(folder)
    with pytest.raises(LabError, match="trainable_token_indices, not null"):
        load(folder)


@pytest.mark.parametrize("setting", ["target_modules", "exclude_modules", "rank_pattern", "alpha_pattern"])
@pytest.mark.parametrize("expression", HANGING)
def test_an_expression_that_does_not_end_is_stopped(folder, setting, expression):
    """Read, or refused in one sentence: both in the time that all of an adapter's expressions together may take."""
    settings(folder, **{setting: {expression: 4} if "pattern" in setting else expression})
    start = time.process_time()
    try:
        load(folder)
    except LabError as error:
        assert "takes too long" in str(error) or "leaves out every module" in str(error)
    assert time.process_time() - start < 5  # a quarter of a second, and the reading


def test_an_endless_expression_is_named(folder):
    settings(folder, exclude_modules=HANGING[-1])
    with pytest.raises(LabError, match="takes too long to match"):
        load(folder)


@pytest.mark.parametrize(
    ("rename", "note"),
    [
        (lambda key: key.removeprefix("base_model.model."), "keys without"),
        (lambda key: key.replace(".weight", ".maths.weight"), r"an adapter's name in them.*'maths'"),
        (lambda key: key.replace("base_model.model.", "base_model.model._orig_mod."), "taken off"),
        (lambda key: "_orig_mod." + key, "taken off"),
        (lambda key: key.replace(".self_attn", "._fsdp_wrapped_module.self_attn"), "taken off"),
        (lambda key: key.replace(".mlp", "._checkpoint_wrapped_module._orig_mod.mlp"), "taken off"),
    ],
)
def test_keys_of_wrapped_models_are_read_with_a_note_and_written_as_peft_reads_them(folder, tmp_path, rename, note):
    expected, plain = load(folder), from_peft_folder(folder)
    assert expected.notes == ()
    keys(folder, rename)
    adapter = load(folder)
    assert adapter.digest() == expected.digest()
    assert any(re.search(note, said) for said in adapter.notes)
    save(tmp_path / "out", adapter)
    assert relative_error(from_peft_folder(tmp_path / "out"), plain) < 1e-6


@pytest.mark.parametrize(
    ("rename", "says"),
    [
        (lambda key: key.replace("base_model.model.", "base_model.model.base_model.model."), "as a wrapped model does"),
        (lambda key: key.replace("base_model.model.", "base_model.model.module."), "as a wrapped model does"),
        (lambda key: key.replace("q_proj", "q_proj.base_layer"), "no name of a module"),
        (lambda key: key.replace("layers.1", "layers." + "9" * 5000), "no name of a module"),
        (lambda key: key.replace("layers.1", "layers.²"), "no name of a module"),
        (lambda key: key.replace("mlp.down_proj", "block_sparse_moe.experts.3.w2"), "experts one by one"),
    ],
)
def test_names_without_sense_are_refused_without_a_base(folder, rename, says):
    keys(folder, rename)
    with pytest.raises(LabError, match=says) as error:
        load(folder)
    assert len(str(error.value)) < 500


ONE_SENTENCE = {
    "rank_pattern": [[1], "x", {"q_proj": 10**400}, {"(": 4}, {"a{99999999999}": 4}, {"(" * 3000: 4}, None],
    "alpha_pattern": [{"q_proj": "8"}, {"q_proj": None}, 3],
    "r": [4.0, "4", True, 10**400, [4]],
    "lora_alpha": [10**400, float("nan"), float("inf"), "8", {}],
    "target_modules": ["", [], None, "REMOVE", [1], {"q_proj": 1}, "(", ["nothing"]],
    "exclude_modules": [3, "[z-a]", [None]],
    "layers_to_transform": ["1", [True], 1.0],
    "layers_pattern": [["layers"]],
    "base_model_name_or_path": [{}, 3, ["a"], "a" * 100_000],
    "task_type": ["SEQ_CLS", "SEQ_2_SEQ_LM", "TOKEN_CLS", 3],
    "init_lora_weights": ["something", 3],
    "megatron_config": [{"a": 1}],
}


@pytest.mark.parametrize(("setting", "value"), [(name, value) for name, values in ONE_SENTENCE.items() for value in values], ids=str)
def test_bad_settings_are_one_sentence(folder, setting, value):
    settings(folder, **{setting: value})
    with pytest.raises(LabError) as error:
        load(folder)
    assert len(str(error.value)) < 600
    inspect([folder])[0].text()


def test_texts_nested_a_hundred_thousand_deep_are_one_sentence(folder):
    text = (folder / CONFIG).read_text()
    (folder / CONFIG).write_text(text.rstrip()[:-1] + ', "auto_mapping": ' + '{"a":' * 100_000 + "1" + "}" * 100_000 + "}")
    with pytest.raises(LabError, match="cannot be read as JSON"):
        load(folder)
    (folder / CONFIG).write_text(text)
    save_file(load_file(folder / WEIGHTS), folder / WEIGHTS, metadata={"recipe": "[" * 100_000})
    assert load(folder).recipe == {}


def test_factors_that_overflow_are_refused():
    huge = LoraFactors(torch.full((1, 2), 3e38), torch.full((2, 1), 1e-30))
    with pytest.raises(LabError, match=r"values up to 3e\+38 in module 'q'"):
        LoraAdapter("a", "", {"q": huge})
    product = LoraFactors(torch.full((1, 2), 1e7), torch.full((2, 1), 1e7))
    with pytest.raises(LabError, match="no training gives"):
        LoraAdapter("a", "", {"q": product})
    assert LoraAdapter("a", "", {"q": LoraFactors(torch.full((1, 2), 1e5), torch.full((2, 1), 1e5))}).rank == 1


def test_any_name_has_a_place_in_the_order():
    names = ["layers.10.q", "layers.2.q", "layers.².q", "layers." + "9" * 5000, "layers.٣"]
    assert sorted(names, key=natural_order)[:2] == ["layers.2.q", "layers.10.q"]


def test_empty_tensors_shards_and_folders_of_folders_are_named(folder, tmp_path):
    kept = load_file(folder / WEIGHTS)
    save_file({key: torch.empty(0) for key in kept}, folder / WEIGHTS)
    with pytest.raises(LabError, match="empty tensors.*ZeRO-3"):
        load(folder)
    outer = tmp_path / "outer"
    for name in ("checkpoint-100", "checkpoint-20", "default"):
        shutil.copytree(folder, outer / name)
    with pytest.raises(LabError, match="'default', 'checkpoint-20', 'checkpoint-100'; give one"):
        load(outer)
    (folder / WEIGHTS).rename(folder / "adapter_model-00001-of-00002.safetensors")
    with pytest.raises(LabError, match="several files"):
        load(folder)


def test_fused_experts_are_named_where_the_adapter_has_single_ones():
    from transformers import MixtralConfig, MixtralForCausalLM

    config = MixtralConfig(
        vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2,
        num_local_experts=2,
    )  # fmt: skip
    factors = LoraFactors(torch.ones(1, 16), torch.ones(24, 1))
    adapter = LoraAdapter("a", "", {"model.layers.0.mlp.experts.1.up_proj": factors})
    (problem,) = compatibility_problems([adapter], MixtralForCausalLM(config))
    assert "one by one" in problem and "'model.layers.0.mlp.experts.1.up_proj'" in problem


def test_a_sample_of_the_campaign_is_clean():
    """The whole of it: python -m tests.campaigns.adapters."""
    found = campaign(60, seed=11)
    assert found.tried == 60 and found.clean, found.text()
