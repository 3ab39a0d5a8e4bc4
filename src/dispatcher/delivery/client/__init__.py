"""What sends webhooks, and the only part of delivery that knows aiohttp."""

from dispatcher.delivery.client.webhooks import ClientOptions, WebhookClient

__all__ = ["ClientOptions", "WebhookClient"]
