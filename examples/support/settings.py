"""Where the desk finds its servers: read from the environment once, when an agent starts."""

import os
from dataclasses import dataclass
from pathlib import Path

from cuebook.events.errors import ConfigurationError

__all__ = ["DEFAULT_STRIPE_KEY", "DEFAULT_STRIPE_URL", "ChatSettings", "chat_settings", "database_url", "stripe_access"]

DEFAULT_STRIPE_URL = "http://127.0.0.1:8420"  # where the stand-in listens unless told otherwise
DEFAULT_STRIPE_KEY = "sk_test_cuebook_support"


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatSettings:
    """A chat model behind the OpenAI HTTP interface; `base_url` ends before `/chat/completions`."""

    base_url: str
    model: str
    api_key: str | None


def database_url() -> str:
    """Return the address of the shop's PostgreSQL. Raises ConfigurationError when none is set."""
    url = os.environ.get("CUEBOOK_DATABASE_URL", "")
    if url.startswith("@"):  # a file, such as a credential of a systemd unit
        url = Path(url[1:]).read_text(encoding="utf-8").strip()
    if not url:
        raise ConfigurationError(
            "no database for the support desk",
            remedy="set CUEBOOK_DATABASE_URL, for example postgresql://localhost/shop",
        )
    return url


def stripe_access() -> tuple[str, str]:
    """Return base address and key for Stripe; without settings, those of the stand-in.

    Raises:
        ConfigurationError: the key is a live one; the example never moves real money.
    """
    key = os.environ.get("STRIPE_API_KEY", DEFAULT_STRIPE_KEY)
    if not key.startswith("sk_test_"):
        raise ConfigurationError(
            "the support desk takes only Stripe test keys", remedy="set STRIPE_API_KEY=sk_test_..."
        )
    return os.environ.get("CUEBOOK_STRIPE_URL", DEFAULT_STRIPE_URL).rstrip("/"), key


def chat_settings() -> ChatSettings | None:
    """Return the chat model to read tickets with, or None for the trained classifier."""
    base_url = os.environ.get("CUEBOOK_LLM_BASE_URL")
    if not base_url:
        return None
    model = os.environ.get("CUEBOOK_LLM_MODEL")
    if not model:
        raise ConfigurationError("CUEBOOK_LLM_BASE_URL is set, but no model", remedy="set CUEBOOK_LLM_MODEL")
    return ChatSettings(base_url=base_url.rstrip("/"), model=model, api_key=os.environ.get("CUEBOOK_LLM_API_KEY"))
