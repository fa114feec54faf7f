"""What imports what, in fresh interpreters: the core no framework, a backend only its own."""

import ast
import json

import pytest

from tests.support import BACKENDS, REFERENCE_FOLDERS, ROOT, run_python, without

FRAMEWORKS = {"pt": ["torch"], "tf": ["tensorflow", "keras"], "flax": ["jax", "flax"]}
# What the core imports only where it is used, since not everybody has it.
OPTIONAL = {"transformers", "h5py", "pyarrow", "sklearn", "scipy", "matplotlib", "tensorboard", "ray"}
FORMAT_FILES = ["model.safetensors", "pytorch_model.bin", "tf_model.h5", "flax_model.msgpack"]

# The layers of the design, lowest first; a module may import what stands in its own layer or below.
LAYERS = [
    [
        "errors",
        "optional",
        "allocator",
        "processors",
        "progress",
        "checkpoint.safely",
        "checkpoint.manifest",
        "checkpoint.publishing",
        "checkpoint.hub",
    ],
    ["config", "outputs", "positions"],
    ["weight_map", "checks", "tokenization"],
    # What the specification, the backends and the loop agree on.
    ["training.objective", "training.batches", "training.randomness", "training.trainer"],
    [
        "checkpoint",
        "initialization",
        "reference",
        "reference_training",
        "reference_losses",
        "reference_objectives",
        "resizing",
    ],
    ["backends"],
    ["parity", "inference"],
    ["native"],
    ["tasks"],
    ["training"],
    ["training.run"],
    ["training.tuning"],
    ["pt", "tf", "flax"],
    ["cli_training"],
    ["cli"],
    ["__main__"],
]


def fresh(code):
    done = run_python("-c", code)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_importing_the_package_is_quick_and_pulls_in_nothing():
    code = """
import json, sys, time
start = time.perf_counter()
import distilbert
took = time.perf_counter() - start
distilbert.__all__
print(json.dumps([took, sorted(m for m in sys.modules if "." not in m)]))
"""
    runs = [fresh(code) for _ in range(5)]
    assert min(took for took, _ in runs) < 0.05
    assert not {"numpy", "torch", "tensorflow", "keras", "jax", "flax", "transformers", "h5py"} & set(runs[0][1])


def test_the_core_imports_no_framework():
    core = [
        str(file.relative_to(ROOT).with_suffix("")).replace("/", ".").removesuffix(".__init__")
        for package in ("distilbert", "weights_convert")
        for file in (ROOT / package).rglob("*.py")
        if file.name != "__main__.py" and file.relative_to(ROOT).parts[1] not in BACKENDS
    ]
    code = f"""
import importlib, json, sys
for name in {core!r}:
    importlib.import_module(name)
print(json.dumps(sorted(sys.modules)))
"""
    modules = fresh(code)
    assert "weights_convert.convert" in modules
    assert not {name for names in FRAMEWORKS.values() for name in names} & set(modules)
    assert not OPTIONAL & set(modules)


def test_the_names_of_training_resolve_without_a_framework():
    code = """
import json, sys
from distilbert.training import DistillationArguments, TrainingArguments, distill, search, train
places = [name.__module__ for name in (DistillationArguments, TrainingArguments, distill, search, train)]
print(json.dumps([places, sorted(sys.modules)]))
"""
    places, modules = fresh(code)
    assert places == [f"distilbert.training.{name}" for name in ("arguments", "arguments", "run", "tuning", "run")]
    assert not {name for names in FRAMEWORKS.values() for name in names} & set(modules)
    assert not OPTIONAL & set(modules)


@pytest.mark.parametrize("backend", BACKENDS)
def test_each_backend_reads_every_format_without_the_other_frameworks(backend):
    """Their files, our reader, one framework in the process: the reference's results.

    The others are made unimportable, since TensorFlow itself imports jax where it can.
    """
    others = [name for other in BACKENDS if other != backend for name in FRAMEWORKS[other]] + ["transformers"]
    code = f"""{without(*others)}
import json, shutil, sys, tempfile
from pathlib import Path
import numpy as np
from distilbert.{backend} import DistilBertModel
worst = {{}}
for folder in map(Path, {[str(f) for f in REFERENCE_FOLDERS]!r}):
    inputs, expected = dict(np.load(folder / "inputs.npz")), np.load(folder / "expected.npz")
    for file in {FORMAT_FILES!r}:
        with tempfile.TemporaryDirectory() as alone:
            for name in ("config.json", file):
                shutil.copy(folder / name, alone)
            model = DistilBertModel.from_pretrained(alone)
        out = model(**inputs, output_hidden_states=True, output_attentions=True)
        pairs = [(out.last_hidden_state, expected["last_hidden_state"])]
        pairs += [(h, expected[f"hidden_states.{{i}}"]) for i, h in enumerate(out.hidden_states)]
        pairs += [(a, expected[f"attentions.{{i}}"]) for i, a in enumerate(out.attentions)]
        arrays = [(np.asarray(a.detach() if hasattr(a, "detach") else a), e) for a, e in pairs]
        worst[f"{{folder.name}}/{{file}}"] = max(float(np.abs(a - e).max()) for a, e in arrays)
print(json.dumps([worst, list(sys.modules)]))
"""
    worst, modules = fresh(code)
    assert len(worst) == 8
    assert max(worst.values()) < 5e-6, worst
    assert not set(others) & set(modules)
    assert set(FRAMEWORKS[backend]) <= set(modules)


@pytest.mark.parametrize("backend", BACKENDS)
def test_importing_a_backend_imports_only_its_framework(backend):
    own = ", ".join(FRAMEWORKS[backend])
    code = f"""
import json, sys
import {own}
before = set(sys.modules)
import distilbert.{backend}
print(json.dumps(sorted({{name.split(".")[0] for name in set(sys.modules) - before}})))
"""
    others = {name for other in BACKENDS if other != backend for name in FRAMEWORKS[other]} | {"transformers", "h5py"}
    assert not others & set(fresh(code))


def imports(file):
    """The modules of the package that a file imports, in whatever form."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            parts = name.split(".")
            if parts[0] == "distilbert":
                is_module = (ROOT / "/".join(parts)).is_dir() or (ROOT / "/".join(parts)).with_suffix(".py").exists()
                yield ".".join(parts[1:] if is_module else parts[1:-1])


def test_modules_import_downwards_only():
    rank = {name: i for i, names in enumerate(LAYERS) for name in names}

    def place(module):
        parts = module.split(".")
        return next((rank[".".join(parts[:n])] for n in (2, 1) if ".".join(parts[:n]) in rank), None)

    for file in (ROOT / "weights_convert").glob("*.py"):
        assert not {module.split(".")[0] for module in imports(file)} & set(BACKENDS)
    for file in (ROOT / "distilbert").rglob("*.py"):
        name = ".".join(file.relative_to(ROOT / "distilbert").with_suffix("").parts).removesuffix(".__init__")
        if name in ("", "__init__"):
            continue
        assert place(name) is not None, f"{name} has no layer"
        for imported in imports(file):
            if imported == "":
                continue  # the package itself: its version, and names that resolve lazily
            assert place(imported) <= place(name), f"{name} imports {imported}"
            backends = {name.split(".")[0], imported.split(".")[0]} & set(BACKENDS)
            assert len(backends) < 2, f"{name} imports {imported}"


@pytest.mark.parametrize(
    ("backend", "missing", "extra"),
    [("pt", "torch", "pt"), ("tf", "tensorflow", "tf"), ("tf", "keras", "tf"), ("flax", "flax", "flax")],
)
def test_a_missing_framework_is_one_line_with_the_install_command(backend, missing, extra):
    code = f"""
import sys
sys.modules[{missing!r}] = None
from distilbert.cli import main
main(["parity", {str(REFERENCE_FOLDERS[0])!r}, "--backends", {backend!r}])
"""
    done = run_python("-c", code)
    assert done.returncode == 3
    line = done.stderr.strip().splitlines()[-1]
    assert line.startswith(f"error: distilbert.{backend} needs the package {missing}")
    assert f"pip install 'distilbert[{extra}]'" in line
    assert "Traceback" not in done.stderr


def test_a_missing_format_library_is_one_line_too(tmp_path):
    (tmp_path / "in").mkdir()
    for name in ("config.json", "tf_model.h5"):
        (tmp_path / "in" / name).write_bytes((REFERENCE_FOLDERS[0] / name).read_bytes())
    code = f"""
import sys
sys.modules["pyfive"] = None
from distilbert.cli import main
main(["convert", {str(tmp_path / "in")!r}, {str(tmp_path / "out")!r}, "--to", "safetensors"])
"""
    done = run_python("-c", code)
    assert done.returncode == 3
    assert "pip install 'distilbert[formats]'" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_another_keras_backend_is_refused_with_the_remedy():
    code = "import os; os.environ['KERAS_BACKEND'] = 'jax'\nimport distilbert.tf"
    done = run_python("-c", code)
    assert "set the environment variable KERAS_BACKEND=tensorflow before Keras is first imported" in done.stderr


def test_old_names_resolve_to_their_framework():
    import distilbert

    assert distilbert.DistilBertModel.__module__ == "distilbert.pt.model"
    assert distilbert.TFDistilBertModel.__module__ == "distilbert.tf.model"
    assert distilbert.FlaxDistilBertForSentenceEmbedding.__module__ == "distilbert.flax.heads"
    assert set(dir(distilbert)) >= {"DistilBertConfig", "TFDistilBertModel", "__version__"}
    with pytest.raises(AttributeError, match="has no attribute 'Nonsense'"):
        distilbert.Nonsense  # noqa: B018
