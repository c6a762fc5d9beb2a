"""Text to token ids and back, by llama.cpp: every framework gets and gives ids."""

import json
import sys
from pathlib import Path

from vistrald.engine import llama
from vistrald.settings import EngineSection

if __name__ == "__main__":
    request = json.load(sys.stdin)
    llama.load_backend()
    vocabulary = llama.Model(Path(request["model"]), EngineSection()).vocabulary
    ids = vocabulary.tokenize(request["text"], special=True)
    if vocabulary.adds_bos and vocabulary.bos >= 0:
        ids.insert(0, vocabulary.bos)
    texts = [
        b"".join(map(vocabulary.piece, answer)).decode(errors="replace")
        for answer in request["answers"]
    ]
    print(json.dumps({"prompt": ids, "texts": texts}))  # noqa: T201
