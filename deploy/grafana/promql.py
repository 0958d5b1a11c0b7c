"""PromQL that several panels share: selectors, rates, quantiles, means and ratios.

A selector is the list of label matchers between the braces. It stands alone because it is all that
the dashboards know of PromQL; panels.py and layout.py are about Grafana.
"""

PROCESSES = 'job=~"$job", instance=~"$instance"'
"""The selected processes."""

MODEL = f'{PROCESSES}, model=~"$model"'
"""The selected models in these processes."""

VERSION = f'{MODEL}, version=~"$version"'
"""The selected versions of these models."""

RATE_INTERVAL = "$__rate_interval"


def rate(name: str, selector: str, by: str = "") -> str:
    """Rate of a counter per second, summed over all labels but those in `by`."""
    return f"sum by ({by}) (rate({name}{{{selector}}}[{RATE_INTERVAL}]))"


def quantile(q: float, name: str, selector: str, by: str = "") -> str:
    """Quantile of a histogram, from its buckets; `name` is without the suffix _bucket."""
    buckets = rate(f"{name}_bucket", selector, f"le, {by}" if by else "le")
    return f"histogram_quantile({q}, {buckets})"


def mean(name: str, selector: str, by: str = "") -> str:
    """Mean of a histogram: its sum divided by its count."""
    return f"{rate(f'{name}_sum', selector, by)} / {rate(f'{name}_count', selector, by)}"


def ratio(part: str, total: str) -> str:
    """`part` divided by `total`: 0 where `part` has no series, no value where `total` is 0."""
    return f"({part} or {total} * 0) / ({total} > 0)"
