"""Names are asked for once, bounded, and judged as a whole."""

import asyncio
import socket

import pytest

from dispatcher.security.egress import AddressRefusedError, EgressPolicy
from dispatcher.security.resolver import NameNotResolvedError, PolicyResolver, ResolverOptions


class Clock:
    now_s = 0.0

    def __call__(self):
        return self.now_s


class Names:
    """A lookup under control: the answer (or error) it gives, what it was asked, and whether it waits."""

    def __init__(self, *answers):
        self.answers = list(answers)
        self.asked = []
        self.begun = asyncio.Event()
        self.gate = asyncio.Event()
        self.gate.set()

    async def __call__(self, host):
        self.asked.append(host)
        self.begun.set()
        await self.gate.wait()
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer


def resolver(names, options=None, policy=None, clock=None):
    return PolicyResolver(policy or EgressPolicy(), options, lookup=names, clock=clock or Clock())


async def addresses(subject, host="a.example"):
    return [(result["host"], result["family"]) for result in await subject.resolve(host, 443)]


async def test_all_addresses_are_given_in_the_order_of_the_system_without_duplicates():
    subject = resolver(Names(["2606:4700::1", "8.8.8.8", "8.8.8.8"]))
    assert await addresses(subject) == [("2606:4700::1", socket.AF_INET6), ("8.8.8.8", socket.AF_INET)]


@pytest.mark.parametrize("bad", ["127.0.0.1", "169.254.169.254", "::1", "fe80::1%eth0", "garbage"])
@pytest.mark.parametrize("place", [0, 1, 20])
async def test_one_refused_answer_refuses_them_all(bad, place):
    answers = [f"8.8.8.{number}" for number in range(20)]
    answers.insert(place, bad)
    with pytest.raises(AddressRefusedError):
        await addresses(resolver(Names(answers)))


async def test_an_answer_is_remembered_for_its_time():
    names, clock = Names(["8.8.8.8"], ["1.1.1.1"]), Clock()
    subject = resolver(names, ResolverOptions(ttl_s=30), clock=clock)
    clock.now_s = 29.9
    assert await addresses(subject) == [("8.8.8.8", socket.AF_INET)]
    clock.now_s = 59.8
    assert await addresses(subject) == [("8.8.8.8", socket.AF_INET)]
    clock.now_s = 60.0
    assert await addresses(subject) == [("1.1.1.1", socket.AF_INET)]
    assert len(names.asked) == 2


async def test_a_rebound_name_is_judged_again_and_refused():
    names, clock = Names(["8.8.8.8"], ["127.0.0.1"]), Clock()
    subject = resolver(names, ResolverOptions(ttl_s=30), clock=clock)
    await addresses(subject)
    clock.now_s = 31
    with pytest.raises(AddressRefusedError):
        await addresses(subject)


@pytest.mark.parametrize("answer", [socket.gaierror(-2, "Name or service not known"), []])
async def test_a_failure_is_remembered_for_a_shorter_time(answer):
    names, clock = Names(answer, ["8.8.8.8"]), Clock()
    subject = resolver(names, ResolverOptions(failure_ttl_s=5), clock=clock)
    for _ in range(3):
        with pytest.raises(NameNotResolvedError):
            await addresses(subject)
    assert len(names.asked) == 1
    clock.now_s = 5.1
    assert await addresses(subject) == [("8.8.8.8", socket.AF_INET)]


async def test_a_name_server_that_does_not_answer_is_given_up_on():
    names = Names(["8.8.8.8"])
    names.gate.clear()
    with pytest.raises(NameNotResolvedError, match=r"within 0\.05 s"):
        await addresses(resolver(names, ResolverOptions(timeout_s=0.05)))


async def test_one_lookup_serves_all_who_wait_and_survives_one_that_leaves():
    names = Names(["8.8.8.8"])
    names.gate.clear()
    subject = resolver(names)
    waiting = [asyncio.create_task(addresses(subject)) for _ in range(5)]
    await names.begun.wait()
    waiting[0].cancel()
    names.gate.set()
    with pytest.raises(asyncio.CancelledError):
        await waiting[0]
    assert await asyncio.gather(*waiting[1:]) == [[("8.8.8.8", socket.AF_INET)]] * 4
    assert names.asked == ["a.example"]


async def test_the_number_of_remembered_names_is_bounded():
    names = Names(["8.8.8.8"])
    subject = resolver(names, ResolverOptions(names_max=2))
    for host in ("a.example", "b.example", "c.example", "c.example", "b.example", "a.example"):
        await addresses(subject, host)
    assert names.asked == ["a.example", "b.example", "c.example", "a.example"]


async def test_closing_ends_lookups_under_way():
    names = Names(["8.8.8.8"])
    names.gate.clear()
    subject = resolver(names)
    waiting = asyncio.create_task(addresses(subject))
    await names.begun.wait()
    await subject.close()
    with pytest.raises(asyncio.CancelledError):
        await waiting
