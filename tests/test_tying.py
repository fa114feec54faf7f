"""Tied and untied projectors of the masked LM, in training and in files; the same facts in every backend."""

import json

import numpy as np
import pytest

from distilbert import reference
from distilbert.backends import load_backend
from distilbert.checkpoint.folder import open_weights
from distilbert.checkpoint.manifest import MANIFEST_FILE
from distilbert.config import DistilBertConfig
from distilbert.weight_map import TIED_PROJECTOR, WORD_EMBEDDINGS
from tests.masked_lm import (
    INPUTS,
    LEARNING,
    MASKED_LM,
    NEXT,
    TOLERANCE,
    assert_close,
    assert_same_bits,
    masked_lm,
    number_of_trained_tensors,
    step,
)
from tests.support import ANY_MODEL, run


class TestTying:
    def test_a_step_keeps_a_tied_projector_the_embeddings_themselves(self, backend):
        model = masked_lm(backend)
        before = model.weights_by_name()
        step(model, LEARNING)
        after = model.weights_by_name()
        assert after[TIED_PROJECTOR].tobytes() == after[WORD_EMBEDDINGS].tobytes()
        assert not np.array_equal(after[WORD_EMBEDDINGS], before[WORD_EMBEDDINGS])
        assert number_of_trained_tensors(model) == len(model.tensor_specs()) - 1
        expected = reference.HEADS[MASKED_LM](model.config, after, **INPUTS).logits
        assert_close(run(model, **INPUTS).logits, expected, TOLERANCE)

    def test_an_untied_projector_goes_its_own_way(self, backend):
        model = masked_lm(backend, tie_word_embeddings=False)
        before = model.weights_by_name()
        assert not np.array_equal(before[TIED_PROJECTOR], before[WORD_EMBEDDINGS])
        step(model, LEARNING)
        after = model.weights_by_name()
        moved = [after[name] - before[name] for name in (TIED_PROJECTOR, WORD_EMBEDDINGS)]
        assert all(move.any() for move in moved)
        assert not np.allclose(*moved)
        assert number_of_trained_tensors(model) == len(model.tensor_specs())

    @pytest.mark.parametrize("tied", [True, False])
    @pytest.mark.parametrize("name", ANY_MODEL)
    def test_files_hold_a_tied_projector_once_and_an_untied_one_beside(self, backend, tmp_path, name, tied):
        model = masked_lm(backend, tie_word_embeddings=tied)
        model.save_pretrained(tmp_path, name)
        assert DistilBertConfig.from_pretrained(tmp_path).tie_word_embeddings == tied
        names = open_weights(tmp_path).plain_names.values()
        projectors = [name for name in names if "vocab_projector" in name and "bias" not in name]
        assert len(projectors) == (not tied)
        loaded = load_backend(NEXT[backend]).DistilBertForMaskedLM.from_pretrained(tmp_path)
        assert loaded.load_report.tied == ((TIED_PROJECTOR,) if tied else ())
        assert_same_bits(loaded.weights_by_name(), model.weights_by_name())
        expected = reference.HEADS[MASKED_LM](model.config, model.weights_by_name(), **INPUTS).logits
        assert_close(run(loaded, **INPUTS).logits, expected, TOLERANCE)

    def test_an_untied_file_keeps_its_projector_though_its_config_says_nothing(self, backend, tmp_path):
        """Such files exist; the flag is then given at load. Upstream's TensorFlow read the embeddings instead."""
        model = masked_lm(backend, tie_word_embeddings=False)
        model.save_pretrained(tmp_path)
        values = json.loads((tmp_path / "config.json").read_text())
        del values["tie_word_embeddings"]
        (tmp_path / "config.json").write_text(json.dumps(values))
        (tmp_path / MANIFEST_FILE).unlink()
        load = load_backend(NEXT[backend]).DistilBertForMaskedLM.from_pretrained
        with pytest.raises(ValueError, match="differs from the word embeddings"):
            load(tmp_path)
        assert_same_bits(load(tmp_path, tie_word_embeddings=False).weights_by_name(), model.weights_by_name())
