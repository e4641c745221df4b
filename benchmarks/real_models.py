"""Networks of the real cells: convolutions, transformers, an LSTM, low-rank adapters.

All matrices are two-dimensional, heads and filters side by side, as Muon needs them. Convolutions
are products of patches, which one core computes several times as fast as XLA's own.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp


def patches(x: jax.Array, size: int, stride: int) -> jax.Array:
    """Return the neighbourhoods of every `stride`-th pixel, "SAME" padding.

    Args:
        x: float32[batch, height, width, channels].
        size: of a neighbourhood, odd, in pixels.
        stride: divides height and width.

    Returns:
        float32[batch, height / stride, width / stride, size² · channels].
    """
    height, width = x.shape[1:3]
    pad = size // 2
    x = jnp.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    shifts = [(i, j) for i in range(size) for j in range(size)]
    shifted = [x[:, i : i + height : stride, j : j + width : stride] for i, j in shifts]
    return jnp.concatenate(shifted, axis=-1)


class CNN(nn.Module):
    """3 × 3 convolutions with stride 2 where the image allows, and a hidden layer.

    Attributes:
        channels: of each convolution.
        hidden: units of the layer before the last.
        classes: outputs.
        normalize: whether each convolution is followed by layer normalization.
    """

    channels: tuple[int, ...]
    hidden: int
    classes: int = 10
    normalize: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Return float32[batch, classes] for float32[batch, height, width]."""
        x = x[..., None]
        for channels in self.channels:
            x = nn.Dense(channels)(patches(x, 3, 2 if x.shape[1] % 2 == 0 else 1))
            x = nn.relu(nn.LayerNorm()(x) if self.normalize else x)
        x = nn.relu(nn.Dense(self.hidden)(x.reshape(x.shape[0], -1)))
        return nn.Dense(self.classes)(x)


class ResidualMLP(nn.Module):
    """Hidden layers that are added to what they see, normalized first.

    Attributes:
        width: of all layers.
        depth: number of blocks.
        classes: outputs.
    """

    width: int
    depth: int
    classes: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Return float32[batch, classes] for float32[batch, …]."""
        h = nn.Dense(self.width)(x.reshape(x.shape[0], -1))
        for _ in range(self.depth):
            hidden = nn.relu(nn.Dense(self.width)(nn.LayerNorm()(h)))
            h += nn.Dense(self.width)(hidden)
        return nn.Dense(self.classes)(nn.LayerNorm()(h))


class Block(nn.Module):
    """A pre-norm block of attention and a hidden layer of four times the width.

    Attributes:
        heads: of the attention; divides the width.
        is_causal: whether a position sees earlier ones alone.
    """

    heads: int
    is_causal: bool

    @nn.compact
    def __call__(self, h: jax.Array) -> jax.Array:
        """Return float32[batch, length, width] for the same."""
        batch, length, width = h.shape
        parts = nn.Dense(3 * width)(nn.LayerNorm()(h)).reshape(batch, length, 3, self.heads, -1)
        query, key, value = jnp.moveaxis(parts, 2, 0)
        logits = jnp.einsum("bqhd,bkhd->bhqk", query, key) / query.shape[-1] ** 0.5
        if self.is_causal:
            logits = jnp.where(jnp.tri(length, dtype=bool), logits, -jnp.inf)
        seen = jnp.einsum("bhqk,bkhd->bqhd", nn.softmax(logits), value)
        h += nn.Dense(width)(seen.reshape(batch, length, width))
        return h + nn.Dense(width)(nn.gelu(nn.Dense(4 * width)(nn.LayerNorm()(h))))


class GPT(nn.Module):
    """A transformer over bytes.

    Attributes:
        width: of all layers.
        depth: number of blocks.
        heads: of each attention.
        symbols: how many bytes there are.
    """

    width: int
    depth: int
    heads: int = 4
    symbols: int = 128

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Return float32[batch, length, symbols] for integers[batch, length]."""
        length = tokens.shape[1]
        h = nn.Embed(self.symbols, self.width)(tokens)
        h += nn.Embed(length, self.width)(jnp.arange(length))[None]
        for _ in range(self.depth):
            h = Block(self.heads, is_causal=True)(h)
        return nn.Dense(self.symbols, use_bias=False)(nn.LayerNorm()(h))


class LSTM(nn.Module):
    """Layers of LSTM over bytes.

    Attributes:
        width: of all layers.
        depth: number of layers.
        symbols: how many bytes there are.
    """

    width: int
    depth: int = 1
    symbols: int = 128

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Return float32[batch, length, symbols] for integers[batch, length]."""
        h: Any = nn.Embed(self.symbols, self.width // 2)(tokens)
        for _ in range(self.depth):
            h = nn.RNN(nn.OptimizedLSTMCell(self.width))(h)
        return nn.Dense(self.symbols)(h)


class ViT(nn.Module):
    """A transformer over square patches of an image, averaged at the end.

    Attributes:
        patch: side of a patch in pixels; divides the image's.
        width: of all layers.
        depth: number of blocks.
        heads: of each attention.
        classes: outputs.
    """

    patch: int
    width: int
    depth: int
    heads: int = 4
    classes: int = 10

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Return float32[batch, classes] for float32[batch, height, width]."""
        batch, height, width = x.shape
        x = x.reshape(batch, height // self.patch, self.patch, width // self.patch, self.patch)
        x = jnp.swapaxes(x, 2, 3).reshape(batch, -1, self.patch**2)
        h = nn.Dense(self.width)(x)
        h += nn.Embed(x.shape[1], self.width)(jnp.arange(x.shape[1]))[None]
        for _ in range(self.depth):
            h = Block(self.heads, is_causal=False)(h)
        return nn.Dense(self.classes)(nn.LayerNorm()(h).mean(axis=1))


def adapters(key: jax.Array, params: Any, rank: int) -> Any:
    """Return low-rank adapters of all matrices, which change nothing yet.

    Args:
        key: of the random halves; the others are zero.
        params: nested dicts with leaves float32[n, m] named "kernel".
        rank: r, of the changes.

    Returns:
        The same nesting, with {"down": float32[n, r], "up": float32[r, m]} for each "kernel".

    Source: E. Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models",
    https://arxiv.org/abs/2106.09685.
    """
    found = {}
    for place, (name, value) in enumerate(sorted(params.items())):
        inner = jax.random.fold_in(key, place)
        if isinstance(value, Mapping):
            found[name] = adapters(inner, value, rank)
        elif name == "kernel":
            rows, columns = value.shape
            down = jax.random.normal(inner, (rows, rank)) / rows**0.5
            found[name] = {"down": down, "up": jnp.zeros((rank, columns))}
    return found


def adapted(params: Any, changes: Any) -> Any:
    """Return parameters with the products of their `adapters` added."""
    found = dict(params)
    for name, change in changes.items():
        if name == "kernel":
            found[name] = params[name] + change["down"] @ change["up"]
        else:
            found[name] = adapted(params[name], change)
    return found
