"""The training loop: exact resume, exact accumulation, and only what is trainable moves."""

import json
import math
import time

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import Gemma2Config, Gemma2ForCausalLM, LlamaConfig, LlamaForCausalLM

from lab.errors import LabError
from lab.lora.stacked import attach
from lab.training import loop
from lab.training.loop import Encoded, TrainConfig, bucketed_batches, collate, encode, encode_prompt, fit, token_loss
from lab.training.lora import LoraTraining, train_lora
from tests.tiny_models import gpt2, llama, two_skills


def tiny(dropout: float = 0.0) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2, intermediate_size=24,
        attention_dropout=dropout,
    )  # fmt: skip
    return LlamaForCausalLM(config)


ROWS = [Encoded(tuple(range(3, 3 + n)), 2) for n in (4, 5, 6, 7, 8, 9, 10, 11, 12, 13)]


def weights(model) -> dict:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


class Killed(BaseException):
    pass


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_killed_and_resumed_equals_undisturbed(tmp_path, optimizer):
    config = TrainConfig(steps=8, learning_rate=1e-2, warmup=2, optimizer=optimizer)
    batches = bucketed_batches(ROWS, 3, 8, 0, 0)
    whole = tiny(dropout=0.2)
    losses = fit(whole, batches, config)

    def die(step, loss):
        if step == 4:
            raise Killed

    checkpoint = tmp_path / "state"
    with pytest.raises(Killed):
        fit(tiny(dropout=0.2), batches, config, checkpoint=checkpoint, checkpoint_seconds=0, on_step=die)
    resumed = tiny(dropout=0.2)
    steps_run = []
    again = fit(resumed, batches, config, checkpoint=checkpoint, on_step=lambda step, loss: steps_run.append(step))
    assert steps_run == [5, 6, 7]
    assert again == losses
    for name, value in weights(whole).items():
        assert torch.equal(value, weights(resumed)[name])


@pytest.mark.parametrize(
    ("schedule", "share"), [("linear", lambda done: 1 - done), ("cosine", lambda done: (1 + math.cos(math.pi * done)) / 2)]
)
def test_the_rate_rises_and_falls_as_the_schedule_says(schedule, share):
    """Under a constant gradient AdamW moves a number by the rate of the step."""
    model = torch.nn.Module()
    model.number = torch.nn.Parameter(torch.zeros(()))
    numbers = [0.0]
    config = TrainConfig(steps=10, learning_rate=1.0, warmup=2, schedule=schedule)
    fit(
        model, bucketed_batches(ROWS, 3, 10, 0, 0), config, loss=lambda model, batch: (model.number * (batch.labels[:, 1:] != -100).sum(), 1),
        on_step=lambda step, loss: numbers.append(model.number.item()),
    )  # fmt: skip
    rates = [before - after for before, after in zip(numbers, numbers[1:], strict=False)]
    assert rates == pytest.approx([0, 0.5, *(share(step / 8) for step in range(8))], abs=1e-4)
    with pytest.raises(LabError, match="schedule is 'steps'; choose linear or cosine"):
        TrainConfig(steps=1, learning_rate=1.0, schedule="steps")


def test_checkpoint_of_another_run_is_not_used(tmp_path):
    batches = bucketed_batches(ROWS, 3, 4, 0, 0)
    fit(tiny(), batches, TrainConfig(steps=4, learning_rate=1e-2), checkpoint=tmp_path / "state", checkpoint_seconds=0)
    other = TrainConfig(steps=4, learning_rate=2e-2)
    assert fit(tiny(), batches, other, checkpoint=tmp_path / "state") == fit(tiny(), batches, other)


def test_accumulation_equals_one_large_batch():
    one, many = tiny(), tiny()
    config = TrainConfig(steps=3, learning_rate=1e-2)
    losses = fit(one, lambda step: [collate(ROWS, 0)], config)
    assert fit(many, lambda step: [collate(ROWS[:3], 0), collate(ROWS[3:], 0)], config) == pytest.approx(losses, rel=1e-4)
    for a, b in zip(one.parameters(), many.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-3)


def test_padding_changes_no_loss():
    model = tiny()
    alone = sum(float(token_loss(model, collate([row], 0))[0]) for row in ROWS)
    together, tokens = token_loss(model, collate(ROWS, 0))
    assert float(together) == pytest.approx(alone, rel=1e-5)
    assert tokens == sum(len(row.ids) - row.prompt_length for row in ROWS)


def test_loss_is_the_models_own():
    model, batch = tiny(), collate(ROWS, 0)
    value, tokens = token_loss(model, batch)
    reference = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, labels=batch.labels).loss
    assert float(value) / tokens == pytest.approx(float(reference), rel=1e-5)


def test_only_trainable_parameters_move():
    model = tiny()
    model.requires_grad_(False)
    model.lm_head.weight.requires_grad_(True)
    before = weights(model)
    fit(model, bucketed_batches(ROWS, 4, 2, 0, 0), TrainConfig(steps=2, learning_rate=1e-1))
    for name, value in weights(model).items():
        assert torch.equal(value, before[name]) == (name != "lm_head.weight")


def test_same_seed_same_result_and_batches_cover_an_epoch():
    a, b = tiny(0.3), tiny(0.3)
    config = TrainConfig(steps=3, learning_rate=1e-2, seed=5)
    assert fit(a, bucketed_batches(ROWS, 4, 3, 5, 0), config) == fit(b, bucketed_batches(ROWS, 4, 3, 5, 0), config)
    at = bucketed_batches(ROWS, 4, 3, 5, 0)
    seen = sorted(int(row.sum()) for step in range(3) for row in at(step)[0].input_ids)
    assert seen == sorted(sum(row.ids) for row in ROWS)


def test_encode_is_prompt_and_completion_as_generation_sees_them(tokenizer):
    row = encode(tokenizer, "Problem: Tom has 3 nuts.\nAnswer:", " Start with 3.", 64)
    assert row.ids[0] == tokenizer.bos_token_id and row.ids[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(row.ids[1 : row.prompt_length]) == "Problem: Tom has 3 nuts.\nAnswer:"


def test_a_prompt_begins_with_one_beginning_of_text(tokenizer):
    start = tokenizer.bos_token_id
    plain = encode_prompt(tokenizer, "Problem: Tom")
    assert plain[0] == start and plain.count(start) == 1
    assert encode_prompt(tokenizer, tokenizer.bos_token + "Problem: Tom") == plain  # a template brought it along


def softcapped():
    torch.manual_seed(0)
    return Gemma2ForCausalLM(
        Gemma2Config(
            vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1,
            head_dim=8, max_position_embeddings=64, final_logit_softcapping=2.0,
        )
    ).eval()  # fmt: skip


def adapted(targets):
    torch.manual_seed(1)
    return get_peft_model(llama(), LoraConfig(target_modules=targets, task_type="CAUSAL_LM", init_lora_weights=False)).eval()


@pytest.mark.parametrize(
    "make, narrowed",
    [
        (llama, True),
        (gpt2, True),
        (softcapped, True),
        (lambda: adapted(["q_proj", "down_proj"]), True),
        (lambda: adapted(["q_proj", "lm_head"]), False),  # the head is a layer of PEFT's
    ],
    ids=["llama", "gpt2, tied", "soft-capped", "peft", "peft on the head"],
)
def test_predictions_only_where_a_label_is_are_the_same_loss_and_gradients(make, narrowed, monkeypatch):
    rows = [Encoded(tuple(range(3, 3 + n)), prompt) for n, prompt in ((4, 3), (9, 2), (6, 0), (12, 11))]
    batch, found, seen = collate(rows, 0), [], []
    for large in (33, 32):
        monkeypatch.setattr(loop, "LARGE_VOCABULARY", large)
        model = make()
        inner = model.get_base_model() if hasattr(model, "get_base_model") else model
        hook = inner.get_output_embeddings().register_forward_hook(lambda _, inputs, out: seen.append(out.shape[:-1].numel()))
        value, tokens = token_loss(model, batch)
        value.backward()
        hook.remove()
        found.append((value, tokens, [p.grad for p in model.parameters() if p.grad is not None]))
    (whole, count, gradients), (value, tokens, others) = found
    assert tokens == count and float(value) == pytest.approx(float(whole), rel=1e-6)
    for ours, reference in zip(others, gradients, strict=True):
        torch.testing.assert_close(ours, reference)
    assert seen == [4 * 12, count if narrowed else 4 * 12]


def test_predictions_only_where_a_label_is_under_a_stack(monkeypatch):
    base = llama()
    batch = collate([Encoded(tuple(range(3, 3 + n)), 2) for n in (5, 8)], 0)
    with attach(base, two_skills(base)) as stack:
        stack.set_coefficients(torch.rand(2, len(stack.modules), generator=torch.Generator().manual_seed(0)))
        whole, _ = token_loss(base, batch)
        monkeypatch.setattr(loop, "LARGE_VOCABULARY", 1)
        assert float(token_loss(base, batch)[0]) == pytest.approx(float(whole), rel=1e-6)


def test_a_row_without_labels_has_no_loss(monkeypatch):
    monkeypatch.setattr(loop, "LARGE_VOCABULARY", 1)
    value, tokens = token_loss(llama(), collate([Encoded((3, 4, 5), 3)], 0))
    assert float(value) == 0 and tokens == 0


def test_early_stop_keeps_what_was_learned():
    model = tiny()
    before = weights(model)
    losses = fit(model, bucketed_batches(ROWS, 4, 9, 0, 0), TrainConfig(steps=9, learning_rate=1e-2), on_step=lambda s, loss: s == 1)
    assert len(losses) == 2
    assert any(not torch.equal(value, before[name]) for name, value in weights(model).items())


def test_stopped_early_stays_stopped_when_resumed(tmp_path):
    config, batches = TrainConfig(steps=9, learning_rate=1e-2), bucketed_batches(ROWS, 4, 9, 0, 0)
    model = tiny()
    losses = fit(model, batches, config, checkpoint=tmp_path / "state", on_step=lambda step, loss: step == 1)
    again = tiny()
    assert fit(again, batches, config, checkpoint=tmp_path / "state") == losses
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


def test_two_precisions_in_one_process_and_fp16_without_a_gpu():
    batches = bucketed_batches(ROWS, 4, 1, 0, 0)
    for precision in ("no", "bf16", "no"):
        assert len(fit(tiny(), batches, TrainConfig(steps=1, learning_rate=1e-2, precision=precision))) == 1
    if not torch.cuda.is_available():
        with pytest.raises(LabError, match="fp16 needs a GPU"):
            TrainConfig(steps=1, learning_rate=1e-2, precision="fp16")


def test_a_damaged_checkpoint_is_named_and_the_training_begins_anew(tmp_path):
    config, batches, state = TrainConfig(steps=1, learning_rate=1e-2), bucketed_batches(ROWS, 4, 1, 0, 0), tmp_path / "state"
    losses = fit(tiny(), batches, config, checkpoint=state)
    whole = state.read_bytes()
    torch.save({"key": "of something else"}, tmp_path / "foreign")
    for damaged in (b"", b"half a file", whole[: len(whole) // 2], (tmp_path / "foreign").read_bytes()):
        state.write_bytes(damaged)
        with pytest.warns(UserWarning, match=f"{state} is damaged: the training starts from its beginning"):
            assert fit(tiny(), batches, config, checkpoint=state) == losses
        assert state.read_bytes() == whole


def test_durations_do_not_follow_the_clock_on_the_wall(tmp_path, monkeypatch, tokenizer, tiny_base):
    """Which is set back by hours at times: a record once told of a merge that took -663 s."""
    clock = iter(range(10**9, 0, -3600))
    monkeypatch.setattr(time, "time", lambda: next(clock))
    model = LlamaForCausalLM.from_pretrained(tiny_base)
    training = LoraTraining(2, 4, 0.0, ("q_proj",), 1, 4, 1, 1e-3, 0, 64, "no")
    train_lora(model, tokenizer, [Encoded((3, 4, 5, 6), 2)] * 4, training, name="s", base="b", seed=0, folder=tmp_path / "s", checkpoint=None)
    assert 0 <= json.loads((tmp_path / "s" / "training.json").read_text())["seconds"] < 3600


def test_a_model_on_the_cpu_is_trained_there_beside_a_gpu(monkeypatch):
    """As a reference for the GPU's numbers, or because the app was told to stay on the CPU."""
    from accelerate.state import AcceleratorState

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    AcceleratorState._reset_state(reset_partial_state=True)
    try:
        model = tiny()
        losses = fit(model, bucketed_batches(ROWS, 2, 2, 0, 0), TrainConfig(steps=2, learning_rate=1e-2))
        assert len(losses) == 2 and next(model.parameters()).device.type == "cpu"
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)


def test_bad_input_is_named():
    with pytest.raises(LabError, match="learning_rate is 0"):
        TrainConfig(steps=1, learning_rate=0)
    with pytest.raises(LabError, match="optimizer is 'sgd'"):
        TrainConfig(steps=1, learning_rate=1, optimizer="sgd")
    with pytest.raises(LabError, match="nothing to train on"):
        bucketed_batches([Encoded((1, 2), 2)], 1, 1, 0, 0)
    frozen = tiny().requires_grad_(False)
    with pytest.raises(LabError, match="no parameter"):
        fit(frozen, bucketed_batches(ROWS, 4, 1, 0, 0), TrainConfig(steps=1, learning_rate=1e-2))
    broken = tiny()
    nn.init.constant_(broken.lm_head.weight, float("nan"))
    with pytest.raises(LabError, match="NaN"):
        fit(broken, bucketed_batches(ROWS, 4, 1, 0, 0), TrainConfig(steps=1, learning_rate=1e-2))


def test_full_disk_is_named_and_leaves_nothing(tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise RuntimeError("PytorchStreamWriter failed writing file: No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(LabError, match="free some space"):
        fit(tiny(), bucketed_batches(ROWS, 4, 2, 0, 0), TrainConfig(steps=2, learning_rate=1e-2),
            checkpoint=tmp_path / "state", checkpoint_seconds=0)  # fmt: skip
    assert not list(tmp_path.iterdir())


