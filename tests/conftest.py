"""Shared by the tests: a tiny random base model with the world's tokenizer, on one thread."""

import os
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # of kernels and servers that tests start too: two workers' threads would fight for two cores

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from lab.merging import METHODS
from lab.world.recipe import BaseRecipe, make_tokenizer

DATA = Path(__file__).parents[2] / "shared" / "data"


def pytest_collection_modifyitems(items):
    """For two workers: the notebooks first, each by itself, since they take longest; the other files whole, since many share a server."""
    items.sort(key=lambda item: item.path.name != "test_project.py")
    for item in items:
        if item.path.name != "test_project.py":
            item.add_marker(pytest.mark.xdist_group(item.path.name))


@pytest.fixture(scope="session")
def tokenizer():
    return make_tokenizer(BaseRecipe())


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory, tokenizer) -> Path:
    """A folder with a random Llama of two layers: knows nothing, but goes through every path."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("base")
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2,
        intermediate_size=48, max_position_embeddings=1024, tie_word_embeddings=True, pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def data_folder() -> Path:
    """Real rows, where they lie beside the project."""
    if not DATA.is_dir():
        pytest.skip(f"no real data at {DATA}: this test reads GSM8K, Code Alpaca and GSM-Hard rows from there")
    return DATA


@pytest.fixture
def registered():
    """Methods registered in a test are gone after it."""
    before = dict(METHODS)
    yield
    METHODS.clear()
    METHODS.update(before)
