"""Resolving host names, against a name server on the loopback address."""

from __future__ import annotations

import asyncio
import socketserver
import struct
from collections.abc import Iterator
from ipaddress import ip_address
from threading import Thread

import pytest

from bento.handlers.addresses import Address
from bento.handlers.fetch import Resolver


class NameServer(socketserver.UDPServer):
    """Answers 192.0.2.7 for names under `quick.test`, and nothing for other names."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Query)
        self.address = "{}:{}".format(*self.server_address)
        self.asked: set[bytes] = set()


class _Query(socketserver.DatagramRequestHandler):
    server: NameServer

    def handle(self) -> None:
        query = self.rfile.read()
        question = query[12 : query.index(0, 12) + 5]
        self.server.asked.add(question)
        if b"quick\x04test" in question:
            is_a = question[-4:-2] == b"\x00\x01"
            header = query[:2] + struct.pack(">5H", 0x8180, 1, int(is_a), 0, 0)
            record = b"\xc0\x0c" + struct.pack(">HHIH", 1, 1, 60, 4) + bytes([192, 0, 2, 7])
            self.wfile.write(header + question + record * is_a)


@pytest.fixture
def server() -> Iterator[NameServer]:
    with NameServer() as server:
        thread = Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def resolve(server: NameServer, host: str) -> list[Address]:
    resolver = Resolver([server.address])

    async def scene() -> list[Address]:
        try:
            return await resolver(host, 80)
        finally:
            await close(resolver)

    return asyncio.run(scene())


async def close(resolver: Resolver) -> None:
    assert resolver.dns
    await resolver.dns.close()


def test_names_that_resolve_slowly_delay_no_other_name(server: NameServer) -> None:
    resolver = Resolver([server.address])

    async def scene() -> None:
        slow = [asyncio.create_task(resolver(f"{i}.slow.test", 80)) for i in range(300)]
        async with asyncio.timeout(10):
            while len(server.asked) < 300:
                await asyncio.sleep(0.01)
            assert await resolver("a.quick.test", 80) == [ip_address("192.0.2.7")]
        assert not any(task.done() for task in slow)
        await close(resolver)
        errors = await asyncio.gather(*slow, return_exceptions=True)
        assert {type(error) for error in errors} == {OSError}

    asyncio.run(scene())


def test_a_name_without_an_address_is_an_error(server: NameServer) -> None:
    with pytest.raises(OSError, match="name"):
        resolve(server, "a" * 64 + ".quick.test")


def test_names_of_the_hosts_file_and_addresses_need_no_server(server: NameServer) -> None:
    assert ip_address("127.0.0.1") in resolve(server, "localhost")
    assert resolve(server, "192.0.2.9") == [ip_address("192.0.2.9")]
    assert not server.asked
