"""ReMix: constant weights for a chosen subset of the skills, the choice learned by reinforcement (arXiv 2603.10160)."""

from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lab.errors import LabError
from lab.lora.stacked import Stack
from lab.merging.registry import Range, Recipe, merge_method
from lab.merging.routing import Router, token_scores
from lab.training.loop import IGNORED, Batch


@merge_method(
    label="ReMix",
    paper="https://arxiv.org/abs/2603.10160",
    formula="k of n skills at 1/k each per token and module; q = softmax(P x), sampled to learn, top k to use",
    # The paper trains with LLaMA-Factory; these are that tool's settings in its LoRA examples.
    recipe=Recipe(learning_rate=1e-4, batch_size=8, epochs=3),
)
class remix(Router):
    """Per token and module, k of the n skills are active, all with the same weight, so none can dominate.

    Learning (`objective`) samples the k without replacement from q = softmax(P x) and moves P by REINFORCE with a
    leave-one-out baseline over several samples; otherwise the k most probable are taken. Where a module has no more
    than k skills there is nothing to choose. P starts at 0: every subset is as likely.
    """

    def __init__(
        self,
        stack: Stack,
        *,
        top_k: Annotated[int, Range(1), "active skills per token, fewer than there are"] = 1,
        samples: Annotated[int, Range(2), "draws per step of learning (M)"] = 4,
    ):
        super().__init__(stack, top_k=top_k, samples=samples)
        self.active = self.present.sum(1).clamp(max=top_k).tolist()
        if (self.present.sum(1) <= top_k).all():
            raise LabError(
                f"remix with {top_k} active of {len(self.skills)} skills takes all of them in every module, so there "
                f"is nothing to choose or to learn; lower top_k or add skills."
            )
        self.samples = samples
        self.weights = nn.ParameterList(  # P, (skills, in) per module
            torch.zeros(len(self.skills), size) for size in self.in_features
        )
        self._log_probability: Tensor | None = None  # (rows, tokens), while sampling
        self.put_on(stack)

    def coefficients(self, index: int, x: Tensor) -> Tensor:
        k = self.active[index]
        if self._log_probability is None:
            with torch.no_grad():
                chosen = self._scores(index, x).topk(k, dim=-1).indices
        else:
            with torch.enable_grad():  # x depends on the draws in earlier modules, but on no parameter
                scores = self._scores(index, x.detach())
                chosen = sample(scores.detach(), k)
                self._log_probability = self._log_probability + log_probability(scores, chosen)
        c = torch.zeros(*x.shape[:-1], len(self.skills), device=x.device)
        return c.scatter(-1, chosen, 1 / k)

    def _scores(self, index: int, x: Tensor) -> Tensor:
        return token_scores(x, self.weights[index]).masked_fill(~self.present[index], -torch.inf)

    def objective(self, model: nn.Module, batch: Batch) -> tuple[Tensor, int]:
        """Mean over the samples of the summed cross-entropy (nats), and the number of labelled tokens.

        Its gradient is the estimate Σ_rows 1/(M-1) Σ_m (L_m - mean L) ∇ log Q_m, unbiased for the gradient of the
        expected loss. Each row has a baseline of its own, since its draws cannot change another row's loss. No
        backward pass goes through the model.
        """
        labels = batch.labels[:, 1:]
        losses, chances = [], []
        try:
            for _ in range(self.samples):
                self._log_probability = torch.zeros(batch.labels.shape, device=labels.device)
                with torch.no_grad():
                    out = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False)
                    logits = out.logits[:, :-1].float().transpose(1, 2)
                    loss = F.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="none").sum(1)
                losses.append(loss)
                chances.append((self._log_probability * batch.attention_mask).sum(1))
        finally:
            self._log_probability = None
        loss = torch.stack(losses)  # (samples, rows)
        surrogate = leave_one_out(loss, torch.stack(chances))
        return loss.mean(0).sum() + surrogate - surrogate.detach(), int((labels != IGNORED).sum())


def sample(scores: Tensor, k: int) -> Tensor:
    """k of the last dimension, drawn one after the other without replacement from softmax(scores): (…, k), in the
    order of the draws. (The k largest after adding Gumbel noise are distributed so.)
    """
    return (scores - torch.empty_like(scores).exponential_().log()).topk(k, dim=-1).indices


def log_probability(scores: Tensor, chosen: Tensor) -> Tensor:
    """(…): log of the probability of that draw, Π_j q_j / (1 - Σ_{earlier} q)."""
    total = torch.zeros(scores.shape[:-1], device=scores.device)
    for pick in chosen.split(1, dim=-1):
        total = total + scores.log_softmax(dim=-1).gather(-1, pick).squeeze(-1)
        scores = scores.scatter(-1, pick, -torch.inf)
    return total


def leave_one_out(loss: Tensor, log_probability: Tensor) -> Tensor:
    """A number whose gradient is the REINFORCE leave-one-out estimate; both (samples, rows)."""
    advantage = (loss - loss.mean(dim=0)).detach() / (len(loss) - 1)
    return (advantage * log_probability).sum()
