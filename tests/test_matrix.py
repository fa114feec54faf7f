"""Every format into every other, for every head and dtype: the bits come through."""

import itertools
import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from distilbert.checkpoint import keras_hub_config
from distilbert.checkpoint.folder import FORMATS, REFERENCE_FORMATS, WRITABLE
from distilbert.checkpoint.manifest import MANIFEST_FILE
from distilbert.checkpoint.opening import open_source
from distilbert.checkpoint.saving import save_checkpoint
from distilbert.checkpoint.tensors import DTYPES
from distilbert.config import DistilBertConfig
from distilbert.initialization import initial_weights
from distilbert.weight_map import DIALECTS, HEADS, tensor_specs, tied
from weights_convert import convert

CONFIG = DistilBertConfig(
    vocab_size=31, max_position_embeddings=7, n_layers=2, n_heads=2, dim=8, hidden_dim=12, num_labels=3
)
CLASSES = [head for head in HEADS if head != "DistilBertForSentenceEmbedding"]  # an encoder's file, tested elsewhere


def made(head, dtype):
    """Weights of the dtype whose bit patterns are all different, subnormal numbers and negative zero included."""
    weights = {name: array.astype(DTYPES[dtype]) for name, array in initial_weights(CONFIG, head, seed=7).items()}
    bias = weights["distilbert.transformer.layer.1.ffn.lin1.bias"]
    bias[:3] = np.array([-0.0, np.finfo(np.float16).smallest_subnormal, -1e-7]).astype(DTYPES[dtype])
    return weights


def holds(name, head):
    """Whether a format holds the class: all do, but for presets, which KerasHub has for some."""
    return name in REFERENCE_FORMATS or head in keras_hub_config.CLASSES


def write_dialect(folder, dialect, head, weights):
    """A safetensors file as the reference's TensorFlow or Flax classes write it."""
    save_checkpoint(folder, "safetensors", head, CONFIG, weights)
    layout, specs = DIALECTS[dialect], tensor_specs(CONFIG, head)
    stored = {
        specs[name].stored_name(layout, headless=not HEADS[head].modules): np.ascontiguousarray(
            specs[name].to_layout(array, layout)
        )
        for name, array in weights.items()
        if name not in tied(CONFIG, head)
    }
    save_file(stored, folder / "model.safetensors", metadata={"format": dialect})
    (folder / MANIFEST_FILE).unlink()


def sources(folder, head, weights):
    """The same model as a folder of every kind that is read."""
    for name in WRITABLE:
        if holds(name, head):
            save_checkpoint(folder / name, name, head, CONFIG, weights)
            yield folder / name
        if FORMATS[name].shardable:
            save_checkpoint(folder / f"{name} in parts", name, head, CONFIG, weights, shard_size=1000)
            yield folder / f"{name} in parts"
    for dialect in ("tf", "flax"):
        write_dialect(folder / f"{dialect} safetensors", dialect, head, weights)
        yield folder / f"{dialect} safetensors"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("head", CLASSES)
def test_bits_come_through_every_pair_of_formats(head, dtype, tmp_path):
    weights = made(head, dtype)
    folders = list(sources(tmp_path / "from", head, weights))
    assert len(folders) >= 2 * len(WRITABLE) - 2
    for source, to in itertools.product(folders, WRITABLE):
        if not holds(to, head):
            continue
        done = convert(source, tmp_path / source.name / to, to=to)
        assert done.head == head
        found = open_source(tmp_path / source.name / to)
        assert found.keys() == weights.keys()
        for name, array in weights.items():
            assert found[name].astype(array.dtype).tobytes() == array.tobytes(), (source.name, to, name)
            if "h5" not in (source.name + to + FORMATS[to].file):  # HDF5 holds bfloat16 as float32
                assert found[name].dtype == array.dtype
        config = json.loads((tmp_path / source.name / to / "config.json").read_text())
        assert config.get("num_labels", 3) == 3
