"""Convert a checkpoint to a 16- or 32-bit GGUF file with llama.cpp's own converter.

Request: {source_tree, checkpoint, out, type: f16|bf16|f32, name?, strings?, messages?}. Response:
{size_bytes, architecture, scan, parity: object | null}. `source_tree` is the llama.cpp tree of the
toolchain; `name` is written into the file as the model's name (without it the converter uses the
folder's). `scan` is what `scan_weights` says of the file. Where `strings` are given, `parity` is
what `checkpoint_parity` answers for them. Both are asked here, since starting another process and
importing numpy or transformers in it takes longer than the answers.
"""

import json
import logging
import os
import runpy
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import checkpoint_parity
from _protocol import WorkerError, progress, run


class ProgressBar:
    """Stands in for tqdm's bar, which the converter draws while it writes."""

    def __init__(self, iterable=None, total=None, **_):
        self._iterable, self._total, self._done = iterable, total, 0

    def __iter__(self):
        yield from self._iterable or ()

    def update(self, count=1):
        self._done += count
        if self._total:
            progress(self._done, self._total, "converting to GGUF")

    def set_description(self, *_):
        return

    def reset(self, total=None):
        self._total, self._done = total, 0

    def close(self):
        return


class ErrorLines(logging.Handler):
    """Keeps what the converter logs as an error."""

    def __init__(self):
        super().__init__(logging.ERROR)
        self.lines = []

    def emit(self, record):
        self.lines.append(record.getMessage())


def main(request):
    checkpoint, out = Path(request["checkpoint"]), Path(request["out"])
    architecture = _architecture(checkpoint)
    progress(note=f"loading the converter for {architecture}")
    out.parent.mkdir(parents=True, exist_ok=True)
    arguments = ["--outfile", str(out), "--outtype", request["type"]]
    if request.get("name"):
        arguments += ["--model-name", request["name"]]
    _run_converter(Path(request["source_tree"]), [*arguments, str(checkpoint)], architecture)
    if not out.is_file():
        raise WorkerError(f"the converter wrote no {out.name} for {architecture}")
    import scan_weights  # not before: the converter must import the gguf package of its own tree

    return {
        "size_bytes": out.stat().st_size,
        "architecture": architecture,
        "scan": scan_weights.main({"path": str(out)}),
        "parity": checkpoint_parity.main(request) if "strings" in request else None,
    }


def _architecture(checkpoint):
    try:
        config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
        return config["architectures"][0]
    except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
        raise WorkerError(
            f"{checkpoint} names no model architecture in its config.json",
            "A checkpoint is a folder with config.json, *.safetensors and a tokenizer.",
        ) from error


def _run_converter(tree, arguments, architecture):
    import tqdm

    tqdm.tqdm = ProgressBar
    errors = ErrorLines()
    logging.getLogger().addHandler(errors)
    logging.getLogger().setLevel(logging.INFO)
    logging.getLogger().addHandler(logging.StreamHandler())
    script = tree / "convert_hf_to_gguf.py"
    sys.path.insert(0, str(tree))
    sys.argv = [str(script), *arguments]
    os.environ.pop("NO_LOCAL_GGUF", None)
    try:
        runpy.run_path(str(script), run_name="__main__")
    except SystemExit as ended:
        if ended.code:
            raise _refusal(architecture, errors.lines[-1:] or [f"status {ended.code}"]) from ended
    except (NotImplementedError, ValueError, KeyError, TypeError, OSError) as error:
        raise _refusal(architecture, [str(error) or type(error).__name__]) from error


def _refusal(architecture, lines):
    why = " ".join(lines)
    if "is not supported" in why or "not supported!" in why:
        return WorkerError(
            f"llama.cpp's converter does not know the architecture {architecture}",
            "Choose a model of an architecture llama.cpp supports.",
        )
    return WorkerError(
        f"the checkpoint ({architecture}) cannot be converted: {why}",
        "The log holds the converter's output.",
    )


if __name__ == "__main__":
    run(main)
