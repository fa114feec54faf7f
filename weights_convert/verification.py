"""Does a converted folder hold what its source holds, and does every framework compute it?"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from distilbert.backends import BACKENDS
from distilbert.checkpoint.tensors import DTYPES, LazyWeights, digest
from distilbert.errors import VerificationError
from distilbert.parity import ParityReport, compare


def check_bits(source: LazyWeights, copy: LazyWeights) -> None:
    """Every tensor of `copy` has the bits of the source's, in the source's dtype.

    Raises:
        VerificationError: one has not.
    """
    for name in source:
        wanted = digest(source[name])
        if digest(copy[name].astype(DTYPES[source.dtype(name)], copy=False)) != wanted:
            raise VerificationError(f"{name} has other bits in the new folder than in its source; nothing was written.")


def check_parity(folder: Path, backends: Sequence[str]) -> ParityReport:
    """The new folder, run by each backend and compared with the reference.

    Raises:
        VerificationError: a backend differs by more than the tolerance.
    """
    report = compare([folder], backends)
    for result in report.results:
        if result.first_failure:
            raise VerificationError(f"{BACKENDS[result.backend]}: {result.first_failure}; nothing was written.")
    return report
