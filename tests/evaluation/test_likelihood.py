"""Likelihoods of continuations: the model's own, whatever stands beside them in a batch."""

import math

import pytest
import torch

from lab.errors import LabError
from lab.evaluation.likelihood import likelihoods, most_likely
from lab.training import loop
from lab.world.letters.tokenizer import letters_tokenizer
from tests.tiny_models import LlamaConfig, LlamaForCausalLM

PROMPTS = ["a", "one two three", "b c"]
CHOICES = [(" x", " y z"), (" w",), (" longer than the others", " x", " y")]


@pytest.fixture(scope="module")
def asked():
    tokenizer = letters_tokenizer()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval(), tokenizer


@torch.no_grad()
def plain(model, tokenizer, prompt, choice, ended):
    head = loop.encode_prompt(tokenizer, prompt)
    tail = tokenizer(choice, add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id] * ended
    log_p = model(input_ids=torch.tensor([[*head, *tail]])).logits[0].log_softmax(-1)
    return sum(float(log_p[len(head) - 1 + i, token]) for i, token in enumerate(tail)), len(tail)


@pytest.mark.parametrize("ended", [True, False])
@pytest.mark.parametrize("large", [1, 10**9])
@pytest.mark.parametrize("batch_size", [1, 4])
def test_likelihoods_are_the_models_own(asked, ended, large, batch_size, monkeypatch):
    monkeypatch.setattr(loop, "LARGE_VOCABULARY", large)
    found = likelihoods(*asked, PROMPTS, CHOICES, ended=ended, batch_size=batch_size)
    assert [len(given) for given in found] == [len(given) for given in CHOICES]
    for prompt, choices, given in zip(PROMPTS, CHOICES, found, strict=True):
        for choice, one in zip(choices, given, strict=True):
            total, tokens = plain(*asked, prompt, choice, ended)
            assert one.tokens == tokens and math.isclose(one.total, total, rel_tol=1e-4)


def test_the_most_likely_choice_is_so_per_token(asked):
    found = likelihoods(*asked, PROMPTS, CHOICES)
    places = most_likely(*asked, PROMPTS, CHOICES)
    for given, place in zip(found, places, strict=True):
        assert given[place].total / given[place].tokens == max(one.total / one.tokens for one in given)


def test_what_cannot_be_scored_is_said(asked):
    with pytest.raises(LabError, match="no choices"):
        likelihoods(*asked, ["a"], [()])
    with pytest.raises(LabError, match="empty"):
        likelihoods(*asked, ["a"], [("",)], ended=False)
    with pytest.raises(LabError, match="reads 64"):
        likelihoods(*asked, ["a" * 70], [("b",)])
