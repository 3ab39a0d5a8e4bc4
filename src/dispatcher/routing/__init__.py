"""Who gets an event: subscription patterns and the cache of every tenant's subscriptions."""
