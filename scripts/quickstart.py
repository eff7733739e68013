"""One command from a fresh clone to a working memory: ``python3 scripts/quickstart.py``.

Makes ``.venv``, installs localmem with llama.cpp, fetches and verifies the base model, then runs the main job on a
sample chat. Everything stays inside the project folder (``.venv``, ``.localmem``). Run again, it takes seconds.
"""

import sys


def main():
    if not (3, 11) <= sys.version_info[:2] <= (3, 14):  # before the import: _setup needs a current Python to parse
        print(
            f"localmem needs Python 3.11 to 3.14; this is Python {sys.version_info[0]}.{sys.version_info[1]}.\n"
            "Run it with another one, for example: python3.12 scripts/quickstart.py",
            file=sys.stderr,
        )
        return 1
    import _setup

    return _setup.run(_setup.quickstart)


if __name__ == "__main__":
    sys.exit(main())
