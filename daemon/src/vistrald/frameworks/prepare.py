"""Writes what the trials load: `python -m vistrald.frameworks.prepare` gets paths as JSON.

A process of its own, as it holds a model's tensors.
"""

import json
import sys
from dataclasses import asdict
from pathlib import Path

from vistrald.frameworks import weights, wide

if __name__ == "__main__":
    request = json.load(sys.stdin)
    source, folder = Path(request["model"]), Path(request["folder"])
    folder.mkdir(parents=True)
    try:
        if request["wide"]:
            tokenizer_of, source = source, folder / "F16.gguf"
            wide.write(source, tokenizer_of)
            wide.write(folder / "IQ4_XS.gguf", tokenizer_of, iq4_xs=True)
        counted = weights.inspect(source)
        weights.write_hugging_face(source, folder / "hf")
        weights.write_q8_0(source, folder / "Q8_0.gguf")
    except weights.WeightsError as error:
        sys.exit(str(error))
    if request["wide"]:
        source.unlink()
    print(json.dumps(asdict(counted)))  # noqa: T201
