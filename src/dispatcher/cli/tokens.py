"""`dispatcher tokens`: bearer tokens of callers, for the mode `tokens`."""

from __future__ import annotations

from typing import Annotated

import typer

from dispatcher.cli.failure import UsageError
from dispatcher.cli.output import print_json

app = typer.Typer(no_args_is_help=True, help="Bearer tokens of callers.")


@app.callback()
def tokens() -> None:
    """Bearer tokens of callers, where the service knows them by DISPATCHER_AUTH_MODE=tokens."""


@app.command()
def new(
    principal: Annotated[str, typer.Argument(metavar="PRINCIPAL", help="The caller's name in the policy.")],
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for machines.")] = False,
) -> None:
    """Make a token: give it to the caller, and add the printed entry to DISPATCHER_AUTH_TOKENS_FILE.

    The token is shown once, here; the entry holds only its hash.
    """
    from dispatcher.errors import UnauthenticatedError
    from dispatcher.security.callers import checked_principal
    from dispatcher.security.tokens import hash_of, new_token

    try:
        checked_principal(principal)
    except UnauthenticatedError as error:
        raise UsageError(f"PRINCIPAL: {error.message}") from error
    token = new_token()
    if as_json:
        print_json({"token": token, "entry": {"principal": principal, "sha256": hash_of(token)}})
        return
    print(f"token: {token}\n")
    print("Add to the list `tokens:` of DISPATCHER_AUTH_TOKENS_FILE:\n")
    print(f"  - principal: {principal!r}\n    sha256: {hash_of(token)}")
