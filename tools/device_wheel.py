"""Make the wheel for devices out of the whole wheel: what answers and what measures, without the rooms that build.

    python tools/device_wheel.py dist/edgewise-0.1.0-py3-none-any.whl --out dist/device

What it keeps: see `edgewise.profiler.device_wheel`, which also makes it of an installed edgewise, for SSH devices.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from edgewise.profiler.device_wheel import device_wheel


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wheel", type=Path, help="the whole wheel")
    parser.add_argument("--out", type=Path, default=Path("dist/device"), help="folder (default dist/device)")
    args = parser.parse_args(argv)
    made = device_wheel(args.wheel, args.out)
    print(f"{made}  {made.stat().st_size / 1e3:.0f} kB, the whole wheel {args.wheel.stat().st_size / 1e3:.0f} kB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
