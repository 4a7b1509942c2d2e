"""This script types the examples of the documentation and compares what they show.

python scripts/docs_examples.py [--write] [PAGE …]

`--write` puts the outputs of today into the pages.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.support.docs_pages import typed_pages
from tests.support.docs_runs import play


def main() -> None:
    """Type the pages that are named, or all; end with 1 if one differs and is not written."""
    is_to_write = "--write" in sys.argv[1:]
    named = [Path(name).resolve() for name in sys.argv[1:] if not name.startswith("-")]
    is_good = True
    for page in named or typed_pages():
        played = play(page)
        for difference in played.differences:
            print(f"{page.name}, {difference}")
        if is_to_write:
            page.write_text(played.text)
        is_good = is_good and not played.differences
    raise SystemExit(0 if is_good or is_to_write else 1)


if __name__ == "__main__":
    main()
