"""Who asks: API keys of a file, or anybody where there is none."""

import dataclasses
import hashlib
import hmac
from pathlib import Path

from pomona.api.errors import ApiError
from pomona.core.errors import UserError

FORM = "a line a key: a name, the key, and optionally a priority: `alice sk-... 5`"


@dataclasses.dataclass(frozen=True)
class Principal:
    """On whose behalf something is computed, and how high it may go."""

    name: str = ""
    priority: int = 0


@dataclasses.dataclass(frozen=True)
class Keys:
    """Digests of the keys; without any, all are let in as one."""

    principals: dict[bytes, Principal] = dataclasses.field(default_factory=dict)

    def who(self, authorization: str | None) -> Principal:
        """The principal of an `Authorization` header. Every key is compared, each in constant time.

        Raises:
            ApiError: 401.
        """
        if not self.principals:
            return Principal()
        scheme, _, key = (authorization or "").partition(" ")
        digest = hashlib.sha256(key.strip().encode("utf-8", "replace")).digest()
        found = [one for own, one in self.principals.items() if hmac.compare_digest(own, digest)]
        if scheme.lower() != "bearer" or not found:
            raise ApiError(401, "Incorrect API key, or none: send `Authorization: Bearer KEY`.", "invalid_api_key")
        return found[0]


def read_keys(path: Path) -> Keys:
    """The keys of a file.

    Raises:
        UserError: it cannot be read, or a line is not of the form.
    """
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"the keys {path} cannot be read: {error}.", FORM + ".", "--api-keys FILE") from error
    found: dict[bytes, Principal] = {}
    for number, line in enumerate(lines, 1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        if len(words) not in (2, 3) or (len(words) == 3 and not words[2].lstrip("-").isdigit()):
            raise UserError(f"{path}, line {number} is no key.", FORM + ".", "that form")
        priority = int(words[2]) if len(words) == 3 else 0
        found[hashlib.sha256(words[1].encode()).digest()] = Principal(words[0], priority)
    if not found:
        raise UserError(f"{path} holds no keys.", FORM + ".", "leave --api-keys out to let anybody in")
    return Keys(found)
