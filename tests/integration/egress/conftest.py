"""These tests run on both loops: they close, abort and report connections in their own ways; production runs uvloop."""

import asyncio

import uvloop


def pytest_asyncio_loop_factories(config, item):
    return {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}
