"""Out to the servers: each engine's rules on written folders, and llama.cpp itself where it is found."""

import json
import os
import shutil
import subprocess
import warnings
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import GPT2Config, LlamaConfig

from lab.cli.main import main
from lab.errors import LabError
from lab.export.folders import export
from lab.export.gguf import FILE, adapter_gguf
from lab.export.serving import engines
from lab.lora.adapter import LoraAdapter, filled
from lab.lora.base import load_base
from lab.lora.gguf import packed_file
from lab.lora.peft_io import load, save, to_peft
from tests.tiny_models import adapter, gpt2, llama, logits, peft_model, relative_error

NODE = os.environ.get("SOUP_LAB_NODE_LLAMA", "")  # a folder in which `npm install node-llama-cpp` was run


@pytest.fixture(scope="module")
def even():
    return adapter(llama(), "even", target_modules=["q_proj", "v_proj"])


@pytest.fixture(scope="module")
def uneven():
    """Layer 0 lacks v_proj, layer 1 has both."""
    return adapter(llama(), "uneven", target_modules=r".*q_proj|.*1\.self_attn\.v_proj")


def config_of(folder):
    return json.loads((folder / "adapter_config.json").read_text())


def told(folder):
    return {found.engine: found for found in engines(folder)}


def test_kinds_are_written_where_every_layer_has_them_and_whole_names_elsewhere(even, uneven, tmp_path):
    for skill, expected in ((even, ["q_proj", "v_proj"]), (uneven, list(uneven.modules)), (filled(uneven), ["q_proj", "v_proj"])):
        save(tmp_path / "out", skill, overwrite=True)
        assert config_of(tmp_path / "out")["target_modules"] == expected
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)  # PEFT warns of factors that it misses or does not expect
            live = PeftModel.from_pretrained(llama(), tmp_path / "out")
        assert relative_error(logits(live.eval()), logits(to_peft(llama(), skill).eval())) < 1e-6
        assert load(tmp_path / "out").notes == ()
    head = LoraAdapter("head", "", {**even.modules, "lm_head": even.modules["model.layers.0.self_attn.q_proj"]})
    save(tmp_path / "head", head)
    assert config_of(tmp_path / "head")["target_modules"] == list(head.modules)


def test_filling_changes_nothing_but_the_modules(uneven):
    more = filled(uneven)
    assert set(more.modules) - set(uneven.modules) == {"model.layers.0.self_attn.v_proj"}
    assert not more.delta_weight("model.layers.0.self_attn.v_proj").any()
    assert relative_error(logits(to_peft(llama(), more).eval()), logits(to_peft(llama(), uneven).eval())) < 1e-6
    assert filled(more).digest() == more.digest()


def test_what_the_engines_say_to_a_folder(even, uneven, tmp_path):
    base = LoraAdapter("even", "owner/base", even.modules)
    export(tmp_path / "even", base)
    said = told(tmp_path / "even")
    assert not any(found.reason for found in said.values())
    assert said["vLLM"].note == "--max-lora-rank 8"
    card = (tmp_path / "even/README.md").read_text()
    assert 'vllm serve "owner/base" --enable-lora --max-lora-rank 8' in card and "sglang" in card and "llama-server" in card
    save(tmp_path / "uneven", uneven)
    said = told(tmp_path / "uneven")
    assert "without dots" in said["SGLang"].reason and "lacks v_proj" in said["LoRAX, TGI"].reason
    assert "names no base" in said["llama.cpp"].reason
    export(tmp_path / "filled", LoraAdapter("a", "owner/base", uneven.modules), fill_layers=True)
    assert not any(found.reason for found in told(tmp_path / "filled").values())
    save(tmp_path / "padded", base, pad_to_rank=16)  # v_proj has 8 rows
    assert "transposes" in told(tmp_path / "padded")["Ollama"].reason
    save(tmp_path / "wide", base, pad_to_rank=600)
    assert "largest rank is 512" in told(tmp_path / "wide")["vLLM"].reason
    patterns = peft_model(llama(), rank_pattern={"v_proj": 2})
    patterns.save_pretrained(tmp_path / "patterns", save_embedding_layers=False)
    assert all("rank_pattern" in told(tmp_path / "patterns")[engine].reason for engine in ("vLLM", "SGLang"))
    assert not told(tmp_path / "patterns")["PEFT"].reason


def test_the_command_tells_it(even, tmp_path, capsys):
    save(tmp_path / "skill", even)
    assert main(["inspect", str(tmp_path / "skill"), "--serve"]) == 0
    assert "Engines that take skill" in capsys.readouterr().out
    assert main(["inspect", str(tmp_path / "skill"), "--serve", "--json"]) == 0
    assert {found["engine"] for found in json.loads(capsys.readouterr().out)["serving"]["skill"]} >= {"vLLM", "SGLang", "Ollama"}


def test_a_gguf_adapter_holds_the_update_in_llama_cpps_order(even, tmp_path):
    """Names, alpha and rank; q and k rows in the order in which llama.cpp's converter puts those of the base."""
    config = llama().config
    (tmp_path / FILE).write_bytes(adapter_gguf(even, config, base_name="owner/base"))
    reader = gguf.GGUFReader(tmp_path / FILE)
    assert reader.get_field("general.type").contents() == "adapter" and reader.get_field("adapter.type").contents() == "lora"
    assert reader.get_field("general.architecture").contents() == "llama"
    assert reader.get_field("adapter.lora.alpha").contents() == even.rank
    tensors = {tensor.name: torch.from_numpy(np.array(tensor.data)) for tensor in reader.tensors}
    assert set(tensors) == {f"blk.{n}.attn_{m}.weight.lora_{f}" for n in (0, 1) for m in "qv" for f in "ab"}
    for kind, heads in (("q", config.num_attention_heads), ("v", 0)):
        delta = tensors[f"blk.1.attn_{kind}.weight.lora_b"] @ tensors[f"blk.1.attn_{kind}.weight.lora_a"]
        wanted = even.delta_weight(f"model.layers.1.self_attn.{kind}_proj")
        if heads:
            half = wanted.shape[0] // heads // 2
            rows = [head * 2 * half + side * half + row for head in range(heads) for row in range(half) for side in (0, 1)]
            wanted = wanted[rows]
        assert torch.allclose(delta, wanted, atol=1e-6)


def test_what_gguf_has_no_place_for_is_refused(even, tmp_path):
    with pytest.raises(LabError, match="type gpt2"):
        adapter_gguf(adapter(gpt2(), "a", target_modules=["c_attn"]), GPT2Config())
    factors = even.modules["model.layers.0.self_attn.q_proj"]
    with pytest.raises(LabError, match="no name for module 'model.layers.0.router'"):
        adapter_gguf(LoraAdapter("a", "", {"model.layers.0.router": factors}), LlamaConfig())
    with pytest.raises(LabError, match="shares its weight"):
        adapter_gguf(LoraAdapter("a", "", {"lm_head": factors}), LlamaConfig(tie_word_embeddings=True))
    with pytest.raises(LabError, match="give it by --base"):
        export(tmp_path / "out", LoraAdapter("a", "", even.modules), gguf=True)
    assert not list(tmp_path.iterdir())


SCRIPT = """
import { getLlama } from "node-llama-cpp";
const [modelPath, adapter, ids, count] = process.argv.slice(2);
const llama = await getLlama({ gpu: false, build: "never", progressLogs: false, logLevel: "error", maxThreads: 1 });
const model = await llama.loadModel({ modelPath });
const lora = adapter ? { lora: { adapters: [{ filePath: adapter, scale: 1 }] } } : {};
const context = await model.createContext({ contextSize: 256, threads: 1, ...lora });
const found = [];
for await (const token of context.getSequence().evaluate(JSON.parse(ids), { temperature: 0 })) {
    found.push(token);
    if (found.length >= Number(count)) break;
}
console.log(JSON.stringify(found));
process.exit(0);
"""


@pytest.mark.skipif(not (NODE and shutil.which("node")), reason="no llama.cpp here: SOUP_LAB_NODE_LLAMA names no folder with node-llama-cpp")
def test_llama_cpp_gives_pefts_greedy_answer(tmp_path):
    """On SmolLM2-135M's own GGUF file; PEFT on what it dequantises to."""
    model, tokenizer = load_base("smollm2-135m", device="cpu")
    kinds = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "down_proj"]
    skill = adapter(model, "skill", 3, r=4, lora_alpha=4, target_modules=kinds)
    skill = LoraAdapter("skill", "smollm2-135m", {m: type(f)(f.A, f.B, 0.1 * f.scaling) for m, f in skill.modules.items()})
    export(tmp_path / "out", skill, gguf=True)
    file, script = packed_file("smollm2-135m"), Path(NODE) / f"soup-lab-{os.getpid()}.mjs"
    ids = tokenizer("The capital of France is a city")["input_ids"]
    script.write_text(SCRIPT)
    try:

        def llama_cpp(adapter_file: str) -> list[int]:
            ran = subprocess.run(
                ["node", str(script), str(file), adapter_file, json.dumps(ids), "8"], capture_output=True, text=True, timeout=600, check=True
            )
            return json.loads(ran.stdout.strip().splitlines()[-1])

        theirs, plain = llama_cpp(str(tmp_path / "out" / FILE)), llama_cpp("")
    finally:
        script.unlink()
    with torch.no_grad():
        live = PeftModel.from_pretrained(model, tmp_path / "out").eval()
        ours = live.generate(torch.tensor([ids]), max_new_tokens=8, do_sample=False)[0, len(ids) :].tolist()
    print(tokenizer.decode(plain), "|", tokenizer.decode(theirs), "|", tokenizer.decode(ours))
    assert theirs == ours and theirs != plain
