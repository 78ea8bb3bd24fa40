"""The decoder once more, in NumPy and float64, one document at a time: what a teacher's labels are compared with.

Shapes: T tokens, D model, N query heads, K key-value heads, H head, V vocabulary.
"""

import numpy as np


def logits(params, tokens, architecture, rope_base):
    """Logits [T, V] after each token of one document."""
    a, T = architecture, len(tokens)
    norm = lambda x, weight: x / np.sqrt(np.mean(x * x, -1, keepdims=True) + a.norm_epsilon) * weight
    angle = np.arange(T)[:, None] * rope_base ** (-np.arange(a.head_dim // 2) / (a.head_dim // 2))
    cos, sin = np.cos(angle)[:, None], np.sin(angle)[:, None]

    def turn(x_TNH):
        low, high = np.split(x_TNH, 2, -1)
        return np.concatenate([low * cos - high * sin, high * cos + low * sin], -1)

    table = np.asarray(params.embedding, np.float64)
    x_TD = table[tokens]
    hidden = np.triu(np.full((T, T), -np.inf), 1)
    for i in range(a.num_layers):
        of = lambda weight: np.asarray(weight[i], np.float64)
        attention, ffn = params.layers.attention, params.layers.ffn
        h_TD = norm(x_TD, of(params.layers.attention_norm))
        q, k, v = (np.einsum("td,dnh->tnh", h_TD, of(w)) for w in (attention.query, attention.key, attention.value))
        q, k = turn(norm(q, of(attention.query_norm))), turn(norm(k, of(attention.key_norm)))
        k, v = (np.repeat(x, a.num_heads // a.num_kv_heads, axis=1) for x in (k, v))
        scores = np.einsum("tnh,snh->nts", q, k) * a.head_dim**-0.5 + hidden
        likely = np.exp(scores - scores.max(-1, keepdims=True))
        out = np.einsum("nts,snh->tnh", likely / likely.sum(-1, keepdims=True), v)
        x_TD = x_TD + np.einsum("tnh,nhd->td", out, of(attention.output))
        h_TD = norm(x_TD, of(params.layers.ffn_norm))
        gate = h_TD @ of(ffn.gate)
        x_TD = x_TD + (gate / (1 + np.exp(-gate)) * (h_TD @ of(ffn.up))) @ of(ffn.down)
    return norm(x_TD, np.asarray(params.final_norm, np.float64)) @ table.T
