"""What `benchmarks.inference` times: one engine in a process of its own interpreter.

    PYTHON -m benchmarks.inference_engines PEER MODELS

PEER is a row of `benchmarks.peers`. Read by the others' interpreters: it imports our package only for our engines.
An engine gets padded NumPy ids and their mask, and gives last hidden states as a NumPy array (batch, seq, dim); what
lies between is timed. Orders are {"do": "check" | "time", "inputs": FILE, ...}.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from benchmarks import gemm_probe
from benchmarks.engines import Answer, serve
from benchmarks.peers import EXPECTED, PEERS, PROBE, Peer

THREADS = 2
LONGEST_SPIN = 0.5  # seconds; Intel's OpenMP spins for 0.2
IMPORTS = {
    "optimized": ("distilbert",),
    "plain_pt": ("distilbert.pt", "torch"),
    "expected": ("distilbert.pt", "torch"),
    "plain_tf": ("distilbert.tf", "tensorflow", "keras"),
    "plain_flax": ("distilbert.flax", "jax", "flax"),
    "transformers_torch": ("torch", "transformers"),
    "sentence_transformers": ("torch", "transformers", "sentence_transformers"),
    "onnx_runtime": ("onnxruntime",),
    "openvino": ("openvino",),
    "ctranslate2": ("ctranslate2",),
    "transformers_tf": ("tensorflow", "transformers"),
    "transformers_flax": ("jax", "transformers"),
    "keras_hub": ("tensorflow", "keras", "keras_hub"),
}
BACKENDS = {"pt": ("torch",), "tf": ("tensorflow", "keras"), "flax": ("jax", "flax")}
Array = NDArray[Any]


class Loaded(NamedTuple):
    """An engine that is ready: what computes a batch, and what it says about its precision."""

    run: Callable[[Array, Array], Array]
    precision: str


def optimized(folder: Path, backend: str, precision: str, *, native: bool | None = None) -> Loaded:
    """Ours, frozen; the model itself is given up."""
    module = importlib.import_module(f"distilbert.{backend}")
    optimize = importlib.import_module(f"distilbert.{backend}.inference").optimize
    _limit_threads(backend)
    model = module.DistilBertModel.from_pretrained(folder)
    engine = optimize(model, precision=precision, keep_model=False, native=native)
    return Loaded(lambda ids, mask: np.asarray(engine(ids, mask)[0]), str(engine.describe()))


def _limit_threads(backend: str) -> None:
    if backend == "pt":
        import torch

        torch.set_num_threads(THREADS)
    if backend == "tf":
        import tensorflow as tf

        tf.config.threading.set_intra_op_parallelism_threads(THREADS)


def plain_pt(folder: Path, dtype: str = "float32") -> Loaded:
    """Our PyTorch model as it is, on padded batches."""
    import torch

    from distilbert.pt import DistilBertModel

    torch.set_num_threads(THREADS)
    model = DistilBertModel.from_pretrained(folder, dtype=dtype)

    def run(ids: Array, mask: Array) -> Array:
        with torch.inference_mode():
            return model(torch.from_numpy(ids), torch.from_numpy(mask))[0].numpy()

    return Loaded(run, str(model.dtype))


def expected(folder: Path) -> Loaded:
    """The numbers that all are held to: our PyTorch model in float64, which the specification is compared with."""
    return plain_pt(folder, dtype="float64")


def plain_tf(folder: Path) -> Loaded:
    """Our Keras model as it is, in a graph with free batch and length."""
    import tensorflow as tf

    from distilbert.tf import DistilBertModel

    _limit_threads("tf")
    model = DistilBertModel.from_pretrained(folder)
    run = _graph(tf, lambda ids, mask: model(ids, mask)[0], np.int64, xla=False)
    return Loaded(run, model.dtype)


def plain_flax(folder: Path) -> Loaded:
    """Our NNX model as it is, one program for each shape."""
    import jax
    from flax import nnx

    from distilbert.flax import DistilBertModel

    graph, state = nnx.split(DistilBertModel.from_pretrained(folder))
    call = jax.jit(lambda state, ids, mask: nnx.merge(graph, state)(ids, mask)[0])
    return Loaded(lambda ids, mask: np.asarray(call(state, ids, mask)), "float32")


def transformers_torch(folder: Path, attention: str, dtype: str, *, compiled: bool = False) -> Loaded:
    """The reference in PyTorch; compiled for free lengths, with frozen weights."""
    import torch
    import transformers

    torch.set_num_threads(THREADS)
    kind = getattr(torch, dtype)
    model = transformers.DistilBertModel.from_pretrained(folder, attn_implementation=attention, dtype=kind).eval()
    call: Any = model
    if compiled:
        torch._inductor.config.freezing = True  # noqa: SLF001 - the documented place of this setting  # pyright: ignore
        call = torch.compile(model, dynamic=True)

    def run(ids: Array, mask: Array) -> Array:
        with torch.inference_mode() if not compiled else torch.no_grad():
            found = call(torch.from_numpy(ids), attention_mask=torch.from_numpy(mask))[0]
        return found.float().numpy()

    return Loaded(run, str(model.dtype))


def sentence_transformers(folder: Path) -> Loaded:
    """Its encoder without pooling; it computes as transformers do."""
    import torch
    from sentence_transformers import SentenceTransformer, models

    torch.set_num_threads(THREADS)
    model = SentenceTransformer(modules=[models.Transformer(str(folder))], device="cpu").eval()

    def run(ids: Array, mask: Array) -> Array:
        features = {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask)}
        with torch.inference_mode():
            return model(features)["token_embeddings"].numpy()

    return Loaded(run, str(model.dtype))


def onnx_runtime(folder: Path) -> Loaded:
    """ONNX Runtime on its own kernels for this processor."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = THREADS, 1
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"])

    def run(ids: Array, mask: Array) -> Array:
        return session.run(None, {"input_ids": ids, "attention_mask": mask})[0]

    return Loaded(run, "as the graph says")


def openvino(folder: Path, hint: str) -> Loaded:
    """OpenVINO for low latency: all threads for one call."""
    import openvino as peer

    core = peer.Core()
    file = next(path for path in folder.iterdir() if path.suffix in (".onnx", ".xml"))
    settings = {"INFERENCE_NUM_THREADS": THREADS, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": hint}
    compiled = core.compile_model(core.read_model(file), "CPU", settings)
    request = compiled.create_infer_request()

    def run(ids: Array, mask: Array) -> Array:
        return request.infer([ids, mask], share_inputs=True, share_outputs=True)[0]

    used = compiled.get_property("INFERENCE_PRECISION_HINT")
    return Loaded(run, f"{used}; {compiled.get_property('INFERENCE_NUM_THREADS')} threads")


def ctranslate2(folder: Path, compute_type: str) -> Loaded:
    """CTranslate2's encoder."""
    import ctranslate2 as peer

    encoder = peer.Encoder(str(folder), device="cpu", compute_type=compute_type, intra_threads=THREADS, inter_threads=1)

    def run(ids: Array, mask: Array) -> Array:
        lengths = peer.StorageView.from_array(mask.sum(1).astype(np.int32))
        found = encoder.forward_batch(peer.StorageView.from_array(ids.astype(np.int32)), lengths)
        return np.asarray(found.last_hidden_state)

    return Loaded(run, encoder.compute_type)


def transformers_tf(folder: Path, *, xla: bool) -> Loaded:
    """The reference in TensorFlow."""
    import tensorflow as tf
    import transformers

    _limit_threads("tf")
    model = transformers.TFDistilBertModel.from_pretrained(folder)

    def call(ids: Any, mask: Any) -> Any:
        return model(input_ids=ids, attention_mask=mask, training=False).last_hidden_state

    return Loaded(_graph(tf, call, np.int32, xla=xla), str(model.dtype))


def _graph(tf: Any, call: Callable[..., Any], dtype: Any, *, xla: bool) -> Callable[[Array, Array], Array]:
    """A function of NumPy arrays; XLA makes a program for each shape, the graph is one for all."""
    signature = [tf.TensorSpec([None, None], dtype)] * 2
    function = tf.function(call, jit_compile=True) if xla else tf.function(call, input_signature=signature)
    return lambda ids, mask: function(tf.constant(ids, dtype), tf.constant(mask, dtype)).numpy()


def keras_hub(folder: Path, *, xla: bool) -> Loaded:
    """KerasHub's backbone."""
    import keras_hub as peer
    import tensorflow as tf

    _limit_threads("tf")
    model = peer.models.DistilBertBackbone.from_preset(str(folder))

    def call(ids: Any, mask: Any) -> Any:
        return model({"token_ids": ids, "padding_mask": mask}, training=False)

    return Loaded(_graph(tf, call, np.int32, xla=xla), model.compute_dtype)


def transformers_flax(folder: Path) -> Loaded:
    """The reference in Flax, jitted: a program for each shape."""
    import jax
    import transformers

    model = transformers.FlaxDistilBertModel.from_pretrained(folder)
    call = jax.jit(lambda params, ids, mask: model(ids, mask, params=params).last_hidden_state)
    return Loaded(lambda ids, mask: np.asarray(call(model.params, ids, mask)), str(model.dtype))


def anonymous_memory() -> int:
    """Bytes that this process holds and no file backs, after what is free was given back. Linux."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


def import_all(peer: Peer) -> dict[str, str]:
    """Import what an engine needs, so that its memory can be told from the framework's; the versions of that."""
    names = ["numpy", *IMPORTS[peer.loader]]
    if "backend" in peer.options:
        names += [f"distilbert.{peer.options['backend']}.inference", *BACKENDS[peer.options["backend"]]]
    modules = {name: importlib.import_module(name) for name in names}
    found = {name: module.__version__ for name, module in modules.items() if hasattr(module, "__version__")}
    return {"python": sys.version.split()[0], **found}


def start() -> tuple[Answer, Callable[[Answer], Answer]]:
    """Load the engine that the command line names."""
    name, models = sys.argv[1], Path(sys.argv[2])
    if name == PROBE.name:
        return gemm_probe.start(THREADS)
    peer = {EXPECTED.name: EXPECTED, **PEERS}[name]
    versions, before, begin = import_all(peer), anonymous_memory(), time.perf_counter()
    loaded: Loaded = globals()[peer.loader](models / peer.model, **peer.options)
    hello = {
        "precision": loaded.precision, "versions": versions, "seconds": time.perf_counter() - begin,
        "memory": anonymous_memory() - before,
    }  # fmt: skip
    return hello, lambda order: do(loaded.run, order)


def do(run: Callable[[Array, Array], Array], order: Answer) -> Answer:
    """Compute the batches of a file: for their results, or for their time."""
    with np.load(order["inputs"]) as file:
        batches = [(file[f"ids{number}"], file[f"mask{number}"]) for number in range(len(file) // 2)]
    if order["do"] == "check":
        kept = [run(ids, mask)[mask == 1] for ids, mask in batches]  # (tokens of the batch, dim) each
        np.save(order["outputs"], np.concatenate(kept))
        return {}
    gc.collect()
    if order["repeat"] > 1:
        run(*batches[0])  # other engines' turns have emptied the caches
    seconds = [timed(run, batches) for _ in range(order["repeat"])]
    settle()
    return {"seconds": seconds}


def settle() -> None:
    """Wait until this process's threads, which spin for a while after a product, sleep: the next turn is another's."""
    until = time.monotonic() + LONGEST_SPIN
    while time.monotonic() < until:
        busy, begin = time.process_time(), time.perf_counter()
        time.sleep(0.005)
        if time.process_time() - busy < 0.2 * (time.perf_counter() - begin):
            return


def timed(run: Callable[[Array, Array], Array], batches: list[tuple[Array, Array]]) -> float:
    """Seconds that all batches take."""
    begin = time.perf_counter()
    for ids, mask in batches:
        run(ids, mask)
    return time.perf_counter() - begin


if __name__ == "__main__":
    serve(start)
