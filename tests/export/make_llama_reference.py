"""Writes what llama.cpp answers for the reference models: the values that test_gguf_reference.py compares with.

    make .venv/dev .venv/llama && PYTHONPATH=tests/export .venv/bin/python tests/export/make_llama_reference.py

Run again only when the models of `reference_models.py` or the bytes of an exported file change; the test notices.
"""

import hashlib
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from reference_models import PROMPTS, SHAPES, STORED, TEXTS, model, tokenizer

from pomona.export.gguf import export_gguf

ROOT = Path(__file__).parents[2]
PADDED = {"gqa": False, "mha": True, "wide_heads": False}
TEXTS_THERE = (*TEXTS, "a <s> struck </s> out", "\n", "\n\n\n \n")


def export(name, folder):
    """(the file, its SHA-256) of a reference model in float32, one of the three with its feed-forward block widened."""
    path = folder / f"{name}.gguf"
    export_gguf(model(name), path, "float32", PADDED[name])
    return path, hashlib.sha256(path.read_bytes()).hexdigest()


def main():
    """Exports each model, asks llama.cpp, stores the answers."""
    python = sys.argv[1] if len(sys.argv) > 1 else ROOT / ".venv" / "llama" / "bin" / "python"
    about, logits = {"tokenizer": tokenizer().fingerprint}, {}
    with tempfile.TemporaryDirectory() as scratch:
        for name in SHAPES:
            path, digest = export(name, Path(scratch))
            command = [python, ROOT / "bench" / "llama_peer.py", "answer", path]
            questions = json.dumps({"texts": TEXTS_THERE, "prompts": PROMPTS[:1]})
            done = subprocess.run(command, input=questions, check=True, text=True, stdout=subprocess.PIPE)
            answer = json.loads(done.stdout.splitlines()[-1])
            about[name] = {"file_sha256": digest}
            logits[name] = np.array(answer["logits"][0], np.float32)
    about["llama_cpp_python"] = answer["llama_cpp_python"]
    about["texts"] = [[text, found["ids"], found["back"]] for text, found in zip(TEXTS_THERE, answer["texts"])]
    (STORED / "llama.json").write_text(json.dumps(about, ensure_ascii=True) + "\n")
    np.savez_compressed(STORED / "llama.npz", **logits)


if __name__ == "__main__":
    main()
