"""Which addresses Baton connects to when it calls other systems, and which it refuses (SSRF).

Whoever makes a subscription chooses an address that Baton then posts to from inside the network. So only
addresses of the public internet are connected to, unless the operator allows others
(``BATON_SUBSCRIPTIONS_ALLOW``). Two checks, and only the second protects:

- `check_url` when a subscription is made: an early and clear refusal of what is wrong in the URL itself.
- `check_address` at connect time, on every address about to be connected to, each attempt anew: a name may
  resolve to anything, and to something else a second later. Literal addresses in a URL are no exception.

The list is the union of what Svix and smokescreen refuse, from the IANA special-purpose registries
(RFC 6890 and its updates). ``ipaddress.is_global`` alone is not it: it passes 6to4 (2002::/16), multicast,
and Azure's metadata address.
"""

from __future__ import annotations

import re
import socket
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

import msgspec

from services.contracts.problems import Defect

URL_CHARACTERS_MAX = 2048
HOST_CHARACTERS_MAX = 253
EVERYTHING = "all"
SETTING = "BATON_SUBSCRIPTIONS_ALLOW"

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

_V4 = {
    "127.0.0.0/8": "a loopback address",
    "10.0.0.0/8": "a private address",
    "172.16.0.0/12": "a private address",
    "192.168.0.0/16": "a private address",
    "169.254.0.0/16": "a link-local address, where clouds keep their metadata",
    "168.63.129.16/32": "the metadata address of Azure",
    "100.64.0.0/10": "a carrier's inner address (CGNAT)",
    "0.0.0.0/8": "an address of this network",
    "192.0.0.0/24": "an address for protocols",
    "192.0.2.0/24": "an address for documentation",
    "198.51.100.0/24": "an address for documentation",
    "203.0.113.0/24": "an address for documentation",
    "192.31.196.0/24": "an address of AS112",
    "192.175.48.0/24": "an address of AS112",
    "192.52.193.0/24": "a relay of multicast (AMT)",
    "192.88.99.0/24": "a relay of 6to4",
    "198.18.0.0/15": "an address for benchmarks",
    "224.0.0.0/4": "a multicast address",
    "255.255.255.255/32": "the broadcast address",
    "240.0.0.0/4": "a reserved address",
}
_V6 = {
    "::1/128": "a loopback address",
    "::/128": "the unspecified address",
    "::ffff:0:0/96": "an IPv4 address written as IPv6",
    "::ffff:0:0:0/96": "an IPv4 address written as IPv6",
    "64:ff9b::/96": "an IPv4 address behind NAT64",
    "64:ff9b:1::/48": "an IPv4 address behind NAT64",
    "::/96": "an IPv4 address written as IPv6",
    "fe80::/10": "a link-local address",
    "fec0::/10": "a site-local address",
    "fc00::/7": "a private address",
    "ff00::/8": "a multicast address",
    "100::/64": "an address that discards",
    "2001::/32": "an IPv4 address in a Teredo tunnel",
    "2001:db8::/32": "an address for documentation",
    "2001::/23": "an address for protocols",
    "2002::/16": "an IPv4 address in a 6to4 tunnel",
    "2620:4f:8000::/48": "an address of AS112",
    "3fff::/20": "an address for documentation",
    "5f00::/16": "an address for segment routing",
}
_REFUSED: tuple[tuple[Network, str], ...] = tuple(
    (ip_network(network), reason) for network, reason in (_V4 | _V6).items()
)
_GLOBAL_V6 = IPv6Network("2000::/3")
"""All of IPv6 that is routed between networks; the rest is refused whatever it is."""
_ISATAP = frozenset((0x0000_5EFE, 0x0200_5EFE, 0x0100_5EFE, 0x0300_5EFE))
"""The upper half of an interface identifier that holds an IPv4 address (RFC 5214, 6.1)."""

# What a browser does not post to either (Fetch standard, "port blocking"): other protocols can be made to
# read an HTTP request as their own. The second line adds data stores and cluster controls.
_PORTS = frozenset((
    0, 1, 7, 9, 11, 13, 15, 17, 19, 20, 21, 22, 23, 25, 37, 42, 43, 53, 69, 77, 79, 87, 95, 101, 102,
    103, 104, 109, 110, 111, 113, 115, 117, 119, 123, 135, 137, 139, 143, 161, 179, 389, 427, 465, 512,
    513, 514, 515, 526, 530, 531, 532, 540, 548, 554, 556, 563, 587, 601, 636, 989, 990, 993, 995, 1719,
    1720, 1723, 2049, 3659, 4045, 4190, 5060, 5061, 6000, 6566, 6665, 6666, 6667, 6668, 6669, 6679, 6697,
    10080,
    445, 1433, 1521, 2181, 2375, 2376, 2379, 2380, 3306, 3389, 5432, 5672, 5900, 6379, 9042, 9092, 9200,
    9300, 10250, 10255, 11211, 27017,
))  # fmt: skip
_INNER_NAMES = frozenset((
    "localhost", "localdomain", "local", "internal", "intranet", "lan", "corp", "home", "private", "arpa",
    "svc",
))  # fmt: skip
"""Last labels that the public DNS does not have."""

# RFC 3986, narrowed: what two parsers could read differently is not let through.
_URL = re.compile(
    r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://(?P<authority>[^/?#]*)"
    r"(?:[/?](?:[!$&-;=?-Z_a-z~]|%[0-9A-Fa-f]{2})*)?"
)
_AUTHORITY = re.compile(r"(?P<host>\[[0-9A-Za-z:.%]*\]|[^\[\]:]+)(?P<colon>:(?P<port>.*))?")
_LABEL = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?")
_NUMBER = re.compile(r"[0-9]+|0[xX][0-9A-Fa-f]*")


class Allowed(msgspec.Struct, frozen=True):
    """Networks that are connected to although they are on the list: of the operator, never of a caller."""

    networks: tuple[Network, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.networks)

    def holds(self, address: Address) -> bool:
        """Tell whether `address` is in one of the networks."""
        return any(address in network for network in self.networks)


def allowed_from(text: str) -> Allowed:
    """Read the setting: networks, comma-separated, as ``127.0.0.0/8,10.0.0.0/8``, or ``all``.

    Raises ValueError with what cannot be read.
    """
    networks: list[Network] = []
    for part in (p.strip() for p in text.split(",")):
        if part.lower() == EVERYTHING:
            networks += [IPv4Network("0.0.0.0/0"), IPv6Network("::/0")]
        elif part:
            try:
                networks.append(ip_network(part))
            except ValueError as error:
                raise ValueError(
                    f"{error}: write networks like 10.0.0.0/8,fd00::/8, or {EVERYTHING}"
                ) from None
    return Allowed(tuple(networks))


def check_address(ip: str, allowed: Allowed) -> str | None:
    """Say why `ip`, which is about to be connected to, is refused; None when it is not.

    To be asked at each connection of the very address that is connected to, a literal one too.
    """
    try:
        address = ip_address(ip)
    except ValueError:
        return "not an IP address"
    if isinstance(address, IPv6Address) and address.scope_id is not None:
        return "an address with a zone"
    if allowed.holds(address):
        return None
    for network, reason in _REFUSED:
        if address in network:
            return reason
    if isinstance(address, IPv6Address):
        if address not in _GLOBAL_V6:
            return "not an address of the public internet"
        if (int(address) >> 32) & 0xFFFF_FFFF in _ISATAP:
            return "an IPv4 address in an ISATAP tunnel"
    return "an address of this machine" if is_own(address) else None


def is_own(address: Address) -> bool:
    """Tell whether `address` is this machine's own, also when it is a public one.

    Connecting a datagram socket sends nothing: the kernel looks for the way and tells where it would send
    from, which is the address itself when it is ours.
    """
    family = socket.AF_INET if isinstance(address, IPv4Address) else socket.AF_INET6
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as way:
            way.connect((str(address), 443))
            return ip_address(way.getsockname()[0]) == address
    except OSError:  # there is no way to it
        return False


def check_url(url: str, allowed: Allowed, *, https_only: bool) -> Defect | None:
    """Say what is wrong with `url` as the address of a subscription; None when nothing is.

    Names are not resolved here. With `https_only`, plain http is for allowed loopback addresses alone: what
    does not leave the machine. The value told is the part that is wrong, never the whole: paths and
    queries hold other people's secrets.
    """
    if len(url) > URL_CHARACTERS_MAX:
        return _invalid(f"longer than {URL_CHARACTERS_MAX} characters", "Shorten it.")
    if not url.isascii() or not url.isprintable() or " " in url or "\\" in url:
        return _invalid(
            "it has a space, a backslash, a control character, or one that is not ASCII",
            "Write the host in its ASCII form (xn--...), and the rest percent-encoded.",
        )
    found = _URL.fullmatch(url)
    if found is None:
        return _invalid(
            "not an absolute URL, or it has a fragment or a character that must be encoded",
            "Write it as https://host/path, other characters percent-encoded.",
        )
    scheme = found["scheme"].lower()
    if scheme not in ("https", "http"):
        return _invalid(f"the scheme {scheme!r} is not https", "Write https://...", scheme)
    if "@" in found["authority"]:
        return _invalid(
            "it holds a user name or password",
            "Leave them out; send credentials in 'headers' (they are sealed).",
        )
    parts = _AUTHORITY.fullmatch(found["authority"])
    if parts is None:
        return _invalid("the host cannot be read", "Write it as https://host/path.")
    host = parts["host"]
    wrong = _wrong_host(host, allowed)
    if wrong is None and parts["colon"] is not None:
        wrong = _wrong_port(parts["port"])
    if wrong is None and scheme == "http" and https_only and not _stays_here(host, allowed):
        wrong = _invalid(
            "plain http can be read and changed on its way",
            "Write https://..., or set BATON_SUBSCRIPTIONS_HTTP=true where the network is yours.",
            scheme,
        )
    return wrong


def _wrong_port(port: str) -> Defect | None:
    if not re.fullmatch(r"[1-9][0-9]{0,4}", port) or int(port) > 65_535:
        return _invalid(
            "the port is not a number from 1 to 65535", "Leave it out, or mend it.", port
        )
    if int(port) in _PORTS:
        return Defect(
            "address-refused", "url", f"port {port} belongs to another protocol than HTTP",
            "Let the endpoint listen on 443, or on another port for HTTP.", port,
        )  # fmt: skip
    return None


def _wrong_host(host: str, allowed: Allowed) -> Defect | None:
    if host.startswith("["):
        try:
            literal = IPv6Address(host[1:-1])
        except ValueError:
            return _invalid("the host is not an IPv6 address", "Write it as [2606:4700::1].", host)
        return _refused(str(literal), allowed)
    if "%" in host:
        return _invalid("the host is percent-encoded", "Write it as it is.", host)
    if host.endswith("."):
        return _invalid("the host ends with a dot", "Leave the dot out.", host)
    labels = host.split(".")
    if len(host) > HOST_CHARACTERS_MAX or not all(_LABEL.fullmatch(label) for label in labels):
        return _invalid(
            "the host is not a name or an address", "Write it like crm.example.com.", host
        )
    if _NUMBER.fullmatch(labels[-1]):  # whoever resolves it takes it for an IPv4 address
        try:
            return _refused(str(IPv4Address(host)), allowed)
        except ValueError:
            return _invalid(
                "an IPv4 address in an odd form", "Write it as four decimal numbers.", host
            )
    inner = len(labels) == 1 or labels[-1].lower() in _INNER_NAMES
    if inner and not allowed:
        return Defect(
            "address-refused", "url", f"{host!r} is a name of an inner network",
            f"Use a public name, or let the operator allow its network ({SETTING}).", host,
        )  # fmt: skip
    return None


def _refused(ip: str, allowed: Allowed) -> Defect | None:
    reason = check_address(ip, allowed)
    if reason is None:
        return None
    return Defect(
        "address-refused", "url", f"{ip} is {reason}",
        f"Use a public address, or let the operator allow its network ({SETTING}).", ip,
    )  # fmt: skip


def _stays_here(host: str, allowed: Allowed) -> bool:
    """Tell whether `host` is a loopback address that is allowed."""
    if host.lower() == "localhost":
        return allowed.holds(IPv4Address("127.0.0.1")) or allowed.holds(IPv6Address("::1"))
    try:
        address = ip_address(host.strip("[]"))
    except ValueError:
        return False
    return address.is_loopback and allowed.holds(address)


def _invalid(reason: str, remedy: str, value: str | None = None) -> Defect:
    return Defect("invalid-url", "url", reason, remedy, value)
