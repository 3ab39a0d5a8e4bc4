"""What `dispatcher dev` brings along: a local PostgreSQL, a demo receiver and the ledger it is judged by, events."""

from __future__ import annotations

from pathlib import Path

EVENTS_FILE = Path(__file__).parent / "events.jsonl"
"""500 events of a made-up shop in JSON Lines, as `dispatcher publish --file` reads them: type, ordering_key, source,
subject, attributes and data (a JSON object), in an order that makes sense per ordering key; ids are left out."""
