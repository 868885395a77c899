"""A real S3 server on loopback, with a proxy in front that makes trouble on demand."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.core.toy import write_source
from tests.remote.machine import Machine
from tests.remote.proxy import Proxy


@pytest.fixture(scope="session")
def s3_port() -> Iterator[int]:
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    yield server.get_host_and_port()[1]
    server.stop()


@dataclass
class Bucket:
    """A bucket, new and empty. ``options`` go through the proxy."""

    name: str
    proxy: Proxy
    client: Any

    @property
    def url(self) -> str:
        return f"s3://{self.name}/shared"

    @property
    def options(self) -> dict[str, Any]:
        return {"endpoint_url": f"http://127.0.0.1:{self.proxy.port}"}

    def objects(self) -> dict[str, bytes]:
        listed = self.client.list_objects_v2(Bucket=self.name).get("Contents", [])
        read = {
            each["Key"]: self.client.get_object(Bucket=self.name, Key=each["Key"])["Body"].read() for each in listed
        }
        return {name.removeprefix("shared/"): data for name, data in read.items()}

    def put(self, name: str, data: bytes) -> None:
        self.client.put_object(Bucket=self.name, Key=f"shared/{name}", Body=data)

    def remove(self, name: str) -> None:
        self.client.delete_object(Bucket=self.name, Key=f"shared/{name}")


@dataclass
class Folder:
    """A shared store in a folder: the same objects, at a tenth of the time."""

    root: Path

    @property
    def url(self) -> str:
        return f"file://{self.root}"

    @property
    def options(self) -> dict[str, Any]:
        return {}

    def objects(self) -> dict[str, bytes]:
        return {p.relative_to(self.root).as_posix(): p.read_bytes() for p in self.root.rglob("*") if p.is_file()}

    def put(self, name: str, data: bytes) -> None:
        (self.root / name).write_bytes(data)

    def remove(self, name: str) -> None:
        (self.root / name).unlink()


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path / "remote")


@pytest.fixture
def bucket(s3_port: int, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[Bucket]:
    import botocore.session

    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a-key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "its-secret")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    client = botocore.session.Session().create_client("s3", endpoint_url=f"http://127.0.0.1:{s3_port}")
    name = f"bucket-{os.urandom(6).hex()}"
    client.create_bucket(Bucket=name)
    proxy = Proxy(s3_port)
    proxy.start()
    yield Bucket(name, proxy, client)
    proxy.stop()


Machines = Callable[..., Machine]


@pytest.fixture
def machines(tmp_path: Path, bucket: Bucket) -> Machines:
    """machines("a") has a store of its own; all share the bucket, and the source file."""
    return machines_at(tmp_path, bucket)


@pytest.fixture
def neighbours(tmp_path: Path, folder: Folder) -> Machines:
    """The same over the folder."""
    return machines_at(tmp_path, folder)


def machines_at(base: Path, shared: Bucket | Folder) -> Machines:
    source = write_source(base / "source.bin")

    def machine(name: str, mode: str = "write", **more: Any) -> Machine:
        more = {"options": shared.options, **more}
        return Machine(base / name, source, more.pop("url", shared.url), mode, **more)

    return machine
