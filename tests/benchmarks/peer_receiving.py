"""The receiver of a peer's load in a process of its own. `python -m tests.benchmarks.peer_receiving PORT` prints one
JSON object at SIGTERM: `receipts`, in the order of arrival, each `[endpoint, number, latency_ms]`.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from dataclasses import astuple

from dispatcher.embedded.load_receiver import LoadReceiver


async def receive(port: int) -> None:
    """Until SIGTERM."""
    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    async with LoadReceiver(port=port) as receiver:
        await ended.wait()
    print(json.dumps({"receipts": [astuple(receipt) for receipt in receiver.receipts]}))


if __name__ == "__main__":
    import uvloop

    uvloop.run(receive(int(sys.argv[1])))
