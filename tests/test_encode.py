"""Texts to vectors: order, batches, windows, the thread that tokenizes ahead, and that neighbours do not matter."""

import contextlib
import dataclasses
import itertools
import threading
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conformance import cases
from distilbert import backends, progress
from distilbert.backends import load_backend
from distilbert.config import PoolingConfig
from distilbert.errors import DataError
from distilbert.inference import FrozenModel
from distilbert.tasks import embedding
from distilbert.tasks.ahead import map_ahead
from distilbert.tasks.embedding import SentenceEncoder
from distilbert.tokenization.fast import DistilBertTokenizerFast
from tests.support import DATA, SPECIAL_TOKENS, Padded, new_model, run_python, to_numpy

TOLERANCE = 5e-6  # of entries up to 2, as conformance allows; measured: 1.1e-6
HEAD = "DistilBertForSentenceEmbedding"
WORDS = [f"w{i}" for i in range(cases.CONFIG.vocab_size - len(SPECIAL_TOKENS))]
LENGTHS = (3, 0, 1, 9, 2, 2, 5, 1, 0, 7, 4, 30, 1)
TEXTS = [" ".join(WORDS[(5 * i + k) % len(WORDS)] for k in range(n)) for i, n in enumerate(LENGTHS)]
GOLDEN = np.load(DATA / "minilm_golden.npz")
REAL_TEXTS = GOLDEN["texts"].tolist()


def tokenizer(**options):
    return DistilBertTokenizerFast({token: i for i, token in enumerate([*SPECIAL_TOKENS, *WORDS])}, **options)


def new_encoder(backend="pt", *, packed=False):
    model = new_model(backend, weights=cases.weights(cases.CONFIG, head=HEAD), head=HEAD, pooling=PoolingConfig())
    return SentenceEncoder(Padded(model, "float32") if packed else model, tokenizer())


@pytest.fixture(scope="module")
def encoder():
    return new_encoder()


@pytest.fixture(scope="module")
def alone(encoder):
    """Each text's vector, computed without the others."""
    return np.stack([encoder.encode(text) for text in TEXTS])


def test_every_text_gets_its_own_vector(encoder, alone):
    """A wrong order would show: no two vectors are alike but those of equal texts."""
    found = encoder.encode(TEXTS)
    assert (found.shape, found.dtype) == ((len(TEXTS), cases.CONFIG.dim), np.float32)
    np.testing.assert_allclose(found, alone, rtol=0, atol=TOLERANCE)
    distances = np.abs(alone[:, None] - alone[None]).max(-1)
    equal = np.array([[a == b for a in TEXTS] for b in TEXTS])
    assert distances[~equal].min() > 1e-3


@settings(max_examples=25, deadline=None)
@given(
    st.fixed_dictionaries(
        {"window": st.integers(1, 15)},
        optional={"batch_size": st.integers(1, 5), "token_budget": st.integers(32, 90)},
    )
)
def test_no_limit_changes_a_result(encoder, alone, options):
    parts = list(encoder.encode_iter(TEXTS, **options))
    assert [len(part) for part in parts[:-1]] == [options["window"]] * (len(parts) - 1)
    np.testing.assert_allclose(np.concatenate(parts), alone, rtol=0, atol=TOLERANCE)


def test_all_backends_packed_and_padded(backend, alone):
    for packed in (False, True):
        found = new_encoder(backend, packed=packed).encode(TEXTS[:5], token_budget=24)  # two shapes to compile
        np.testing.assert_allclose(found, alone[:5], rtol=0, atol=TOLERANCE)


def test_an_unpadded_model_fills_its_batches_with_real_tokens():
    encoder = new_encoder(packed=True)
    encoder.encode(TEXTS, token_budget=40)
    sizes = [sum(lengths) for lengths in encoder.model.calls]
    assert sum(sizes) == sum(min(n + 2, 24) for n in LENGTHS)
    assert max(sizes) <= 40
    for before, after in itertools.pairwise(encoder.model.calls):
        assert sum(before) + after[0] > 40  # none was cut short
    encoder.model.calls.clear()
    encoder.encode(TEXTS)
    assert [len(lengths) for lengths in encoder.model.calls] == [len(TEXTS)]


def test_the_budget_of_a_padded_model_counts_padding(encoder, monkeypatch):
    shapes = []
    embed = encoder._embed
    monkeypatch.setattr(encoder, "_embed", lambda ids: (shapes.append((len(ids), len(ids[0]))), embed(ids))[1])
    encoder.encode(TEXTS, token_budget=40)
    assert all(rows * longest <= 40 for rows, longest in shapes)
    assert sum(rows for rows, _ in shapes) == len(TEXTS)


def test_texts_may_come_from_anything(encoder, alone):
    for texts in (
        tuple(TEXTS),
        iter(TEXTS),
        (text for text in TEXTS),
        np.array(TEXTS),
        dict(enumerate(TEXTS)).values(),
    ):
        np.testing.assert_allclose(encoder.encode(texts), alone, rtol=0, atol=TOLERANCE)


def test_nothing_gives_nothing(encoder):
    for nothing in ([], iter([])):
        found = encoder.encode(nothing)
        assert (found.shape, found.dtype) == ((0, cases.CONFIG.dim), np.float32)
    assert list(encoder.encode_iter([])) == []


def test_an_empty_text_has_a_vector(encoder):
    assert np.isfinite(encoder.encode("")).all()
    assert np.isfinite(encoder.encode(["", "", TEXTS[0]])).all()


def test_normalize(encoder, alone):
    assert np.abs(np.linalg.norm(alone, axis=1) - 1).max() > 0.1
    lengths = np.linalg.norm(encoder.encode(TEXTS, normalize=True), axis=1)
    np.testing.assert_allclose(lengths, 1, rtol=0, atol=TOLERANCE)
    unit = encoder.encode(TEXTS[0], normalize=True)
    np.testing.assert_allclose(unit, alone[0] / np.linalg.norm(alone[0]), rtol=0, atol=TOLERANCE)
    np.testing.assert_array_equal(embedding._normalized(np.zeros((2, 3), np.float32)), np.zeros((2, 3)))


def test_long_texts_are_cut_to_the_least_limit(encoder):
    assert encoder.max_length == 24
    long = " ".join(WORDS[:70])
    cut = " ".join(WORDS[:22])
    np.testing.assert_allclose(encoder.encode(long), encoder.encode(cut), rtol=0, atol=TOLERANCE)
    shorter = SentenceEncoder(encoder.model, tokenizer(model_max_length=10))
    np.testing.assert_allclose(shorter.encode(long), encoder.encode(" ".join(WORDS[:8])), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"batch_size": 0}, ValueError, "batch_size must be a whole number of at least 1, got 0"),
        ({"token_budget": -1}, ValueError, "token_budget must be a whole number of at least 1, got -1"),
        ({"token_budget": 8}, DataError, "item 11 has 24 tokens, more than token_budget=8"),
    ],
)
def test_wrong_limits(encoder, arguments, error, message):
    with pytest.raises(error, match=message):
        encoder.encode(TEXTS, **arguments)


def test_limits_of_a_stream_are_refused_before_it_is_read(encoder):
    with pytest.raises(ValueError, match="window must be a whole number"):
        encoder.encode_iter(TEXTS, window=0)
    with pytest.raises(ValueError, match="batch_size"):
        encoder.encode_iter(TEXTS, batch_size=0)


@pytest.mark.parametrize("texts", [b"bytes", {"a": 1}, {"a", "b"}, 5, None, np.array("a"), np.array([["a"]])])
def test_what_holds_no_texts(encoder, texts):
    with pytest.raises(TypeError, match="texts must be a string or a list of strings, got"):
        encoder.encode(texts)


def test_a_wrong_text_is_named_by_its_number_in_the_stream(encoder):
    def stream(last):
        yield from itertools.repeat("w1", 5)
        yield last

    for last, error in ((7, TypeError), ("\ud800", DataError)):
        parts = encoder.encode_iter(stream(last), window=2)
        assert len(next(parts)) == 2
        with pytest.raises(error, match=r"texts must be .* (at 5|number 5)"):
            list(parts)


def test_a_long_item_is_named_by_its_number_in_the_stream(encoder):
    parts = encoder.encode_iter(["w1"] * 5 + ["w1 w2 w3 w4"], token_budget=4, window=2)
    with pytest.raises(DataError, match="item 5 has 6 tokens"):
        list(parts)


@pytest.mark.parametrize("packed", [False, True])
def test_a_config_that_asks_for_all_layers_changes_nothing(backend, alone, packed):
    encoder = new_encoder(backend, packed=packed)
    encoder.model.config = dataclasses.replace(cases.CONFIG, output_hidden_states=True, output_attentions=True)
    if packed:
        encoder.model._call_model = None  # the model itself is not asked
    np.testing.assert_allclose(encoder.encode(TEXTS[:2]), alone[:2], rtol=0, atol=TOLERANCE)


def test_parts_are_checked(encoder):
    with pytest.raises(TypeError, match=r"model must be a DistilBertForSentenceEmbedding, got DistilBertModel\."):
        SentenceEncoder(new_model("pt"), tokenizer())
    with pytest.raises(TypeError, match=r"progress must be True, False or a function, got int\."):
        encoder.encode(TEXTS, progress=1)
    with pytest.raises(TypeError, match=r"progress must be None or a function, got bool\."):
        encoder.encode_iter(TEXTS, progress=True)


def test_progress_counts_texts(encoder):
    seen = []
    encoder.encode(TEXTS, batch_size=2, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(min(2 * (i + 1), len(TEXTS)), len(TEXTS)) for i in range(7)]
    seen.clear()
    encoder.encode(iter(TEXTS), batch_size=13, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(len(TEXTS), None)]


def test_a_bar_only_when_asked_for(encoder, monkeypatch, capsys):
    shown = []

    @contextlib.contextmanager
    def record(what):
        yield lambda done, total: shown.append((what, done, total))

    monkeypatch.setattr(embedding, "show_progress", record)
    encoder.encode(TEXTS)
    assert shown == []
    encoder.encode(TEXTS, progress=True)
    assert shown == [("Embedding", len(TEXTS), len(TEXTS))]
    with progress.show_progress("Embedding") as advance:  # the real one: silent without a terminal
        advance(1, 2)
    assert capsys.readouterr() == ("", "")


class TestAhead:
    """The thread that works a step ahead."""

    def test_results_in_order(self):
        for count in range(5):
            assert list(map_ahead(lambda x: x * x, range(count))) == [x * x for x in range(count)]

    def test_the_next_result_is_made_while_the_caller_works_on_one(self):
        second = threading.Event()
        results = map_ahead(lambda x: second.set() if x == 1 else None, [0, 1])
        next(results)
        assert second.wait(10)  # without the caller's asking for it
        results.close()

    def test_items_are_read_in_the_caller_s_thread_one_ahead(self):
        read, worked = [], []

        def items():
            for i in range(6):
                read.append((i, threading.current_thread()))
                yield i

        results = map_ahead(lambda x: worked.append(threading.current_thread()) or x, items())
        assert read == []
        for x in results:
            assert len(read) <= x + 2
        assert {thread for _, thread in read} == {threading.main_thread()}
        assert len(set(worked[1:])) == 1
        assert worked[1] is not threading.main_thread()

    def test_one_item_starts_no_thread(self):
        threads = []
        assert list(map_ahead(lambda x: threads.append(threading.current_thread()) or x, [1])) == [1]
        assert threads == [threading.main_thread()]

    @pytest.mark.parametrize("bad", [0, 1, 2, 4])
    def test_exceptions_come_in_the_place_of_the_result(self, bad):
        results = map_ahead(lambda x: 1 // (x - bad), range(5))
        for _ in range(bad):
            next(results)
        with pytest.raises(ZeroDivisionError):
            next(results)

    def test_an_exception_of_the_items(self):
        def items():
            yield from (1, 2)
            raise LookupError("no more")

        results = map_ahead(str, items())
        assert [next(results), next(results)] == ["1", "2"]
        with pytest.raises(LookupError, match="no more"):
            next(results)

    @pytest.mark.parametrize("how", ["close", "consumer raises", "function raises", "interrupt"])
    def test_no_thread_is_left(self, how):
        before = threading.active_count()
        work = lambda x: 1 // (x - 3) if how == "function raises" else time.sleep(0.01)  # noqa: E731
        error = KeyboardInterrupt if how == "interrupt" else ZeroDivisionError
        with contextlib.suppress(error), contextlib.closing(map_ahead(work, range(9))) as results:
            for i, _ in enumerate(results):
                if i == 1 and how == "close":
                    break
                if i == 1 and how != "function raises":
                    raise error
        assert threading.active_count() == before


class TestThreadsOfEncode:
    @pytest.fixture
    def failing(self, encoder, monkeypatch):
        """An encoder whose second batch fails."""
        calls = itertools.count()

        def embed(ids):
            if next(calls) == 1:
                raise MemoryError
            return np.zeros((len(ids), cases.CONFIG.dim), np.float32)

        monkeypatch.setattr(encoder, "_embed", embed)
        return encoder

    def test_none_is_left_when_compute_fails(self, failing):
        before = threading.active_count()
        with pytest.raises(MemoryError):
            failing.encode(itertools.repeat("w1", 9000), batch_size=4096)
        assert threading.active_count() == before

    def test_none_is_left_when_the_consumer_stops(self, encoder):
        before = threading.active_count()
        parts = encoder.encode_iter(itertools.cycle(TEXTS), window=4)
        assert [len(part) for part in itertools.islice(parts, 3)] == [4, 4, 4]
        parts.close()
        assert threading.active_count() == before

    def test_a_stream_is_read_two_windows_ahead_at_most(self, encoder):
        read = 0

        def stream():
            nonlocal read
            while True:
                read += 1
                yield "w1 w2"

        parts = encoder.encode_iter(stream(), window=5)
        assert read == 0
        for i in range(4):
            next(parts)
            assert read <= 5 * (i + 2)

    def test_tokenization_runs_beside_compute(self, encoder, monkeypatch):
        """The second window is tokenized while the first is computed: computing waits for it here."""
        tokenized = [threading.Event(), threading.Event()]
        token_ids, embed, windows = encoder._token_ids, encoder._embed, itertools.count()

        def tell(texts):
            ids = token_ids(texts)
            tokenized[next(windows)].set()
            return ids

        def wait(ids):
            assert tokenized[1].wait(10)
            return embed(ids)

        monkeypatch.setattr(encoder, "_token_ids", tell)
        monkeypatch.setattr(encoder, "_embed", wait)
        assert len(list(encoder.encode_iter(["w1", "w2"], window=1))) == 2

    def test_several_threads_share_an_encoder(self, encoder, alone):
        found = {}

        def run(number):
            found[number] = np.concatenate(list(encoder.encode_iter(TEXTS, window=3)))

        threads = [threading.Thread(target=run, args=(i,)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for i in range(4):
            np.testing.assert_allclose(found[i], alone, rtol=0, atol=TOLERANCE)


def test_a_consumer_of_a_stream_is_not_in_the_model_s_mode(encoder):
    """Between two parts gradients are recorded as ever, and a model in training is."""
    import torch

    encoder.model.train()
    for _ in encoder.encode_iter(TEXTS, window=4):
        assert not torch.is_inference_mode_enabled()
        assert encoder.model.training
    encoder.model.eval()


class TestPrecision:
    @pytest.fixture
    def optimized(self, monkeypatch):
        """What `from_pretrained` asks of a backend."""
        asked = []

        class Module:
            @staticmethod
            def optimize(model, precision="float32", *, keep_model=True):
                asked.append((precision, keep_model))
                return Padded(model, precision)

        monkeypatch.setattr(embedding, "load_inference", lambda name: Module)
        return asked

    def test_the_default_is_the_optimized_model_in_float32(self, optimized, minilm):
        encoder = SentenceEncoder.from_pretrained(minilm / "safetensors", backend="pt")
        assert optimized == [("float32", False)]
        assert isinstance(encoder.model, FrozenModel)
        assert encoder.max_length == 256
        np.testing.assert_allclose(encoder.encode(REAL_TEXTS), GOLDEN["embeddings"], rtol=0, atol=1e-5)

    def test_others(self, optimized, minilm):
        SentenceEncoder.from_pretrained(minilm / "safetensors", backend="pt", precision="int8")
        plain = SentenceEncoder.from_pretrained(minilm / "safetensors", precision=None, dtype="float64")
        assert optimized == [("int8", False)]
        assert to_numpy(next(iter(plain.model.parameters()))).dtype == np.float64
        assert type(plain.model) is load_backend("pt").DistilBertForSentenceEmbedding

    def test_what_does_not_go_together(self, minilm):
        with pytest.raises(ValueError, match=r"backend must be one of native, pt, tf, flax, got 'torch'\."):
            SentenceEncoder.from_pretrained("nowhere", backend="torch")
        with pytest.raises(ValueError, match="precision must be one of float32, bfloat16, int8, got 'float16'"):
            SentenceEncoder.from_pretrained("nowhere", precision="float16")
        with pytest.raises(ValueError, match="give precision=None with it"):
            SentenceEncoder.from_pretrained(minilm / "safetensors", dtype="float64")

    def test_modules_that_optimize(self):
        with pytest.raises(ValueError, match=r"backend must be one of pt, tf, flax, got 'onnx'\."):
            backends.load_inference("onnx")


def test_neighbours_do_not_matter_on_a_real_checkpoint(minilm):
    encoder = SentenceEncoder.from_pretrained(minilm / "safetensors", precision=None)
    texts = [*REAL_TEXTS, "", REAL_TEXTS[0]]
    together = encoder.encode(texts)
    alone = np.stack([encoder.encode(text) for text in texts])
    assert np.abs(together - alone).max() <= 1e-6
    assert np.abs(encoder.encode(texts[::-1], batch_size=3)[::-1] - alone).max() <= 1e-6


def test_a_first_embedding_imports_no_compiler(minilm):
    """They cost a second and more than that: the compiler of PyTorch, the hub's client, the command line."""
    code = f"""
import sys
from distilbert.tasks.embedding import SentenceEncoder
SentenceEncoder.from_pretrained({str(minilm / "safetensors")!r}, precision=None).encode("a text")
print([m for m in ("torch._dynamo", "sympy", "rich", "typer", "huggingface_hub", "pyfive", "h5py") if m in sys.modules])
"""
    done = run_python("-c", code)
    assert done.stdout == "[]\n", done.stderr
