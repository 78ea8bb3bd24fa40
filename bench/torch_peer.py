"""What the naive user runs: `transformers` in bfloat16, eager, on the shape of AFM-on-device with random weights.

torch_peer.py THREADS TOKENS CONTEXT        one line of JSON: seconds of a token, and of 512 tokens at once
"""

import json
import statistics
import sys
import time

import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from pomona.model.presets import AFM_DEVICE as SHAPE

PREFILL = 512


def main():
    """Random weights, one at a time, so that all of them are never there in two types."""
    threads, tokens, context = map(int, sys.argv[1:])
    torch.set_num_threads(threads)
    torch.set_default_dtype(torch.bfloat16)
    config = Qwen3Config(
        vocab_size=SHAPE.vocab_size,
        hidden_size=SHAPE.model_dim,
        intermediate_size=SHAPE.ffn_dim,
        num_hidden_layers=SHAPE.num_layers,
        num_attention_heads=SHAPE.num_heads,
        num_key_value_heads=SHAPE.num_kv_heads,
        head_dim=SHAPE.head_dim,
        tie_word_embeddings=True,
        max_position_embeddings=8192,
    )
    with torch.device("meta"):
        model = Qwen3ForCausalLM(config)
    model = model.to_empty(device="cpu").eval()
    model.tie_weights()
    with torch.inference_mode():
        for weight in model.parameters():
            weight.uniform_(-0.02, 0.02) if weight.ndim > 1 else weight.fill_(1)
        model.model.rotary_emb = type(model.model.rotary_emb)(config)
        ids = torch.randint(3, SHAPE.vocab_size, (1, max(PREFILL, context)))
        model(ids[:, :8])
        start = time.perf_counter()
        model(ids[:, :PREFILL], logits_to_keep=1)
        prefill, taken = time.perf_counter() - start, []
        kept = model(ids[:, :context], use_cache=True, logits_to_keep=1).past_key_values
        for token in torch.randint(3, SHAPE.vocab_size, (tokens, 1, 1)):
            start = time.perf_counter()
            kept = model(token, past_key_values=kept, use_cache=True).past_key_values
            taken.append(time.perf_counter() - start)
    print(json.dumps({"decode": statistics.median(taken), "prefill": prefill, "torch": torch.__version__}))


if __name__ == "__main__":
    main()
