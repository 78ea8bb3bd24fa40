"""Named architectures. AFM report, table 1; `afm_server` is our own assumption where Apple says nothing."""

from pomona.model.config import Architecture

TINY = Architecture(vocab_size=4096, model_dim=256, num_layers=4, num_heads=4, num_kv_heads=2, head_dim=64, ffn_dim=704)
"""4 M parameters: the demo's."""

TINY_DRAFT = Architecture(
    vocab_size=4096, model_dim=128, num_layers=2, num_heads=2, num_kv_heads=1, head_dim=64, ffn_dim=384
)
"""0.9 M parameters: guesses tokens for the demo's."""

AFM_85M = Architecture(
    vocab_size=16384, model_dim=768, num_layers=10, num_heads=12, num_kv_heads=4, head_dim=64, ffn_dim=2048
)
"""A small AFM: 76 M parameters, of which 13 M are the embedding."""

AFM_DEVICE = Architecture(
    vocab_size=49152, model_dim=3072, num_layers=26, num_heads=24, num_kv_heads=8, head_dim=128, ffn_dim=8064
)
"""AFM-on-device: 2.59 B + 0.15 B embedding. Its FFN width is that of AXLearn's public honeycrisp-3B."""

AFM_DEVICE_PARENT = Architecture(
    vocab_size=49152, model_dim=3072, num_layers=26, num_heads=24, num_kv_heads=8, head_dim=128, ffn_dim=24192
)
"""The parent AFM-on-device was pruned from: 6.4 B by the report, so about three times the FFN width."""

AFM_SERVER = Architecture(
    vocab_size=102400, model_dim=8192, num_layers=80, num_heads=64, num_kv_heads=8, head_dim=128, ffn_dim=28672
)
"""An ASSUMED size, 69 B: Apple publishes only the vocabulary (100 k) and the 8 key-value heads."""

PRESETS = {
    "tiny": TINY,
    "tiny_draft": TINY_DRAFT,
    "afm_85m": AFM_85M,
    "afm_device": AFM_DEVICE,
    "afm_device_parent": AFM_DEVICE_PARENT,
    "afm_server": AFM_SERVER,
}
