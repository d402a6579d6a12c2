"""Write the text in columns of a parquet file, so that nothing else needs to read that format.

Request: {path, out, columns}. Every string in those of the columns that the file has, in lists and
records too, is written to `out` in the order of the rows; where one does not end with a newline,
a newline is added. Response: {rows, characters}. Memory stays bounded.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import pyarrow
import pyarrow.parquet
from _protocol import WorkerError, progress, run

BATCH = 1024


def main(request):
    path = Path(request["path"])
    rows = characters = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            columns = _present(file, request["columns"], path)
            with Path(request["out"]).open("w", encoding="utf-8", newline="") as out:
                for batch in file.iter_batches(batch_size=BATCH, columns=columns):
                    for row in batch.to_pylist():
                        characters += sum(out.write(text) for text in _texts(row))
                    rows += batch.num_rows
                    progress(rows, file.metadata.num_rows)
    except (OSError, UnicodeError, pyarrow.ArrowException) as error:
        first = next(iter(str(error).splitlines()), type(error).__name__)
        raise WorkerError(
            f"{path.name} is no usable parquet file: {first}",
            "Name another file of the data set, or fetch it again.",
        ) from error
    return {"rows": rows, "characters": characters}


def _present(file, columns, path):
    there = file.schema_arrow.names
    found = [name for name in columns if name in there]
    if not found:
        raise WorkerError(
            f"{path.name} has no column {' or '.join(columns)}; it has {', '.join(there[:8])}",
            "Name another file of the data set.",
        )
    return found


def _texts(value):
    """Every string in a row's value, ended by a newline."""
    if isinstance(value, str):
        yield value if value.endswith("\n") else f"{value}\n"
    elif isinstance(value, dict):
        for part in value.values():
            yield from _texts(part)
    elif isinstance(value, list):
        for part in value:
            yield from _texts(part)


if __name__ == "__main__":
    run(main)
