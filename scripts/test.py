"""The tests, after the same set-up as quickstart.py: ``python3 scripts/test.py [--all | --bounds] [pytest arguments]``.

--all      ruff, format, mypy --strict and the layer test as well; this is what CI runs
--bounds   throw-away environments with the lowest and the highest allowed dependencies, and a smoke test in each
Anything else goes to pytest: ``python3 scripts/test.py -k search -x``.
"""

import sys


def main():
    if not (3, 11) <= sys.version_info[:2] <= (3, 14):  # before the import: _setup needs a current Python to parse
        print(
            f"localmem needs Python 3.11 to 3.14; this is Python {sys.version_info[0]}.{sys.version_info[1]}.\n"
            "Run it with another one, for example: python3.12 scripts/test.py",
            file=sys.stderr,
        )
        return 1
    import _checks
    import _setup

    return _setup.run(_checks.main, sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
