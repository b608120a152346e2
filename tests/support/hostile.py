"""Malformed files, made on the spot: what each reader of the project is given in place of a whole file.

A kind is the bytes of a file, or a function that makes them of a whole one. Nothing here is valid for its reader.
"""

import json
import os
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from saeexplainer.records import FeatureRow

Kind = bytes | Callable[[bytes], bytes]
CANARY = Path("a pickle ran")  # in the working folder, if it did
ROW = FeatureRow("sandbox/main/1", "main", 1, "test", 9.0, 0.01)
DIGITS, DEEP = b"1" * 10**6, 200_000


class Canary:
    """Leaves a file where it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(CANARY),)


PICKLE = pickle.dumps(Canary())
ZIP = b"PK\x03\x04\x14\0\0\0\0\0" + bytes(60)
GZIP = b"\x1f\x8b\x08\0\0\0\0\0\0\x03cut"


def cut(share: float) -> Callable[[bytes], bytes]:
    """The beginning of a whole file."""
    return lambda whole: whole[: int(share * len(whole))]


def swapped(old: bytes, new: bytes) -> Callable[[bytes], bytes]:
    """A whole file with something else in the place of something that it has."""

    def change(whole: bytes) -> bytes:
        assert old in whole, old
        return whole.replace(old, new)

    return change


ANY: dict[str, Kind] = {  # of whatever form the file is
    "empty": b"",
    "zeros": bytes(64),
    "a zip": ZIP,
    "a pickle": PICKLE,
    "half a gzip": GZIP,
    "HTML": b"<html>log in",
    "a tenth": cut(0.1),
    "half": cut(0.5),
}
JSON: dict[str, Kind] = ANY | {
    "Latin-1": '{"a": "é"}'.encode("latin-1"),
    "UTF-16": '{"a": 1}'.encode("utf-16"),
    "a mark first": b"\xef\xbb\xbf[",
    "NUL": b'{"a": "\0"}',
    "lists in lists": b"[" * DEEP,
    "objects in objects": b'{"metadata":' * DEEP,
    "a million digits": b'{"d_in": ' + DIGITS + b"}",
    "single quotes": b"{'a': 1}",
    "two values": b"{} {}",
    "a comment": b"{} // so",
    "a list": b"[]",
    "a text": b'"x"',
    "null": b"null",
    "a number": b"7",
}
NO_OBJECT = ("a list", "a text", "null", "a number")  # which are JSON all the same


def tensor(dtype: str = "F32", shape: Any = (2,), offsets: tuple[int, int] = (0, 8)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def safetensors(header: Any, data: int = 8, length: int | None = None) -> bytes:
    """A file of that header (JSON, or the bytes that stand for it) and so many bytes behind it; `length` is a lie."""
    found = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(found) if length is None else length) + found + bytes(data)


SAFETENSORS: dict[str, Kind] = ANY | {
    "seven bytes": b"\2\0\0\0\0\0\0",
    "a negative length": safetensors({}, length=2**64 - 1),
    "a header longer than the file": safetensors({}, length=10**6),
    "a header of a terabyte": safetensors({}, length=2**40),
    "a header that is no JSON": safetensors(b"{"),
    "a header that is a list": safetensors([]),
    "a header that is null": safetensors(None),
    "Latin-1": safetensors('{"é": 1}'.encode("latin-1")),
    "lists in lists": safetensors(b'{"x":' + b"[" * 10_000),
    "NaN for a size": safetensors({"x": tensor(shape=[float("nan")])}),
    "half a character": safetensors(rb'{"\ud800": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}'),
    "an unknown type": safetensors({"x": tensor("Q9")}),
    "a type that torch lacks": safetensors({"x": tensor("F6_E2M3", (4,), (0, 3))}, 3),
    "no type": safetensors({"x": {"shape": [2], "data_offsets": [0, 8]}}),
    "a text for a size": safetensors({"x": tensor(shape="2")}),
    "overlapping tensors": safetensors({"x": tensor(), "y": tensor(offsets=(4, 12))}, 12),
    "a hole between tensors": safetensors({"x": tensor(shape=(1,), offsets=(4, 8))}),
    "offsets backwards": safetensors({"x": tensor(offsets=(8, 0))}),
    "data cut short": safetensors({"x": tensor()}, 4),
    "data too long": safetensors({"x": tensor()}, 10),
    "a negative size": safetensors({"x": tensor(shape=(-2,))}),
    "a size past 64 bits": safetensors({"x": tensor(shape=(2**62, 2**62))}),
    "another size than its data": safetensors({"x": tensor(shape=(3,))}),
    "metadata of numbers": safetensors({"__metadata__": {"a": 1}}, 0),
}


def parquet(of: Callable[[pa.Table], pa.Table]) -> Kind:
    """A whole parquet file of another table than that of FeatureRow."""

    def made(_: bytes) -> bytes:
        table = pa.table({name: [value] * 2 for name, value in vars(ROW).items()})
        sink = pa.BufferOutputStream()
        pq.write_table(of(table), sink)
        return sink.getvalue().to_pybytes()

    return made


def column(name: str, values: list[Any], kind: pa.DataType | None = None) -> Kind:
    """One in which that column holds those two values."""
    return parquet(lambda t: t.set_column(t.column_names.index(name), name, pa.array(values, kind)))


PARQUET: dict[str, Kind] = ANY | {
    "four bytes": b"PAR1",
    "without its last byte": lambda whole: whole[:-1],
    "without its footer": lambda whole: whole[:-8],
    "without its front": lambda whole: whole[5:],
    "a footer of two gigabytes": lambda whole: whole[:-8] + b"\xff\xff\xff\x7fPAR1",
    "a footer of nothing": lambda whole: whole[:-8] + b"\0\0\0\0PAR1",
    "CSV": b"feature_id,sae\na,b",
    "Arrow": b"ARROW1\0\0",
    "zeros between its marks": lambda whole: whole[:4] + bytes(len(whole) - 12) + whole[-8:],
    "text for a number": column("index", ["a", "b"]),
    "a fraction for a number": column("index", [1.5, 2.0]),
    "a number past 64 bits": column("index", [2**64 - 1, 1], pa.uint64()),
    "a time for a number": column("maximum", [1, 2], pa.timestamp("us")),
    "null for a number": column("index", [None, 1]),
    "null for a text": column("sae", [None, "a"]),
    "nulls alone": column("sae", [None, None]),
    "bytes that are no UTF-8": column("sae", [b"\xff", b"a"]),
    "lists for texts": column("sae", [["a"], ["b"]]),
    "structs for texts": column("sae", [{"a": 1}, {"a": 2}]),
    "a column too many": parquet(lambda t: t.append_column("x", [[1, 2]])),
    "a column too few": parquet(lambda t: t.drop_columns(["sae"])),
    "columns in another order": parquet(lambda t: t.select(t.column_names[::-1])),
    "a column twice": parquet(lambda t: t.rename_columns(["sae", *t.column_names[1:]])),
}

HUGE = b"9" * 5000
BOMB = b"a: &a [x, x, x, x, x, x, x, x, x]\n" + b"".join(
    b"%c: &%c [%s]\n" % (at, at, b", ".join([b"*%c" % (at - 1)] * 9)) for at in range(ord("b"), ord("j"))
)


def seed(value: bytes) -> Kind:
    """A whole params.yaml with another value of its first key."""
    return lambda whole: b"seed: " + value + b"\n" + whole.partition(b"\n")[2]


YAML: dict[str, Kind] = ANY | {
    "Latin-1": "seed: é".encode("latin-1"),
    "UTF-16": lambda whole: whole.decode().encode("utf-16"),
    "NUL": lambda whole: whole + b"\0",
    "no UTF-8": b"seed: \xff",
    "a control code": seed(b"\x07"),
    "a tab": b"seed:\n\tx: 2",
    "a key twice": lambda whole: whole + b"seed: 3\n",
    "aliases of aliases": BOMB,
    "an alias of itself": seed(b"&a [*a]"),
    "an alias of nothing": seed(b"*a"),
    "an alias of everything": b"&a seed: *a",
    "a Python call": seed(b"!!python/object/apply:os.mkdir ['a pickle ran']"),
    "a Python object": seed(b"!!python/object/new:os.mkdir ['a pickle ran']"),
    "a Python name": seed(b"!!python/name:os.mkdir"),
    "a path of Python": seed(b"!!python/object/apply:pathlib.Path ['x']"),
    "a tag": seed(b"!foo 1"),
    "no integer": seed(b"!!int foo"),
    "no fraction": seed(b"!!float foo"),
    "no flag": seed(b"!!bool foo"),
    "no time": seed(b"!!timestamp foo"),
    "bytes": seed(b"!!binary aGk="),
    "a set": seed(b"!!set {a, b}"),
    "a merge of a number": b"<<: 3",
    "a list as a key": b"? [a]\n: b",
    "null as a key": b"~: 1",
    "five thousand digits": seed(HUGE),
    "as many in hex": seed(b"0x" + b"f" * 5000),
    "past 64 bits": seed(b"18446744073709551616"),
    "infinity": seed(b".inf"),
    "no number": seed(b".nan"),
    "a megabyte of text": seed(b"x" * 10**6),
    "half a character": seed(rb'"\ud800"'),
    "lists in lists": seed(b"[" * 300 + b"]" * 300),
    "maps in maps": b"{a: " * 3000,
    "lines further and further in": b"".join(b" " * at + b"a:\n" for at in range(1000)),
    "itself": seed(b"${seed}"),
    "a variable that is not set": seed(b"${oc.env:NO_SUCH_VARIABLE}"),
    "a resolver that is not there": seed(b"${foo:1}"),
    "half a reference": seed(b"${"),
    "a reference to nothing": seed(b"${.x}"),
    "a value left open": seed(b"???"),
    "two documents": b"a: 1\n---\nb: 2",
    "an open quote": seed(b'"x'),
    "a list": b"- 1",
    "a word": b"seed",
    "another version of YAML": b"%YAML 9.9\n---\nseed: 1",
    "an open list": b"seed: [",
    "an escape in a key": b'"\\e[31m": 1',
}


def text(content: str) -> bytes:
    return struct.pack("<Q", len(content.encode())) + content.encode()


def pair(key: str, kind: int, value: bytes) -> bytes:
    """A key of a GGUF header."""
    return text(key) + struct.pack("<I", kind) + value


ARCHITECTURE = pair("general.architecture", 8, text("llama"))


def gguf(body: bytes = b"", pairs: int = 1, tensors: int = 0, version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, pairs) + body


def weight(dims: int, sizes: bytes, kind: int = 0, offset: int = 0) -> bytes:
    """A GGUF file of one tensor."""
    head = text("token_embd.weight") + struct.pack("<I", dims) + sizes + struct.pack("<IQ", kind, offset)
    return gguf(ARCHITECTURE + head, tensors=1) + bytes(64)


GGUF: dict[str, Kind] = ANY | {
    "version 1": gguf(version=1),
    "version 99": gguf(version=99),
    "the other end first": b"GGUF" + struct.pack(">IQQ", 3, 0, 0),
    "nothing said": gguf(pairs=0),
    "safetensors": safetensors({}),
    "2**63 keys": gguf(ARCHITECTURE, 2**63),
    "2**40 keys": gguf(ARCHITECTURE, 2**40),
    "2**40 tensors": gguf(ARCHITECTURE, tensors=2**40),
    "a text of 2**62 bytes": gguf(struct.pack("<Q", 2**62) + b"x"),
    "an unknown type": gguf(pair("a", 99, bytes(8))),
    "a list of 2**40 numbers": gguf(pair("a", 9, struct.pack("<IQ", 4, 2**40))),
    "a list of 2**40 texts": gguf(pair("a", 9, struct.pack("<IQ", 8, 2**40))),
    "lists in lists": gguf(pair("a", 9, struct.pack("<IQ", 9, 1) * 5000)),
    "a key twice": gguf(ARCHITECTURE * 2, 2),
    "a key in Latin-1": gguf(struct.pack("<Q", 1) + b"\xe9" + struct.pack("<I", 8) + text("x")),
    "an architecture that is a number": gguf(pair("general.architecture", 4, bytes(4))),
    "an architecture that is an escape": gguf(pair("general.architecture", 8, text("\x1b[31m"))),
    "an architecture of a megabyte": gguf(pair("general.architecture", 8, text("x" * 10**6))),
    "an alignment of 0": gguf(ARCHITECTURE + pair("general.alignment", 4, bytes(4)), 2),
    "an alignment that is text": gguf(ARCHITECTURE + pair("general.alignment", 8, text("x")), 2),
    "2**32 dimensions": weight(2**32 - 1, b""),
    "2**80 numbers": weight(2, struct.pack("<QQ", 2**40, 2**40)),
    "a tensor past the end": weight(1, struct.pack("<Q", 4), offset=2**60),
    "an unknown quantisation": weight(1, struct.pack("<Q", 4), kind=999),
}
HOOK, K = b'"blocks.1.hook_resid_post"', b'"k": 4'
SAE: dict[str, Kind] = JSON | {
    "k of 0": swapped(K, b'"k": 0'),
    "k of -2": swapped(K, b'"k": -2'),
    "k past its latents": swapped(K, b'"k": 99'),
    "k in words": swapped(K, b'"k": "four"'),
    "k without end": swapped(K, b'"k": Infinity'),
    "a width of a trillion": swapped(b'"d_in": 16', b'"d_in": 1000000000000'),
    "a negative width": swapped(b'"d_in": 16', b'"d_in": -16'),
    "an unknown architecture": swapped(b'"topk"', b'"\\u001b[31m"'),
    "an architecture that is a list": swapped(b'"topk"', b'["topk"]'),
    "no metadata": swapped(b'"metadata": {', b'"metadata": null, "x": {'),
    "kwargs that are a list": swapped(b'"metadata": {', b'"metadata": {"model_from_pretrained_kwargs": [1], '),
}
HOOKS: dict[str, Kind] = {
    "no hook": swapped(HOOK, b"null"),
    "a hook that is a number": swapped(HOOK, b"7"),
    "a block of 24 digits": swapped(HOOK, b'"blocks.' + b"9" * 24 + b'.x"'),
}
SIZES: dict[str, Kind] = {
    "fewer heads than none": swapped(b'"num_attention_heads": 2', b'"num_attention_heads": -2'),
    "a width in words": swapped(b'"hidden_size": 16', b'"hidden_size": "wide"'),
    "a family that is a list": swapped(b'"model_type": "llama"', b'"model_type": ["llama"]'),
}
POINTED = b'"source": "."'
POINTER: dict[str, Kind] = JSON | {
    "no model": b"{}",
    "null for a model": b'{"pretrained": null, "prepend_bos": null}',
    "a source that is a number": swapped(POINTED, b'"source": 7'),
    "a source that is an address": swapped(POINTED, b'"source": "file:///etc/passwd"'),
    "a source outside": swapped(POINTED, b'"source": "../../../nowhere"'),
    "a type that is a number": swapped(b'"float32"', b"7"),
    "a key too many": swapped(POINTED, b'"source": ".", "code": "evil.py"'),
    "a place that is a number": lambda whole: whole.rstrip()[:-1] + b', "place": 7}',
}
RECORDS: dict[str, Kind] = {kind: made for kind, made in JSON.items() if kind != "half"}
