#!/usr/bin/env python3
"""Reads exported adapters with the formats' own means and compares every value with what PEFT wrote and computed.

Each case is a folder of CASES that `candle-peft convert` turned into EXPORTS/<case>/mlx and EXPORTS/<case>/adapter.gguf.
Prints every failure and 'N passed, N failed'; the exit code is 1 if any check failed.
"""

import argparse
import sys
from pathlib import Path

import gguf_format
import mlx_format
from cases import Case


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=Path, required=True, help="the folder of the cases and their base models")
    parser.add_argument("--exports", type=Path, required=True, help="the folder of the converted adapters")
    parser.add_argument("names", nargs="+", metavar="CASE")
    args = parser.parse_args()

    passed = failed = 0
    for name in args.names:
        case = Case(args.cases, name)
        for module, file in ((mlx_format, "mlx"), (gguf_format, "adapter.gguf")):

            def expect(what: str, holds: bool) -> None:
                nonlocal passed, failed
                if holds:
                    passed += 1
                else:
                    failed += 1
                    print(f"FAILED {name}/{file}: {what}")

            module.check(case, args.exports / name / file, expect)
    print(f"{passed} passed, {failed} failed")
    return 1 if failed or not passed else 0


if __name__ == "__main__":
    sys.exit(main())
