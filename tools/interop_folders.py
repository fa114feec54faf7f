"""Write every golden model in every format of the reference, for it to read; `make interop` runs this first."""

from __future__ import annotations

import sys
from pathlib import Path

from conformance import goldens
from distilbert.checkpoint.folder import FORMATS, REFERENCE_FORMATS
from weights_convert import convert

SHARD_SIZE = 60_000


def main(root: Path) -> None:
    """Fill the new folder `root`: <golden>/<format>, and <golden>/<format>-parts."""
    for folder in goldens.FOLDERS:
        for name in REFERENCE_FORMATS:
            convert(folder, root / folder.name / name, to=name)
            if FORMATS[name].shardable:
                convert(folder, root / folder.name / f"{name}-parts", to=name, shard_size=SHARD_SIZE)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
