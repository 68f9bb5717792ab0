"""Regenerates `gen/` from the contracts, without a network.

The descriptors of google.api, buf.validate and Envoy's rate-limit service come from the installed wheels instead of a schema
registry: they are written to a descriptor set that `protoc --descriptor_set_in` reads in place of their sources.

Usage: python proto/generate.py [--output gen] [--image FILE]
"""

from __future__ import annotations

import argparse
import importlib
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import grpc_tools
from client_stubs import stubs
from google.protobuf.descriptor import FileDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet
from grpc_tools import protoc
from openapi import openapi, to_yaml
from openapi_page import page
from protovalidate._gen.buf.validate import validate_pb

from mesh import contract
from mesh.contract import Contract, ContractError

PROTO = Path(__file__).parent
WELL_KNOWN = Path(grpc_tools.__file__).parent / "_proto"

# Modules that are installed from wheels; only their descriptors are needed here.
INSTALLED = (
    "google.api.annotations_pb2",
    "google.api.httpbody_pb2",
    "google.rpc.status_pb2",
    "google.rpc.error_details_pb2",
)
# No wheel has these as modules for the google.protobuf runtime, so they are generated together with our own.
ALSO_GENERATED = ("buf/validate/validate.proto",)
# Foreign contracts that we serve: generated like our own, but neither linted nor served at the edge.
FOREIGN = ("foreign/rls.proto", "foreign/rlqs.proto")
# Imports of contracts that only define options; the first one is ours. google/api/httpbody.proto is a message, which stays.
OPTIONS = ("storymesh/options/", "buf/validate/", "google/api/annotations.proto")
# Error details are sent as Any, so the edge can render them only if its descriptor set has their types.
EDGE_NEEDS = ("google/rpc/status.proto", "google/rpc/error_details.proto")

# The encoding of ImageFile.buf_extension.is_import = true in buf's image format: field 8042, a message with the bool as field 1.
BUF_IS_IMPORT = b"\xd2\xf6\x03\x02\x08\x01"


def with_imports(file: FileDescriptor) -> Iterator[FileDescriptor]:
    """The file after all its imports, recursively; may contain duplicates."""
    for imported in file.dependencies:
        yield from with_imports(imported)
    yield file


def dependencies() -> dict[str, FileDescriptorProto]:
    """Descriptors that our contracts import, by path, each after its own imports."""
    found: dict[str, FileDescriptorProto] = {}
    for name in INSTALLED:
        for file in with_imports(importlib.import_module(name).DESCRIPTOR):
            if file.name not in found:
                found[file.name] = FileDescriptorProto.FromString(file.serialized_pb)
    # protovalidate uses another protobuf runtime; both have the same wire format.
    found["buf/validate/validate.proto"] = FileDescriptorProto.FromString(validate_pb.desc().proto.to_binary())
    # protoc includes the well-known types, in a newer version than the copies in some wheels.
    paths = [str(path.relative_to(WELL_KNOWN)) for path in (WELL_KNOWN / "google/protobuf").glob("*.proto")]
    with tempfile.TemporaryDirectory() as scratch:
        parsed = Path(scratch, "well_known.binpb")
        run_protoc([f"-I{WELL_KNOWN}", f"-o{parsed}", "--include_imports", *sorted(paths)])
        well_known = FileDescriptorSet.FromString(parsed.read_bytes())
    return {file.name: file for file in well_known.file} | {
        name: file for name, file in found.items() if not name.startswith("google/protobuf/")
    }


def run_protoc(arguments: Iterable[str]) -> None:
    status: int = protoc.main(["protoc", *arguments])  # type: ignore[no-untyped-call]
    if status != 0:
        sys.exit(f"protoc failed with status {status}; its message is above")


def own_contracts() -> list[str]:
    return sorted(str(path.relative_to(PROTO)) for path in PROTO.glob("storymesh/**/*.proto"))


def generate(output: Path) -> FileDescriptorSet:
    """Writes the stubs, the descriptor set and the HTTP document below `output`; returns the set with comments and all imports."""
    contracts = [*FOREIGN, *own_contracts()]
    known = dependencies()
    ours = parse(contracts, known)
    services = [file.name for file in ours if file.service]
    everything = FileDescriptorSet(file=[*known.values(), *ours])
    with tempfile.TemporaryDirectory() as scratch:
        inputs = Path(scratch, "everything.binpb")
        inputs.write_bytes(FileDescriptorSet(file=map(without_options, everything.file)).SerializeToString())
        known_set = f"--descriptor_set_in={inputs}"
        run_protoc([known_set, f"--python_out={output}", f"--mypy_out=quiet:{output}", *ALSO_GENERATED, *contracts])
        run_protoc([known_set, f"--grpc_python_out={output}", f"--mypy_grpc_out=quiet:{output}", *services])
    (output / "descriptors.binpb").write_bytes(edge_descriptors(everything).SerializeToString(deterministic=True))
    served = contract.of(everything)
    (output / "storymesh/methods.py").write_text(table_of_methods(served), encoding="utf-8")
    (output / "storymesh/stubs.py").write_text(stubs(served), encoding="utf-8")
    document = openapi(everything)
    (output / "openapi.yaml").write_text(to_yaml(document), encoding="utf-8")
    (output / "docs.html").write_text(page(document), encoding="utf-8")
    for package in {path.parent for path in output.rglob("*_pb2.py")}:
        mark_packages(package, output)
    return everything


def table_of_methods(contract: Contract) -> str:
    """Source of `storymesh.methods`: access and idempotency of each method, for the client, which has no descriptor set."""
    rows = [
        f"    {method.path!r}: Method({method.access.name!r}, {method.idempotency.value!r}),"
        for method in contract.exposed
    ]
    return "\n".join([_METHODS, *rows, "}", ""])


_METHODS = '''"""Every method that the edge serves. Generated from the contracts by proto/generate.py; do not edit."""

from typing import Literal, NamedTuple


class Method(NamedTuple):
    """Access and idempotency of a method, as its contract names them."""

    access: Literal["PUBLIC", "USER", "ADMIN"]
    idempotency: Literal["IDEMPOTENCY_UNKNOWN", "NO_SIDE_EFFECTS", "IDEMPOTENT"]


METHODS: dict[str, Method] = {'''


def parse(contracts: list[str], known: dict[str, FileDescriptorProto]) -> list[FileDescriptorProto]:
    """Our contracts as descriptors with comments; `known` holds their imports."""
    with tempfile.TemporaryDirectory() as scratch:
        imports, parsed = Path(scratch, "imports.binpb"), Path(scratch, "parsed.binpb")
        imports.write_bytes(FileDescriptorSet(file=known.values()).SerializeToString())
        run_protoc([f"--descriptor_set_in={imports}", f"-I{PROTO}", f"-o{parsed}", "--include_source_info", *contracts])
        return list(FileDescriptorSet.FromString(parsed.read_bytes()).file)


def edge_descriptors(everything: FileDescriptorSet) -> FileDescriptorSet:
    """The descriptor set for the transcoder: our contracts, the error details and their imports, without comments."""
    wanted = closure(everything, [*EDGE_NEEDS, *own_contracts()])
    files = [file for file in everything.file if file.name in wanted]
    return FileDescriptorSet(file=[without_comments(file) for file in files])


def without_options(file: FileDescriptorProto) -> FileDescriptorProto:
    """The file without the imports that only its options need. The options stay as bytes, which their definitions can decode.

    A caller's stubs thus need neither `buf.validate` nor the modules of `google.api` that define options.
    """
    bare = FileDescriptorProto()
    bare.CopyFrom(file)
    if file.name.startswith("storymesh/") and not file.name.startswith(OPTIONS[0]):
        bare.dependency[:] = [name for name in file.dependency if not name.startswith(OPTIONS)]
    return bare


def without_comments(file: FileDescriptorProto) -> FileDescriptorProto:
    bare = FileDescriptorProto()
    bare.CopyFrom(file)
    bare.ClearField("source_code_info")
    return bare


def closure(everything: FileDescriptorSet, names: Iterable[str]) -> dict[str, None]:
    """The named files and all their imports, each after its own imports (a dict used as an ordered set)."""
    by_name = {file.name: file for file in everything.file}
    wanted: dict[str, None] = {}

    def want(name: str) -> None:
        for imported in by_name[name].dependency:
            want(imported)
        wanted.setdefault(name)

    for name in names:
        want(name)
    return wanted


def mark_packages(package: Path, output: Path) -> None:
    """Adds `py.typed` for type checkers (PEP 561), and `__init__.py`, because some tools do not support namespace packages."""
    while package != output:
        (package / "__init__.py").touch()
        if package.parent == output:
            (package / "py.typed").touch()
        package = package.parent


def image(everything: FileDescriptorSet) -> bytes:
    """The descriptor set in buf's image format. Files of others are marked as imports, so that buf lints only ours."""
    out = bytearray()
    for file in everything.file:
        encoded = file.SerializeToString()
        if not file.name.startswith("storymesh/"):
            encoded += BUF_IS_IMPORT
        out += b"\x0a" + varint(len(encoded)) + encoded
    return bytes(out)


def varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def main() -> None:
    parser = argparse.ArgumentParser(description="Regenerate gen/ from the contracts, without a network.")
    parser.add_argument("--output", type=Path, default=PROTO.parent / "gen", help="where to write (default: gen)")
    parser.add_argument("--image", type=Path, help="also write a buf image of the contracts here")
    options = parser.parse_args()
    # Beside its place until it is whole: a fault in a contract leaves what was generated before.
    with tempfile.TemporaryDirectory(dir=options.output.absolute().parent, prefix=".gen-") as scratch:
        fresh = Path(scratch, "gen")
        fresh.mkdir()
        try:
            everything = generate(fresh)
        except ContractError as fault:
            sys.exit(str(fault))
        if options.output.exists():
            shutil.rmtree(options.output)
        fresh.rename(options.output)
    if options.image:
        options.image.write_bytes(image(everything))


if __name__ == "__main__":
    main()
