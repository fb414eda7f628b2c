"""Which network interface leads to the other hosts of a run."""

import os
import socket
import struct
from collections.abc import Sequence
from ipaddress import ip_address

IFNAME = "GLOO_SOCKET_IFNAME"


def own_address(other: str) -> str:
    """The address that this host is seen by from `other`; "" where there is no way to it."""
    try:
        family, kind, _, _, target = socket.getaddrinfo(other, 9, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind) as probe:
            probe.connect(target)  # of a datagram socket: nothing is sent
            return str(probe.getsockname()[0])
    except OSError:
        return ""


def choose_gloo_interface(addresses: Sequence[str], *, who: str) -> str:
    """The interface that leads to the other hosts, now in GLOO_SOCKET_IFNAME unless it is set.

    gloo itself takes the address of the host's own name, which on many machines is a loopback that
    no other host can reach. `addresses` are those that the hosts are seen by. Raises RuntimeError,
    asking for the variable, where none can be found.
    """
    if os.environ.get(IFNAME):
        return os.environ[IFNAME]
    interfaces = interface_addresses()
    usable = {name: at for name, at in interfaces.items() if not ip_address(at).is_loopback}
    ways = [own_address(address) for address in addresses if address and not _is_loopback(address)]
    for name, at in usable.items():
        if at in ways and at in addresses:
            os.environ[IFNAME] = name
            return name
    for name, at in usable.items():
        if at in ways:
            os.environ[IFNAME] = name
            return name
    if len(usable) == 1:
        os.environ[IFNAME] = next(iter(usable))
        return os.environ[IFNAME]
    known = ", ".join(f"{name} ({at})" for name, at in usable.items()) or "none but the loopback"
    raise RuntimeError(
        f"{who} cannot tell which network leads to the other hosts: set {IFNAME} to one of {known}"
    )


def interface_addresses() -> dict[str, str]:
    """The IPv4 address of every network interface that has one; none where it cannot be asked."""
    try:
        import fcntl
    except ImportError:
        return {}
    found = {}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:
        for _, name in socket.if_nameindex():
            request = struct.pack("256s", name.encode()[:15])
            try:
                answer = fcntl.ioctl(asked.fileno(), 0x8915, request)  # SIOCGIFADDR
            except OSError:
                continue
            found[name] = socket.inet_ntoa(answer[20:24])
    return found


def _is_loopback(address: str) -> bool:
    try:
        return ip_address(address).is_loopback
    except ValueError:
        return False
