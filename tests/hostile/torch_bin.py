"""Hostile pytorch_model.bin files: pickles that ask for code, archives and storages that lie, tensors of other kinds."""

import collections
import io
import os
import pickle
import struct
import tarfile
import zipfile

import numpy as np
import torch

from distilbert.checkpoint.folder import FORMATS
from tests.hostile.base import LIN1, WEIGHTS, WORDS, Case, cases, content, edit_bytes

FILE = FORMATS["torch-bin"].file
CODE = ("UnsafePickle",)
REFUSED = ("UnsafePickle", "HeaderInvalid")
UNREADABLE = ("UnsafePickle", "VersionUnsupported", "BadMagic", "HeaderInvalid")
TRUNCATED = ("Truncated", "HeaderInvalid", "OffsetInvalid", "SizeMismatch")
OTHER_TENSORS = (
    "_rebuild_qtensor",
    "_rebuild_sparse_tensor",
    "_rebuild_meta_tensor_no_storage",
    "_rebuild_from_type_v2",
)

# Names through which published attacks on pickles, and bypasses of scanners that look for known ones, reach code.
GLOBALS = """
    os system|posix system|nt system|os popen|os execv|os spawnl|os remove|posix fork|subprocess Popen|subprocess run|
    subprocess check_output|_posixsubprocess fork_exec|builtins eval|builtins exec|builtins compile|builtins open|builtins getattr|
    builtins setattr|builtins __import__|builtins breakpoint|builtins input|builtins globals|builtins type|builtins object|
    builtins bytearray|__builtin__ eval|__builtin__ execfile|__builtin__ apply|__main__ system|io open|_io FileIO|io BytesIO|
    importlib import_module|importlib.util spec_from_file_location|imp load_source|runpy run_path|runpy _run_code|pkgutil resolve_name|
    pkgutil get_data|site main|site addpackage|sys modules|sys exit|types FunctionType|types CodeType|marshal loads|
    pickle loads|_pickle loads|pickle Unpickler|shelve open|dill loads|cloudpickle loads|joblib load|pandas read_pickle|
    copyreg _reconstructor|copyreg add_extension|copyreg __newobj__|copy_reg _reconstructor|functools partial|functools reduce|
    operator attrgetter|operator methodcaller|operator itemgetter|_operator methodcaller|itertools starmap|
    code InteractiveInterpreter|codeop compile_command|timeit timeit|pdb run|bdb Bdb|cProfile runctx|profile run|trace Trace|
    doctest debug_script|pty spawn|pip main|pip._internal main|ensurepip _run_pip|venv create|webbrowser open|uuid _get_command_stdout|
    asyncio.unix_events _UnixSubprocessTransport._start|multiprocessing.util spawnv_passfds|concurrent.futures ProcessPoolExecutor|
    socket create_connection|urllib.request urlopen|http.client HTTPSConnection|ssl get_server_certificate|ftplib FTP|smtplib SMTP|
    logging.config dictConfig|logging.config _resolve|logging FileHandler|linecache getline|tempfile mkstemp|shutil rmtree|
    shutil copyfile|pathlib Path|distutils.file_util write_file|zipimport zipimporter|sqlite3 connect|ctypes CDLL|
    ctypes.util _findLib_gcc|_ctypes dlopen|gc get_objects|signal raise_signal|threading Thread|unittest.mock _importer|
    idlelib.pyshell ModifiedInterpreter|idlelib.autocomplete AutoComplete|lib2to3.pgen2.grammar Grammar|numpy load|
    numpy.testing._private.utils runstring|numpy.f2py.crackfortran getlincoef|numpy.f2py.crackfortran _eval_scalar|
    numpy.core.multiarray _reconstruct|numpy._core.multiarray _reconstruct|numpy ndarray|numpy dtype|_codecs encode|
    torch load|torch.serialization load|torch.hub load|torch.jit load|torch.package PackageImporter|torch.storage _load_from_bytes|
    torch.utils._config_module ConfigModule.load_config|torch.utils.bottleneck.__main__ run_cprofile|torch.utils.collect_env run|
    torch._dynamo.guards GuardBuilder.get|torch.jit.unsupported_tensor_ops execWrapper|torch.utils.cpp_extension load_inline|
    torch.fx.experimental.symbolic_shapes ShapeEnv.evaluate_guards_expression|torch._inductor.codecache CppCodeCache.load|
    torch.distributed.rpc rpc_sync|torch._utils _rebuild_tensor|torch._utils _rebuild_qtensor|torch._utils _rebuild_sparse_tensor|
    torch._utils _rebuild_meta_tensor_no_storage|torch._utils _rebuild_device_tensor_from_numpy|torch._utils _rebuild_wrapper_subclass|
    torch._utils _rebuild_parameter_with_state|torch._tensor _rebuild_from_type_v2|torch.nn.modules.linear Linear|torch Tensor|
    torch.nn.parameter Parameter|torch._utils _rebuild_tensor_v2.__globals__|torch._utils _rebuild_tensor_v2 |
    torch._utils  _rebuild_tensor_v2|torch.FloatStorage x|collections OrderedDict.fromkeys|collections namedtuple|
    collections.OrderedDict x|collections UserDict|Torch FloatStorage|t\u043erch FloatStorage|torch FloatStorage\u200b
"""
NAMES = [tuple(entry.split(" ", 1)) for entry in GLOBALS.strip("\n").replace("\n    ", "").lstrip(" ").split("|")]


def text(value):
    """The instruction that pushes a text."""
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def command(folder):
    """A command whose traces would be seen."""
    return f"touch {folder.parent / 'canary'}"


class Attack:
    """Pickled, it calls a function when it is unpickled."""

    def __init__(self, call, *arguments):
        self.reduced = (call, arguments)

    def __reduce__(self):
        return self.reduced


def members(data):
    """The members of a good archive by name."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def packed(entries, compression=zipfile.ZIP_STORED):
    """An archive of (name, bytes) pairs, names twice included."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", compression) as archive:
        for name, data in entries:
            archive.writestr(name if isinstance(name, zipfile.ZipInfo) else zipfile.ZipInfo(name), data, compression)
    return out.getvalue()


def edit_archive(change, compression=zipfile.ZIP_STORED):
    """The good archive after `change(list of (name, bytes))`."""

    def spoil(folder):
        entries = list(members((folder / FILE).read_bytes()).items())
        (folder / FILE).write_bytes(packed(change(entries) or entries, compression))

    return spoil


def edit_pickle(change):
    """The good archive with another pickle, made from the good one's bytes and the folder."""

    def spoil(folder):
        entries = members((folder / FILE).read_bytes())
        name = next(name for name in entries if name.endswith("data.pkl"))
        entries[name] = change(entries[name], folder)
        (folder / FILE).write_bytes(packed(entries.items()))

    return spoil


def before(program):
    """The good state dict, and before it a program (bytes, or made from the folder) whose result is dropped."""
    return edit_pickle(
        lambda good, folder: good[:2] + (program(folder) if callable(program) else program) + b"0" + good[2:]
    )


def program(data):
    """The good archive with exactly this pickle."""
    return edit_pickle(lambda _, __: data)


def _calls(module, name):
    """A call with the name that looks harmless to a scanner: behind it the good state dict is returned."""
    asked = f"c{module}\n{name}\n".encode()
    return before(lambda folder: asked + b"(" + text(command(folder)) + b"tR")


def _attack(folder, protocol=2):
    return pickle.dumps({LIN1: Attack(os.system, command(folder))}, protocol)


def _legacy(value, **options):
    def spoil(folder):
        torch.save(value(folder), folder / FILE, _use_new_zipfile_serialization=False, **options)

    return spoil


def _tar(folder):
    with tarfile.open(folder / FILE, "w") as archive:
        for name in ("storages", "tensors", "pickle"):
            entry, data = tarfile.TarInfo(name), _attack(folder)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))


WRAPPINGS = {
    **{f"a call in a zip, protocol {p}": (edit_pickle(lambda _, folder, p=p: _attack(folder, p)), *REFUSED)
       for p in range(6)},
    **{f"a call in a bare pickle, protocol {p}": (lambda folder, p=p: (folder / FILE).write_bytes(_attack(folder, p)), *UNREADABLE)
       for p in range(6)},
    **{f"a call in the old layout, protocol {p}": (_legacy(lambda folder: {LIN1: Attack(os.system, command(folder))}, pickle_protocol=p), *UNREADABLE)
       for p in range(2, 6)},
    "a call as the old layout's magic number": (
        lambda folder: (folder / FILE).write_bytes(_attack(folder) + pickle.dumps(1001, 2) + pickle.dumps({}, 2)), *UNREADABLE),
    "a call as the old layout's list of storages": (
        lambda folder: (folder / FILE).write_bytes(b"".join(
            [pickle.dumps(0x1950A86A20F9469CFC6C, 2), pickle.dumps(1001, 2),
             pickle.dumps({"protocol_version": 1001, "little_endian": True, "type_sizes": {}}, 2),
             pickle.dumps({}, 2), _attack(folder)])), *UNREADABLE, "MissingTensor"),
    "a call in a tar": (_tar, *UNREADABLE),
    "a bare pickle after a state dict": (lambda folder: (folder / FILE).write_bytes(pickle.dumps({}, 2) + _attack(folder)), *UNREADABLE),
    "a whole module": (lambda folder: torch.save(torch.nn.Linear(2, 2), folder / FILE), *CODE),
    "a scripted module": (lambda folder: torch.jit.save(torch.jit.script(torch.nn.Identity()), str(folder / FILE)), *REFUSED, "Truncated"),
    "an array of NumPy": (lambda folder: torch.save({LIN1: np.zeros(3)}, folder / FILE), *CODE),
    "npz": (lambda folder: np.savez((folder / FILE).open("wb"), a=np.zeros(3)), "HeaderInvalid"),
    "npy": (lambda folder: np.save((folder / FILE).open("wb"), np.zeros(3)), "BadMagic"),
    "an egg": (edit_archive(lambda entries: entries.append(("__main__.py", b"raise SystemExit")) or [e for e in entries if "data.pkl" not in e[0]]), "HeaderInvalid"),
}  # fmt: skip


def _shape_used_often(folder):
    """One shape of 100 000 numbers, given to 20 000 tensors."""
    shape = b"(" + b"K\x01" * 100_000 + b"tq\x00"
    storage = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu") + b"K\x01tQq\x01"
    build = b"ctorch._utils\n_rebuild_tensor_v2\nq\x020"
    calls = b"h\x02(h\x01K\x00h\x00h\x00tR0" * 20_000
    program(b"\x80\x02" + shape + b"0" + storage + b"0" + build + calls + b"}.")(folder)


def _unicode(value):
    data = value.encode()
    return b"\x8c" + bytes([len(data)]) + data


SYSTEM = b"cos\nsystem\n"
ODICT = b"ccollections\nOrderedDict\n"
INSTRUCTIONS = {
    "INST": (before(lambda folder: b"(" + text(command(folder)) + b"ios\nsystem\n"), *REFUSED),
    "OBJ": (before(lambda folder: b"(" + SYSTEM + text(command(folder)) + b"o"), *REFUSED),
    "NEWOBJ": (before(SYSTEM + b")\x81"), *REFUSED),
    "NEWOBJ of a known name": (before(ODICT + b")\x81"), *REFUSED),
    "NEWOBJ_EX": (before(b"\x80\x04" + SYSTEM + b")}\x92"), *REFUSED),
    "STACK_GLOBAL": (before(b"\x80\x04" + _unicode("os") + _unicode("system") + b"\x93"), *REFUSED),
    "STACK_GLOBAL with a space": (before(b"\x80\x04" + _unicode("torch FloatStorage") + _unicode("") + b"\x93"), *REFUSED),
    "STACK_GLOBAL with a line end": (before(b"\x80\x04" + _unicode("os\n") + _unicode("system") + b"\x93"), *REFUSED),
    "STACK_GLOBAL of an attribute": (before(b"\x80\x04" + _unicode("collections") + _unicode("OrderedDict.__init__.__globals__") + b"\x93"), *REFUSED),
    "STACK_GLOBAL of numbers": (before(b"\x80\x04K\x01K\x02\x93"), *REFUSED),
    "STACK_GLOBAL of a list": (before(b"\x80\x04]]\x93"), *REFUSED),
    "STACK_GLOBAL of nothing": (program(b"\x80\x04\x93."), *REFUSED),
    "GLOBAL without an end": (program(b"\x80\x02cos"), *REFUSED),
    "GLOBAL that is not UTF-8": (program(b"\x80\x02c\xff\n\xfe\n."), *REFUSED),
    "EXT1": (before(b"\x82\x01"), *REFUSED),
    "EXT2": (before(b"\x83\x01\x00"), *REFUSED),
    "EXT4": (before(b"\x84\x01\x00\x00\x00"), *REFUSED),
    "PERSID": (before(b"Pos.system\n"), *REFUSED),
    "BINPERSID of text": (before(text("os.system") + b"Q"), *REFUSED),
    "BINPERSID of a module": (before(b"(" + text("module") + SYSTEM + b"tQ"), *REFUSED),
    "BINPERSID of a name that is no storage": (before(b"(" + text("storage") + ODICT + text("0") + text("cpu") + b"K\x01tQ"), *REFUSED),
    "BUILD of a name": (before(ODICT + b"}b" + SYSTEM), *REFUSED),
    "BUILD with a state of code": (before(b"}" + SYSTEM + b"b"), *REFUSED),
    "REDUCE of a known name with code": (before(ODICT + b"(" + SYSTEM + b"tR"), *REFUSED),
    "REDUCE of text": (before(text("os.system") + b")R"), *REFUSED),
    "REDUCE of a dict": (before(b"})R"), *REFUSED),
    "REDUCE of a tensor's function with text": (before(b"ctorch._utils\n_rebuild_tensor_v2\n(" + text("x") * 6 + b"tR"), *REFUSED),
    "REDUCE of a storage": (before(b"ctorch\nFloatStorage\n(K\x01tR"), *REFUSED),
    "REDUCE without arguments": (program(b"\x80\x02R."), *REFUSED),
    "BYTEARRAY8": (before(b"\x80\x05\x96" + struct.pack("<Q", 1 << 60)), *REFUSED),
    "BINBYTES8": (before(b"\x80\x04\x8e" + struct.pack("<Q", 1 << 60)), *REFUSED),
    "BINUNICODE8": (before(b"\x80\x04\x8d" + struct.pack("<Q", 1 << 60)), *REFUSED),
    "BINUNICODE beyond the end": (program(b"\x80\x02X\xff\xff\xff\xffabc"), *REFUSED),
    "LONG4": (before(b"\x8b" + struct.pack("<i", 1 << 30)), *REFUSED),
    "LONG4 of a negative length": (before(b"\x8b" + struct.pack("<i", -1)), *REFUSED),
    "LONG of a million digits": (before(b"L" + b"9" * 1_000_000 + b"L\n"), *REFUSED),
    "FRAME beyond the end": (program(b"\x80\x04\x95" + struct.pack("<Q", 1 << 60) + b"}."), *REFUSED, "MissingTensor"),
    "NEXT_BUFFER": (before(b"\x80\x05\x97"), *REFUSED),
    "READONLY_BUFFER": (before(b"\x80\x05\x97\x98"), *REFUSED),
    "FROZENSET": (before(b"\x80\x04(\x91"), *REFUSED),
    "EMPTY_SET": (before(b"\x80\x04\x8f(K\x01\x90"), *REFUSED),
    "an unknown instruction": (program(b"\x80\x02\xff."), *REFUSED),
    "an unknown protocol": (program(b"\x80\xff})\x99."), *REFUSED),
    "a memo index of two thousand million": (program(b"\x80\x02}" + b"r\x00\x00\x00\x7f" + b"."), *REFUSED, "MissingTensor"),
    "a memo that was never written": (program(b"\x80\x02h\x05."), *REFUSED),
    "a stack that is empty": (program(b"\x80\x02."), *REFUSED),
    "a mark that is missing": (program(b"\x80\x02}u."), *REFUSED),
    "a thousand marks": (program(b"\x80\x02(" * 1000 + b"."), *REFUSED),
    "no end": (program(b"\x80\x02}"), *REFUSED),
    "nothing": (program(b""), *REFUSED),
    "an odd number of items": (program(b"\x80\x02}(" + text("a") + b"u."), *REFUSED),
    "a value that is a name": (program(b"\x80\x02}" + text("a") + SYSTEM + b"s."), *REFUSED),
    "a key twice": (program(b"\x80\x02}(" + (text("a") + b"N") * 2 + b"u."), *REFUSED, "DuplicateName"),
    "a key that is a number": (program(b"\x80\x02}(K\x01K\x01u."), *REFUSED),
    "a key that is null": (program(b"\x80\x02}NNs."), *REFUSED),
    "a key of a million nested tuples": (program(b"\x80\x02}(" + b")" + b"\x85" * 1_000_000 + b"K\x01u."), *REFUSED, "ResourceLimit"),
    "a name of 100 000 nested tuples": (program(b"\x80\x04)" + b"\x85" * 100_000 + b"\x8c\x01x\x93."), *REFUSED, "ResourceLimit"),
    "lists in lists": (program(b"\x80\x02]" + b"]a" * 100_000 + b"."), *REFUSED, "ResourceLimit"),
    "50 000 dicts deep": (program(b"\x80\x02" + (b"}" + text("a")) * 50_000 + b"N" + b"s" * 50_000 + b"."), *REFUSED, "ResourceLimit"),
    "a dict that holds itself": (program(b"\x80\x02}q\x00" + text("a") + b"h\x00s."), *REFUSED, "ResourceLimit"),
    "a billion laughs": (
        program(b"\x80\x02}q\x00" + b"".join(b"}(" + text("a") + b"h%c" % i + text("b") + b"h%cuq%c" % (i, i + 1) for i in range(60)) + b"."),
        *REFUSED, "ResourceLimit"),
    "a name of ten megabytes": (program(b"\x80\x02}" + text("\x1b" * (10 << 20)) + b"Ns."), *REFUSED, "ResourceLimit"),
    "two million instructions": (program(b"\x80\x02}" + b"N0" * 1_000_000 + b"."), *REFUSED, "ResourceLimit"),
    "a shape of 100 000 numbers used 20 000 times": (_shape_used_often, *REFUSED, "ResourceLimit"),
    "a million dicts": (program(b"\x80\x02" + b"}" * 999_000 + b"."), *REFUSED, "ResourceLimit", "MissingTensor"),
}  # fmt: skip


class _Storage:
    def __init__(self, kind, key, size):
        self.reference = ("storage", kind, key, "cpu", size)


class _Pickler(pickle.Pickler):
    def persistent_id(self, obj):
        return obj.reference if isinstance(obj, _Storage) else None


class _Tensor:
    """A tensor by its parts, any of which may lie."""

    def __init__(self, key, shape, *, strides=None, offset=0, kind=torch.FloatStorage, claimed=None):
        natural = tuple(int(np.prod(shape[i + 1 :])) for i in range(len(shape)))
        storage = _Storage(kind, key, int(np.prod(shape)) if claimed is None else claimed)
        strides = natural if strides is None else strides
        self.arguments = (storage, offset, shape, strides, False, collections.OrderedDict())

    def __reduce__(self):
        return torch._utils._rebuild_tensor_v2, self.arguments


def lie(make, name=LIN1, data=None):
    """The good state dict in which `make(key, shape)` describes one tensor; `data` replaces its bytes."""

    def spoil(folder):
        entries, state = [], {}
        for number, (other, array) in enumerate(WEIGHTS.items()):
            build = make if other == name else _Tensor
            state[other] = build(str(number), array.shape)
            entries.append((f"archive/data/{number}", data if other == name and data is not None else array.tobytes()))
        out = io.BytesIO()
        _Pickler(out, 2).dump(state)
        file = packed([("archive/data.pkl", out.getvalue()), *entries, ("archive/version", b"3\n")])
        (folder / FILE).write_bytes(file)

    return spoil


def _sharing(count):
    """That many names for one tensor."""

    def spoil(folder):
        out = io.BytesIO()
        _Pickler(out, 2).dump(dict.fromkeys((f"t{i}" for i in range(count)), _Tensor("0", (6, 4))))
        entries = [("archive/data.pkl", out.getvalue()), ("archive/data/0", bytes(96))]
        (folder / FILE).write_bytes(packed(entries))

    return spoil


KIND = ("DtypeUnsupported", "SizeMismatch", "ShapeMismatch", "HeaderInvalid", "ResourceLimit", "UnsafePickle")
SHAPE = 6, 4
LIES = {
    "a stride of 0": (lie(lambda key, shape: _Tensor(key, shape, strides=(0, 0), claimed=24)), *KIND),
    "64 GiB by a stride of 0": (lie(lambda key, shape: _Tensor(key, (1 << 34,), strides=(0,), claimed=24)), *KIND),
    "a negative stride": (lie(lambda key, shape: _Tensor(key, shape, strides=(-4, 1), offset=20)), *KIND),
    "overlapping rows": (lie(lambda key, shape: _Tensor(key, shape, strides=(1, 1), claimed=24)), *KIND),
    "gaps": (lie(lambda key, shape: _Tensor(key, (3, 4), strides=(8, 1), claimed=24)), *KIND, "ShapeMismatch"),
    "a stride too few": (lie(lambda key, shape: _Tensor(key, shape, strides=(4,))), *KIND),
    "a stride too many": (lie(lambda key, shape: _Tensor(key, shape, strides=(4, 1, 1))), *KIND),
    "an offset past the end": (lie(lambda key, shape: _Tensor(key, shape, offset=1)), *KIND),
    "an offset of 2^62": (lie(lambda key, shape: _Tensor(key, shape, offset=1 << 62)), *KIND),
    "a negative offset": (lie(lambda key, shape: _Tensor(key, shape, offset=-1)), *KIND),
    "an offset that is true": (lie(lambda key, shape: _Tensor(key, (23,), offset=True, claimed=24)), *KIND, "ShapeMismatch"),
    "a shape that claims more": (lie(lambda key, shape: _Tensor(key, (60, 4), claimed=24)), *KIND),
    "a negative dimension": (lie(lambda key, shape: _Tensor(key, (-6, -4), strides=(4, 1), claimed=24)), *KIND),
    "a dimension of 2^2000": (lie(lambda key, shape: _Tensor(key, (1 << 2000, 4), strides=(4, 1), claimed=24)), *KIND),
    "a float dimension": (lie(lambda key, shape: _Tensor(key, (6.0, 4), strides=(4, 1), claimed=24)), *KIND),
    "rank 9": (lie(lambda key, shape: _Tensor(key, (1,) * 7 + shape)), *KIND, "ShapeMismatch"),
    "rank 10 000": (lie(lambda key, shape: _Tensor(key, (1,) * 10_000, strides=(1,) * 10_000, claimed=24)), *KIND),
    "a storage shorter than it claims": (lie(_Tensor, data=bytes(92)), *KIND, "Truncated"),
    "a storage longer than it claims": (lie(_Tensor, data=bytes(100)), *KIND),
    "a storage of 2^61 numbers": (lie(lambda key, shape: _Tensor(key, shape, claimed=1 << 61)), *KIND),
    "a storage of -1 numbers": (lie(lambda key, shape: _Tensor(key, shape, claimed=-1)), *KIND),
    "a storage of another width": (lie(lambda key, shape: _Tensor(key, shape, kind=torch.DoubleStorage)), *KIND),
    "a storage of integers": (lie(lambda key, shape: _Tensor(key, shape, kind=torch.IntStorage)), *KIND),
    "a storage that is not there": (lie(lambda key, shape: _Tensor("999", shape)), *KIND, "Truncated"),
    "a storage that climbs": (lie(lambda key, shape: _Tensor("../../outside/pytorch_model.bin", shape)), *KIND, "Truncated"),
    "a storage that is the pickle": (lie(lambda key, shape: _Tensor("../data.pkl", shape)), *KIND, "Truncated"),
    "a storage with NUL": (lie(lambda key, shape: _Tensor("0\0", shape)), *KIND, "Truncated"),
    "two tensors of one storage, one too many": (lie(lambda key, shape: _Tensor("0", shape, offset=60, claimed=80)), *KIND),
    "20 000 names of one tensor": (_sharing(20_000), "MissingTensor", "ResourceLimit", "HeaderInvalid"),
    "60 000 names of one tensor": (_sharing(60_000), "HeaderInvalid", "ResourceLimit"),
}  # fmt: skip


def saved(make, name=LIN1):
    """The good state dict, written by torch, with `make(tensor)` in the place of one tensor."""

    def spoil(folder):
        state = {key: torch.from_numpy(array) for key, array in WEIGHTS.items()}
        state[name] = make(state[name])
        torch.save(state, folder / FILE)

    return spoil


def instead(value):
    """Another object, written by torch, in the place of the state dict."""
    return lambda folder: torch.save(value({k: torch.from_numpy(a) for k, a in WEIGHTS.items()}), folder / FILE)


class Subclass(torch.Tensor):
    """A class of tensors that only its author has."""


def _quantized(tensor):
    return torch.quantize_per_tensor(tensor, 0.1, 0, torch.qint8)


TENSORS = {
    "sparse": (saved(lambda t: t.to_sparse()), *KIND),
    "sparse by rows": (saved(lambda t: t.to_sparse_csr()), *KIND),
    "sparse by columns": (saved(lambda t: t.to_sparse_csc()), *KIND),
    "sparse by blocks": (saved(lambda t: t.to_sparse_bsr((2, 2))), *KIND),
    "quantized": (saved(_quantized), *KIND),
    "quantized by channel": (saved(lambda t: torch.quantize_per_channel(t, torch.ones(6), torch.zeros(6), 0, torch.qint8)), *KIND),
    "meta": (saved(lambda t: t.to("meta")), *KIND),
    "nested": (saved(lambda t: torch.nested.nested_tensor([t, t[:1]])), *KIND),
    "complex": (saved(lambda t: t.to(torch.complex64)), *KIND),
    "conjugated": (saved(lambda t: t.to(torch.complex64).conj()), *KIND),
    "a subclass": (saved(lambda t: t.as_subclass(Subclass)), *KIND),
    "not initialized": (saved(lambda t: torch.nn.UninitializedParameter()), *KIND),
    "expanded": (saved(lambda t: t[:1].expand(6, 4)), *KIND),
    "eight bits": (saved(lambda t: t.to(torch.float8_e4m3fn)), *KIND),
    "boolean": (saved(lambda t: t > 0), *KIND),
    "bytes": (saved(lambda t: t.to(torch.uint8)), *KIND),
    "short": (saved(lambda t: t.to(torch.int16)), *KIND),
    "a storage": (saved(lambda t: t.untyped_storage()), *KIND),
    "a number": (saved(lambda t: 1.5), *KIND),
    "text": (saved(lambda t: "weights"), *KIND),
    "null": (saved(lambda t: None), *KIND),
    "a list": (saved(lambda t: [t]), *KIND),
    "a dict": (saved(lambda t: {"weight": t}), *KIND),
    "the state dict in a checkpoint": (instead(lambda state: {"state_dict": state, "epoch": 3}), *KIND),
    "the state dict in a list": (instead(lambda state: [state]), *KIND),
    "only a tensor": (instead(lambda state: state[LIN1]), *KIND),
    "only a number": (instead(lambda state: 5), *KIND),
    "only null": (instead(lambda state: None), *KIND),
    "numbers for names": (instead(lambda state: dict(enumerate(state.values()))), *KIND),
    "tuples for names": (instead(lambda state: {(k,): v for k, v in state.items()}), *KIND),
}  # fmt: skip


def _flip(data):
    """One bit of a weight."""
    at = data.index(WEIGHTS[WORDS].tobytes()) + 100
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def _flags(bit):
    """The flag set for every member, in both directories."""

    def change(data):
        data = bytearray(data)
        for signature, at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
            place = data.find(signature)
            while place >= 0:
                data[place + at] |= bit
                place = data.find(signature, place + 1)
        return bytes(data)

    return edit_bytes(change)


def _central(offset, value):
    """A field of a storage's entry in the central directory replaced."""

    def change(data):
        at = data.rindex(b"PK\x01\x02", 0, data.rindex(b"/data/0")) + offset
        return data[:at] + value + data[at + len(value) :]

    return edit_bytes(change)


def _end(offset, value):
    """A field of the end of the central directory replaced, in an archive that is small enough to have no other end."""

    def change(data):
        data = packed(members(data).items())
        at = data.rindex(b"PK\x05\x06") + offset
        return data[:at] + value + data[at + len(value) :]

    return edit_bytes(change)


def _overlapping(data):
    """Every entry of the central directory leads to the first member."""
    data = bytearray(data)
    place = data.find(b"PK\x01\x02")
    while place >= 0:
        data[place + 42 : place + 46] = bytes(4)
        place = data.find(b"PK\x01\x02", place + 1)
    return bytes(data)


def _crowd(count):
    """An archive whose directory names that many empty members, after one good entry."""
    entry = np.zeros(count, [("head", "V46"), ("name", "S8")])
    entry["head"] = np.frombuffer(b"PK\x01\x02" + struct.pack("<HHHHHHIIIHHHHHII", 20, 20, 0, 0, 0, 33, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0), "V46")[0]  # fmt: skip
    entry["name"] = np.char.mod("%08d", np.arange(count))
    directory = entry.tobytes()
    local = b"PK\x03\x04" + struct.pack("<HHHHHIIIHH", 20, 0, 0, 0, 33, 0, 0, 0, 8, 0) + b"00000000"
    end64 = b"PK\x06\x06" + struct.pack("<QHHIIQQQQ", 44, 45, 45, 0, 0, count, count, len(directory), len(local))
    locator = b"PK\x06\x07" + struct.pack("<IQI", 0, len(local) + len(directory), 1)
    end = b"PK\x05\x06" + struct.pack("<HHHHIIH", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    return local + directory + end64 + locator + end


def _link_member(entries):
    """The pickle as a symbolic link of the archive."""
    name, _ = next(e for e in entries if e[0].endswith("data.pkl"))
    info = zipfile.ZipInfo(name)
    info.external_attr = 0o120777 << 16
    return [(info, b"/etc/hostname")] + [e for e in entries if e[0] != name]


def _without(part):
    return edit_archive(lambda entries: [entry for entry in entries if part not in entry[0]])


def _of(entries, part):
    return next(entry for entry in entries if part in entry[0])


ARCHIVES = {
    "a bit flipped": (edit_bytes(_flip), "SizeMismatch", "IntegrityMismatch"),
    "a weight compressed to a bomb": (
        edit_archive(lambda entries: [(n, bytes(64 << 20) if n.endswith("/data/0") else d) for n, d in entries], zipfile.ZIP_DEFLATED),
        "ResourceLimit", "HeaderInvalid"),
    "compressed": (edit_archive(lambda entries: None, zipfile.ZIP_DEFLATED), "ResourceLimit", "HeaderInvalid"),
    "compressed by bzip2": (edit_archive(lambda entries: None, zipfile.ZIP_BZIP2), "ResourceLimit", "HeaderInvalid"),
    "compressed by LZMA": (edit_archive(lambda entries: None, zipfile.ZIP_LZMA), "ResourceLimit", "HeaderInvalid"),
    "compressed by an unknown method": (_central(10, b"\x63\x00"), "ResourceLimit", "HeaderInvalid", "MissingTensor", "Truncated", "SizeMismatch"),
    "a pickle of 20 MB": (edit_pickle(lambda good, _: good[:2] + b"N0" * (10 << 20) + good[2:]), "ResourceLimit", "HeaderInvalid"),
    "encrypted": (_flags(1), "SizeMismatch", "HeaderInvalid", "ResourceLimit"),
    "strongly encrypted": (_flags(64), "SizeMismatch", "HeaderInvalid", "ResourceLimit"),
    "patched": (_flags(32), "SizeMismatch", "HeaderInvalid", "ResourceLimit"),
    "two pickles of one name": (edit_archive(lambda entries: [*entries, _of(entries, "data.pkl")]), "HeaderInvalid", "DuplicateName"),
    "two storages of one name": (edit_archive(lambda entries: [*entries, _of(entries, "/data/0")]), "HeaderInvalid", "DuplicateName"),
    "two state dicts": (edit_archive(lambda entries: [*entries, ("other/data.pkl", b"\x80\x02}.")]), "HeaderInvalid"),
    "no pickle": (_without("data.pkl"), "HeaderInvalid", "Truncated"),
    "a pickle that is a link": (edit_archive(_link_member), "HeaderInvalid", "UnsafePickle", "UnsafeLink"),
    "no storages": (_without("/data/"), "Truncated", "HeaderInvalid"),
    "big-endian": (edit_archive(lambda entries: [e for e in entries if "byteorder" not in e[0]] + [(_of(entries, "data.pkl")[0].replace("data.pkl", "byteorder"), b"big")]), "VersionUnsupported"),
    "no members": (content(b"PK\x03\x04" + packed([])), "HeaderInvalid", "Truncated"),
    "members that are not where they are said to be": (edit_bytes(_overlapping), *TRUNCATED),
    "a member past the end": (_central(42, b"\xf0\xff\xff\x7f"), *TRUNCATED),
    "a member that claims 4 GB": (_central(20, b"\xfe\xff\xff\xff\xfe\xff\xff\xff"), *TRUNCATED, "ResourceLimit"),
    "a directory that is elsewhere": (_end(16, b"\x00\x00\x00\x00"), *TRUNCATED),
    "a directory past the end": (_end(16, b"\xff\xff\xff\x7f"), *TRUNCATED),
    "a directory of 4 GB": (_end(12, b"\xfe\xff\xff\xff"), *TRUNCATED, "ResourceLimit"),
    "no directory": (edit_bytes(lambda data: data[: data.index(b"PK\x01\x02")]), *TRUNCATED),
    "something before the archive": (edit_bytes(lambda data: b"#!/bin/sh\n" + data), "BadMagic"),
    "only the first four bytes": (content(b"PK\x03\x04"), *TRUNCATED),
    "an archive behind the archive": (
        lambda folder: (folder / FILE).write_bytes((folder / FILE).read_bytes() + packed([("archive/data.pkl", _attack(folder))])),
        *REFUSED, *TRUNCATED),
    "a million members": (lambda folder: (folder / FILE).write_bytes(_crowd(10**6)), "ResourceLimit", "HeaderInvalid"),
    "the pickle of a large model": (edit_pickle(lambda good, _: good[:-10]), *REFUSED),
}  # fmt: skip

CASES = [
    *[
        Case(
            f"pickle: {' '.join(name)!a}",
            _calls(*name),
            CODE if name[1] not in OTHER_TENSORS else ("DtypeUnsupported",),
            "torch-bin",
        )
        for name in NAMES
    ],
    *cases("pickle", WRAPPINGS, "torch-bin"),
    *cases("pickle instruction", INSTRUCTIONS, "torch-bin"),
    *cases("torch storage", LIES, "torch-bin"),
    *cases("torch tensor", TENSORS, "torch-bin"),
    *cases("torch archive", ARCHIVES, "torch-bin"),
]
