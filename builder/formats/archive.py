"""Static libraries (.a): objects with an index of their symbols, the same bytes for the same objects. Stdlib only.

Two layouts, as the linkers of each platform read them: System V's for ELF objects (GNU ar, NDK) and BSD's for Mach-O
(`man 5 ar` of macOS; the index is ranlib(5)'s, members begin at multiples of eight bytes). Times and owners are 0.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping

_MAGIC = b"!<arch>\n"
_MACH_O_64, _ELF_64 = b"\xcf\xfa\xed\xfe", b"\x7fELF\x02\x01"  # little endian both
_LC_SYMTAB = 2  # <mach-o/loader.h>
_SHT_SYMTAB, _GLOBAL, _WEAK = 2, 1, 2  # <elf.h>


def static_library(objects: Mapping[str, bytes]) -> bytes:
    """``objects`` by member name, in order; all of one format.

    Raises:
        ValueError: an object of neither format.
    """
    symbols = {name: defined(data) for name, data in objects.items()}
    apple = all(data[:4] == _MACH_O_64 for data in objects.values())
    member = _bsd_member if apple else _system_v_member
    bodies = {name: member(name, data) for name, data in objects.items()}
    index = _bsd_index if apple else _system_v_index
    first = len(_MAGIC) + len(index(dict.fromkeys(objects, 0), symbols))
    places, at = {}, first
    for name, body in bodies.items():
        places[name], at = at, at + len(body)
    return _MAGIC + index(places, symbols) + b"".join(bodies.values())


def header(name: str, nbytes: int, mode: str = "644") -> bytes:
    return f"{name:<16}{0:<12}{0:<6}{0:<6}{mode:<8}{nbytes:<10}`\n".encode()


def _system_v_member(name: str, data: bytes) -> bytes:
    assert len(name) < 16, "long names have a table of their own"
    return header(f"{name}/", len(data)) + data + b"\n" * (len(data) % 2)


def _system_v_index(places: Mapping[str, int], symbols: Mapping[str, list[str]]) -> bytes:
    """Count, places and names, the numbers with the highest byte first."""
    entries = [(places[name], symbol) for name, names in symbols.items() for symbol in names]
    numbers = struct.pack(f">{len(entries) + 1}I", len(entries), *(place for place, _ in entries))
    body = numbers + b"".join(symbol.encode() + b"\0" for _, symbol in entries)
    body += b"\0" * (len(body) % 2)
    return header("/", len(body), "0") + body


def _bsd_member(name: str, data: bytes) -> bytes:
    """The name stands before the content, padded so that this begins at a multiple of 8, as does what comes next."""
    encoded = name.encode()
    encoded += b"\0" * (-(60 + len(encoded)) % 8)
    data += b"\n" * (-len(data) % 8)
    return header(f"#1/{len(encoded)}", len(encoded) + len(data)) + encoded + data


def _bsd_index(places: Mapping[str, int], symbols: Mapping[str, list[str]]) -> bytes:
    """Bytes of the table, (place of the name, place of the member) for each symbol, bytes of the names, names."""
    names, table = b"", b""
    for name, own in symbols.items():
        for symbol in own:
            table += struct.pack("<2I", len(names), places[name])
            names += symbol.encode() + b"\0"
    title = b"__.SYMDEF\0\0\0"
    body = struct.pack("<I", len(table)) + table + struct.pack("<I", len(names)) + names + b"\0" * (-len(names) % 8)
    assert (len(_MAGIC) + 60 + len(title) + len(body)) % 8 == 0
    return header(f"#1/{len(title)}", len(title) + len(body), "0") + title + body


def defined(data: bytes) -> list[str]:
    """Symbols that an object defines for others, in its order. ValueError for what is no 64-bit object."""
    if data[:4] == _MACH_O_64:
        return _defined_by_mach_o(data)
    if data[:6] == _ELF_64:
        return _defined_by_elf(data)
    raise ValueError(f"neither a Mach-O nor an ELF object of 64 bits: it begins with {data[:6]!r}")


def _defined_by_mach_o(data: bytes) -> list[str]:
    """From the symbol table of <mach-o/nlist.h>: external, no debugger's entry, in a section."""
    (commands,), at = struct.unpack_from("<I", data, 16), 32
    names = []
    for _ in range(commands):
        command, size = struct.unpack_from("<2I", data, at)
        if command == _LC_SYMTAB:
            table, count, strings, _size = struct.unpack_from("<4I", data, at + 8)
            for name, kind, _section, _description, _value in struct.iter_unpack(
                "<IBBHQ", data[table : table + 16 * count]
            ):
                if kind & 0x01 and not kind & 0xE0 and kind & 0x0E:
                    names.append(text(data, strings + name))
        at += size
    return names


def _defined_by_elf(data: bytes) -> list[str]:
    """From the symbol table: global or weak, in a section."""
    (sections,), (size, count) = struct.unpack_from("<Q", data, 0x28), struct.unpack_from("<2H", data, 0x3A)
    heads = [struct.unpack_from("<2I4Q2I", data, sections + i * size) for i in range(count)]
    names = []
    for head in heads:
        if head[1] == _SHT_SYMTAB:
            strings = heads[head[6]][4]
            for name, info, _other, section, _value, _size in struct.iter_unpack(
                "<IBBH2Q", data[head[4] : head[4] + head[5]]
            ):
                if info >> 4 in (_GLOBAL, _WEAK) and section:
                    names.append(text(data, strings + name))
    return names


def text(data: bytes, start: int) -> str:
    return data[start : data.index(b"\0", start)].decode()
