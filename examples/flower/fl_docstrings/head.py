"""The linear head, and its training."""

from collections.abc import Iterable, Mapping

import torch
from torch import nn

DIM = 384

Batches = Iterable[tuple[torch.Tensor, torch.Tensor]]


def new_head(classes: int) -> nn.Linear:
    """Return an untrained head: all zeros, the same in each client."""
    head = nn.Linear(DIM, classes)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    return head


def loaded_head(state: Mapping[str, torch.Tensor]) -> nn.Linear:
    """Return a received head."""
    head = new_head(len(state["bias"]))
    head.load_state_dict(state)
    return head


def fit(head: nn.Linear, batches: Batches, *, epochs: int, learning_rate: float) -> float:
    """Train the head. Return the mean loss of the last epoch."""
    optimizer = torch.optim.SGD(head.parameters(), lr=learning_rate)
    for _ in range(epochs):
        total, count = 0.0, 0
        for features, labels in batches:
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(head(features), labels)
            loss.backward()
            optimizer.step()
            total, count = total + loss.item() * len(labels), count + len(labels)
    return total / count


@torch.no_grad()
def hits(head: nn.Linear, batches: Batches) -> int:
    """Return the number of samples that the head classifies correctly."""
    return sum(int((head(features).argmax(1) == labels).sum()) for features, labels in batches)
