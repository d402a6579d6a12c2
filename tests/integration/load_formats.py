"""Run by the transformers toolchain: score a checkpoint in several formats, in one process.

    python -I load_formats.py REQUEST.json RESPONSE.json

The request is {workers: their folder, request: of score_transformers, loads: [its `load`]};
the response is a list with the mean KL divergence and the memory of each, in the same order.
"""

import json
import sys
from pathlib import Path

asked = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
sys.path.insert(0, asked["workers"])

from score_transformers import main  # noqa: E402

formats = []
for load in asked["loads"]:
    scores = main({**asked["request"], "load": load})
    divergence = sum(scores["kld"]) / len(scores["kld"])
    formats.append({"kl_divergence": divergence, "memory": scores["memory"]})
Path(sys.argv[2]).write_text(json.dumps(formats), encoding="utf-8")
