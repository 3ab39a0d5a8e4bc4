"""A stand-in for the client that sends."""

from __future__ import annotations

import asyncio

from dispatcher.delivery.exchange import Exchange, ExchangeKind, WebhookRequest

OK = Exchange(ExchangeKind.RESPONSE, 0.25, 204, excerpt=b"thanks")


class Receiver:
    """Stands for the client: keeps what it was asked to post, answers when it is let."""

    def __init__(self, answer: Exchange = OK) -> None:
        self.answer = answer
        self.requests: list[WebhookRequest] = []
        self.open = asyncio.Event()
        self.open.set()
        self.stopped = False

    async def post(self, request: WebhookRequest) -> Exchange:
        self.requests.append(request)
        try:
            await self.open.wait()
        except asyncio.CancelledError:
            self.stopped = True
            raise
        return self.answer
