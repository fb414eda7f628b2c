"""The interface that leads to the other hosts is found, or asked for."""

import pytest

from crate_mae.training import network
from crate_mae.training.network import (
    IFNAME,
    choose_gloo_interface,
    interface_addresses,
    own_address,
)

CARDS = {"lo": "127.0.0.1", "eth0": "10.0.0.5", "docker0": "172.17.0.1"}


@pytest.fixture(autouse=True)
def unset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(IFNAME, "x")  # so that it is put back
    monkeypatch.delenv(IFNAME)


def machine(monkeypatch: pytest.MonkeyPatch, cards: dict[str, str], ways: dict[str, str]) -> None:
    monkeypatch.setattr(network, "interface_addresses", lambda: cards)
    monkeypatch.setattr(network, "own_address", lambda other: ways.get(other, ""))


def test_the_way_to_another_host_tells_the_interface(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, CARDS, {"10.0.0.5": "10.0.0.5", "10.0.0.6": "10.0.0.5"})
    assert choose_gloo_interface(["10.0.0.5", "10.0.0.6"], who="rank 0 on a") == "eth0"


def test_a_host_whose_name_is_a_loopback_finds_it_by_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As on Debian, where a host's own name is 127.0.1.1."""
    machine(monkeypatch, CARDS, {"127.0.1.1": "127.0.0.1", "172.17.0.9": "172.17.0.1"})
    assert choose_gloo_interface(["127.0.1.1", "172.17.0.9"], who="rank 0 on a") == "docker0"


def test_a_single_card_needs_no_asking(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, {"lo": "127.0.0.1", "eth0": "10.0.0.5"}, {})
    assert choose_gloo_interface(["", "127.0.1.1"], who="rank 0 on a") == "eth0"


def test_what_cannot_be_told_is_asked_for_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, CARDS, {})
    told = rf"rank 1 on b .* set {IFNAME} to one of eth0 \(10\.0\.0\.5\), docker0"
    with pytest.raises(RuntimeError, match=told):
        choose_gloo_interface(["", ""], who="rank 1 on b")


def test_what_was_set_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(IFNAME, "ib0")
    machine(monkeypatch, CARDS, {})
    assert choose_gloo_interface(["", ""], who="it") == "ib0"


def test_this_machine_is_seen_by_itself_at_the_loopback() -> None:
    assert own_address("127.0.0.1") == "127.0.0.1"
    assert own_address("no such host.invalid") == ""
    assert interface_addresses().get("lo") in (None, "127.0.0.1")
