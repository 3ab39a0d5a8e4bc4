"""The operators' HTTP port: /metrics, /livez, /readyz."""

from dispatcher.ops.server import OpsServer

__all__ = ["OpsServer"]
