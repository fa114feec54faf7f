"""What several test files share."""

import contextlib
import functools
import io
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np

from conformance import cases, goldens
from distilbert.backends import load_backend
from distilbert.checkpoint.folder import REFERENCE_FORMATS, WRITABLE
from distilbert.cli import main
from distilbert.inference import Description, FrozenModel, identity
from distilbert.tokenization.options import TokenizerOptions

DATA = Path(__file__).parent / "data"
REFERENCE_FOLDERS = [folder for folder in goldens.FOLDERS if folder.name.startswith("Model-")]  # the encoder's
ROOT = Path(__file__).parent.parent
ANY_MODEL = [name for name in WRITABLE if name in REFERENCE_FORMATS]  # formats to write that hold every model
BACKENDS = ("pt", "tf", "flax")
SPECIAL_TOKENS = tuple(TokenizerOptions().special_tokens())
KERNELS = ("pt-eager", "pt-sdpa", "tf", "flax")  # backend, and attention kernel where there is a choice


def to_numpy(x):
    """A backend's array in float64."""
    if hasattr(x, "detach"):
        x = x.detach().double()
    return np.asarray(x).astype(np.float64)


def new_model(kernel, config=cases.CONFIG, weights=None, head="DistilBertModel", **settings):
    """A model of the backend with given canonical weights, in their dtype, in evaluation mode."""
    backend, _, attention = kernel.partition("-")
    module = load_backend(backend)
    weights = cases.weights(config) if weights is None else weights
    dtype = next(iter(weights.values())).dtype.name
    if backend == "tf":
        settings["dtype"] = dtype
    model = getattr(module, head).from_config(config, **settings)
    model.assign(weights)
    if attention:
        model.set_attn_implementation(attention)
    return model


def run(model, *args, **inputs):
    """Call the model in the mode in which results are compared."""
    backend = type(model).__module__.split(".")[1]
    first = model.weights_by_name()["distilbert.embeddings.LayerNorm.weight"]
    with load_backend(backend).exact(first.dtype.name):
        return model(*args, **inputs)


class Padded(FrozenModel):
    """An optimized model that computes nothing by itself: it calls the plain one on padded rows."""

    def __init__(self, model, precision):
        super().__init__(*identity(model), precision, model)
        self.calls = []

    def describe(self):
        return Description("pt", self.head, self.precision, "cpu", 1, {}, ())

    def _to_host(self, _, value):
        return None if value is None else np.asarray(value)

    def _call_model(self, model, **arguments):
        return model(**arguments)

    def _compute(self, tokens, _):
        self.calls.append(tokens.lengths.tolist())
        ids, mask = np.zeros(tokens.shape, np.int64).reshape(-1), np.zeros(tokens.shape, np.int64).reshape(-1)
        ids[tokens.places], mask[tokens.places] = tokens.ids, 1
        with self._model.evaluating() as model:
            return model(ids.reshape(tokens.shape), mask.reshape(tokens.shape))


def run_python(*arguments, timeout=300, **options):
    """A fresh interpreter in the repository's root."""
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=timeout, check=False, **options
    )


def without(*packages):
    """Code for a fresh interpreter in which these packages cannot be imported.

    They are not None in `sys.modules`, where SciPy, which Keras imports, looks for PyTorch.
    """
    return f"""
import importlib.abc, sys
class Missing(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {packages!r}:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Missing())
"""


@functools.cache
def find_strace():
    """The command, if it is there and the system lets it trace; None otherwise, as in some containers."""
    strace = shutil.which("strace")
    if strace is None or subprocess.run([strace, "-f", "-o", os.devnull, "true"], check=False).returncode != 0:
        return None
    return strace


def run_cli(*arguments, main=main):
    """A command line in this process: (exit code, standard output, standard error)."""
    out, err = io.StringIO(), io.StringIO()
    code = 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main([str(argument) for argument in arguments])
        except SystemExit as stop:
            code = stop.code or 0
    return code, out.getvalue(), err.getvalue()
