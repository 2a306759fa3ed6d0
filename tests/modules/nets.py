"""Small models of common kinds."""

import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint


class Calls(nn.Module):
    """A function, called."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *args):
        return self.function(*args)


class Attention(nn.Module):
    def __init__(self, width=16, heads=2):
        super().__init__()
        self.qkv, self.out, self.heads = nn.Linear(width, 3 * width), nn.Linear(width, width), heads

    def forward(self, x):
        batch, length, width = x.shape
        query, key, value = self.qkv(x).view(batch, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(query, key, value)
        return self.out(mixed.transpose(1, 2).reshape(batch, length, width))


class Block(nn.Module):
    """Attention, a feed-forward network, and a product of its own."""

    def __init__(self, width=16, heads=2):
        super().__init__()
        self.attention = Attention(width, heads)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x):
        x = x + self.attention(x)
        return x + self.mlp(x) + (x @ x.mT).sum(-1, keepdim=True)


class Transformer(nn.Module):
    """Blocks, with activation checkpointing of the kind that is asked for: None, "reentrant" or "non-reentrant"."""

    def __init__(self, checkpointing=None, blocks=3):
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(blocks))
        self.head = nn.Linear(16, 7, bias=False)
        self.checkpointing = checkpointing

    def forward(self, x):
        for block in self.blocks:
            if self.checkpointing and self.training:
                x = checkpoint(block, x, use_reentrant=self.checkpointing == "reentrant")
            else:
                x = block(x)
        return self.head(x)


class Residual(nn.Module):
    """A convolutional network in the manner of ResNet."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 7, stride=2, padding=3, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.body = nn.Sequential(
            nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.Conv2d(8, 12, 1), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(0.5)
        )
        self.up = nn.ConvTranspose2d(12, 4, 2, stride=2)
        self.head = nn.Linear(4, 10)

    def forward(self, x):
        return self.head(self.up(self.body(self.stem(x))).mean((2, 3)))


class Routed(nn.Module):
    """Experts that are chosen by values: each token goes through one, which ``nonzero`` finds."""

    def __init__(self, width=8, experts=3):
        super().__init__()
        self.router = nn.Linear(width, experts)
        self.experts = nn.ModuleList(nn.Linear(width, width) for _ in range(experts))

    def forward(self, x):
        chosen = self.router(x).argmax(-1)
        out = torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            rows = (chosen == number).nonzero().flatten()
            out[rows] = expert(x[rows])
        return out
