"""Writes the dashboards: python deploy/grafana [--check]

With --check nothing is written, and the exit status is 1 if a file is missing or out of date.
"""

import argparse
import json
import sys
from pathlib import Path

from grafana_foundation_sdk.cog.encoder import JSONEncoder
from model_dashboard import model_dashboard
from overview_dashboard import overview_dashboard
from process_dashboard import process_dashboard

FOLDER = Path(__file__).parent / "dashboards"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="compare only, write nothing")
    check: bool = parser.parse_args().check
    dashboards = {
        "overview": overview_dashboard(),
        "model": model_dashboard(),
        "process": process_dashboard(),
    }
    status = 0
    for name, dashboard in dashboards.items():
        path = FOLDER / f"{name}.json"
        text = json.dumps(dashboard, cls=JSONEncoder, indent=1, ensure_ascii=False) + "\n"
        if path.exists() and path.read_text(encoding="utf-8") == text:
            continue
        if check:
            print(f"{path} is out of date (run: make dashboards)", file=sys.stderr)
            status = 1
        else:
            path.write_text(text, encoding="utf-8")
    return status


if __name__ == "__main__":
    sys.exit(main())
