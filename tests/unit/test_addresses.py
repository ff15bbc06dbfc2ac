"""Addresses that Baton must not connect to: more than 300 hostile URLs and answers, and a listening canary.

The canary listens on every loopback address that this machine has. First every spelling that a resolver takes
for it is shown to reach it (else the refusals would prove nothing), then none does.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import AsyncIterator
from urllib.parse import urlsplit

import aiohttp
import pytest
import pytest_asyncio

from services.stage_service.subscriptions.addresses import (
    Allowed,
    allowed_from,
    check_address,
    check_url,
    is_own,
)

NOTHING = Allowed()

TARGETS = (
    "127.0.0.1", "127.1.2.3", "10.0.0.1", "172.16.5.4", "172.31.255.254", "192.168.1.1", "169.254.169.254",
    "169.254.170.2", "100.100.100.200", "0.0.0.0", "168.63.129.16", "192.0.0.192", "198.18.0.1",
)  # fmt: skip


def spellings(ip: str) -> list[str]:
    """Ways to write an IPv4 address that a URL parser or a resolver somewhere takes for it."""
    a, b, c, d = (int(part) for part in ip.split("."))
    whole = int(ipaddress.IPv4Address(ip))
    return [
        ip, str(whole), f"0x{whole:x}", f"0X{whole:08X}", f"0{whole:o}",
        f"0x{a:x}.0x{b:x}.0x{c:x}.0x{d:x}", f"0{a:o}.0{b:o}.0{c:o}.0{d:o}",
        f"{a:04d}.{b:04d}.{c:04d}.{d:04d}", f"{a}.{whole & 0xFFFFFF}", f"{a}.{b}.{whole & 0xFFFF}",
        f"0x{a:x}.{whole & 0xFFFFFF}", f"{ip}.", f"{a}.0x{b:x}.0{c:o}.{d}", ip.replace(".", "%2e"),
        ip.replace(".", "。"), ip.translate({48 + n: 0xFF10 + n for n in range(10)}),
        f"{ip}%00.example.com", f"%3{ip[0]}{ip[1:]}",
        f"[::ffff:{ip}]", f"[::ffff:{whole >> 16:x}:{whole & 0xFFFF:x}]", f"[::{ip}]", f"[64:ff9b::{ip}]",
        f"[2002:{whole >> 16:x}:{whole & 0xFFFF:x}::1]",
    ]  # fmt: skip


HOSTS = [s for target in TARGETS for s in spellings(target)]
V6_HOSTS = [
    f"[{ip}]"
    for ip in (
        "::1", "0:0:0:0:0:0:0:1", "0000:0000:0000:0000:0000:0000:0000:0001", "::0:1", "::", "0::0",
        "fe80::1", "fe80::1%25lo", "fe80::1%lo", "::1%lo", "febf::1", "fec0::1", "fc00::1", "fd00:ec2::254",
        "fd20:ce::254", "fdff::1", "ff02::1", "ff05::2", "64:ff9b:1::1", "64:ff9b:1::7f00:1",
        "2001::1", "2001:0:4136:e378:8000:63bf:3fff:fdd2", "2001:10::1", "2001:20::1", "2001:db8::1",
        "2002:7f00:1::", "100::1", "5f00::1", "3fff::1", "4000::1", "8000::1", "::ffff:0:127.0.0.1",
        "2606:4700::5efe:127.0.0.1", "2606:4700::200:5efe:7f00:1", "2620:4f:8000::1", "1::1",
        "v1.1", "::1", "1:2:3", ":::1", "", "::127.0.0.1", "::ffff:7f00:0001", "::FFFF:127.0.0.1",
    )
]  # fmt: skip
NAMES = [
    "localhost", "LOCALHOST", "localhost.", "a.localhost", "localhost.localdomain", "printer.local",
    "metadata", "metadata.google.internal", "METADATA.google.INTERNAL", "instance-data", "router.lan",
    "wiki.corp", "db.home.arpa", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local", "intranet",
    "ip6-localhost", "ip6-loopback", "1.0.0.127.in-addr.arpa", "a.private", "postgres", "redis",
    "ⓛⓞⓒⓐⓛⓗⓞⓢⓣ", "localhost", "lоcalhost", "exa mple.com", "example..com", ".example.com", "-a.example.com",
    "a" * 64 + ".com", "a." * 127 + "com", "exa\tmple.com", "example.com\\@127.0.0.1", "example.com%2f",
    "127.0.0.1\\.example.com", "%6c%6f%63%61%6c%68%6f%73%74", "0", "1", "0x", "0x7f", "017700000001",
    "256.256.256.256", "1.2.3", "1.2.3.4.5", "999999999999", "127.0.0.1.0x", "09.1.1.1", "bücher.example.com",
]  # fmt: skip
URLS = [
    "", " ", "x", "example.com", "//example.com", "/hook", "https:", "https:/", "https://", "https:///",
    "https:example.com", "https:/example.com", "https:///example.com/x", "https://:443/", "https://?x",
    "https://#x", "ftp://example.com", "file:///etc/passwd", "gopher://127.0.0.1:6379/_FLUSHALL",
    "dict://127.0.0.1:11211/", "ldap://127.0.0.1", "javascript:alert(1)", "data:text/plain,x",
    "jar:https://example.com!/x", "netdoc:///etc/passwd", "unix:///var/run/docker.sock", "ws://example.com",
    "http+unix://%2Fvar%2Frun%2Fdocker.sock/x", "https://user@example.com", "https://user:pw@example.com",
    "https://@example.com", "https://:@example.com", "https://example.com@127.0.0.1/",
    "https://example.com:443@127.0.0.1/", "https://127.0.0.1@example.com/", "https://a:b@c:d@127.0.0.1/",
    "https://example.com#@127.0.0.1/", "https://example.com/#x", "https://example.com?@127.0.0.1/#",
    "https://example.com\\.127.0.0.1/", "https://example.com/\r\nHost: x", "https://example.com/\nx",
    "https://example.com/\tx", "https://example.com/\x00", "https://exam\nple.com/", "\nhttps://example.com/",
    "https://example.com/ ", " https://example.com/", "https://example.com/a b", "https://example.com/ü",
    "https://example.com/\u2028", "https://example.com/%", "https://example.com/%zz", "https://example.com/%1",
    "https://example.com/{x}", "https://example.com/<x>", 'https://example.com/"', "https://example.com/`",
    "https://example.com/|", "https://example.com/^", "https://example.com/[x]", "https://[::1", "https://::1/",
    "https://[[::1]]/", "https://[::1]x/", "https://[::1]:/", "https://a[::1]/", "https://example.com:0/",
    "https://example.com:/", "https://example.com:65536/", "https://example.com:99999999999/",
    "https://example.com:-1/", "https://example.com:+443/", "https://example.com: 443/",
    "https://example.com:0443/", "https://example.com:４４３/", "https://example.com:443:443/",
    "https://example.com:443x/", "https://example.com:0x1bb/", "http://example.com/", "HTTP://example.com/",
    "http://93.184.216.34/", "https://" + "a" * 2048 + ".com/", "https://example.com/" + "a" * 2048,
]  # fmt: skip
PORTS = [
    1, 7, 21, 22, 23, 25, 53, 110, 111, 135, 139, 143, 389, 445, 465, 512, 587, 636, 993, 995, 1433, 1521,
    2049, 2181, 2375, 2379, 3306, 3389, 5432, 5672, 5900, 6000, 6379, 6667, 9042, 9092, 9200, 10080, 10250,
    11211, 27017,
]  # fmt: skip
HOSTILE = [
    *(f"https://{host}/hook" for host in (*HOSTS, *V6_HOSTS, *NAMES)),
    *(f"https://{host}:8443/hook" for host in (*HOSTS, *V6_HOSTS)),
    *(f"https://example.com:{port}/hook" for port in PORTS),
    *URLS,
]

ANSWERS = [
    *TARGETS,
    "127.255.255.255", "10.255.255.255", "172.20.1.1", "192.168.255.255", "169.254.0.1", "100.64.0.1",
    "100.127.255.255", "0.1.2.3", "192.0.0.1", "192.0.2.1", "198.51.100.7", "203.0.113.7", "192.88.99.1",
    "192.31.196.1", "192.175.48.1", "192.52.193.1", "198.19.255.255", "224.0.0.1", "239.255.255.255",
    "240.0.0.1", "255.255.255.255", "254.1.1.1",
    *(host.strip("[]") for host in V6_HOSTS),
    "127.0.0.1%lo", "127.1", "2130706433", "0x7f000001", "localhost", "1.2.3.4/8", "1.1.1.1:443",
    "１.１.１.１",
]  # fmt: skip
GLOBAL = [
    "1.1.1.1", "8.8.8.8", "93.184.216.34", "9.255.255.255", "11.0.0.0", "126.255.255.255", "128.0.0.0",
    "172.15.255.255", "172.32.0.0", "192.167.255.255", "192.169.0.0", "169.253.255.255", "169.255.0.0",
    "100.63.255.255", "100.128.0.0", "198.17.255.255", "198.20.0.0", "223.255.255.255", "168.63.129.15",
    "1.0.0.0", "2606:4700:4700::1111", "2a00:1450:4001:80e::200e", "2001:4860:4860::8888", "2003::1",
    "2001:200::1", "2400:cb00::1",
]  # fmt: skip


def test_the_table_is_as_long_as_it_should_be() -> None:
    assert len(set(HOSTILE) | set(ANSWERS)) >= 300


@pytest.mark.parametrize("url", list(dict.fromkeys(HOSTILE)))
def test_a_hostile_url_is_refused_with_a_remedy(url: str) -> None:
    """Also with plain http, and the refusal tells no more than the part that is wrong."""
    refused = check_url(url, NOTHING, https_only=True)
    assert refused is not None, url
    assert refused.field == "url"
    assert refused.reason
    assert refused.remedy
    assert "hook" not in (refused.value or "")
    if url.startswith("https"):
        over_http = "http" + url.removeprefix("https")
        assert check_url(over_http, NOTHING, https_only=False) is not None, over_http


@pytest.mark.parametrize("ip", list(dict.fromkeys(ANSWERS)))
def test_an_answer_that_is_not_public_is_refused(ip: str) -> None:
    assert check_address(ip, NOTHING) is not None


@pytest.mark.parametrize("ip", GLOBAL)
def test_what_is_public_is_connected_to(ip: str) -> None:
    """The neighbours of every refused network are not refused with it."""
    assert check_address(ip, NOTHING) is None
    host = f"[{ip}]" if ":" in ip else ip
    assert check_url(f"https://{host}/", NOTHING, https_only=True) is None


@pytest.mark.parametrize(
    "url",
    [
        "https://hooks.example.com", "https://hooks.example.com/", "https://hooks.example.com:8443/a/b?c=d&e=%20",
        "HTTPS://Hooks.Example.COM/x", "https://xn--bcher-kva.example.com/", "https://a_b.example.com/",
        "https://hooks.slack.com/services/T0/B0/x", "https://example.com?x=1", "https://1.example.com/",
        "https://example.com/a;b=(c),d!*'~$@:+", "https://0x7f.example.com/", "https://127.0.0.1.nip.io/",
    ],
)  # fmt: skip
def test_an_honest_url_is_taken_and_read_alike_by_all(url: str) -> None:
    """What is taken names the same host to every parser that is asked later."""
    assert check_url(url, NOTHING, https_only=True) is None
    host = urlsplit(url).hostname
    read = aiohttp.client.URL(url)
    assert read.raw_host == host
    assert read.scheme == "https"


def test_is_global_is_not_the_list() -> None:
    """The reason for a list of our own: these pass Python's."""
    passed = [ip for ip in ANSWERS if _is_global(ip) and check_address(ip, NOTHING)]
    assert {"168.63.129.16", "224.0.0.1", "192.88.99.1"} <= set(passed)


def _is_global(ip: str) -> bool:
    try:
        return ipaddress.ip_address(ip).is_global
    except ValueError:
        return False


def test_the_kernel_knows_the_addresses_of_this_machine() -> None:
    """So a public address of our own is refused too, behind which an inner service may listen."""
    assert is_own(ipaddress.ip_address("127.0.0.1"))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as way:
        try:
            way.connect(("8.8.8.8", 443))
        except OSError:
            pytest.skip("this machine has no way out")
        mine = way.getsockname()[0]
    assert is_own(ipaddress.ip_address(mine))
    assert not is_own(ipaddress.ip_address("8.8.8.8"))


def test_the_setting_allows_networks_and_no_more() -> None:
    allowed = allowed_from(" 127.0.0.0/8, fd00::/8 ")
    assert check_address("127.0.0.1", allowed) is None
    assert check_address("fd00::7", allowed) is None
    for ip in ("10.0.0.1", "::1", "::ffff:127.0.0.1", "2002:7f00:1::1", "169.254.169.254"):
        assert check_address(ip, allowed) is not None
    everything = allowed_from("all")
    assert all(check_address(ip, everything) is None for ip in ("::1", "10.0.0.1", "0.0.0.0"))
    assert not allowed_from("")


@pytest.mark.parametrize(
    "text", ["10.0.0.0/33", "10.0.0.1/8", "localhost", "all of it", "::/129", "*"]
)
def test_a_setting_that_cannot_be_read_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="write networks like"):
        allowed_from(text)


def test_plain_http_stays_on_the_machine() -> None:
    """Where loopback is allowed, http to it needs no more; elsewhere it is for the operator to say."""
    loopback = allowed_from("127.0.0.0/8,::1/128,10.0.0.0/8")
    for host in ("127.0.0.1:9000", "[::1]:9000", "localhost:9000"):
        assert check_url(f"http://{host}/", loopback, https_only=True) is None
    for host in ("10.0.0.1", "crm", "crm.example.com"):
        assert check_url(f"http://{host}/", loopback, https_only=True) is not None
        assert check_url(f"http://{host}/", loopback, https_only=False) is None


class Canary:
    """Listens where nothing of ours may come, and counts who came."""

    def __init__(self) -> None:
        self.reached = 0
        self.port = 0

    async def _hear(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reached += 1
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    async def start(self) -> asyncio.Server:
        """Listen on every address of this machine, IPv6 too where there is one."""
        both = socket.has_dualstack_ipv6()
        listening = socket.create_server(
            ("::" if both else "0.0.0.0", 0),
            family=socket.AF_INET6 if both else socket.AF_INET,
            dualstack_ipv6=both,
        )
        self.port = listening.getsockname()[1]
        return await asyncio.start_server(self._hear, sock=listening)


@pytest_asyncio.fixture
async def canary() -> AsyncIterator[Canary]:
    it = Canary()
    server = await it.start()
    yield it
    server.close()
    await server.wait_closed()


async def _post(session: aiohttp.ClientSession, url: str, allowed: Allowed) -> bool:
    """Post as a sender must: check the URL, resolve, check every address, connect to what was checked."""
    if check_url(url, allowed, https_only=False) is not None:
        return False
    parts = urlsplit(url)
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(parts.hostname, parts.port, type=socket.SOCK_STREAM)
    except OSError:
        return False
    if any(check_address(str(place[4][0]), allowed) for place in found):
        return False
    async with session.post(url) as answer:
        return answer.status == 200


async def _blindly(session: aiohttp.ClientSession, url: str) -> bool:
    try:
        async with session.post(url, timeout=aiohttp.ClientTimeout(total=2)) as answer:
            return answer.status == 200
    except (aiohttp.ClientError, OSError, TimeoutError, ValueError):
        return False


async def test_no_spelling_reaches_the_canary(canary: Canary) -> None:
    """Each is tried for real: without the checks many reach it, with them none does."""
    hosts = [
        *spellings("127.0.0.1"), *spellings("127.1.2.3"), *spellings("0.0.0.0"), "localhost", "LOCALHOST",
        "localhost.", "a.localhost", "[::1]", "[::]", "[0:0:0:0:0:0:0:1]", "[::ffff:7f00:1]", "0", "127.1",
        "[::0:1]", socket.gethostname(),
    ]  # fmt: skip
    urls = [f"http://{host}:{canary.port}/hook" for host in hosts]
    async with aiohttp.ClientSession() as session:
        reached = await asyncio.gather(*(_blindly(session, url) for url in urls))
        dangerous = [url for url, did in zip(urls, reached, strict=True) if did]
        assert len(dangerous) >= 20, dangerous
        canary.reached = 0
        assert not [url for url in urls if await _post(session, url, NOTHING)]
        assert canary.reached == 0
        allowed = allowed_from("127.0.0.0/8")
        assert await _post(session, f"http://127.0.0.1:{canary.port}/hook", allowed)
        assert canary.reached == 1
