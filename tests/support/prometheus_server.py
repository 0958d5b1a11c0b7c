"""A real Prometheus with the configuration and the rules of deploy/, sped up.

Its rules are a scaled copy: the same expressions, with every duration divided by SPEED: ranges
([5m]), waits (for: 5m) and the objectives in seconds. Ranges stay long enough to contain several
scrapes, which happen each second.
"""

import json
import math
import os
import re
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

from support import dashboards
from support.server_process import free_addresses

SPEED = 720
"""An hour takes five seconds."""

MINIMUM_RANGE = 6.0
MINIMUM_OBJECTIVE = 0.3
MINIMUM_RANGES: Mapping[str, float] = {"NeuronaProcessRestarts": 60.0}
"""Minimum ranges in seconds: a server takes seconds to start."""

MACHINE_MEMORY = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
OBJECTIVES: Mapping[str, float] = {"neurona:objective:memory_ratio": 800e6 / MACHINE_MEMORY}
"""Objectives with other values than in deploy/: a test cannot fill the machine's memory."""

UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}

Labels = dict[str, str]


def parse_duration(text: str) -> float:
    return sum(float(n) * UNITS[unit] for n, unit in re.findall(r"(\d+)([smhd])", text))


def scaled(rule: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the rule with every duration divided by SPEED."""
    name = rule.get("alert") or rule["record"]
    minimum = MINIMUM_RANGES.get(name, MINIMUM_RANGE)

    def scaled_range(match: re.Match[str]) -> str:
        return f"[{max(parse_duration(match[1]) / SPEED, minimum) * 1000:.0f}ms]"

    copy = dict(rule, expr=re.sub(r"\[(\w+)\]", scaled_range, rule["expr"]))
    if "for" in rule:
        copy["for"] = f"{parse_duration(rule['for']) / SPEED * 1000:.0f}ms"
    if name.startswith("neurona:objective:") and name.endswith("_seconds"):
        value = float(re.fullmatch(r"vector\((.*)\)", rule["expr"])[1])  # type: ignore[index]
        copy["expr"] = f"vector({max(value / SPEED, MINIMUM_OBJECTIVE)})"
    if name in OBJECTIVES:
        copy["expr"] = f"vector({OBJECTIVES[name]})"
    return copy


class Scraper:
    """The Prometheus process, its targets and its query API."""

    def __init__(self, folder: Path) -> None:
        (self.address,) = free_addresses(1)
        self._targets: set[str] = set()
        self._targets_file = folder / "targets.json"
        self._write_targets()
        self._write_rules(folder / "rules")
        config = yaml.safe_load((dashboards.DEPLOY / "prometheus" / "prometheus.yml").read_text())
        config["global"] |= {"scrape_interval": "1s", "evaluation_interval": "500ms"}
        (job,) = [one for one in config["scrape_configs"] if one["job_name"] == "neurona"]
        # The targets are read from a file instead of DNS.
        del job["dns_sd_configs"]
        job["file_sd_configs"] = [{"files": [str(self._targets_file)], "refresh_interval": "1s"}]
        config["scrape_configs"] = [job]
        (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
        command = [
            *("prometheus", "--config.file", folder / "prometheus.yml"),
            *("--storage.tsdb.path", folder / "data", "--web.listen-address", self.address),
            *("--enable-feature=exemplar-storage", "--log.level=warn"),
        ]
        self._process = subprocess.Popen(command)
        self.until(lambda: self.query("vector(1)"), "Prometheus responds")

    def close(self) -> None:
        self._process.terminate()
        self._process.wait()

    def add_target(self, target: str) -> None:
        """Adds a target and waits until it is scraped."""
        self._targets.add(target)
        self._write_targets()
        self.until(lambda: self.query(f'up{{instance="{target}"}} == 1'), f"{target} is scraped")

    def remove_target(self, target: str) -> None:
        """Removes a target and waits until its series are stale."""
        self._targets.discard(target)
        self._write_targets()
        self.until(lambda: not self.query(f'up{{instance="{target}"}}'), f"{target} is removed")

    def query(self, expr: str) -> list[tuple[Labels, float]]:
        """Returns the current values of an expression, without NaN."""
        result = self._get("query", {"query": expr})["result"]
        values = [(one["metric"], float(one["value"][1])) for one in result]
        return [(labels, value) for labels, value in values if not math.isnan(value)]

    def firing(self) -> set[tuple[str, str]]:
        """Returns the names of firing alerts, each with its model ("" if it has none)."""
        return {
            (one["labels"]["alertname"], one["labels"].get("model", ""))
            for one in self.alerts()
            if one["state"] == "firing"
        }

    def alerts(self) -> list[dict[str, Any]]:
        """Returns pending and firing alerts with their labels, annotations and state."""
        alerts: list[dict[str, Any]] = self._get("alerts", {})["alerts"]
        return alerts

    def until(self, condition: Callable[[], object], event: str, timeout: float = 90.0) -> None:
        """Polls until the condition is true; `event` names it in the error."""
        end = time.monotonic() + timeout
        while True:
            try:
                if condition():
                    return
            except OSError:  # it is not listening yet
                pass
            assert self._process.poll() is None, "Prometheus has exited"
            assert time.monotonic() < end, f"timeout: {event} (expected within {timeout:g} s)"
            time.sleep(0.2)

    def _get(self, path: str, parameters: Mapping[str, str]) -> Any:
        data = urllib.parse.urlencode(parameters)
        url = f"http://{self.address}/api/v1/{path}?{data}"
        with urllib.request.urlopen(url, timeout=10) as response:
            return json.load(response)["data"]

    def _write_targets(self) -> None:
        new = self._targets_file.with_suffix(".new")
        new.write_text(json.dumps([{"targets": sorted(self._targets)}]))
        new.rename(self._targets_file)

    @staticmethod
    def _write_rules(folder: Path) -> None:
        folder.mkdir()
        for path in dashboards.RULES:
            content = yaml.safe_load(path.read_text(encoding="utf-8"))
            for group in content["groups"]:
                group["rules"] = [scaled(rule) for rule in group["rules"]]
            (folder / path.name).write_text(yaml.safe_dump(content, sort_keys=False))
