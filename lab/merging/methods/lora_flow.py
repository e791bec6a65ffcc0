"""LoRA-Flow: one gate per layer, fed with what enters the layer (arXiv 2402.11455, Section 3)."""

from functools import partial

import torch
from torch import Tensor, nn

from lab.errors import LabError
from lab.lora.module_names import parse
from lab.lora.stacked import Stack
from lab.merging.registry import Recipe, merge_method
from lab.merging.routing import Router, token_scores


@merge_method(
    label="LoRA-Flow",
    paper="https://arxiv.org/abs/2402.11455",
    formula="c(x) = softmax(W_g h) + b per token and layer, h = what enters the layer",
    # thunlp/LoRAFlow, scripts/train.sh and README: four of its six tasks (1e-4 and a batch of 16 for the others).
    recipe=Recipe(learning_rate=1e-3, batch_size=4, epochs=5),
)
class lora_flow(Router):
    """One gate per layer for all its modules: softmax(W_g h) + b, from the hidden state h that enters the layer.

    The learned b stands outside the softmax, as in the paper, so coefficients sum to 1 + Σb and may be negative; all
    starts at 0, so at 1/k. (The released code starts b at -0.5 for the language and +0.5 for the task, which only
    has a meaning for its pairs.) A module outside the numbered layers has a gate of its own, fed with its own input.
    The paper learns the gates on 200 rows of the target task; here they learn on the same mix as other methods.
    """

    def __init__(self, stack: Stack):
        super().__init__(stack)
        names = [parse(module).block for module in stack.modules]
        self.layers = tuple(dict.fromkeys(names))
        self.layer_of = [self.layers.index(name) for name in names]
        k, hidden = len(self.skills), stack.model.config.get_text_config().hidden_size
        own = dict(zip(stack.modules, self.in_features, strict=True))
        sizes = [own.get(name, hidden) for name in self.layers]
        self.weights = nn.ParameterList(torch.zeros(k, size) for size in sizes)  # (skills, hidden) per layer
        self.biases = nn.Parameter(torch.zeros(len(self.layers), k))
        self._scores: dict[int, Tensor] = {}
        self.put_on(stack)
        for index, layer in enumerate(self.layers):
            stack.before_forward(layer, partial(self._score, index))

    def _score(self, layer: int, _module: nn.Module, args: tuple, kwargs: dict) -> None:
        hidden = args[0] if args else kwargs["hidden_states"]
        self._scores[layer] = token_scores(hidden, self.weights[layer])

    def coefficients(self, index: int, x: Tensor) -> Tensor:
        layer = self.layer_of[index]
        if layer not in self._scores:
            raise LabError(f"The gate of {self.layers[layer]!r} saw no hidden state; run the whole layer.")
        return self.softmax(index, self._scores[layer]) + self.biases[layer] * self.present[index]
