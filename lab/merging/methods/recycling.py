"""Adaptive merging as the study of recycled LoRAs does it."""

from collections.abc import Sequence

from lab.lora.adapter import LoraAdapter
from lab.merging.coefficients import Coefficients
from lab.merging.registry import Recipe, merge_method


@merge_method(
    label="Recycling",
    paper="https://arxiv.org/abs/2602.12323",
    formula="Σ leaky_relu(a_i^m) ΔW_i, a learned from 0",
    # r-three/realistic-adaptive-merging, jobs/run_tuning.py and experiments/run_adaptive_merging.sh ("init0_leakyrelu").
    recipe=Recipe(5e-2, batch_size=8, steps=100, schedule="cosine", warmup=0.1, betas=(0.9, 0.999), check_every=10),
    version=2,
)
def recycling(adapters: Sequence[LoraAdapter]) -> Coefficients:
    """Coefficients per module that start as the base model (zero) and hardly go below it (leaky ReLU).

    "The Appeal and Reality of Recycling LoRAs with Adaptive Merging" learns them on 80 examples of the target
    task and holds 20 out; here they are learned on the skills' own data, split alike, so that the target
    stays unseen. Its released recipe: the rate falls by a cosine after a warm-up of a tenth of the steps, and what is kept is the
    best by the held-out loss, looked at every 10 steps.
    """
    return Coefficients(adapters, parametrisation="leaky_relu", start=0.0)
