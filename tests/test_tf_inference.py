"""Fast inference in TensorFlow: the model's numbers, whatever the batch, the precision and the kernels at hand."""

import functools
import itertools
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.python.eager import context
from tensorflow.python.util._pywrap_util_port import IsMklEnabled

from conformance import cases
from distilbert.config import ACTIVATIONS, POOLING_MODES, DenseConfig, DistilBertConfig, PoolingConfig
from distilbert.inference import PRECISIONS
from distilbert.initialization import initial_weights
from distilbert.tf import exact, inference, products, unpadded
from distilbert.tf.inference import FrameworkModel
from distilbert.weight_map import HEADS
from tests.support import new_model

optimize = functools.partial(
    inference.optimize, native=False
)  # TensorFlow's own kernels; the package's are in test_native.py
RNG = np.random.default_rng(0)
LENGTHS = (12, 3, 7, 7, 1, 24, 5, 12, 9)
TINY, BASE = 5e-6, 2e-5  # the tolerances of the specification
BFLOAT16 = 4e-3  # relative; measured 3.3e-3 at base size
ROUNDED = {"bfloat16": 2e-2, "int8": 6e-2}  # relative, of tiny models with large weights
# What company may change, relative: measured 0 with AVX-512, where oneDNN's products of a row are the same in every batch,
# and 1.1e-6 with AVX2.
ALONE = 1e-6 if products.has_flag("avx512bw") else 3e-6
NEEDS_ONEDNN = pytest.mark.skipif(
    not IsMklEnabled() or bool(tf.config.list_logical_devices("GPU")), reason="oneDNN is off, or there is a GPU"
)


def batch(lengths=LENGTHS, vocab_size=99, seq=None):
    mask = np.arange(seq or max(lengths)) < np.array(lengths)[:, None]
    return RNG.integers(1, vocab_size, mask.shape) * mask, mask.astype(np.int64)


def build(head="DistilBertModel", dtype="float32", changes=None, **settings):
    """The same model in any dtype, with weights that hide nothing."""
    config = cases.CONFIG.replace(**changes or {})
    weights = cases.weights(config, head, **settings)
    return new_model("tf", config, {n: w.astype(dtype) for n, w in weights.items()}, head, **settings)


def exactly(model, *args, **inputs):
    with exact("float64"):
        return [np.asarray(x) for x in model(*args, **inputs)[: 2 if "Question" in type(model).__name__ else 1]]


def kept(array, mask):
    """The array with zeros where the mask drops tokens."""
    return array * mask.reshape(mask.shape + (1,) * (array.ndim - 2)) if array.shape[:2] == mask.shape else array


def relative(found, wanted):
    return np.linalg.norm(found - wanted) / np.linalg.norm(wanted)


@pytest.fixture(scope="module", params=PRECISIONS)
def engine(request):
    """One optimized encoder of each precision, for all tests that only call it."""
    return optimize(build(), request.param)


@pytest.fixture
def plain(monkeypatch):
    """A machine without oneDNN's operators."""
    monkeypatch.setattr(products, "has_fused_matmul", lambda dtype: False)
    monkeypatch.setattr(products, "has_quantized_matmul", lambda: False)
    monkeypatch.setattr(products, "has_fused_norm", lambda: False)


def compare(head, ids, *masks, changes=None, precision="float32", **settings):
    """The largest difference from the model in float64, over all results and masks."""
    model, reference = (build(head, dtype, changes, **settings) for dtype in ("float32", "float64"))
    fast = optimize(model, precision, keep_model=False)
    for given in masks:
        found, wanted = fast(ids, given), exactly(reference, ids, given)
        for x, y in zip(found, wanted, strict=False):
            assert x.dtype == tf.float32
            expected = y if given is None else kept(y, given)
            if precision == "float32":
                assert np.abs(x - expected).max() <= TINY
            else:
                assert relative(x, expected) <= ROUNDED[precision]


ROUNDED_HEADS = ("DistilBertModel", "DistilBertForMaskedLM")  # the others' layers are in float32


@pytest.mark.parametrize(
    ("head", "precision"),
    [*((head, "float32") for head in HEADS), *itertools.product(ROUNDED_HEADS, ROUNDED)],
)
def test_every_head(head, precision):
    ids, mask = batch()
    if head == cases.CHOICES:
        ids, mask = ids.reshape(3, 3, -1), mask.reshape(3, 3, -1)
    compare(head, ids, mask, None, precision=precision)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_plain_operators_give_the_same(precision, request):
    model, (ids, mask) = build("DistilBertForMaskedLM"), batch()
    wanted = optimize(model, precision)(ids, mask).logits
    request.getfixturevalue("plain")
    found = optimize(model, precision)(ids, mask).logits
    assert relative(found, wanted) <= {"float32": 1e-6, "bfloat16": 1e-2, "int8": 1e-4}[precision]


CHANGES = (
    *({"activation": name} for name in ACTIVATIONS[1:]),
    {"pruned_heads": {0: [1], 1: [0, 2]}},
    {"sinusoidal_pos_embds": True},
)
POOLINGS = (
    *(PoolingConfig(mode) for mode in POOLING_MODES),
    PoolingConfig(normalize=True, dense=DenseConfig(20)),
    PoolingConfig("cls", dense=DenseConfig(40, bias=False, activation="identity")),
)


@pytest.mark.parametrize("changes", CHANGES, ids=str)
def test_every_config(changes):
    compare("DistilBertModel", *batch(), changes=changes)


def test_untied_projector():
    compare("DistilBertForMaskedLM", *batch(), changes={"tie_word_embeddings": False})


@pytest.mark.parametrize("pooling", POOLINGS, ids=str)
def test_every_pooling(pooling):
    compare("DistilBertForSentenceEmbedding", *batch(), pooling=pooling)


@pytest.mark.parametrize("dtype", ["float64", "float16", "bfloat16"])
def test_models_of_other_dtypes(dtype):
    model, (ids, mask) = build(dtype=dtype), batch()
    rounded = {name: value.astype(np.float64) for name, value in model.weights_by_name().items()}
    wanted = kept(exactly(new_model("tf", weights=rounded), ids, mask)[0], mask)
    found = optimize(model)(ids, mask).last_hidden_state
    assert found.dtype == tf.float32
    assert np.abs(found - wanted).max() <= TINY


def test_masks_of_every_kind_and_lists():
    model, (ids, mask) = build(), batch()
    fast = optimize(model)
    reversed_mask, holes = mask[:, ::-1], mask * (RNG.random(mask.shape) < 0.6)
    holes[2] = 0
    for given in (mask, reversed_mask, holes, np.zeros_like(mask)):
        wanted = kept(model(ids, given).last_hidden_state.numpy(), given)
        assert np.abs(fast(ids, given).last_hidden_state - wanted).max() <= TINY
    rows = [row[:length].tolist() for row, length in zip(ids, LENGTHS, strict=True)]
    assert np.array_equal(fast(rows).last_hidden_state, fast(ids, mask).last_hidden_state)
    positions = RNG.integers(0, 24, ids.shape)
    wanted = kept(model(ids, mask, position_ids=positions).last_hidden_state.numpy(), mask)
    assert np.abs(fast(tf.constant(ids), mask, position_ids=positions).last_hidden_state - wanted).max() <= TINY


def test_company_changes_nothing(engine):
    ids, mask = batch(LENGTHS * 3)
    together = engine(ids, mask).last_hidden_state.numpy()
    for row, length in enumerate(LENGTHS):
        alone = engine(ids[row : row + 1, :length]).last_hidden_state.numpy()[0]
        assert relative(alone, together[row, :length]) <= ALONE


def test_several_passes_give_what_one_gives(monkeypatch):
    model, (ids, mask) = build("DistilBertForSentenceEmbedding"), batch(LENGTHS * 3)
    once = optimize(model)(ids, mask).embeddings.numpy()
    monkeypatch.setattr(inference, "BUDGET", 20)
    passes = []
    monkeypatch.setattr(
        FrameworkModel, "_pass", lambda self, part, go=FrameworkModel._pass: passes.append(part) or go(self, part)
    )
    assert relative(optimize(model)(ids, mask).embeddings, once) <= ALONE
    assert len(passes) > 5
    encoder = build()
    assert np.array_equal(optimize(encoder)(ids, mask)[0] != 0, np.broadcast_to(mask[..., None] != 0, (*ids.shape, 32)))


def test_no_retracing(engine):
    for rows in (1, 2, 5, 17):
        for longest in (1, 6, 24):
            engine(*batch(RNG.integers(1, longest + 1, rows), seq=longest))
            engine(batch([longest] * rows)[0])
    assert engine.programs == (2 if engine.precision == "float32" else 1)


def operators(call):
    """The operators of all graphs that TensorFlow runs, after its own rewriting."""
    context.context().enable_graph_collection()
    try:
        call()
        metadata = context.context().export_run_metadata()
    finally:
        context.context().disable_graph_collection()
    return [node.op for graph in metadata.partition_graphs for node in graph.node]


@NEEDS_ONEDNN
def test_products_are_fused():
    fast, (ids, mask) = optimize(build()), batch()
    found = operators(lambda: fast(ids, mask))
    assert found.count(products.FUSED_MATMUL) == 2 * 4  # of two layers
    assert products.FUSED_MATMUL in fast.describe().kernels["products"]  # called by its name
    assert not {"Erf", "BiasAdd", "MatMul"} & {*found}


@NEEDS_ONEDNN
@pytest.mark.usefixtures("plain")
def test_tensorflow_fuses_the_plain_products():
    fast, (ids, mask) = optimize(build()), batch()
    found = operators(lambda: fast(ids, mask))
    assert sum("FusedMatMul" in name for name in found) == 2 * 4
    assert not {"Erf", "BiasAdd", "MatMul"} & {*found}


def test_layer_norm_has_two_passes():
    x = RNG.normal(100, 1, (5, 32))
    weight, bias = RNG.normal(size=32), RNG.normal(size=32)
    centred = x.astype(np.float32).astype(float) - x.astype(np.float32).astype(float).mean(1, keepdims=True)
    wanted = centred / np.sqrt((centred**2).mean(1, keepdims=True)) * weight + bias
    for norm in (products.LayerNorm(weight, bias), products.plain_norm):
        arguments = () if norm is not products.plain_norm else (weight.astype("f"), bias.astype("f"))
        found = tf.function(lambda x, norm=norm, rest=arguments: norm(x, *rest))(tf.constant(x, tf.float32))
        assert np.abs(found - wanted).max() <= 1e-4  # a variance in one pass is off by 3e-3


def test_several_threads(engine):
    batches = [batch(RNG.integers(1, 25, rows)) for rows in (1, 3, 9, 20) * 4]
    wanted = [engine(*given).last_hidden_state.numpy() for given in batches]
    again = optimize(build(), engine.precision)  # traced and packed by many at once
    with ThreadPoolExecutor(8) as pool:
        for found, expected in zip(
            pool.map(lambda given: again(*given).last_hidden_state, batches), wanted, strict=True
        ):
            assert relative(found, expected) <= ALONE


def test_what_goes_to_the_model():
    model, (ids, mask) = build(), batch()
    fast, alone = optimize(model), optimize(model, keep_model=False)
    output = fast(ids, mask, output_hidden_states=True, output_attentions=True)
    assert (len(output.hidden_states), len(output.attentions)) == (3, 2)
    square = np.tril(np.ones((len(ids), 24, 24), np.int64))
    assert np.array_equal(fast(ids, square).last_hidden_state, model(ids, square).last_hidden_state)
    with pytest.raises(ValueError, match="keep_model=True"):
        alone(ids, square)
    with pytest.raises(ValueError, match="precision must be one of"):
        optimize(model, "float16")
    with pytest.raises(ValueError, match="input_ids must be an array"):
        fast("text")
    with pytest.raises(ValueError, match="input_ids"):
        tf.function(fast)(tf.constant(ids))


def test_the_weights_are_those_of_the_time():
    model, (ids, mask) = build(), batch()
    fast = optimize(model)
    before = fast(ids, mask).last_hidden_state.numpy()
    model.assign({name: value * 2 for name, value in model.weights_by_name().items()})
    assert np.array_equal(fast(ids, mask).last_hidden_state, before)


def test_describe():
    text = str(optimize(build(), "bfloat16", keep_model=False).describe())
    assert "DistilBertModel (tf), bfloat16 on cpu" in text
    assert "refused, the model was not kept" in text
    assert "by the model itself" in str(optimize(build()).describe())


@pytest.mark.usefixtures("plain")
def test_describe_names_what_is_missing():
    description = optimize(build(), "bfloat16").describe()
    assert description.kernels["products"] == "TensorFlow's public operators"
    assert sum("not on this machine" in text for text in description.fallbacks) == 2


def test_describe_says_what_is_slow(monkeypatch):
    monkeypatch.setattr(products, "has_fused_matmul", lambda dtype: True)
    monkeypatch.setattr(products, "processor_flags", lambda: frozenset({"avx512bw"}))
    monkeypatch.setattr(inference, "recommended_threads", lambda: 0)
    fallbacks = optimize(build(), "bfloat16").describe().fallbacks
    assert products.EMULATED in fallbacks
    assert any("TF_NUM_INTRAOP_THREADS=0" in text for text in fallbacks)
    monkeypatch.setattr(products, "processor_flags", lambda: frozenset({"avx512bw", "avx512_bf16"}))
    monkeypatch.setattr(inference, "recommended_threads", inference.threads)
    assert optimize(build(), "bfloat16").describe().fallbacks == optimize(build()).describe().fallbacks


def test_cuts_are_the_cheapest():
    for _ in range(20):
        lengths = -np.sort(-RNG.integers(1, 30, RNG.integers(1, 8)))

        def cost(cuts, lengths=lengths):
            groups = [lengths[i:j] for i, j in itertools.pairwise(cuts)]
            return sum(
                len(g) * int(w) * (int(w) + unpadded.LINEAR) for g in groups if len(g) for w in [unpadded.width(g[0])]
            )

        every = itertools.combinations_with_replacement(range(len(lengths) + 1), 3)
        best = min(cost([0, *cuts, len(lengths)]) for cuts in every)
        found = unpadded.cheapest_cuts(lengths, 4)
        assert (len(found), found[0], found[-1]) == (5, 0, len(lengths))
        assert cost(found) == best


@pytest.fixture(scope="module")
def base():
    """A model of base size, a batch, and the float64 reference of its kept tokens."""
    config = DistilBertConfig(vocab_size=1000)
    weights = initial_weights(config, "DistilBertModel", seed=0)
    ids, mask = batch((70, 61, 50, 40, 30, 14, 5), 1000)  # some share a group
    reference = new_model("tf", config, {n: w.astype(np.float64) for n, w in weights.items()})
    return new_model("tf", config, weights), ids, mask, exactly(reference, ids, mask)[0][mask > 0]


@pytest.mark.parametrize(("precision", "bound"), [("float32", BASE), ("bfloat16", BFLOAT16)])
def test_base_size(precision, bound, base):
    model, ids, mask, wanted = base
    fast = optimize(model, precision, keep_model=False)
    together = fast(ids, mask).last_hidden_state.numpy()
    assert relative(fast(ids[3:4, :40]).last_hidden_state, together[3:4, :40]) <= ALONE
    assert relative(fast(ids[1:4], mask[1:4]).last_hidden_state, together[1:4]) <= ALONE
    found = together[mask > 0]
    assert (np.abs(found - wanted).max() if precision == "float32" else relative(found, wanted)) <= bound
