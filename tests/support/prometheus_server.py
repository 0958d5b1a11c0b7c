"""A real Prometheus with the configuration and the rules of deploy/, in a hurry.

Its rules are a scaled copy: the same expressions, with every length of time divided by SPEED. That
is ranges ([5m]), waits (for: 5m) and the objectives that are seconds. None gets shorter than what
scrapes each second can fill.
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

SHORTEST_RANGE = 6.0
SHORTEST_OBJECTIVE = 0.3
RANGES: Mapping[str, float] = {"NeuronaProcessRestarts": 60.0}
"""Not shorter than these: a server needs seconds for a start."""

MACHINE = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
OBJECTIVES: Mapping[str, float] = {"neurona:objective:memory_ratio": 800e6 / MACHINE}
"""Objectives that are other than in real life: nobody fills the machine's memory for a test."""

UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}

Labels = dict[str, str]


def seconds(text: str) -> float:
    return sum(float(n) * UNITS[unit] for n, unit in re.findall(r"(\d+)([smhd])", text))


def scaled(rule: Mapping[str, Any]) -> dict[str, Any]:
    """The rule with every length of time divided by SPEED."""
    name = rule.get("alert") or rule["record"]
    shortest = RANGES.get(name, SHORTEST_RANGE)

    def range_of(found: re.Match[str]) -> str:
        return f"[{max(seconds(found[1]) / SPEED, shortest) * 1000:.0f}ms]"

    copy = dict(rule, expr=re.sub(r"\[(\w+)\]", range_of, rule["expr"]))
    if "for" in rule:
        copy["for"] = f"{seconds(rule['for']) / SPEED * 1000:.0f}ms"
    if name.startswith("neurona:objective:") and name.endswith("_seconds"):
        value = float(re.fullmatch(r"vector\((.*)\)", rule["expr"])[1])  # type: ignore[index]
        copy["expr"] = f"vector({max(value / SPEED, SHORTEST_OBJECTIVE)})"
    if name in OBJECTIVES:
        copy["expr"] = f"vector({OBJECTIVES[name]})"
    return copy


class Scraper:
    def __init__(self, folder: Path) -> None:
        (self.address,) = free_addresses(1)
        self._targets: set[str] = set()
        self._targets_file = folder / "targets.json"
        self._write_targets()
        self._write_rules(folder / "rules")
        config = yaml.safe_load((dashboards.DEPLOY / "prometheus" / "prometheus.yml").read_text())
        config["global"] |= {"scrape_interval": "1s", "evaluation_interval": "500ms"}
        (job,) = [one for one in config["scrape_configs"] if one["job_name"] == "neurona"]
        # In place of asking DNS.
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
        self.until(lambda: self.query("vector(1)"), "Prometheus answers")

    def close(self) -> None:
        self._process.terminate()
        self._process.wait()

    def watch(self, target: str) -> None:
        """From now on it is scraped; returns once it has been."""
        self._targets.add(target)
        self._write_targets()
        self.until(lambda: self.query(f'up{{instance="{target}"}} == 1'), f"scrapes {target}")

    def forget(self, target: str) -> None:
        self._targets.discard(target)
        self._write_targets()
        self.until(lambda: not self.query(f'up{{instance="{target}"}}'), f"forgets {target}")

    def query(self, expr: str) -> list[tuple[Labels, float]]:
        """What it is right now; values that are no numbers left out."""
        result = self._get("query", {"query": expr})["result"]
        values = [(one["metric"], float(one["value"][1])) for one in result]
        return [(labels, value) for labels, value in values if not math.isnan(value)]

    def firing(self) -> set[tuple[str, str]]:
        """Names of alerts, each with its model ("" if it has none)."""
        return {
            (one["labels"]["alertname"], one["labels"].get("model", ""))
            for one in self.alerts()
            if one["state"] == "firing"
        }

    def alerts(self) -> list[dict[str, Any]]:
        """With their labels, annotations and state."""
        alerts: list[dict[str, Any]] = self._get("alerts", {})["alerts"]
        return alerts

    def until(self, condition: Callable[[], object], what: str, patience: float = 90.0) -> None:
        end = time.monotonic() + patience
        while True:
            try:
                if condition():
                    return
            except OSError:  # it does not listen yet
                pass
            assert self._process.poll() is None, "Prometheus has ended"
            assert time.monotonic() < end, f"waited in vain: {what}"
            time.sleep(0.2)

    def _get(self, path: str, parameters: Mapping[str, str]) -> Any:
        data = urllib.parse.urlencode(parameters)
        url = f"http://{self.address}/api/v1/{path}?{data}"
        with urllib.request.urlopen(url, timeout=10) as answer:
            return json.load(answer)["data"]

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
