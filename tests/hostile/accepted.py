"""Folders that look like hostile ones and are not: each must load with exactly the bits of the good model."""

import shutil
import struct

import numpy as np

from tests.hostile import base, settings
from tests.hostile.base import WORDS, Case, edit_bytes, edit_config, edit_tensors
from tests.hostile.files import cached, link
from tests.hostile.hdf5 import edit as edit_h5
from tests.hostile.safetensors import edit as edit_header
from tests.hostile.torch_bin import edit_archive


def _padded(data):
    (length,) = struct.unpack("<Q", data[:8])
    return struct.pack("<Q", length + 4096) + data[8 : 8 + length] + b" " * 4096 + data[8 + length :]


def _rename(form, old, new):
    def change(tensors, _):
        for name in list(tensors):
            tensors[name.replace(old, new)] = tensors.pop(name)

    return edit_tensors(form, change)


def _old_norms(tensors, _):
    """The names that norms had before PyTorch had them."""
    for name in [name for name in tensors if "norm" in name.lower()]:
        new = name.replace("norm.weight", "norm.gamma").replace("norm.bias", "norm.beta")
        tensors[new.replace("Norm.weight", "Norm.gamma").replace("Norm.bias", "Norm.beta")] = tensors.pop(name)


def _tied(tensors, names):
    tensors["vocab_projector.weight"] = tensors[names[WORDS][0]]


def _buffer(tensors, _):
    tensors["distilbert.embeddings.position_ids"] = np.arange(base.CONFIG.max_position_embeddings)[None]


def _attributes(file):
    """What nobody reads: attributes that lead elsewhere."""
    file.attrs["layer_names"] = [b"../..", b"/etc/passwd"]
    file["distilbert"].attrs["weight_names"] = [b"/dev/zero"]
    file.attrs["link"] = file["distilbert"].ref
    file.attrs["long"] = "x" * 60_000


def _reordered(header):
    """The same tensors, named in another order than their bytes have."""
    return dict(sorted(header.items(), reverse=True))


def _linked_inside(folder):
    file = base.weights_file(folder)
    file.rename(folder / "stored")
    link("stored")(file)


def _linked_folder(folder):
    folder.rename(folder.parent / "real")
    folder.symlink_to(folder.parent / "real")


def _legacy_text(folder):
    """A config of Windows: other line ends, no final one."""
    text = (folder / "config.json").read_text().rstrip()
    (folder / "config.json").write_bytes(text.replace("\n", "\r\n").encode())


def _other_files(folder):
    """What stands beside a checkpoint and is none of our business, even when it is hostile."""
    (folder / "optimizer.pt").write_bytes(b"cos\nsystem\n(X\x02\x00\x00\x00idtR.")
    (folder / "modeling_evil.py").write_text("raise SystemExit\n")
    (folder / "link").symlink_to("/etc/hostname")
    shutil.copy(folder / "config.json", folder / "training_args.bin")


ACCEPTED = {
    "as saved": lambda folder: None,
    "a snapshot of the hub": cached("../../blobs/sha"),
    "a link inside the folder": _linked_inside,
    "a link to the folder": _linked_folder,
    "a padded header": edit_bytes(_padded),
    "no metadata": edit_header(lambda header: header.pop("__metadata__") and None),
    "other metadata": edit_header(lambda header: header.update(__metadata__={"format": "pt", "\x1b[31m": "../../x"})),
    "names in another order": edit_header(_reordered),
    "norms named gamma and beta": edit_tensors("safetensors", _old_norms),
    "no prefix": _rename("safetensors", "distilbert.", ""),
    "a tied tensor stored too": edit_tensors("safetensors", _tied),
    "a stored buffer of positions": edit_tensors("safetensors", _buffer),
    "unknown entries of the config": edit_config(tie_weights_=True, x={"y": [1, None, "\u202e"]}),
    "fields that name code": edit_config(
        auto_map={"AutoModel": "modeling_evil.Model"}, trust_remote_code=True, _attn_implementation="evil/kernel"
    ),
    "a label of escapes": edit_config(id2label={"0": "\x1b[31m", "1": "\u202e"}),
    "a sentence model": settings.modules(settings.TRANSFORMER, settings.POOLING, ("x.Normalize", "2_Normalize")),
    "line ends of Windows": _legacy_text,
    "other files": _other_files,
}

CASES = [
    *[Case(f"accepted: {name}", spoil, ()) for name, spoil in ACCEPTED.items()],
    *[Case(f"accepted: {form} as saved", lambda folder: None, (), form) for form in ("torch-bin", "tf-h5", "flax-msgpack")],
    Case("accepted: attributes of HDF5 that nobody reads", edit_h5(_attributes), (), "tf-h5"),
    Case("accepted: members of an archive that nobody reads", edit_archive(lambda entries: [*entries, ("../../evil.py", b"raise SystemExit")]), (), "torch-bin"),
    Case("accepted: no prefix in msgpack", _rename("flax-msgpack", "distilbert.", ""), (), "flax-msgpack"),
    Case("accepted: no prefix in a pickle", _rename("torch-bin", "distilbert.", ""), (), "torch-bin"),
]  # fmt: skip
