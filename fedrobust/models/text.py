"""A small network for sequences of tokens: what is next, at every place."""

from __future__ import annotations

from torch import Tensor, nn

WIDTH = 64
REACH = 5  # tokens that one convolution sees


class Causal(nn.Module):
    """A convolution that sees a place and those before it."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.convolution = nn.Conv1d(inputs, outputs, REACH)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, outputs, T) for (B, inputs, T)."""
        # On the left alone: no place may see what comes after it, which is its target.
        return self.convolution(nn.functional.pad(x, (REACH - 1, 0)))


class CharCnn(nn.Module):
    """Embedding, two causal convolutions, and logits at every place."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(classes, WIDTH // 2)
        self.body = nn.Sequential(
            Causal(WIDTH // 2, WIDTH), nn.ReLU(), Causal(WIDTH, WIDTH), nn.ReLU()
        )
        self.head = nn.Linear(WIDTH, classes)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return logits (B, T, classes) for tokens (B, T)."""
        # Convolutions want (B, channels, T), the embedding and the head (B, T, channels).
        return self.head(self.body(self.embedding(tokens).transpose(1, 2)).transpose(1, 2))


def char_cnn(shape: tuple[int, ...], classes: int) -> nn.Module:
    """Two causal convolutions over characters: the next one at each place sees the nine before."""
    return CharCnn(classes)


class CharLstm(nn.Module):
    """Embedding of 8, two LSTM layers, and logits after the last token."""

    def __init__(self, classes: int, hidden: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(classes, 8)
        self.body = nn.LSTM(8, hidden, num_layers=2, batch_first=True)
        self.head = nn.Linear(hidden, classes)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return logits (B, classes) for tokens (B, T)."""
        return self.head(self.body(self.embedding(tokens))[0][:, -1])


def char_lstm(shape: tuple[int, ...], classes: int) -> nn.Module:
    """LEAF's network for Shakespeare: two LSTM layers of 256, the next character after a line.

    References
    ----------
    Caldas et al., LEAF, 2018, released code, ``models/shakespeare/stacked_lstm.py``.
    """
    return CharLstm(classes, 256)


TEXT = {"char_cnn": char_cnn, "char_lstm": char_lstm}
