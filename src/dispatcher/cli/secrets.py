"""`dispatcher secrets`: the keys that seal stored secrets."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from dispatcher.cli.failure import CliError, ExitCode

if TYPE_CHECKING:
    from dispatcher.model import EndpointKey
    from dispatcher.store.rewrapping import Rewrapped

UNOPENED_SHOWN_MAX = 10

app = typer.Typer(no_args_is_help=True, help="The keys that seal stored secrets.")


@app.callback()
def secrets() -> None:
    """The keys of DISPATCHER_SECRET_KEYS, which seal signing keys and credentials in the database."""


@app.command("new-key")
def new_key(
    key_id: Annotated[str, typer.Argument(metavar="ID", help="1 to 64 of A-Z a-z 0-9 _ -; one never used before.")],
) -> None:
    """Print a fresh key in the form of DISPATCHER_SECRET_KEYS."""
    import base64
    import secrets as random

    from dispatcher.cli.failure import UsageError
    from dispatcher.security.secrets import KEY_BYTES, Keyring, KeyringError

    text = f"{key_id}:{base64.b64encode(random.token_bytes(KEY_BYTES)).decode()}"
    try:
        Keyring.parse(text)
    except KeyringError as error:
        raise UsageError(str(error)) from error
    print(text)


@app.command()
def rewrap(
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for machines.")] = False,
) -> None:
    """Wrap every stored secret by the first key of DISPATCHER_SECRET_KEYS, while the service runs.

    Once it ends with 0, no secret needs the other keys any more. Safe to repeat and to interrupt.
    """
    import asyncio

    from dispatcher.cli.output import print_json

    report = asyncio.run(_rewrapped())
    if as_json:
        print_json({"seen": report.seen, "changed": report.changed, "unopened": list(report.unopened)})
    else:
        print(f"{report.seen} secrets, {report.changed} wrapped anew, {len(report.unopened)} not opened")
    if report.unopened:
        shown = report.unopened[:UNOPENED_SHOWN_MAX]
        raise CliError("no key of DISPATCHER_SECRET_KEYS opens some of them", details=shown)


async def _rewrapped() -> Rewrapped:
    from dispatcher.app import database_options
    from dispatcher.config import ConfigError, from_environment
    from dispatcher.errors import DispatcherError
    from dispatcher.security.credentials import SEAL_ID
    from dispatcher.security.secrets import Keyring, KeyringError, SealContext, SecretSealError
    from dispatcher.store.database import Database
    from dispatcher.store.rewrapping import rewrap_all

    settings = from_environment(required=("database_url", "secret_keys"))
    assert settings.database_url is not None  # noqa: S101 -- required
    assert settings.secret_keys is not None  # noqa: S101
    try:
        keyring = Keyring.parse(settings.secret_keys.get_secret_value())
    except KeyringError as error:
        raise ConfigError([f"DISPATCHER_SECRET_KEYS: {error}"]) from error

    def anew(sealed: bytes, key: EndpointKey, key_id: str) -> bytes | None:
        context = SealContext(key.tenant_id, key.endpoint_id, key_id or SEAL_ID)
        return keyring.rewrap(sealed, context) if keyring.needs_rewrap(sealed) else None

    try:
        async with Database.open(database_options(settings, settings.database_url.get_secret_value())) as database:
            return await rewrap_all(database, anew, (SecretSealError,))
    except DispatcherError as error:
        raise CliError(error.message, code=ExitCode.UNAVAILABLE) from error
