"""The device runtime in NumPy: for where the native library could not be compiled, and for it to be compared with.

The same arithmetic, in plain sight: vectors are rounded to int8 with a scale for every 64 numbers before a product,
keys and values to int8 with a scale for every head of every token, what meets them to two int8 vectors
(native/attention.h); everything else is float32.

Shapes: T tokens of this call, S tokens so far, I inputs, O outputs, N query heads, K key-value heads, H head.
"""

from collections.abc import Sequence

import numpy as np

from pomona.device.adapter import DeviceAdapter
from pomona.device.file import DeviceFile
from pomona.device.layout import BLOCK, DeviceMatrix, integers, padded
from pomona.model.config import PLACES


def product(matrix: DeviceMatrix, x_TI: np.ndarray) -> np.ndarray:
    """float32 [T, O]: the vectors, rounded, times a matrix."""
    blocks, tokens = padded(matrix.inputs) // BLOCK, len(x_TI)
    wide = np.zeros((tokens, blocks * BLOCK), np.float32)
    wide[:, : matrix.inputs] = x_TI
    whole_TBI, scales_TB = narrow(wide.reshape(tokens, blocks, BLOCK))
    weight = np.zeros((matrix.outputs, blocks * BLOCK), np.int8)
    weight[:, : matrix.inputs] = integers(matrix)
    total = np.zeros((tokens, matrix.outputs), np.float32)
    for block in range(blocks):
        part = weight[:, block * BLOCK : (block + 1) * BLOCK].astype(np.float32)  # sums below 2^24 are exact
        total += whole_TBI[:, block].astype(np.float32) @ part.T * scales_TB[:, block, None]
    return total * matrix.factors


def narrow(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """int8 of -127 to 127 and a float32 scale for every last dimension."""
    top = np.abs(x).max(axis=-1)
    inverse = np.divide(np.float32(127), top, out=np.zeros_like(top), where=top > 0)
    return np.rint(x * inverse[..., None]).astype(np.int8), top / np.float32(127)


def split(x: np.ndarray) -> np.ndarray:
    """Float32 numbers as two int8 vectors have them, the second what rounding the first left over, by blocks of 64."""
    size = x.shape[-1]
    wide = np.zeros((*x.shape[:-1], padded(size)), np.float32)
    wide[..., :size] = x
    blocks = wide.reshape(*x.shape[:-1], -1, BLOCK)
    whole, scales = narrow(blocks)
    first = whole * scales[..., None]
    rest, finer = narrow(blocks - first)
    return (first + rest * finer[..., None]).reshape(wide.shape)[..., :size]


class PortableSession:
    """One sequence; see `session.Session`."""

    def __init__(self, file: DeviceFile, context: int) -> None:
        a = file.architecture
        self.adapter: DeviceAdapter | None = None
        self.file, self.context, self.length = file, context, 0
        shape = (a.num_layers, 2, context, a.num_kv_heads)  # keys, then values
        self.kept, self.scales = np.zeros((*shape, a.head_dim), np.int8), np.zeros(shape, np.float32)
        half = a.head_dim // 2
        angles = np.arange(context)[:, None] * file.rope_base ** (-np.arange(half) / half)
        self.cos, self.sin = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)

    def advance(self, tokens: Sequence[int], every: bool, hidden: bool = False) -> np.ndarray:
        """float32: logits [V] after the last token; with `every` [T, V], after each; with `hidden`, states [T, D]."""
        a, norms, table = self.file.architecture, self.file.norms, self.file.matrices["embedding"]
        ids = np.asarray(tokens)
        x = integers(_rows(table, ids))[ids % 16 + 16 * np.arange(len(ids))].astype(np.float32)
        x = x * table.factors[ids, None]
        for layer in range(a.num_layers):
            get = lambda name, x, layer=layer: self._project(layer, name, x)
            h = self._norm(x, norms["layers.attention_norm"][layer])
            x = x + get("output", self._attention(layer, h, get))
            h = self._norm(x, norms["layers.ffn_norm"][layer])
            gate, up = get("gate", h), get("up", h)
            x = x + get("down", gate / (1 + np.exp(-gate.clip(-87))) * up)
        self.length += len(ids)
        x = self._norm(x if every or hidden else x[-1:], norms["final_norm"])
        if hidden:
            return x
        logits = product(table, x)[:, : a.vocab_size]
        return logits if every else logits[0]

    def _project(self, layer: int, name: str, x_TI: np.ndarray) -> np.ndarray:
        y_TO = product(self.file.matrices[f"layers.{layer:02}.{PLACES[name]}"], x_TI)
        if self.adapter is None:
            return y_TO
        own = self.adapter.layers[layer][name]
        b_OR = own.b.transpose(0, 2, 1).reshape(y_TO.shape[1], -1).astype(np.float32)
        return y_TO + product(own.a, x_TI) @ b_OR.T * own.factors

    def _norm(self, x: np.ndarray, weight: np.ndarray) -> np.ndarray:
        epsilon = np.float32(self.file.architecture.norm_epsilon)
        return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + epsilon) * weight

    def _attention(self, layer: int, h: np.ndarray, get) -> np.ndarray:
        a, T, S = self.file.architecture, len(h), self.length + len(h)
        heads = lambda name: get(name, h).reshape(T, -1, a.head_dim)
        norms = self.file.norms
        q = self._turn(self._norm(heads("query"), norms["layers.attention.query_norm"][layer]))
        k = self._turn(self._norm(heads("key"), norms["layers.attention.key_norm"][layer]))
        for place, new in enumerate((k, heads("value"))):
            self.kept[layer, place, S - T : S], self.scales[layer, place, S - T : S] = narrow(new)
        (k8, v8), (k_scale, v_scale) = self.kept[layer, :, :S], self.scales[layer, :, :S]
        q = split(q).reshape(T, a.num_kv_heads, -1, a.head_dim)
        scores = np.einsum("tkgh,skh->kgts", q, k8.astype(np.float32)) * (k_scale.T * a.head_dim**-0.5)[:, None, None]
        visible = np.arange(S) <= np.arange(S - T, S)[:, None]
        scores = np.where(visible, scores, -np.inf)
        shares = np.exp(scores - scores.max(axis=-1, keepdims=True))
        shares = shares / shares.sum(axis=-1, keepdims=True) * v_scale.T[:, None, None]
        return np.einsum("kgts,skh->tkgh", split(shares), v8.astype(np.float32)).reshape(T, -1)

    def _turn(self, x_TNH: np.ndarray) -> np.ndarray:
        cos, sin = (part[self.length : self.length + len(x_TNH), None] for part in (self.cos, self.sin))
        one, other = np.split(x_TNH, 2, axis=-1)
        return np.concatenate([one * cos - other * sin, other * cos + one * sin], axis=-1)


def _rows(table: DeviceMatrix, ids: np.ndarray) -> DeviceMatrix:
    """The groups of 16 rows that hold some tokens' rows, one for each token."""
    return DeviceMatrix(8, table.inputs, table.packed[ids // 16], None, np.zeros(16 * len(ids), np.float32))
