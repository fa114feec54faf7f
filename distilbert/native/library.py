"""The compiled library: where it is, what this processor can do with it, and its functions, as in encoder.h."""

from __future__ import annotations

import ctypes
import functools
import weakref
from pathlib import Path
from typing import Any, NoReturn

INTERFACE = 1  # as encoder.h
LIBRARY = Path(__file__).with_name("libdistilbert.so")
KINDS = {"float32": 0, "bfloat16": 1, "int8": 2}
NEEDS = {"float32": "AVX-512", "bfloat16": "AVX-512 BF16", "int8": "AVX-512 VNNI"}
_INT, _POINTER = ctypes.c_int, ctypes.c_void_p
_FUNCTIONS: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "distilbert_interface": (_INT, ()),
    "distilbert_kinds": (_INT, ()),
    "distilbert_has_matrix_units": (_INT, ()),
    "distilbert_new": (_POINTER, (*[_INT] * 6, ctypes.c_float)),
    "distilbert_free": (None, (_POINTER,)),
    "distilbert_set_embeddings": (_INT, (_POINTER, _POINTER, _INT, _POINTER, _INT, _POINTER, _POINTER, _INT)),
    "distilbert_set_layer": (_INT, (_POINTER, _INT, _INT, ctypes.POINTER(_POINTER), _INT)),
    "distilbert_encode": (_INT, (*[_POINTER] * 4, _INT, _INT, _INT, _POINTER)),
    "distilbert_new_linear": (_POINTER, (*[_INT] * 4, _POINTER, _POINTER, _INT)),
    "distilbert_free_linear": (None, (_POINTER,)),
    "distilbert_linear": (_INT, (_POINTER, _POINTER, _INT, _INT, _POINTER)),
}


@functools.cache
def library() -> ctypes.CDLL | None:
    """The library; None where it was not compiled, or from other sources, or cannot be loaded."""
    try:
        loaded = ctypes.CDLL(str(LIBRARY))
        for name, (result, arguments) in _FUNCTIONS.items():
            function = getattr(loaded, name)
            function.restype, function.argtypes = result, arguments
    except (OSError, AttributeError):
        return None
    return loaded if loaded.distilbert_interface() == INTERFACE else None


def lacks(precision: str) -> str:
    """Why products of that precision cannot be computed here; empty if they can."""
    functions = library()
    if functions is None:
        return "the package was installed without a C compiler, not for this system, or from other sources"
    if not functions.distilbert_kinds() >> KINDS[precision] & 1:
        return f"this processor has no {NEEDS[precision]}"
    return ""


def has_matrix_units() -> bool:
    """Whether the processor has AMX, with which frameworks multiply bfloat16 and bytes faster than this library."""
    functions = library()
    return functions is not None and bool(functions.distilbert_has_matrix_units())


class NoKernelsError(ValueError):
    """This package's own kernels were asked for, and cannot be used here."""


class Handle:
    """Something of the library's, freed with this object.

    Raises:
        MemoryError: `address` is None.
    """

    def __init__(self, address: int | None, free: Any) -> None:
        if address is None:
            raise MemoryError("no memory for the weights of an optimized model.")
        self.address = address
        weakref.finalize(self, free, address).atexit = False  # at exit a thread may be computing; the system frees it

    def __reduce__(self) -> NoReturn:
        raise TypeError("an optimized model can be neither copied nor pickled: save the model, and optimize it anew.")


def check(status: int) -> None:
    """Raise MemoryError if a function of the library had none."""
    if status:
        raise MemoryError("no memory for an optimized model.")
