"""What an operator says of a policy in service, beside its bundle: whether it acts, how, and on which requests.

A bundle is never edited. An activation overrides what it says of `action` and `answers`, and adds whom it is for.
"""

import hashlib
from collections.abc import Sequence
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from guard.bundle import Action, AnswerMode, PolicyConfig

_Names = Annotated[tuple[str, ...], Field(min_length=1)]
#: Past activations that a record keeps: enough to roll back.
PAST_ENTRIES = 100


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Activation(_Strict):
    """How a policy acts. What is None is as the bundle says, or for all."""

    active: bool = True
    digest: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")
    """Digest of the version that acts. None: that of the policy's folder in the policy folder, whatever it holds."""
    action: Action | None = None
    answers: AnswerMode | None = None
    share: float = Field(default=100.0, gt=0, le=100)
    """Percent of prompts it acts on. The same prompt is always on the same side, and stays in when the share grows."""
    models: _Names | None = None
    """Served model names or adapters (LoRA) it acts on."""
    tenants: _Names | None = None
    """Tenants it acts on, and requests that say no tenant."""

    def over(self, config: PolicyConfig) -> PolicyConfig:
        """A bundle's configuration as it acts."""
        said = {"action": self.action, "answers": self.answers}
        return config.model_copy(update={name: value for name, value in said.items() if value is not None})


class Entry(_Strict):
    """Something that happened to a policy."""

    serial: int = Field(ge=1)
    at: str
    """ISO 8601, UTC."""
    by: str
    event: Literal["activated", "deactivated", "rolled back"]
    activation: Activation
    digest: str | None
    """Of the version that acts since; None where none does."""
    version: str | None = None
    folder: str | None = None
    """The policy's folder in the policy folder, where the version came from there."""
    restores: int | None = None
    """Serial of the entry that a roll back went to."""


class Record(_Strict):
    """`record.json` of a policy: what holds, and what held before, oldest first."""

    schema_version: Literal[1] = 1
    current: Activation = Activation()
    entries: tuple[Entry, ...] = ()

    @property
    def serial(self) -> int:
        """Of the last entry; 0 where there is none."""
        return self.entries[-1].serial if self.entries else 0

    def before(self) -> Entry | None:
        """What a roll back goes to: the last state that differs from the one that holds, before those that earlier
        roll backs went to."""
        if not self.entries:
            return None
        last = self.entries[-1]
        until = last.serial if last.restores is None else last.restores
        holds = (last.activation.model_copy(update={"digest": None}), last.digest)
        earlier = [entry for entry in self.entries if entry.serial < until and entry.restores is None]
        differing = [e for e in earlier if (e.activation.model_copy(update={"digest": None}), e.digest) != holds]
        return differing[-1] if differing else None

    def then(self, entry: Entry, current: Activation) -> "Record":
        return Record(current=current, entries=(*self.entries, entry)[-PAST_ENTRIES:])


class Scopes:
    """On which requests each of P policies acts.

    Args:
        names, activations: of the policies, in their order.
        served_names: of the model, all of them.
        secret: so that no client can tell which of its prompts are in a share; the same on replicas.
    """

    def __init__(
        self, names: Sequence[str], activations: Sequence[Activation], served_names: Sequence[str], secret: bytes
    ) -> None:
        self._count = len(names)
        self._served = frozenset(served_names)
        self._key = hashlib.sha256(b"eco share\0" + secret).digest()
        numbered = list(enumerate(activations))
        self._models = [(number, frozenset(a.models)) for number, a in numbered if a.models is not None]
        self._tenants = [(number, frozenset(a.tenants)) for number, a in numbered if a.tenants is not None]
        self.tenants = frozenset(tenant for a in activations for tenant in a.tenants or ())
        """All that an activation names."""
        self._shares = [(number, names[number].encode(), a.share) for number, a in numbered if a.share < 100]

    def applies(
        self, token_ids: Sequence[int], *, tenant: str | None = None, adapter: str | None = None
    ) -> NDArray[np.bool_] | None:
        """(P,) which policies act on a prompt of T ids; None where all do.

        Args:
            tenant: whose request it is; where it is not known, every policy is for it.
            adapter: the LoRA adapter that it asks for; None for the model itself, under any of its names.
        """
        if not (self._models or self._tenants or self._shares):
            return None
        acts = np.full(self._count, True)
        asked = self._served if adapter is None else {adapter}
        for number, models in self._models:
            acts[number] &= not models.isdisjoint(asked)
        if tenant is not None:
            for number, tenants in self._tenants:
                acts[number] &= tenant in tenants
        if self._shares:
            said = hashlib.blake2b(np.asarray(token_ids, dtype=np.int64).tobytes(), key=self._key).digest()
            for number, name, share in self._shares:
                drawn = hashlib.blake2b(said + name, digest_size=8, key=self._key).digest()
                acts[number] &= int.from_bytes(drawn, "big") * 100 < share * (1 << 64)
        return acts
