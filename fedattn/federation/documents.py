"""What the parties hand each other: public files, read strictly, none with a secret in it."""

from __future__ import annotations

import json
import re
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fedattn.certificates import (
    Member,
    make_server_request,
    node_key_sha256,
    read_request,
    read_server_request,
    require_signed_request,
)
from fedattn.errors import ProtocolError, RunError
from fedattn.federation.folders import FEDERATION, SERVER, about, read
from fedattn.signing import SigningKey, verify

_REQUEST = b"fedattn/v1/server-request"
_Model = TypeVar("_Model", bound=BaseModel)
Port = Annotated[int, Field(ge=1, le=65535)]
Hex = Annotated[str, Field(pattern=r"^([0-9a-f]{2})+$")]
Words = Annotated[str, Field(pattern=r"^[^\x00-\x1f\x7f]{1,64}$")]


class _Document(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Federation(_Document):
    """federation.yaml of an invitation: where the server is, which key signs its ledger."""

    name: Words
    authority_held_by: Words  # "server" if one party holds both
    host: str | None = None  # None until the authority approved a server
    port: Port | None = None
    server_key: str | None = None  # fingerprint
    poll_s: float | None = None  # a device's own: seconds between its questions for messages


class ServerSettings(_Document):
    """server.yaml."""

    name: Words
    host: str
    port: Port  # of the TLS front, for everybody
    superlink_port: Port  # of the SuperLink, for this machine
    authority_held_by: Words
    front: Literal["auto", "nginx", "python"] | None = None
    listen: str | None = None  # the front's own address, if not every one of this machine


class MemberRequest(_Document):
    """A device's request.json: signed by its identity and by the node key that it names."""

    kind: Literal["member-request"] = "member-request"
    request: str  # PEM
    node_key: str  # OpenSSH
    node_key_signature: Hex

    def verified(self) -> Member:
        """Who asks; ProtocolError("certificate.*") unless it holds both keys."""
        asked = read_request(self.request.encode())
        node_key = self.node_key.encode()
        if asked.node_key_sha256 != node_key_sha256(node_key):
            raise ProtocolError("certificate.node_key", "the request names another node key")
        signature = bytes.fromhex(self.node_key_signature)
        require_signed_request(node_key, self.request.encode(), signature)
        return asked


class ServerRequest(_Document):
    """A server's request.json: signed by its TLS key and by the key that signs its ledger."""

    kind: Literal["server-request"] = "server-request"
    request: str  # PEM
    port: Port
    server_key: Hex  # raw Ed25519
    signature: Hex

    def verified(self) -> str:
        """The host; ProtocolError("certificate.*") unless whoever asks holds both keys."""
        host = read_server_request(self.request.encode()).host
        key, signature = bytes.fromhex(self.server_key), bytes.fromhex(self.signature)
        if not verify(key, _REQUEST, self.signed_bytes, signature):
            detail = "the request is not signed by the server key that it names"
            raise ProtocolError("certificate.signature", detail)
        return host

    @property
    def signed_bytes(self) -> bytes:
        """What the server's key signs: all but the signature."""
        return json.dumps(self.model_dump(exclude={"signature"}), sort_keys=True).encode()


class Approval(_Document):
    """A member's certificate, and the node key that it names by its hash."""

    kind: Literal["approval"] = "approval"
    name: str
    certificate: str  # PEM
    node_key: str  # OpenSSH


class ServerApproval(_Document):
    """The TLS certificate of the server's host."""

    kind: Literal["server-approval"] = "server-approval"
    certificate: str  # PEM


def server_request(key: SigningKey, pem: bytes, port: int) -> ServerRequest:
    """The request for `pem` (see `make_server_request`), signed by the ledger's key."""
    unsigned = ServerRequest(
        request=pem.decode(), port=port, server_key=key.public_bytes.hex(), signature="00"
    )
    signature = key.sign(_REQUEST, unsigned.signed_bytes).hex()
    return unsigned.model_copy(update={"signature": signature})


def read_any_request(path: Path) -> MemberRequest | ServerRequest:
    """A request.json, its signatures verified."""
    content = _json(path)
    kinds: dict[str, type[MemberRequest | ServerRequest]] = {
        "member-request": MemberRequest,
        "server-request": ServerRequest,
    }
    kind = kinds.get(str(content.get("kind")))
    if kind is None:
        raise RunError(f"{path}: is no request; give the request.json of a device or a server")
    request = _validated(kind, content, path)
    with about(path):
        request.verified()
    return request


def read_approval(path: Path) -> Approval:
    """A member's approval, not yet verified."""
    return _validated(Approval, _kind(path, "approval", "`fedattn federation approve`"), path)


def read_server_approval(path: Path) -> ServerApproval:
    """A server's approval, not yet verified."""
    content = _kind(path, "server-approval", "`fedattn federation approve` of a server's request")
    return _validated(ServerApproval, content, path)


def read_federation(folder: Path) -> Federation:
    """federation.yaml of an invitation, or of a device that followed it."""
    return _validated(Federation, _yaml(folder / FEDERATION), folder / FEDERATION)


def read_settings(folder: Path) -> ServerSettings:
    """server.yaml of a server's folder."""
    return _validated(ServerSettings, _yaml(folder / SERVER), folder / SERVER)


def as_json(document: BaseModel) -> bytes:
    """The document as a file that people can look at."""
    return (json.dumps(document.model_dump(), indent=2) + "\n").encode()


def as_yaml(document: BaseModel, comment: str) -> bytes:
    """The document as YAML below a comment."""
    text = yaml.safe_dump(document.model_dump(exclude_none=True), sort_keys=False)
    return (f"# {comment}\n" + text).encode()


def require_host(host: str) -> None:
    """RunError unless a certificate can name the host and a SuperNode can be told of it."""
    from cryptography.hazmat.primitives.asymmetric import ec

    if _is_ipv6(host):
        raise RunError(
            f"--host {host}: an IPv6 address is not possible here; give a name that stands for it"
        )
    try:
        make_server_request(ec.derive_private_key(1, ec.SECP256R1()), host)
    except ProtocolError as error:
        raise RunError(f"--host {host}: {error}") from None


def _is_ipv6(host: str) -> bool:
    """HOST:PORT is written without brackets everywhere: an IPv6 address would be misread."""
    try:
        return ip_address(host.strip("[]")).version == 6
    except ValueError:
        return False


def require_words(**values: str) -> None:
    """RunError unless each value is 1..64 printable characters."""
    for name, value in values.items():
        if not re.match(r"\A[^\x00-\x1f\x7f]{1,64}\Z", value):
            raise RunError(f"--{name.replace('_', '-')}: must be 1..64 printable characters")


def _kind(path: Path, kind: str, source: str) -> dict[str, object]:
    content = _json(path)
    if content.get("kind") != kind:
        raise RunError(f"{path}: is no {kind.replace('-', ' ')}; give the file that {source} made")
    return content


def _json(path: Path) -> dict[str, object]:
    try:
        content = json.loads(read(path))
    except ValueError:
        content = None
    if not isinstance(content, dict):
        raise RunError(f"{path}: is not a JSON object")
    return content


def _yaml(path: Path) -> object:
    try:
        return yaml.safe_load(read(path))
    except (yaml.YAMLError, UnicodeDecodeError):
        raise RunError(f"{path}: is not YAML") from None


def _validated(model: type[_Model], content: object, path: Path) -> _Model:
    try:
        return model.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the document"
        raise RunError(f"{path}: {where}: {first['msg']}") from None
