"""Fast inference in PyTorch: the model's results in every precision, whatever the machine and the batch."""

import dataclasses
import functools
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from conformance import cases
from distilbert.backends import load_inference
from distilbert.config import ACTIVATIONS, POOLING_MODES, DenseConfig, DistilBertConfig, PoolingConfig
from distilbert.inference import PRECISIONS
from distilbert.outputs import BaseModelOutput
from distilbert.pt import DistilBertForSentenceEmbedding, DistilBertModel, inference, products, unpadded
from distilbert.tokenization.fast import DistilBertTokenizerFast
from tests.support import BACKENDS, new_model, run_python, to_numpy

optimize = functools.partial(
    inference.optimize, native=False
)  # PyTorch's own kernels; the package's are in test_native.py
# Largest absolute differences from float64, of hidden states and logits near 1 in size: float32 as everywhere; measured
# 0.03 in bfloat16 and 0.08 in int8 over all heads.
TOLERANCES = {"float32": 5e-6, "bfloat16": 0.08, "int8": 0.25}
LENGTHS = (64, 50, 50, 7, 1)  # of long rows, which batched products attend to, and of short ones


def inputs(head, mask, **more):
    given = {"input_ids": cases.input_ids(), "attention_mask": mask, **more}
    if head == cases.CHOICES:
        given = {name: x if x is None else x.reshape(2, 2, *x.shape[1:]) for name, x in given.items()}
    return given


def results(output):
    return [to_numpy(x) for x in output if not isinstance(x, tuple)]


def expected(head, given, config=cases.CONFIG, **settings):
    """The model's own results in float64, 0 at dropped positions."""
    model = new_model("pt-eager", config, cases.weights(config, head, dtype="float64", **settings), head, **settings)
    with torch.inference_mode():
        found = results(model(**given))
    mask = given["attention_mask"]
    if mask is None or head in (cases.SEQUENCE, cases.CHOICES, cases.SENTENCE):
        return found
    return [x * mask.reshape(*mask.shape, *[1] * (x.ndim - mask.ndim)) for x in found]


def fast(head=cases.MODEL, precision="float32", config=cases.CONFIG, **settings):
    weights = cases.weights(config, head, **settings)
    return optimize(new_model("pt-eager", config, weights, head, **settings), precision)


def worst(found, wanted):
    assert [x.shape for x in found] == [x.shape for x in wanted]
    return max(np.abs(a - b).max() for a, b in zip(found, wanted, strict=True))


@pytest.fixture
def no_operators(monkeypatch):
    """A machine, or a PyTorch, that has none of the private operators."""
    monkeypatch.setattr(products, "CODES", (products.largest_code() or 127,))  # the codes that this machine's own take
    for name in ("lacks_onednn", "lacks_byte_rows", "lacks_bytes"):
        monkeypatch.setattr(products, name, lambda *_: "it is switched off")
    monkeypatch.setattr(products, "largest_code", lambda: 0)


def long_rows():
    """Ids and mask of rows of LENGTHS, in a config that takes them."""
    config = cases.CONFIG.replace(max_position_embeddings=512)
    mask = (np.arange(64) < np.array(LENGTHS)[:, None]).astype(np.int64)
    ids = np.random.default_rng(5).integers(1, config.vocab_size, mask.shape)
    return config, ids, mask


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("head", cases.HEADS)
def test_results_are_those_of_the_model_in_float64(head, precision):
    model = fast(head, precision)
    for name, mask in cases.masks().items():
        whole = mask is None or (mask.ndim == 2 and mask.any(1).all())
        if head == cases.SENTENCE and not whole:
            continue
        if head in (cases.SEQUENCE, cases.CHOICES) and not (whole and (mask is None or mask[:, 0].all())):
            continue  # goes to the model, see below
        if mask is not None and mask.ndim > 2:
            continue
        given = inputs(head, mask)
        found = model(**given)
        assert all(x.dtype == torch.float32 for x in found if not isinstance(x, tuple))
        assert worst(results(found), expected(head, given)) < TOLERANCES[precision], name


@pytest.mark.parametrize("precision", PRECISIONS)
def test_long_and_short_rows(precision):
    config, ids, mask = long_rows()
    given = {"input_ids": ids, "attention_mask": mask}
    found = results(fast(cases.MODEL, precision, config)(**given))
    assert worst(found, expected(cases.MODEL, given, config)) < TOLERANCES[precision]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_neighbours_change_nothing(precision):
    config, ids, mask = long_rows()
    model = fast(cases.MODEL, precision, config)
    together = model(ids, mask).last_hidden_state
    for row, length in enumerate(LENGTHS):
        alone = model(ids[row : row + 1, :length]).last_hidden_state
        assert np.abs(to_numpy(alone[0] - together[row, :length])).max() < 1e-6


@pytest.mark.parametrize("precision", PRECISIONS)
def test_small_parts_of_a_batch_give_the_results_of_the_whole(precision):
    config, ids, mask = long_rows()
    for head in (cases.MODEL, cases.SEQUENCE):
        model = fast(head, precision, config)
        whole, equal = results(model(ids, mask)), results(model(ids))
        model._budget = 60
        assert worst(results(model(ids, mask)), whole) < 1e-6
        assert worst(results(model(ids)), equal) < 1e-6


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("head", [cases.MASKED_LM, cases.SEQUENCE])
@pytest.mark.usefixtures("no_operators")
def test_a_machine_without_the_operators_gives_the_same_numbers(head, precision, request):
    given = inputs(head, cases.masks()["right padding"])
    plain = fast(head, precision)
    assert "torch linear" in str(plain.describe())
    assert "it is switched off" in str(plain.describe())
    found = results(plain(**given))
    assert worst(found, expected(head, given)) < TOLERANCES[precision]
    request.getfixturevalue("monkeypatch").undo()
    bound = {"float32": 5e-6, "bfloat16": 0.08, "int8": 2e-4}[precision]
    assert worst(found, results(fast(head, precision)(**given))) < bound


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation(activation, precision):
    config = cases.CONFIG.replace(activation=activation)
    given = inputs(cases.MASKED_LM, cases.masks()["right padding"])
    found = results(fast(cases.MASKED_LM, precision, config)(**given))
    assert worst(found, expected(cases.MASKED_LM, given, config)) < TOLERANCES[precision]


@pytest.mark.parametrize(
    "changes",
    [
        {"pruned_heads": {0: [1], 1: [0, 2]}},
        {"sinusoidal_pos_embds": True},
        {"tie_word_embeddings": False},
        {"n_layers": 1},
    ],
)
def test_every_kind_of_model(changes):
    config = cases.CONFIG.replace(**changes)
    for head in (cases.MASKED_LM, cases.SEQUENCE):
        given = inputs(head, cases.masks()["right padding"])
        assert worst(results(fast(head, config=config)(**given)), expected(head, given, config)) < 5e-6


@pytest.mark.parametrize("mode", POOLING_MODES)
@pytest.mark.parametrize("normalize", [True, False])
def test_every_pooling(mode, normalize):
    for dense in (None, DenseConfig(out_features=5, bias=False), DenseConfig(out_features=7, activation="gelu")):
        pooling = PoolingConfig(mode=mode, normalize=normalize, dense=dense)
        given = inputs(cases.SENTENCE, cases.masks()["right padding"])
        found = results(fast(cases.SENTENCE, pooling=pooling)(**given))
        assert worst(found, expected(cases.SENTENCE, given, pooling=pooling)) < 5e-6


@pytest.mark.parametrize("dtype", ["float64", "float16", "bfloat16"])
def test_a_model_in_any_dtype_becomes_float32(dtype):
    model = new_model("pt-eager", weights=cases.weights(dtype=dtype))
    found = optimize(model)(cases.input_ids()).last_hidden_state
    assert found.dtype == torch.float32
    wide = model.double()(cases.input_ids()).last_hidden_state
    assert np.abs(to_numpy(found) - to_numpy(wide)).max() < 5e-6


def test_positions_count():
    given = inputs(cases.MODEL, cases.masks()["right padding"])
    given["position_ids"] = np.arange(cases.SEQ)[None, ::-1].copy()
    assert worst(results(fast()(**given)), expected(cases.MODEL, given)) < 5e-6


def test_lists_tensors_and_arrays_are_taken():
    model, ids = fast(), cases.input_ids()[:2]
    mask = cases.masks()["right padding"][:2]
    wanted = model(ids, mask).last_hidden_state
    rows = [row[keep != 0].tolist() for row, keep in zip(ids, mask, strict=True)]
    assert torch.equal(model(rows).last_hidden_state, wanted)
    for kind in (torch.int64, torch.float32, torch.bool, torch.bfloat16):
        found = model(torch.from_numpy(ids).int(), torch.from_numpy(mask).to(kind))
        assert torch.equal(found.last_hidden_state, wanted)


def test_a_batch_without_kept_tokens_is_zero():
    found = fast(cases.ANSWERS)(cases.input_ids(), np.zeros_like(cases.input_ids()))
    assert worst(results(found), [np.zeros((cases.BATCH, cases.SEQ))] * 2) == 0


def test_what_the_fast_path_cannot_do_goes_to_the_model():
    ids, masks = cases.input_ids(), cases.masks()
    plain = new_model("pt-eager").train()
    model = optimize(plain)
    found = model(ids, output_hidden_states=True, output_attentions=True)
    assert isinstance(found, BaseModelOutput)
    assert (len(found.hidden_states), len(found.attentions)) == (3, 2)
    for name in ("3-D blocks", "4-D per head"):
        mask = masks.get(name)
        if mask is not None:
            assert torch.equal(model(ids, mask)[0], plain.eval()(ids, mask)[0])
            plain.train()
    assert plain.training
    with pytest.raises(ValueError, match="keep_model=True"):
        optimize(plain, keep_model=False)(ids, output_attentions=True)


def test_results_can_be_trained_on():
    hidden = fast()(cases.input_ids()).last_hidden_state
    layer = torch.nn.Linear(cases.CONFIG.dim, 1)
    layer(hidden).sum().backward()
    assert layer.weight.grad is not None


def test_the_weights_are_frozen_and_the_model_can_go():
    plain = new_model("pt-eager")
    model = optimize(plain, keep_model=False)
    before = model(cases.input_ids()).last_hidden_state
    with torch.no_grad():
        for parameter in plain.parameters():
            parameter.zero_()
    assert torch.equal(model(cases.input_ids()).last_hidden_state, before)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_several_threads_may_call_it(precision):
    config, ids, mask = long_rows()
    model = fast(cases.MODEL, precision, config)
    calls = [(ids[i : i + 3], mask[i : i + 3]) for i in range(3)] * 8
    wanted = [model(*call).last_hidden_state for call in calls]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda call: model(*call).last_hidden_state, calls))
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


def test_the_description_says_what_is_used():
    text = str(fast(cases.SEQUENCE, "int8").describe())
    assert text.startswith("DistilBertForSequenceClassification (pt), int8 on cpu")
    assert "products" in text
    with pytest.raises(ValueError, match="precision must be one of float32, bfloat16, int8, got 'int4'"):
        fast(precision="int4")


def test_emulated_products_are_mentioned(monkeypatch):
    monkeypatch.setattr("distilbert.pt.products.has_bfloat16", lambda: False)
    assert "emulated" in str(fast(precision="bfloat16").describe())


def test_rows_of_bytes_are_near_and_exact_at_their_ends():
    x = torch.from_numpy(np.random.default_rng(0).normal(size=(5, 32)).astype(np.float32))
    x[1] = 3.0
    rows = products.quantized_rows(x)
    assert torch.equal(rows, products.plain_rows(x))
    scale, low = products.scale_and_low(rows)
    back = rows[:, :-8].float() * scale + low
    assert ((back - x).abs() <= scale / 2 + 1e-6).all()
    assert torch.allclose(back.amin(1), x.amin(1), atol=1e-6)
    assert torch.equal(back[1], x[1])


def test_products_of_bytes_are_exact():
    random = np.random.default_rng(1)
    weight = torch.from_numpy(random.normal(size=(24, 96)).astype(np.float32))
    codes, scale = products.quantized_weight(weight, products.largest_code() or 127)
    rows = products.quantized_rows(torch.from_numpy(random.normal(size=(7, 96)).astype(np.float32)))
    found = products.byte_product(codes, scale)[0](rows)
    wanted = rows[:, :-8].long() @ codes.long().T
    assert torch.allclose(found.double(), wanted.double() * scale, rtol=1e-6)


def test_a_heads_last_layer_computes_first_tokens_alone(monkeypatch):
    seen = []
    attend = unpadded.Layer.attend_first
    monkeypatch.setattr(unpadded.Layer, "attend_first", lambda self, *a: seen.append(len(a[0])) or attend(self, *a))
    fast(cases.SEQUENCE)(cases.input_ids())
    fast(cases.SENTENCE, pooling=PoolingConfig(mode="cls"))(cases.input_ids())
    fast(cases.SENTENCE)(cases.input_ids())
    assert seen == [cases.BATCH] * 2


def test_int8_takes_little_memory():
    config = cases.CONFIG.replace(dim=256, hidden_dim=1024, vocab_size=5000)
    for head in (cases.MODEL, cases.MASKED_LM):
        plain = new_model("pt-eager", config, cases.weights(config, head), head)
        kept = nbytes(optimize(plain, "int8", keep_model=False))
        assert kept < 0.4 * sum(p.numel() * 4 for p in plain.parameters())


def nbytes(value, seen=None):
    """Bytes of all tensors that an object holds, closures included."""
    seen = set() if seen is None else seen
    if id(value) in seen or isinstance(value, str | int | type):
        return 0
    seen.add(id(value))
    if isinstance(value, torch.Tensor):
        return torch.ops.mkldnn._nbytes(value) if value.is_mkldnn else value.nbytes
    parts = list(value) if isinstance(value, list | tuple) else list(getattr(value, "__dict__", {}).values())
    parts += [cell.cell_contents for cell in getattr(value, "__closure__", None) or ()]
    parts += [*getattr(value, "keywords", {}).values()]
    return sum(nbytes(part, seen) for part in parts)


def test_int8_agrees_with_float32_on_real_texts(minilm):
    folder = minilm / "safetensors"
    plain = DistilBertForSentenceEmbedding.from_pretrained(folder)
    texts = np.load("tests/data/minilm_golden.npz")["texts"].tolist()
    ids = [row[:256] for row in DistilBertTokenizerFast.from_pretrained(folder)(texts, truncation=True)["input_ids"]]
    wide, narrow = (to_numpy(optimize(plain, p)(ids).embeddings) for p in ("float32", "int8"))
    assert np.quantile((wide * narrow).sum(1), 0.01) > 0.99


def test_float32_at_base_size():
    model = DistilBertModel.from_config(DistilBertConfig(), seed=0)
    ids = [list(range(1000, 1000 + n)) for n in (70, 9, 9)]
    found = to_numpy(optimize(model)(ids).last_hidden_state)
    for row, hidden in zip(ids, found, strict=True):
        with torch.inference_mode():
            wanted = to_numpy(model.double()(np.array([row])).last_hidden_state)[0]
        assert np.abs(hidden[: len(row)] - wanted).max() < 2e-5


def test_the_allocator_can_be_tuned_and_pages_can_be_huge():
    code = """
import ctypes, platform
from distilbert.allocator import HUGE_PAGE, tune_allocator, use_huge_pages
assert tune_allocator() == (platform.libc_ver()[0] == "glibc")
buffer = ctypes.create_string_buffer(b"x" * (3 * HUGE_PAGE))
assert use_huge_pages(ctypes.addressof(buffer), len(buffer)) in (True, False)
assert not use_huge_pages(ctypes.addressof(buffer), 4096)
assert buffer.raw.count(b"x") == 3 * HUGE_PAGE
"""
    done = run_python("-c", code)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("variables", "wanted"), [({}, 1), ({"OMP_NUM_THREADS": "2"}, 2), ({"MKL_NUM_THREADS": "2"}, 2)]
)
def test_threads_are_what_the_container_allows_unless_the_user_says_otherwise(monkeypatch, variables, wanted):
    before = torch.get_num_threads()
    for name in inference.THREAD_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(inference, "recommended_threads", lambda: 1)
    try:
        torch.set_num_threads(2)
        fast = inference.optimize(DistilBertModel.from_config(cases.CONFIG))
        assert (torch.get_num_threads(), fast.describe().threads) == (wanted, wanted)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("rows", [[[5, 6], [7]], [[5] * 20, [6] * 24]])
def test_another_default_dtype_or_autocast_changes_nothing(rows):
    wanted = {}
    for name in PRECISIONS:
        fast = optimize(DistilBertModel.from_config(cases.CONFIG), name)
        wanted[name] = fast(rows).last_hidden_state
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(fast(rows).last_hidden_state, wanted[name]), name
    for cached in (products.lacks_onednn, products.lacks_bytes, products.largest_code, products.lacks_byte_rows):
        cached.cache_clear()
    torch.set_default_dtype(torch.float64)
    try:
        for name in PRECISIONS:
            fast = optimize(DistilBertModel.from_config(cases.CONFIG), name)
            assert torch.equal(fast(rows).last_hidden_state, wanted[name]), name
    finally:
        torch.set_default_dtype(torch.float32)


def test_threads_may_ask_for_what_the_model_alone_gives_while_it_is_in_training_mode():
    model = DistilBertModel.from_config(cases.CONFIG).train()
    fast, ids = optimize(model), cases.input_ids()
    wanted = fast(ids, output_hidden_states=True).hidden_states[-1]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: fast(ids, output_hidden_states=True).hidden_states[-1], range(100)))
    assert all(torch.allclose(x, wanted, atol=1e-6) for x in found)
    assert model.training
    torch.nn.Linear(cases.CONFIG.dim, 1)(wanted).sum().backward()


@pytest.mark.parametrize(
    "ids",
    [
        [np.ones((2, 3), int)],
        [[[1, 2], [3]], [1]],
        [[1, 2], [[3, 4], [5, 6]]],
        [[2**63 + 5]],
        [[1.5]],
        [["a"]],
        [[True]],
    ],
)
def test_lists_that_hold_no_ids_are_refused_by_name(ids):
    with pytest.raises(ValueError, match=r"^input_ids must be a list of flat lists of integers, got "):
        optimize(DistilBertModel.from_config(cases.CONFIG))(ids)


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_is_no_model_is_refused(backend):
    with pytest.raises(TypeError, match=r"^model must be a DistilBERT model of this package, got str\.$"):
        load_inference(backend).optimize("folder")


def test_a_config_that_asks_for_states_is_said_to_use_the_model():
    model = DistilBertModel.from_config(dataclasses.replace(cases.CONFIG, output_hidden_states=True))
    assert "every call, since the config asks" in str(optimize(model).describe())
