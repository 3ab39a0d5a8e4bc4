"""dispatcher: webhook delivery for the service mesh, in order per endpoint, through any crash."""

__version__ = "0.1.0"
