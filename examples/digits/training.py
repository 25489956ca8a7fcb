"""A short supervised training, the same on every run of one machine."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

BATCH = 64
PEAK_RATE = 4e-3


def train(network: nn.Module, x: NDArray[np.float32], y: NDArray[np.int64], epochs: int) -> None:
    """Train in place."""
    torch.manual_seed(0)
    # More threads wait for each other longer than they work on pictures this small.
    torch.set_num_threads(1)
    network.train()
    inputs, labels = torch.from_numpy(x), torch.from_numpy(y)
    optimizer = torch.optim.AdamW(network.parameters(), lr=PEAK_RATE)
    steps = epochs * ((len(x) + BATCH - 1) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_RATE, total_steps=steps)
    for _ in range(epochs):
        for part in torch.split(torch.randperm(len(inputs)), BATCH):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(network(inputs[part]), labels[part])
            loss.backward()
            optimizer.step()
            schedule.step()
    network.eval()


def accuracy(network: nn.Module, x: NDArray[np.float32], y: NDArray[np.int64]) -> float:
    """Share of right answers."""
    with torch.inference_mode():
        found = network(torch.from_numpy(x)).argmax(1).numpy()
    return float((found == y).mean())
