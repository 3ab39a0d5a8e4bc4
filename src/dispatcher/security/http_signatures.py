"""HTTP message signatures (RFC 9421) with content-digest (RFC 9530) of what we send; pure.

One signature per live key, labelled `sig1`, `sig2`, …, over the same components. `keyid` is the key's id.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence

from dispatcher.security.signing import Key

COMPONENTS = ("@method", "@target-uri", "content-digest", "content-type", "webhook-id", "webhook-timestamp")


def content_digest(body: bytes) -> str:
    """The header by RFC 9530 section 2."""
    return f"sha-256=:{base64.b64encode(hashlib.sha256(body).digest()).decode()}:"


def message_signatures(
    keys: Sequence[tuple[str, Key]], url: str, headers: Mapping[str, str], body: bytes, created_s: int
) -> dict[str, str]:
    """The headers to add to a POST of `body` to `url`. `headers` have the components that are header fields, by their
    lower-case names and as they are sent. Key ids are printable ASCII without quotes."""
    digest = content_digest(body)
    values = {**headers, "@method": "POST", "@target-uri": url, "content-digest": digest}
    base = "".join(f'"{name}": {values[name].strip()}\n' for name in COMPONENTS)
    covered = " ".join(f'"{name}"' for name in COMPONENTS)
    inputs, signatures = [], []
    for number, (key_id, key) in enumerate(keys, 1):
        parameters = f'({covered});created={created_s};keyid="{key_id}";alg="{key.http_algorithm}"'
        signed = key.sign(f'{base}"@signature-params": {parameters}'.encode())
        inputs.append(f"sig{number}={parameters}")
        signatures.append(f"sig{number}=:{base64.b64encode(signed).decode()}:")
    return {
        "content-digest": digest,
        "signature-input": ", ".join(inputs),
        "signature": ", ".join(signatures),
    }
