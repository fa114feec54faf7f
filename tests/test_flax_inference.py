"""Fast inference in Flax: the model's numbers, from a bounded number of programs, whatever company a text is in."""

import functools
import json
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from conformance import cases
from distilbert import reference
from distilbert.config import ACTIVATIONS, POOLING_MODES, DenseConfig, PoolingConfig
from distilbert.flax import DistilBertForSentenceEmbedding, DistilBertModel, inference, products, unpadded
from distilbert.inference import tokens_of
from tests.support import new_model, run_python

optimize = functools.partial(inference.optimize, native=False)  # XLA's programs; the package's are in test_native.py
TINY = 5e-6  # of the largest number: the tolerance of the specification; measured 5e-7
COMPANY = 1e-6  # what a text's neighbours may change
# Measured 0.0061 and 0.0170. Residuals and norms in bfloat16 give 0.0090, and one scale for all tokens 0.0244.
RELATIVE = {"bfloat16": 0.0075, "int8": 0.021}
LENGTHS = (24, 1, 5, 13, 8, 24, 2, 9, 3)
ONE_LAYER = cases.CONFIG.replace(n_layers=1)  # for what does not need two: programs compile sooner


@pytest.fixture(scope="module")
def fast():
    """The encoder in float32, with programs that several tests share."""
    return engine_for()


def batch(lengths=LENGTHS, seed=0, seq=None):
    rng, mask = np.random.default_rng(seed), np.arange(seq or max(lengths)) < np.array(lengths)[:, None]
    return rng.integers(1, cases.CONFIG.vocab_size, mask.shape), mask.astype(np.int64)


def expected(head, config, inputs, pooling=None):
    """The specification's result in float64, with zeros at dropped positions."""
    call = {"DistilBertModel": reference.model}.get(head) or reference.HEADS[head]
    weights = cases.weights(config, head, pooling=pooling)
    options = {} if pooling is None else {"pooling": pooling}
    output = call(config, weights, **inputs, **options)
    mask, tokens = inputs.get("attention_mask"), inputs["input_ids"].shape
    drop = mask is not None and head not in (cases.SEQUENCE, cases.CHOICES, cases.SENTENCE)
    parts = [np.asarray(x) for x in output[: 2 if head == cases.ANSWERS else 1]]
    return [x * mask.reshape(*tokens, *[1] * (x.ndim - 2)) if drop else x for x in parts]


def found(engine, inputs):
    inputs = dict(inputs)
    output = engine(inputs.pop("input_ids"), inputs.pop("attention_mask", None), **inputs)
    return [np.asarray(x) for x in output[: 2 if engine.head == cases.ANSWERS else 1]]


def engine_for(head=cases.MODEL, config=cases.CONFIG, precision="float32", *, pooling=None, **options):
    settings = {} if pooling is None else {"pooling": pooling}
    weights = cases.weights(config, head, pooling=pooling)
    return optimize(new_model("flax", config, weights, head, **settings), precision, keep_model=False, **options)


def check(engine, inputs, pooling=None):
    for got, want in zip(found(engine, inputs), expected(engine.head, engine.config, inputs, pooling), strict=True):
        assert got.shape == want.shape
        assert got.dtype == np.float32
        if engine.precision == "float32":
            np.testing.assert_allclose(got, want, rtol=0, atol=TINY * max(1.0, np.abs(want).max()))
        else:
            assert np.linalg.norm(got - want) < RELATIVE[engine.precision] * np.linalg.norm(want)


def inputs_for(head):
    ids, mask = batch()
    if head == cases.CHOICES:
        ids, mask = ids.reshape(3, 3, -1), mask.reshape(3, 3, -1)
    return {"input_ids": ids, "attention_mask": mask}


@pytest.mark.parametrize(
    "head", [cases.MODEL, cases.MASKED_LM, cases.SEQUENCE, cases.ANSWERS, cases.TOKENS, cases.CHOICES, cases.SENTENCE]
)
def test_every_head_gives_the_specification_s_numbers(head):
    check(engine_for(head), inputs_for(head))


@pytest.mark.parametrize("precision", ["bfloat16", "int8"])
@pytest.mark.parametrize("head", [cases.MODEL, cases.MASKED_LM, cases.SEQUENCE])  # the other heads stay in float32
def test_other_precisions_stay_near_it(head, precision):
    check(engine_for(head, precision=precision), inputs_for(head))


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations(name):
    check(engine_for(cases.MASKED_LM, ONE_LAYER.replace(activation=name)), inputs_for(cases.MASKED_LM))


@pytest.mark.parametrize(
    "changes", [{"sinusoidal_pos_embds": True, "tie_word_embeddings": False}, {"pruned_heads": {0: [1], 1: [0, 2]}}]
)
def test_configurations(changes):
    check(engine_for(cases.MASKED_LM, cases.CONFIG.replace(**changes)), inputs_for(cases.MASKED_LM))


@pytest.mark.parametrize(
    "pooling",
    [
        *(PoolingConfig(mode) for mode in POOLING_MODES),
        PoolingConfig("max", True, dense=DenseConfig(20)),
        PoolingConfig("mean", True, dense=DenseConfig(40, bias=False, activation="identity")),
        PoolingConfig("mean_sqrt_len", False, dense=DenseConfig(20)),
    ],
)
def test_poolings(pooling):
    check(engine_for(cases.SENTENCE, ONE_LAYER, pooling=pooling), inputs_for(cases.SENTENCE), pooling)


@pytest.mark.parametrize(
    "mask", ["none", "right padding", "left padding", "holes", "one row all masked", "all rows masked"]
)
def test_masks_and_positions(mask, fast):
    given = {"input_ids": cases.input_ids(), "position_ids": np.arange(cases.SEQ)[None] + 3}
    values = cases.masks()[mask]
    check(fast, given if values is None else given | {"attention_mask": values})


def test_what_the_model_alone_can_answer():
    model = new_model("flax")
    ids, mask = batch()
    output = optimize(model)(ids, mask, output_hidden_states=True)
    np.testing.assert_array_equal(output.hidden_states[1], model(ids, mask, output_hidden_states=True).hidden_states[1])
    with pytest.raises(ValueError, match="keep_model=True"):
        optimize(model, keep_model=False)(ids, mask, output_attentions=True)


def test_company_changes_nothing(fast):
    lengths = np.random.default_rng(3).integers(1, 25, 40)
    ids, mask = batch(lengths)
    together = np.asarray(fast(ids, mask).last_hidden_state)
    for i, n in enumerate(lengths):
        alone = np.asarray(fast([ids[i, :n].tolist()]).last_hidden_state)
        np.testing.assert_allclose(together[i, :n], alone[0], rtol=0, atol=COMPANY * np.abs(alone).max())


def test_the_number_of_programs_is_bounded():
    fast, rng = engine_for(config=ONE_LAYER, token_budget=64), np.random.default_rng(0)
    for _ in range(60):
        lengths = rng.integers(1, rng.choice([4, 9, 25]), rng.integers(1, 12))
        fast(*batch(lengths))
    assert len(fast.shapes) == 8 + 4 + 2  # up to 64 tokens in rows of 8, 16 and 24
    assert set(fast.programs) <= set(fast.shapes)
    assert len(fast.programs) == len(set(fast.programs)) > 3  # none compiled twice


def test_warming_up_compiles_before_the_first_call():
    fast = engine_for(config=ONE_LAYER)
    fast.warm_up([(1, 16), (4, 24)])
    fast(*batch([14]))
    fast(*batch([24] * 4))
    assert fast.programs == ((1, 16), (4, 24))
    with pytest.raises(ValueError, match="no program"):
        fast.warm_up([(1, 17)])


@pytest.mark.parametrize(
    ("lengths", "shape"), [([14], (1, 16)), ([128] * 4, (4, 128)), ([512], (1, 512)), ([100] * 8, (8, 104))]
)
def test_rows_fit_what_comes(lengths, shape):
    ids = np.ones((len(lengths), max(lengths)), np.int64)
    (rows,) = unpadded.Shapes(512, 1024).pack(tokens_of(ids, None, None))
    assert rows.inputs.shape[1:] == shape


def test_packing_wastes_little_and_loses_nothing():
    rng, shapes, slots, kept = np.random.default_rng(0), unpadded.Shapes(512, 1024), 0, 0
    for _ in range(50):
        lengths = np.clip(np.round(rng.lognormal(np.log(24), 0.6, 32)), 3, 128).astype(int)
        ids = rng.integers(1, 30000, (32, 128))
        mask = np.arange(128) < lengths[:, None]
        seen = np.zeros_like(ids)
        for rows in shapes.pack(tokens_of(ids, mask, None)):
            seen.reshape(-1)[rows.places] += rows.inputs[0].reshape(-1)[rows.cells]
            assert rows.inputs[2].max() < unpadded.segments_of(rows.inputs.shape[2])
            slots += rows.inputs[0].size
        np.testing.assert_array_equal(seen, ids * mask)
        kept += lengths.sum()
    assert slots < 1.05 * kept  # measured 1.03; the padded batches are 4.5 times as large


def test_equal_lengths_come_back_without_a_copy(fast, monkeypatch):
    monkeypatch.setattr(inference, "aligned_zeros", None)
    assert fast(np.ones((4, 24), int)).last_hidden_state.shape == (4, 24, 32)


def test_several_threads_share_the_programs():
    fast = engine_for(config=ONE_LAYER)
    batches = [batch(lengths, seed) for seed, lengths in enumerate([[5], [24, 3], [2, 2]] * 12)]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda one: np.asarray(fast(*one).last_hidden_state), batches))
    for one, result in zip(batches, together, strict=True):
        np.testing.assert_array_equal(result, fast(*one).last_hidden_state)
    assert len(fast.programs) == len(set(fast.programs))


@pytest.mark.parametrize("dtype", ["float64", "float16", "bfloat16"])
def test_models_of_other_dtypes_compute_in_float32(dtype):
    weights = cases.weights(ONE_LAYER, dtype=dtype)
    with jax.enable_x64(dtype == "float64"):
        fast = optimize(new_model("flax", ONE_LAYER, weights))
        ids, mask = batch()
        got = np.asarray(fast(ids, mask).last_hidden_state)
    rounded = {name: value.astype(np.float32) for name, value in weights.items()}
    want = reference.model(ONE_LAYER, rounded, input_ids=ids, attention_mask=mask).last_hidden_state
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, want * mask[..., None], rtol=0, atol=TINY * np.abs(want).max())


def test_without_bfloat16_units_the_numbers_are_the_same(monkeypatch):
    ids, mask = batch()
    results, texts = [], []
    for units in (True, False):
        monkeypatch.setattr(inference, "has_units", lambda platform, units=units: units)
        engine = engine_for(config=ONE_LAYER, precision="bfloat16")
        results.append(np.asarray(engine(ids, mask).last_hidden_state))
        texts.append(str(engine.describe()))
    assert ["multiply bfloat16" in text for text in texts] == [False, True]
    np.testing.assert_allclose(*results, rtol=0, atol=0.01)


def test_a_product_of_bfloat16_is_exact_but_for_its_sum():
    rng = np.random.default_rng(0)
    kernel, x = rng.normal(size=(48, 64)).astype(np.float32), rng.normal(size=(64, 24)).astype(np.float32)
    rounded = [a.astype(jnp.bfloat16).astype(np.float64) for a in (kernel, x)]
    layer = products.product(kernel, None, "bfloat16")
    for units in (True, False):
        got = jax.jit(lambda x, units=units: layer(x, units=units))(x)
        np.testing.assert_allclose(got, rounded[0] @ rounded[1], rtol=0, atol=1e-5)


def test_a_product_of_bytes_is_that_of_its_codes():
    rng = np.random.default_rng(0)
    kernel, x = rng.normal(size=(48, 64)).astype(np.float32), rng.normal(size=(64, 24)).astype(np.float32)
    kernel[5], x[:, 7] = 0, 0
    kernel[9], x[:, 3], x[:, 4] = kernel[9] / 100, x[:, 3] * 100, np.abs(x[:, 4])  # scales and middles of their own
    layer = products.product(kernel, np.ones(48, np.float32), "int8")
    got = np.asarray(jax.jit(lambda x: layer(x, units=False))(x))
    rounded = rounded_to(127, kernel, 0 * kernel[:, :1]) @ rounded_to(127, x.T, (x.max(0) + x.min(0))[:, None] / 2).T
    np.testing.assert_allclose(got, rounded + 1, rtol=1e-5, atol=1e-5 * np.abs(x).max())
    np.testing.assert_array_equal(got[:, 7], 1)


def rounded_to(largest, rows, middle):
    """Rows as integer codes from -largest to largest, times a scale of the row, plus its middle."""
    scale = np.maximum(np.abs(rows - middle).max(1, keepdims=True), 1e-30) / largest
    return np.rint((rows - middle) / scale) * scale + middle


def test_the_processor_says_whether_it_multiplies_bfloat16(tmp_path):
    for name, flags, has in (
        ("zen4", "fma avx512_bf16 vnni", True),
        ("old", "fma avx2", False),
        ("arm", "asimd bf16", True),
    ):
        (tmp_path / name).write_text(f"flags : {flags}\n")
        assert products.has_units("cpu", str(tmp_path / name)) is has
    assert not products.has_units("cpu", str(tmp_path / "missing"))
    assert products.has_units("gpu", str(tmp_path / "old"))


def test_jax_s_kernel_gives_the_plain_one_s_context():
    rng, segments = np.random.default_rng(0), np.array([[0, 0, 0, 1, 1, 2, -1, -1], [-1] * 8], np.int32)
    keep = jnp.asarray(segments[:, None, :, None] == segments[:, None, None, :])
    qkv = jnp.asarray(rng.normal(size=(3 * 32, 16)).astype(np.float32))
    plain = unpadded.plain_attention(keep, head_dim=8)(qkv)
    by_jax = unpadded.jax_attention(keep, head_dim=8, implementation=None, dtype=jnp.float32)(qkv)
    np.testing.assert_allclose(plain, by_jax, rtol=0, atol=1e-6)
    assert np.isfinite(plain).all()


def test_weights_need_less_memory():
    sizes = {
        p: sum(x.nbytes for x in jax.tree.leaves(engine_for(precision=p)._weights))
        for p in ("float32", "bfloat16", "int8")
    }
    assert sizes["bfloat16"] < 0.6 * sizes["float32"]
    assert sizes["int8"] < sizes["bfloat16"]


def test_frozen_is_frozen():
    model = new_model("flax")
    fast, (ids, mask) = optimize(model), batch()
    before = np.asarray(fast(ids, mask).last_hidden_state)
    model.assign(cases.weights(seed=9))
    np.testing.assert_array_equal(before, fast(ids, mask).last_hidden_state)


def test_wrong_arguments_are_refused():
    model = new_model("flax")
    with pytest.raises(ValueError, match="precision must be one of"):
        optimize(model, "float8")
    with pytest.raises(ValueError, match="token_budget must be a whole number of at least 1"):
        optimize(model, token_budget=0)
    fast = optimize(model)
    with pytest.raises(ValueError, match="input_ids must be an array of numbers"):
        fast(["text"], [[1]])
    with pytest.raises(ValueError, match="outside jax"):
        jax.jit(lambda ids: fast(ids, None))(np.ones((1, 4), np.int32))


def test_the_description_names_what_is_used(monkeypatch):
    monkeypatch.setenv("NPROC", "6")
    monkeypatch.setattr(inference, "recommended_threads", lambda: 3)
    text = str(engine_for().describe())
    assert "DistilBertModel (flax), float32 on cpu" in text
    assert "at most 61 programs, 0 compiled" in text
    assert ", 6 threads" in text
    assert "set NPROC=3" in text


CACHED = """
import json, sys, numpy as np
from distilbert import DistilBertConfig
from distilbert.flax import DistilBertModel
from distilbert.flax.inference import optimize
model = DistilBertModel.from_config(DistilBertConfig(vocab_size=50, dim=32, n_heads=4, n_layers=1, hidden_dim=64))
fast = optimize(model, native=False, cache=sys.argv[1])
fast.warm_up([(1, 16)])
print(json.dumps(np.asarray(fast([[1, 2, 3]]).last_hidden_state).tolist()))
"""


def test_programs_are_kept_for_later_processes(tmp_path):
    results, files = [], []
    for _ in range(2):
        done = run_python("-c", CACHED, str(tmp_path))
        assert done.returncode == 0, done.stderr
        results.append(json.loads(done.stdout))
        files.append(sorted(path.name for path in tmp_path.glob("*-cache")))
    assert results[0] == results[1]
    assert files[0] == files[1]
    assert any("trace" in name for name in files[0])


def test_the_real_checkpoint(minilm):
    model = DistilBertForSentenceEmbedding.from_pretrained(minilm / "safetensors")
    rng = np.random.default_rng(0)
    texts = [rng.integers(1000, 30000, n).tolist() for n in rng.integers(3, 60, 12)]
    width = max(map(len, texts))
    ids = np.array([text + [0] * (width - len(text)) for text in texts])
    wanted = np.asarray(model(ids, np.arange(width) < np.array([len(text) for text in texts])[:, None]).embeddings)
    for precision, least in (("float32", 1 - 1e-6), ("int8", 0.995)):  # measured 0.9975 and more on 2 000 real texts
        got = np.asarray(optimize(model, precision, keep_model=False)(texts).embeddings)
        cosine = (got * wanted).sum(1) / np.linalg.norm(got, axis=1) / np.linalg.norm(wanted, axis=1)
        assert cosine.min() > least


def test_base_size_stays_within_the_tolerance():
    config = cases.CONFIG.replace(
        vocab_size=2000, max_position_embeddings=64, n_layers=6, n_heads=12, dim=768, hidden_dim=3072
    )
    model = DistilBertModel.from_config(config)
    rng, lengths = np.random.default_rng(0), [40, 7, 3, 12]
    mask = (np.arange(40) < np.array(lengths)[:, None]).astype(int)
    ids = rng.integers(1, 2000, mask.shape)
    want = (
        reference.model(config, model.weights_by_name(), input_ids=ids, attention_mask=mask).last_hidden_state
        * mask[..., None]
    )
    for precision, bound in (("float32", None), ("bfloat16", 4e-3)):
        got = np.asarray(optimize(model, precision, keep_model=False)(ids, mask).last_hidden_state)
        if bound is None:
            np.testing.assert_allclose(got, want, rtol=0, atol=2e-5)
        else:
            assert np.linalg.norm(got - want) < bound * np.linalg.norm(want)
