"""Writes the dashboards: python deploy/grafana/write.py [--check]

With --check nothing is written, and the status is 1 if a file is not what it would write.
"""

import argparse
import json
import sys
from pathlib import Path

from model import model
from overview import overview
from process import process

FOLDER = Path(__file__).parent / "dashboards"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="compare, write nothing")
    check: bool = parser.parse_args().check
    boards = {"overview": overview(), "model": model(), "process": process()}
    status = 0
    for name, board in boards.items():
        path = FOLDER / f"{name}.json"
        text = json.dumps(board, indent=1, ensure_ascii=False) + "\n"
        if path.exists() and path.read_text(encoding="utf-8") == text:
            continue
        if check:
            print(f"{path} is not what {Path(__file__).name} writes", file=sys.stderr)
            status = 1
        else:
            path.write_text(text, encoding="utf-8")
    return status


if __name__ == "__main__":
    sys.exit(main())
