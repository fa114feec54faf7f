"""Zip archives of uncompressed members, as torch.save writes them: where the bytes of each member lie, and writing.

Reading is strict where zipfile is lenient: counts are bounded before they are believed, and every member must lie in
the file once, whole, plain, under one name, with its two descriptions agreeing. Source: PKWARE's APPNOTE.TXT.
"""

from __future__ import annotations

import io
import os
import struct
import zipfile
import zlib
from pathlib import Path
from typing import NamedTuple

from distilbert.checkpoint import safely
from distilbert.checkpoint.tensors import MAX_TENSORS
from distilbert.errors import CheckpointError

MAX_MEMBERS = MAX_TENSORS + 100
MAX_DIRECTORY_BYTES = 16 << 20
ALIGNMENT = 64  # of a member's first byte, so that a reader may map the file

_END = struct.Struct("<4s4H2LH")  # ..., entries, size and offset of the directory, length of a comment
_LOCATOR = struct.Struct("<4sLQL")  # ..., where _END64 lies, ...
_END64 = struct.Struct("<4sQ2H2L4Q")  # ..., entries, size and offset of the directory
_ENTRY = struct.Struct("<4s6H3L5H2L")
_LOCAL = struct.Struct("<4s5H3L2H")
_SIZED_LATER = 1 << 3  # flag: the local header may have zeros for the sizes
_UTF8 = 1 << 11  # flag: how the name is encoded
_ZIP64, _PADDING = 1, 0x4246  # extra fields; the second is what PyTorch aligns with


class Member(NamedTuple):
    """A member as the directory describes it."""

    name: bytes
    flags: int
    crc: int
    size: int
    offset: int  # of its local header


class Archive:
    """The members of an archive by name, found by its directory."""

    def __init__(self, path: Path, file: io.BufferedReader) -> None:
        """Read and check the directory.

        Raises:
            CheckpointError: it is incomplete, or has what torch.save does not write.
        """
        self._path, self._file = path, file
        try:
            count, start, size = self._find_directory()
            self._members = self._read_directory(count, start, size)
        except struct.error:
            raise self._incomplete() from None
        ordered = sorted(self._members.values(), key=lambda member: member.offset)
        starts = [*(member.offset for member in ordered), start]
        self._ends = {member.name: end for member, end in zip(ordered, starts[1:], strict=True)}
        for member in ordered:
            if member.offset + _LOCAL.size + len(member.name) + member.size > self._ends[member.name]:
                raise CheckpointError(path, "OffsetInvalid", f"lets {member.name!r} overlap what follows")

    def _incomplete(self) -> CheckpointError:
        return CheckpointError(self._path, "Truncated", "is an incomplete or damaged zip archive; copy it again")

    def _find_directory(self) -> tuple[int, int, int]:
        """(number of members, offset, size) of the directory, which must end where the records of the end begin."""
        file_size = os.fstat(self._file.fileno()).st_size
        tail_size = _END64.size + _LOCATOR.size + _END.size
        self._file.seek(max(0, file_size - tail_size))
        tail = self._file.read(tail_size)
        signature, *disks, count, size, start, comment = _END.unpack(tail[-_END.size :])
        if signature != b"PK\x05\x06" or comment or disks[:2] != [0, 0]:
            raise self._incomplete()
        end = file_size - _END.size
        if tail[_END64.size :].startswith(b"PK\x06\x07"):
            end = file_size - tail_size
            small, (signature, *_, count, size, start) = (count, size, start), _END64.unpack(tail[: _END64.size])
            if signature != b"PK\x06\x06" or _LOCATOR.unpack(tail[_END64.size : -_END.size])[2] != end:
                raise self._incomplete()
            if any(n not in (n64, top) for n, n64, top in zip(small, (count, size, start), _TOPS, strict=True)):
                raise CheckpointError(self._path, "HeaderInvalid", "contradicts itself about its zip directory")
        if count > MAX_MEMBERS or size > MAX_DIRECTORY_BYTES:
            raise CheckpointError(self._path, "ResourceLimit", f"claims {count} members in a directory of {size} bytes")
        if start + size != end:
            raise self._incomplete()
        return count, start, size

    def _read_directory(self, count: int, start: int, size: int) -> dict[bytes, Member]:
        self._file.seek(start)
        directory = safely.read_exactly(self._path, self._file, size)
        members: dict[bytes, Member] = {}
        position = 0
        for _ in range(count):
            (
                signature,
                *_,
                flags,
                method,
                _,
                _,
                crc,
                packed,
                stored,
                name_size,
                extra_size,
                comment_size,
                _,
                _,
                _,
                at,
            ) = _ENTRY.unpack_from(directory, position)
            position += _ENTRY.size
            name = directory[position : position + name_size]
            extra = directory[position + name_size : position + name_size + extra_size]
            position += name_size + extra_size + comment_size
            stored, packed, at = _widened(extra, [stored, packed, at])
            if signature != b"PK\x01\x02":
                raise self._incomplete()
            if method or packed != stored or flags & ~(_SIZED_LATER | _UTF8):
                raise CheckpointError(self._path, "HeaderInvalid", f"holds {name!r} compressed or encrypted")
            if name in members:
                raise CheckpointError(self._path, "DuplicateName", f"holds the member {name!r} twice")
            members[name] = Member(name, flags, crc, stored, at)
        if position != size:
            raise self._incomplete()
        return members

    def names(self) -> list[str]:
        """The names of all members."""
        return [name.decode(errors="backslashreplace") for name in self._members]

    def locate(self, name: str) -> tuple[int, Member]:
        """Where the bytes of a member begin, and what the directory says of it.

        Raises:
            CheckpointError: there is none, or its header says something else.
        """
        member = self._members.get(name.encode())
        if member is None:
            raise CheckpointError(self._path, "Truncated", f"lacks the member {name!r}; copy or download it again")
        self._file.seek(member.offset)
        header = self._file.read(_LOCAL.size + len(member.name))
        begin = member.offset + len(header)
        try:
            signature, _, flags, method, _, _, _, packed, stored, name_size, extra_size = _LOCAL.unpack_from(header)
            packed, stored = _widened(self._file.read(extra_size), [packed, stored])
        except struct.error:
            raise self._incomplete() from None
        begin += extra_size
        fits = (signature, flags, method, name_size) == (b"PK\x03\x04", member.flags, 0, len(member.name))
        sizes = {member.size, 0} if flags & _SIZED_LATER else {member.size}
        if not fits or header[_LOCAL.size :] != member.name or not {packed, stored} <= sizes:
            raise CheckpointError(self._path, "HeaderInvalid", f"describes the member {name!r} in two ways")
        if begin + member.size > self._ends[member.name]:
            raise CheckpointError(self._path, "OffsetInvalid", f"lets {name!r} overlap what follows")
        return begin, member

    def read(self, name: str, limit: int) -> bytes:
        """The bytes of a small member, verified."""
        begin, member = self.locate(name)
        if member.size > limit:
            raise CheckpointError(self._path, "ResourceLimit", f"has {member.size} bytes in {name!r}")
        self._file.seek(begin)
        data = safely.read_exactly(self._path, self._file, member.size)
        check_sum(self._path, name, zlib.crc32(data), member.crc)
        return data


_TOPS = (0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF)  # what _END says of the directory when _END64 has to


def _widened(extra: bytes, sizes: list[int]) -> list[int]:
    """`sizes`, those of 32 ones taken from the zip64 field of `extra`."""
    position = 0
    while position < len(extra):
        field, size = struct.unpack_from("<2H", extra, position)
        if field == _ZIP64:
            wide = (n for (n,) in struct.iter_unpack("<Q", extra[position + 4 : position + 4 + size]))
            return [next(wide, n) if n == 0xFFFFFFFF else n for n in sizes]
        position += 4 + size
    return sizes


def check_sum(path: Path, name: str, found: int, expected: int) -> None:
    """Refuse data whose CRC-32 is not the one that the archive has for it.

    Raises:
        CheckpointError: SizeMismatch.
    """
    if found != expected:
        raise CheckpointError(path, "SizeMismatch", f"has damaged bytes in {name!r}; copy or download it again")


def add_member(archive: zipfile.ZipFile, file: io.BufferedWriter, name: str, data: bytes | memoryview) -> None:
    """Append a member to the archive in `file`, its first byte aligned. The same members give the same file."""
    zip64 = len(data) > zipfile.ZIP64_LIMIT
    end = file.tell() + _LOCAL.size + len(name) + (20 if zip64 else 0) + 4
    entry = zipfile.ZipInfo(name)  # of 1980, the date that a zip archive has for none
    entry.create_system = 0
    entry.extra = struct.pack("<2H", _PADDING, -end % ALIGNMENT) + b"Z" * (-end % ALIGNMENT)
    with archive.open(entry, "w", force_zip64=zip64) as member:
        member.write(data)
    entry.extra = b""  # the directory needs no padding
