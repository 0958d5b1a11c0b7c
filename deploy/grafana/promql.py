"""PromQL that several panels have in common. A selector is what stands between the braces."""

from board import EVERY


def rate(name: str, selector: str, by: str = "") -> str:
    """Of a counter, per second, summed over whatever is not named in `by`."""
    return f"sum by ({by}) (rate({name}{{{selector}}}[{EVERY}]))"


def quantile(q: float, name: str, selector: str, by: str = "") -> str:
    """Of a histogram, from its buckets; `name` is without _bucket."""
    buckets = rate(f"{name}_bucket", selector, f"le, {by}" if by else "le")
    return f"histogram_quantile({q}, {buckets})"


def mean(name: str, selector: str, by: str = "") -> str:
    """Of a histogram: sum by count."""
    return f"{rate(f'{name}_sum', selector, by)} / {rate(f'{name}_count', selector, by)}"


def share(part: str, whole: str) -> str:
    """Of 1. Nothing is 0 of something, and nothing at all where nothing happens."""
    return f"({part} or {whole} * 0) / ({whole} > 0)"
