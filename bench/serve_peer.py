"""transformers as a peer: generates one batch each time that it is told to, and says how long that took.

serve_peer.py PROMPT HEARD USERS
"""

import sys
import time

import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from pomona.recipes.registry import RECIPES

length, heard, users = map(int, sys.argv[1:])
a = RECIPES["afm_85m"]().architecture
config = Qwen3Config(
    vocab_size=a.vocab_size,
    hidden_size=a.model_dim,
    num_hidden_layers=a.num_layers,
    num_attention_heads=a.num_heads,
    num_key_value_heads=a.num_kv_heads,
    head_dim=a.head_dim,
    intermediate_size=a.ffn_dim,
    tie_word_embeddings=True,
)
torch.manual_seed(0)
model = Qwen3ForCausalLM(config).eval()
tokens = torch.randint(3, 299, (users, length))


def generate():
    """Seconds of one batch; nothing ends early."""
    began = time.perf_counter()
    with torch.inference_mode():
        found = model.generate(
            tokens,
            attention_mask=torch.ones_like(tokens),
            max_new_tokens=heard,
            min_new_tokens=heard,
            do_sample=False,
            pad_token_id=0,
        )
    assert found.shape[1] == length + heard
    return time.perf_counter() - began


generate()
print("ready", flush=True)
for _ in sys.stdin:
    print(generate(), flush=True)
