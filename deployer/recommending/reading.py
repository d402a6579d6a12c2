"""Bytes of the weights and of the key-value cache, as a comparison tells them."""

from __future__ import annotations

from deployer.comparison import Comparison, Row, Size

KV_FIELD = "kv_bytes_per_token"


def weights_in_memory(size: Size) -> float:
    """Bytes of the weights once they are loaded; of what is quantized while it loads, fewer than
    are stored."""
    return size.parameters * size.bits_per_weight / 8


def cache_bytes_per_token(comparison: Comparison) -> float:
    """Bytes of key-value cache a token takes, the same for every format of a model.

    From the comparison's source where it says so. Else a bound: no format held more beside its
    weights than its peak memory less them, for `context` x `parallel` tokens; the least of these
    is taken, 0 where no peak is known.
    """
    told = comparison.source.get(KV_FIELD)
    if isinstance(told, int | float) and told > 0:
        return float(told)
    bounds = [bound for row in comparison.measured if (bound := _bound(row)) is not None]
    return min(bounds, default=0.0)


def _bound(row: Row) -> float | None:
    serving, size = row.serving, row.size
    if serving is None or size is None or serving.peak_rss_bytes is None:
        return None
    beside = serving.peak_rss_bytes.mean - weights_in_memory(size)
    return max(0.0, beside) / (serving.context * serving.parallel)
