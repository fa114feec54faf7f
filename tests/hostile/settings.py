"""config.json, modules.json and the tokenizer's files: wrong values, hostile JSON, paths that lead elsewhere."""

import json
import os

import numpy as np

from distilbert.checkpoint import manifest
from tests.hostile.base import HTML, LFS, OUTSIDE, cases, content, edit_config, write_tensors
from tests.hostile.files import link, replace

HUGE = 10**12


def raw(text):
    """config.json with exactly this content."""
    return content(text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass"), "config.json")


def _values(table):
    return {name: (edit_config(**changes), "ConfigError") for name, changes in table.items()}


VALUES = _values({
    **{f"{field} {value!r}": {field: value}
       for field in ("vocab_size", "max_position_embeddings", "n_layers", "n_heads", "dim", "hidden_dim")
       for value in (0, -1, HUGE, True, "4", 4.0, None, [4])},
    **{f"{field} {value!r}": {field: value}
       for field in ("dropout", "attention_dropout", "qa_dropout", "seq_classif_dropout")
       for value in (-0.1, 1.0, True, "0.1", None)},
    **{f"initializer_range {value!r}": {"initializer_range": value} for value in (0, -1, 1e300, "x", False)},
    **{f"activation {value!r}": {"activation": value}
       for value in ("os.system", "__import__('os')", "torch.nn.GELU", "", None, ["gelu"], {"a": 1}, 5)},
    **{f"pad_token_id {value!r}": {"pad_token_id": value} for value in (20, -1, 1 << 40, True, "0", 0.0)},
    **{f"model_type {value!r}": {"model_type": value} for value in ("roberta", "", 5, None, ["distilbert"], "\x1b[2J")},
    **{f"{field} {value!r}": {field: value}
       for field in ("tie_word_embeddings", "sinusoidal_pos_embds", "output_attentions") for value in (1, "true", None)},
    "heads that do not divide": {"n_heads": 3},
    "two spellings that disagree": {"hidden_size": 8},
    "problem type": {"problem_type": "exec"},
    "labels with a hole": {"id2label": {"0": "a", "2": "b"}},
    "labels with a negative": {"id2label": {"-1": "a", "0": "b"}},
    "labels that are a list": {"id2label": ["a", "b"]},
    "no labels": {"id2label": {}},
    "labels by number of thousands of digits": {"id2label": {"9" * 5000: "a"}},
    "too many labels": {"num_labels": 10**9},
    "a number of labels that disagrees": {"num_labels": 3, "id2label": {"0": "a"}},
    "label indices that are text": {"label2id": {"a": "0"}},
    "pruned heads of no layer": {"pruned_heads": {"7": [0]}},
    "all heads pruned": {"pruned_heads": {"0": [0, 1]}},
    "pruned heads that are text": {"pruned_heads": {"0": "01"}},
    "pruned heads that are negative": {"pruned_heads": {"0": [-1]}},
    "a value of a megabyte": {"activation": "\x1b" * (1 << 17)},
})  # fmt: skip


def _embedded(text):
    """A good configuration with `text` as its first entry."""
    return f'{{{text}, "dim": 4, "hidden_dim": 6, "n_heads": 2, "n_layers": 1, "vocab_size": 20}}'


JSON = {
    "empty": (raw(""), "HeaderInvalid"),
    "not JSON": (raw("{"), "HeaderInvalid"),
    "trailing comma": (raw('{"dim": 4,}'), "HeaderInvalid"),
    "comment": (raw("{} // good"), "HeaderInvalid"),
    "Python": (raw("{'dim': 4}"), "HeaderInvalid"),
    "git-lfs pointer": (raw(LFS), "HeaderInvalid"),
    "HTML page": (raw(HTML), "HeaderInvalid"),
    "a list": (raw("[]"), "HeaderInvalid"),
    "a string": (raw('"distilbert"'), "HeaderInvalid"),
    "null": (raw("null"), "HeaderInvalid"),
    "NaN": (raw(_embedded('"dropout": NaN')), "HeaderInvalid"),
    "Infinity": (raw(_embedded('"dropout": -Infinity')), "HeaderInvalid"),
    "a number beyond every float": (raw(_embedded('"dropout": 1e999')), "HeaderInvalid"),
    "a number of 5 000 digits": (raw(_embedded(f'"x": {"9" * 5000}')), "HeaderInvalid"),
    "a dim of 4 000 digits": (raw(_embedded(f'"n_heads ": 1, "activation": {"9" * 4000}')), "ConfigError"),
    "a key twice": (raw(_embedded('"dim": 4')), "DuplicateName"),
    "a key twice far below": (raw(_embedded('"x": [{"y": {"z": 1, "z": 1}}]')), "DuplicateName"),
    "byte order mark": (raw("\ufeff" + _embedded('"x": 1')), "HeaderInvalid"),
    "UTF-16": (raw(_embedded('"x": 1').encode("utf-16")), "HeaderInvalid"),
    "Latin-1": (raw(_embedded('"x": "\xe9"').encode("latin-1")), "HeaderInvalid"),
    "lone surrogate": (raw(_embedded('"x": "\\ud800"')), "HeaderInvalid"),
    "lone surrogate in bytes": (raw(_embedded('"x": "\ud800"')), "HeaderInvalid"),
    "lone surrogate as a key": (raw(_embedded('"\\udfff": 1')), "HeaderInvalid"),
    "NUL": (raw(_embedded('"x": 1') + "\0"), "HeaderInvalid"),
    "a raw control character": (raw(_embedded('"x\x1b[31m": 1')), "HeaderInvalid"),
    "100 000 lists deep": (raw(_embedded(f'"x": {"[" * 100_000}')), "ResourceLimit"),
    "100 000 objects deep": (raw('{"x":' * 100_000 + "1" + "}" * 100_000), "ResourceLimit"),
    "more than a megabyte": (raw(_embedded('"x": 1') + " " * (1 << 20)), "ResourceLimit"),
    "a hundred megabytes": (lambda folder: os.truncate(folder / "config.json", 100 << 20), "ResourceLimit"),
    "many keys, the last one twice": (
        raw("{" + ",".join(f'"{i}":0' for i in range(90_000)) + ',"89999":0}'),
        "DuplicateName",
    ),
    "350 000 empty lists and no architecture": (raw(_embedded(f'"n_layers ": [{"[]," * 340_000}0], "dim ": 0, "n_heads": 3')), "DuplicateName"),
    "absent": (lambda folder: (folder / "config.json").unlink(), "NotFound"),
    "directory": (replace(lambda path: path.mkdir(), "config.json"), "NotRegularFile"),
    "pipe": (replace(os.mkfifo, "config.json"), "NotRegularFile"),
    "link out of the folder": (replace(link(f"../{OUTSIDE}/config.json"), "config.json"), "UnsafeLink"),
    "link to itself": (replace(link("{}"), "config.json"), "UnsafeLink"),
    "link to a device": (replace(link("/dev/urandom"), "config.json"), "UnsafeLink"),
}  # fmt: skip


def modules(*entries, **files):
    """A sentence-transformers folder with these (type, path) modules."""

    def spoil(folder):
        listed = [{"idx": i, "name": str(i), "type": kind, "path": path} for i, (kind, path) in enumerate(entries)]
        (folder / "modules.json").write_text(json.dumps(listed))
        (folder / "1_Pooling").mkdir()
        (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode_mean_tokens": true}')
        for name, text in files.items():
            (folder / name.replace("__", "/").replace("_json", ".json")).write_text(text)

    return spoil


def _linked_module(target):
    def spoil(folder):
        modules(("x.Transformer", ""), ("x.Pooling", "1_Pooling"))(folder)
        (folder / "1_Pooling" / "config.json").unlink()
        (folder / "1_Pooling").rmdir()
        (folder / "1_Pooling").symlink_to(target)

    return spoil


def _linked_pooling(folder):
    modules(("x.Transformer", ""), ("x.Pooling", "1_Pooling"))(folder)
    replace(link(f"../../{OUTSIDE}/config.json"), "1_Pooling/config.json")(folder)


def _modules_text(text):
    return content(text.encode(), "modules.json")


TRANSFORMER, POOLING = ("sentence_transformers.models.Transformer", ""), ("x.Pooling", "1_Pooling")
MODULES = {
    "a path that climbs": (modules(("x.Transformer", f"../{OUTSIDE}"), POOLING), "ConfigError"),
    "a path that comes back": (modules(("x.Transformer", f"x/../../{OUTSIDE}"), POOLING), "ConfigError"),
    "an absolute path": (modules(("x.Transformer", "/etc"), POOLING), "ConfigError"),
    "a pooling that climbs": (modules(TRANSFORMER, ("x.Pooling", f"../{OUTSIDE}")), "ConfigError"),
    "a path with NUL": (modules(("x.Transformer", "a\0b"), POOLING), "ConfigError"),
    "a path without end": (modules(("x.Transformer", "a" * 5000), POOLING), "ConfigError", "NotFound"),
    "a path that is a number": (modules(("x.Transformer", 5), POOLING), "ConfigError"),
    "a path to nothing": (modules(("x.Transformer", "0_Transformer"), POOLING), "NotFound"),
    "a linked module": (_linked_module(f"../{OUTSIDE}"), "ConfigError"),
    "a module linked to itself": (_linked_module("1_Pooling"), "ConfigError"),
    "a linked pooling": (_linked_pooling, "UnsafeLink"),
    "a module of code": (modules(TRANSFORMER, POOLING, ("custom_st.Evil", "")), "ConfigError"),
    "a module of convolutions": (modules(TRANSFORMER, POOLING, ("x.CNN", "2_CNN")), "ConfigError"),
    "a dense layer that is not there": (modules(TRANSFORMER, POOLING, ("x.Dense", "2_Dense")), "NotFound"),
    "a dense layer that climbs": (modules(TRANSFORMER, POOLING, ("x.Dense", f"../{OUTSIDE}")), "ConfigError"),
    "no modules": (modules(), "ConfigError"),
    "two transformers": (modules(TRANSFORMER, TRANSFORMER, POOLING), "ConfigError"),
    "two poolings": (modules(TRANSFORMER, POOLING, POOLING), "ConfigError"),
    "pooling first": (modules(POOLING, TRANSFORMER), "ConfigError"),
    "normalized before pooled": (modules(TRANSFORMER, ("x.Normalize", ""), POOLING), "ConfigError"),
    "10 000 modules": (modules(*[TRANSFORMER] * 10_000), "ConfigError"),
    "an object": (_modules_text("{}"), "ConfigError"),
    "numbers": (_modules_text("[1, 2]"), "ConfigError"),
    "null": (_modules_text("null"), "ConfigError"),
    "smuggled JSON": (_modules_text('[], "x": []'), "ConfigError", "HeaderInvalid"),
    "not JSON": (_modules_text("["), "HeaderInvalid"),
    "deep": (_modules_text("[" * 100_000), "ResourceLimit"),
    "more than a megabyte": (_modules_text(" " * (1 << 20) + "[]"), "ResourceLimit"),
    "link out of the folder": (lambda folder: (folder / "modules.json").symlink_to("/etc/hostname"), "UnsafeLink"),
    "pipe": (lambda folder: os.mkfifo(folder / "modules.json"), "NotRegularFile"),
    "directory": (lambda folder: (folder / "modules.json").mkdir(), "NotRegularFile"),
    "pooling of another kind": (modules(TRANSFORMER, POOLING, **{"1_Pooling__config_json": '{"pooling_mode": "lasttoken"}'}), "ConfigError"),
    "pooling of two kinds": (modules(TRANSFORMER, POOLING, **{"1_Pooling__config_json": '{"pooling_mode": ["cls", "mean"]}'}), "ConfigError"),
    "pooling of none": (modules(TRANSFORMER, POOLING, **{"1_Pooling__config_json": "{}"}), "ConfigError"),
    "a length of text": (modules(TRANSFORMER, POOLING, sentence_bert_config_json='{"max_seq_length": "128"}'), "ConfigError"),
    "a length below nothing": (modules(TRANSFORMER, POOLING, sentence_bert_config_json='{"max_seq_length": -1}'), "ConfigError"),
}  # fmt: skip


def dense(change=lambda folder: None, **settings):
    """A sentence-transformers folder with a dense layer of 4 to 3 after `change(its folder)`."""

    def spoil(folder):
        modules(TRANSFORMER, POOLING, ("x.Dense", "2_Dense"))(folder)
        edit_config(architectures=["DistilBertModel"])(folder)
        place = folder / "2_Dense"
        place.mkdir()
        values = {"in_features": 4, "out_features": 3, "bias": True, "activation_function": f"{TORCH}.Tanh"}
        (place / "config.json").write_text(json.dumps(values | settings))
        _dense_weights(place, {})
        change(place)

    return spoil


def _dense_weights(place, changes):
    arrays = {"linear.weight": np.ones((3, 4), np.float32), "linear.bias": np.ones(3, np.float32)} | changes
    kept = {name: array for name, array in arrays.items() if array is not None}
    write_tensors("safetensors", place / "model.safetensors", kept)


def _dense_has(**changes):
    return dense(lambda place: _dense_weights(place, {f"linear.{name}": array for name, array in changes.items()}))


def _dense_is(make):
    return dense(replace(make, "model.safetensors"))


TORCH = "torch.nn.modules.activation"
DENSE = {
    "an activation of code": (dense(activation_function="os.system"), "ConfigError"),
    "an activation of another class": (dense(activation_function=f"{TORCH}.Threshold"), "ConfigError"),
    "an activation that is a list": (dense(activation_function=[f"{TORCH}.Tanh"]), "ConfigError"),
    "an activation with escapes": (dense(activation_function="\x1b[31m"), "ConfigError"),
    "an output of 0": (dense(out_features=0), "ConfigError"),
    "an output of text": (dense(out_features="3"), "ConfigError"),
    "an output beyond all": (dense(out_features=HUGE), "ConfigError"),
    "an output that does not fit": (dense(out_features=5), "ShapeMismatch"),
    "an input that does not fit": (dense(in_features=5), "ConfigError", "ShapeMismatch"),
    "an input of text": (dense(in_features="4"), "ConfigError", "ShapeMismatch"),
    "a bias of 1": (dense(bias=1), "ConfigError"),
    "a bias that is not said": (dense(bias=False), "UnexpectedTensor"),
    "a residual": (dense(use_residual=True), "ConfigError"),
    "another input": (dense(module_input_name="token_embeddings"), "ConfigError"),
    "settings that are a list": (dense(content(b"[]", "config.json")), "HeaderInvalid"),
    "no weights": (dense(lambda place: (place / "model.safetensors").unlink()), "NotFound"),
    "weights that are a link out": (_dense_is(link(f"../../{OUTSIDE}/{{}}")), "UnsafeLink"),
    "weights that are a pipe": (_dense_is(os.mkfifo), "NotRegularFile"),
    "weights that are a pickle": (_dense_is(lambda path: path.write_bytes(b"\x80\x02cos\nsystem\n.")), "BadMagic"),
    "a kernel transposed": (_dense_has(weight=np.ones((4, 3), np.float32)), "ShapeMismatch"),
    "a kernel missing": (_dense_has(weight=None), "MissingTensor"),
    "a kernel of integers": (_dense_has(weight=np.ones((3, 4), np.int32)), "DtypeUnsupported"),
    "a kernel with NaN": (_dense_has(weight=np.full((3, 4), np.nan, np.float32)), "NonFinite"),
    "a tensor more": (_dense_has(more=np.ones(1, np.float32)), "UnexpectedTensor"),
}

TOKENIZER = {
    "a vocabulary that is a link out": (replace(link(f"../{OUTSIDE}/vocab.txt"), "vocab.txt"), "UnsafeLink"),
    "a tokenizer that is a link out": (replace(link("/etc/hostname"), "tokenizer.json"), "UnsafeLink"),
    "options that are no JSON": (content(b"{", "tokenizer_config.json"), "HeaderInvalid"),
    "options that are a list": (content(b"[]", "tokenizer_config.json"), "HeaderInvalid"),
    "options without end": (content(b"[" * 100_000, "tokenizer_config.json"), "ResourceLimit"),
    "options of a million lists": (
        content(b'{"x": [' + b"[]," * (3 << 20) + b"0]}", "tokenizer_config.json"),
        "ResourceLimit",
    ),
    "options with a lone surrogate": (content(b'{"x": "\\ud800"}', "tokenizer_config.json"), "HeaderInvalid"),
    "a vocabulary of a gigabyte": (
        lambda folder: os.truncate(folder / "vocab.txt", 1 << 30),
        "ResourceLimit",
    ),
}


def listed(change):
    """A manifest of the folder's own files, after `change(files)`, which may also return another content."""

    def spoil(folder):
        manifest.write(folder, manifest.files(folder))
        values = json.loads((folder / "MANIFEST.json").read_text())
        (folder / "MANIFEST.json").write_text(json.dumps(change(values["files"]) or values))

    return spoil


def also(name):
    """A manifest that lists a file more."""
    return listed(lambda files: files.update({name: {"size": 5, "sha256": "0" * 64}}))


MANIFEST = {
    "a file outside": (also(f"../{OUTSIDE}/config.json"), "PathEscape"),
    "a file outside by way of a folder": (also(f"x/../../{OUTSIDE}/config.json"), "PathEscape"),
    "an absolute file": (also("/etc/hostname"), "PathEscape"),
    "a file of Windows": (also("C:\\x"), "PathEscape"),
    "a file in another spelling": (also("./config.json"), "PathEscape"),
    "a file with escapes": (also("\x1b[31m"), "PathEscape"),
    "the folder": (also("."), "PathEscape"),
    "a file that is not there": (also("absent"), "IncompleteSave"),
    "a file of another size": (listed(lambda files: files["config.json"].update(size=5)), "IntegrityMismatch"),
    "a file of other bytes": (listed(lambda files: files["config.json"].update(sha256="0" * 64)), "IntegrityMismatch"),
    "a digest that is short": (listed(lambda files: files["config.json"].update(sha256="0")), "HeaderInvalid"),
    "a size that is negative": (listed(lambda files: files["config.json"].update(size=-1)), "HeaderInvalid"),
    "an entry that is a list": (listed(lambda files: files.update({"config.json": []})), "HeaderInvalid"),
    "another version": (listed(lambda files: {"version": 2, "files": files}), "VersionUnsupported"),
    "no files": (listed(lambda files: {"version": 1}), "HeaderInvalid"),
    "a list of files": (listed(lambda files: {"version": 1, "files": list(files)}), "HeaderInvalid"),
    "no JSON": (content(b"{", "MANIFEST.json"), "HeaderInvalid"),
    "more than four megabytes": (content(b"{}" + b" " * (4 << 20), "MANIFEST.json"), "ResourceLimit"),
    "link out of the folder": (replace(link("/etc/hostname"), "MANIFEST.json"), "UnsafeLink"),
    "pipe": (replace(os.mkfifo, "MANIFEST.json"), "NotRegularFile"),
}

CASES = [
    *cases("manifest", MANIFEST),
    *cases("config value", VALUES),
    *cases("config.json", JSON),
    *cases("modules.json", MODULES),
    *cases("dense", DENSE),
    *cases("tokenizer", TOKENIZER),
]
