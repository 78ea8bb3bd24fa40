"""llama.cpp as a peer, in a process and an environment of its own (`make .venv/llama`): what it says of a GGUF file.

    .venv/llama/bin/python bench/llama_peer.py answer MODEL < QUESTIONS     tokens, texts and logits
    .venv/llama/bin/python bench/llama_peer.py quantize SOURCE TARGET Q4_0
    .venv/llama/bin/python bench/llama_peer.py nats MODEL WINDOWS.npz       the loss on windows of tokens
    .venv/llama/bin/python bench/llama_peer.py speed MODEL THREADS TOKENS   seconds of a token, of 512 at once

Nothing of Pomona is imported here. The last line is JSON. But for `speed`, keys and values are kept in float32 and
attention is the plain one, so that what is measured is the weights. QUESTIONS is JSON: {"texts": [...], "prompts":
[[id, ...], ...]}. WINDOWS.npz holds `ids` int32 [W, T + 1], padded, and `lengths` int32 [W], the ids of each window.
"""

import argparse
import ctypes
import json
import os
import statistics
import sys
import time

import llama_cpp
import numpy as np
from gguf import GGUFReader, LlamaFileType


def load(path, context):
    """The model, quiet, with room for `context` tokens and logits at every one of them."""
    return llama_cpp.Llama(
        path,
        n_ctx=context,
        n_batch=context,
        n_ubatch=context,
        n_threads=1,  # two wait for each other by spinning, which takes minutes where others work beside them
        n_threads_batch=1,
        logits_all=True,
        flash_attn=False,
        type_k=llama_cpp.GGML_TYPE_F32,
        type_v=llama_cpp.GGML_TYPE_F32,
        verbose=False,
    )


def logits(model, ids):
    """float32 [T, V]: what the model says after each of the ids."""
    model.reset()
    model.eval(ids)
    return model.scores[: len(ids)]


def answer(path, questions):
    """Ids (begin included) and the bytes they come back as for each text; logits for each prompt."""
    model = load(path, 512)
    texts = []
    for text in questions.get("texts", []):
        ids = model.tokenize(text.encode(), add_bos=True, special=False)
        texts.append({"ids": ids, "back": text_bytes(model, ids).hex()})
    found = [logits(model, ids).astype(float).tolist() for ids in questions.get("prompts", [])]
    return {"texts": texts, "logits": found}


def text_bytes(model, ids):
    """llama.cpp's own detokenizing; the method of the Python class strips a space in front."""
    tokens, vocabulary = (llama_cpp.llama_token * len(ids))(*ids), model._model.vocab
    size = -llama_cpp.llama_detokenize(vocabulary, tokens, len(ids), None, 0, True, False)
    buffer = ctypes.create_string_buffer(max(size, 1))
    llama_cpp.llama_detokenize(vocabulary, tokens, len(ids), buffer, size, True, False)
    return buffer.raw[:size]


def quantize(source, target, kind):
    """Writes `target` in a file type such as Q4_K_M with llama.cpp's defaults, and returns its bits per weight."""
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype = int(LlamaFileType[f"MOSTLY_{kind}"])
    parameters.nthread = os.cpu_count()
    if llama_cpp.llama_model_quantize(source.encode(), target.encode(), parameters):
        sys.exit(f"llama.cpp could not write {target}")
    return bits(target)


def bits(path):
    """Bits per weight of the layers' matrices, of the embedding and of all tensors, and the types that were used."""
    sizes, counts, types = {}, {}, {}
    for tensor in GGUFReader(path).tensors:
        name = tensor.name.removesuffix(".weight")
        part = "embedding" if name == "token_embd" else "norms" if len(tensor.shape) == 1 else "linear"
        sizes[part] = sizes.get(part, 0) + 8 * int(tensor.n_bytes)
        counts[part] = counts.get(part, 0) + int(tensor.n_elements)
        kind = tensor.tensor_type.name
        types.setdefault(part, {})[kind] = types.get(part, {}).get(kind, 0) + int(tensor.n_elements)
    return {
        "linear_bits": sizes["linear"] / counts["linear"],
        "embedding_bits": sizes["embedding"] / counts["embedding"],
        "all_bits": sum(sizes.values()) / sum(counts.values()),
        "types": types,
    }


def nats(path, windows):
    """Per window, the sum of -log p of every id but the first, in float64."""
    ids, lengths = windows["ids"], windows["lengths"]
    model = load(path, int(lengths.max()) - 1)
    sums = []
    for row, length in zip(ids, lengths):
        scores = logits(model, row[: length - 1].tolist()).astype(np.float64)
        top = scores.max(axis=1)
        normalisers = top + np.log(np.exp(scores - top[:, None]).sum(axis=1))
        sums.append(float((normalisers - scores[np.arange(length - 1), row[1:length]]).sum()))
    return {"nats": sums, **bits(path)}


def speed(path, threads, tokens, context):
    """Seconds of a token after `context`, the median, and of 512 tokens at once, with llama.cpp's own defaults."""
    threads, tokens, context, prompt = int(threads), int(tokens), int(context), 512
    model = llama_cpp.Llama(
        path,
        n_ctx=max(prompt, context) + tokens + 1,
        n_batch=prompt,
        n_ubatch=prompt,
        n_threads=threads,
        n_threads_batch=threads,
        verbose=False,
    )
    rng = np.random.default_rng(1)
    ids = rng.integers(3, model.n_vocab(), max(prompt, context)).tolist()
    model.eval(ids[:8])  # the file comes into memory
    model.reset()
    start = time.perf_counter()
    model.eval(ids[:prompt])
    prefill, seconds = time.perf_counter() - start, []
    model.reset()
    model.eval(ids[:context])
    for token in rng.integers(3, model.n_vocab(), tokens).tolist():
        start = time.perf_counter()
        model.eval([token])
        seconds.append(time.perf_counter() - start)
    return {"decode": statistics.median(seconds), "prefill": prefill}


def main():
    """One question, one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("what", choices=("answer", "quantize", "nats", "speed"))
    parser.add_argument("arguments", nargs="+")
    options = parser.parse_args()
    if options.what == "answer":
        found = answer(*options.arguments, json.load(sys.stdin))
    elif options.what == "quantize":
        found = quantize(*options.arguments)
    elif options.what == "speed":
        found = speed(*options.arguments)
    else:
        path, windows = options.arguments
        found = nats(path, np.load(windows))
    print(json.dumps(found | {"llama_cpp_python": llama_cpp.__version__}))


if __name__ == "__main__":
    main()
