"""Bearer tokens: made once and shown once; only their hash is kept."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from datetime import timedelta
from typing import Final

from edgewise_protocol.names import check_name
from sqlmodel import Session, col, select
from sqlmodel import delete as delete_rows

from edgewise_server.errors import InvalidError, NotFoundError
from edgewise_server.models.access import Token
from edgewise_server.models.base import new_id, utc_now

TOKEN_PREFIX: Final = "ew_"  # noqa: S105 - a prefix, not a secret
MAX_TOKEN_CHARS: Final = 200
TOKEN_ROLES: Final = ("admin", "operator", "viewer", "worker")
_ENTROPY_BYTES: Final = 32


def hash_secret(secret: str) -> str:
    """SHA-256 of a random secret; it needs no salt, since it cannot be guessed."""
    return hashlib.sha256(secret.encode()).hexdigest()


def new_secret(prefix: str) -> str:
    """A secret of 256 random bits."""
    return prefix + secrets.token_urlsafe(_ENTROPY_BYTES)


def create(session: Session, name: str, role: str, expires_in_s: float | None = None) -> tuple[Token, str]:
    """Make a token; returns its row and the secret, which is not kept.

    Raises:
        InvalidError, TopicError: the role or the name is not acceptable.
    """
    if role not in TOKEN_ROLES:
        raise InvalidError(f"the role must be one of {', '.join(TOKEN_ROLES)}")
    secret = new_secret(TOKEN_PREFIX)
    expires = utc_now() + timedelta(seconds=expires_in_s) if expires_in_s is not None else None
    token = Token(
        id=new_id("tok"), name=check_name(name, "token name"), role=role, sha256=hash_secret(secret), expires_at=expires
    )
    session.add(token)
    session.flush()
    return token, secret


def find(session: Session, secret: str) -> Token | None:
    """The valid token of a secret, or None."""
    if not secret.startswith(TOKEN_PREFIX) or len(secret) > MAX_TOKEN_CHARS:
        return None
    digest = hash_secret(secret)
    token = session.exec(select(Token).where(Token.sha256 == digest)).first()
    if token is None or not hmac.compare_digest(token.sha256, digest):
        return None
    return None if token.expires_at is not None and token.expires_at <= utc_now() else token


def all_tokens(session: Session) -> list[Token]:
    """All tokens, without their secrets."""
    return list(session.exec(select(Token).order_by(col(Token.created_at))))


def delete(session: Session, token_id: str) -> Token:
    """Revoke a token; raise `NotFoundError` if there is none."""
    token = session.get(Token, token_id)
    if token is None:
        raise NotFoundError(f"there is no token {token_id!r}")
    session.delete(token)
    return token


def delete_all(session: Session) -> int:
    """Revoke every token; returns how many."""
    return session.exec(delete_rows(Token)).rowcount
