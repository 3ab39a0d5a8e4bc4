"""What sends webhooks, and the only part of delivery that knows aiohttp."""

from dispatcher.delivery.client.proxy_probe import ProbeOptions
from dispatcher.delivery.client.tunnels import Target
from dispatcher.delivery.client.webhooks import ClientOptions, WebhookClient

__all__ = ["ClientOptions", "ProbeOptions", "Target", "WebhookClient"]
