"""The three backends are twins: same files, same classes in the same order, same attributes, same methods."""

import ast
import inspect

import pytest

from distilbert.backends import load_backend
from tests.support import BACKENDS, ROOT

# Where a framework's idiom differs: the method that runs a module, and what Keras needs to build one.
CALLS = {"forward", "call", "__call__"}
KERAS_ONLY = {"build"}
PYTORCH_ONLY = {"implementation", "attend_fused"}  # the choice of an attention kernel
KERAS_CONFIG = {"config"}  # layers keep it for build()


def outline(backend, file):
    """(class, attributes in the order of assignment, methods) of each class of a file."""
    tree = ast.parse((ROOT / "distilbert" / backend / file).read_text())
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            attributes, methods = [], []
            for child in ast.walk(node):
                targets = child.targets if isinstance(child, ast.Assign) else ()
                flat = [t for target in targets for t in (target.elts if isinstance(target, ast.Tuple) else [target])]
                attributes += [
                    t.attr for t in flat if isinstance(t, ast.Attribute) and getattr(t.value, "id", "") == "self"
                ]
            for child in node.body:
                if isinstance(child, ast.FunctionDef) and child.name not in KERAS_ONLY | PYTORCH_ONLY:
                    methods.append("call" if child.name in CALLS else child.name)
            yield node.name, attributes, methods


def test_the_same_files():
    listed = {backend: sorted(p.name for p in (ROOT / "distilbert" / backend).glob("*.py")) for backend in BACKENDS}
    assert listed["pt"] == listed["tf"] == listed["flax"]


def test_the_same_classes_attributes_and_methods():
    outlines = {backend: list(outline(backend, "model.py")) for backend in BACKENDS}
    for backend in ("tf", "flax"):  # PyTorch has a flag for a table that is not trained
        outlines[backend] = [entry for entry in outlines[backend] if entry[0] != "FixedTable"]
    assert len(outlines["pt"]) == 8
    for torch, keras, nnx in zip(*outlines.values(), strict=True):
        assert torch[0] == keras[0] == nnx[0]
        block = torch[0] not in ("Pooling",)
        keras_attributes = [a for a in keras[1] if not (block and a in KERAS_CONFIG)]
        assert torch[1] == keras_attributes == nnx[1], torch[0]
        assert torch[2] == keras[2] == nnx[2], torch[0]


def test_the_same_helper_functions():
    def functions(backend):
        tree = ast.parse((ROOT / "distilbert" / backend / "model.py").read_text())
        return [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]

    assert functions("pt") == functions("flax") == [f for f in functions("tf") if f not in ("normal", "lowest")]


@pytest.mark.parametrize("name", ["DistilBertModel", "DistilBertForSentenceEmbedding"])
def test_the_same_signatures(name):
    """Calls, construction from a seed or a checkpoint, and saving: same parameters, order and defaults."""

    def parameters(function, without=()):
        signature = inspect.signature(inspect.unwrap(function))
        return [(p.name, p.kind, p.default) for p in signature.parameters.values() if p.name not in ("self", *without)]

    pt, tf, flax = (getattr(load_backend(backend), name) for backend in BACKENDS)
    assert parameters(pt.forward) == parameters(tf.call, ["training"]) == parameters(flax.__call__)
    loading = [
        parameters(pt.from_pretrained, ["attn_implementation"]),
        *map(parameters, (tf.from_pretrained, flax.from_pretrained)),
    ]
    assert loading[0] == loading[1] == loading[2]
    for method in ("from_config", "save_pretrained", "weights_by_name", "assign", "tensor_specs", "evaluating"):
        assert parameters(getattr(pt, method)) == parameters(getattr(tf, method)) == parameters(getattr(flax, method))
    assert parameters(pt.__init__) == parameters(tf.__init__, ["kwargs"]) == parameters(flax.__init__, ["rngs"])
