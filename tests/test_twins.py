"""The three backends are twins: same files, and in them the same classes, attributes, methods and functions in order.

What a framework has alone is listed here by name, with the reason; CONTRIBUTING.md explains the larger differences.
"""

import ast
import inspect

import pytest

from distilbert.backends import load_inference
from distilbert.inference import FrozenModel
from distilbert.training.trainer import Trainer
from tests.support import BACKENDS, ROOT

FILES = ("attention.py", "heads.py", "losses.py", "model.py", "objectives.py", "pretrained.py")
FAST = ("inference.py", "products.py", "unpadded.py")  # what is fastest in a framework is its own
# How a framework differentiates and where it computes is its own too; what others call has the same names and order.
CALLED = {
    "training.py": ["adamw", "trainer", "Trainer"],
    "devices.py": ["session"],
}
ALONE = {"pt": ["packed.py"]}  # training without padding, which compiled shapes exclude
COMPILED = {"token_budget", "cache"}  # options of programs that are compiled for one shape each, which Flax alone has
RUNS = {"forward", "call", "__call__"}  # how each framework names the method that runs a module

IDIOM = {
    "pt": {
        # variable-length flash kernels, which PyTorch alone has
        "Ragged", "ragged", "_packed", "_starts", "attend_flash", "flash_kernel", "check_flash",
        "attend_fused",  # Keras has no fused kernel on TensorFlow
        "on_kept_tokens",  # as packed.py
        "shared_ranking_loss",  # pairs of all devices are each other's negatives, for which JAX needs nothing
        "tie_weights", "tie_again",  # the projector's parameter is the table's own; elsewhere the table is passed to it
        "_empty", "Undrawn",  # a model without memory, instead of one that is drawn and then overwritten
        "from_numpy", "to_numpy", "device", "dtype",  # tensors are no arrays, and live on a device; Keras has its dtype
    },
    "tf": {
        "normal", "lowest",  # Keras's initializer; the finite minimum of a dtype
        "FixedTable", "PaddedTable", "Dropout", "TiedProjector",  # layers that Keras lacks
        "build", "config",  # variables appear in build(), for which layers keep the config
        "__call__", "unpack", "compute_loss", "get_config", "_from_keras_config",  # fit, predict, .keras files
        "shared_ranking_loss",  # as above
        "renew_variable", "_source",  # a variable cannot change its shape; a tied projector has none
        "train_function", "test_function", "predict_function", "_forget_traces",  # compiled functions keep old sizes
    },
    "flax": {
        "FixedTable", "PaddedTable", "TiedProjector",  # modules that NNX lacks
        "attend_fused", "check_cudnn",  # JAX's own kernels
        "_new",  # a model needs generators
        "_source", "dtype",  # as above
    },
}  # fmt: skip
SAME = {"as_array": "as_tensor"}  # the same function, named by what the framework calls it


def outline(backend, file):
    """(name, attributes in the order of assignment, methods) of each class; (name, [], []) of each function."""
    for node in ast.parse((ROOT / "distilbert" / backend / file).read_text()).body:
        if isinstance(node, ast.FunctionDef):
            yield node.name, [], []
        elif isinstance(node, ast.ClassDef):
            methods = [child.name for child in node.body if isinstance(child, ast.FunctionDef)]
            yield node.name, list(attributes(node)), methods


def attributes(node):
    for child in ast.walk(node):
        for target in child.targets if isinstance(child, ast.Assign) else ():
            for part in target.elts if isinstance(target, ast.Tuple) else [target]:
                if isinstance(part, ast.Attribute) and getattr(part.value, "id", "") == "self":
                    yield part.attr


def plain(names):
    """Names without what any framework has alone, and with one name for what runs a module."""
    alone = set.union(*IDIOM.values())
    names = ["call" if name in RUNS else SAME.get(name, name) for name in names]
    return [name for name in names if name not in alone]


def test_the_same_files():
    listed = {backend: sorted(p.name for p in (ROOT / "distilbert" / backend).glob("*.py")) for backend in BACKENDS}
    for backend in BACKENDS:
        assert listed[backend] == sorted(["__init__.py", *FILES, *FAST, *CALLED, *ALONE.get(backend, [])])


@pytest.mark.parametrize("file", FILES)
def test_the_same_classes_and_functions_in_the_same_order(file):
    pt, tf, flax = (plain(name for name, *_ in outline(backend, file)) for backend in BACKENDS)
    assert pt == tf == flax
    assert pt


@pytest.mark.parametrize("file", FILES)
def test_classes_have_the_same_attributes_and_methods_in_the_same_order(file):
    outlines = [{SAME.get(name, name): rest for name, *rest in outline(backend, file)} for backend in BACKENDS]
    for name in plain(outlines[0]):
        pt, tf, flax = ([plain(part) for part in found[name]] for found in outlines)
        if name == "PretrainedModel":  # Keras models have a __call__ around the `call` of their subclasses
            tf[1].remove("call")
        assert pt == tf == flax, name


@pytest.mark.parametrize("file", CALLED)
def test_what_training_calls_has_the_same_names_in_the_same_order(file):
    for backend in BACKENDS:
        assert [name for name, *_ in outline(backend, file) if name in CALLED[file]] == CALLED[file], backend


def test_trainers_have_the_methods_of_the_protocol_with_the_same_parameters_in_the_same_order():
    wanted = [
        (name, list(inspect.signature(method).parameters))
        for name, method in vars(Trainer).items()
        if inspect.isfunction(method) and not name.startswith("_")
    ]
    assert [name for name, _ in wanted] == ["step", "predict", "teach", "state", "restore", "weights", "agree"]
    for backend in BACKENDS:
        found = parameters(backend, "training.py", "Trainer")
        assert [(name, names) for name, names in found if name in dict(wanted)] == wanted, backend


def parameters(backend, file, name):
    """(method, names of its parameters) of a class, in the order of the file."""
    tree = ast.parse((ROOT / "distilbert" / backend / file).read_text())
    node = next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name)
    for method in node.body:
        if isinstance(method, ast.FunctionDef):
            yield method.name, [argument.arg for argument in (*method.args.args, *method.args.kwonlyargs)]


def test_the_listed_differences_exist():
    """A name that a backend has no longer is taken from its list."""
    for backend, names in IDIOM.items():
        found = {
            part for file in FILES for name, own, methods in outline(backend, file) for part in (name, *own, *methods)
        }
        assert names - found == set(), backend


def test_optimized_models_are_made_and_called_alike():
    signatures = []
    for backend in BACKENDS:
        module = load_inference(backend)
        assert issubclass(module.OptimizedModel, FrozenModel)
        assert "__call__" not in vars(module.OptimizedModel)
        parameters = list(inspect.signature(module.optimize).parameters.values())
        signatures.append([(p.name, p.kind, p.default) for p in parameters if p.name not in COMPILED])
    assert signatures[0] == signatures[1] == signatures[2]
    assert [name for name, *_ in signatures[0]] == ["model", "precision", "keep_model", "native"]


def test_the_results_of_every_class_are_declared_once():
    """Heads build the NamedTuples of outputs.py, each its own, in all three."""
    for backend in BACKENDS:
        text = (ROOT / "distilbert" / backend / "heads.py").read_text()
        assert text.count("with_loss(") == 5
        assert "NamedTuple" not in text
