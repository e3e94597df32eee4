"""The policies in force: one immutable guard at a time, replaced whole while requests go on.

A request takes the guard that is there as it comes, and keeps it to the end of its answer. A new one is read, verified
and made in a thread; nothing of it happens on a request's way.
"""

import asyncio
import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import numpy as np

from console.errors import EcoError
from gateway.audit import Audit
from gateway.metrics import GuardMetrics
from gateway.policies.activation import Activation, Record, Scopes
from gateway.policies.folder import ChangedMeanwhileError, PolicyFolder, Scan, Wanted
from gateway.policies.loading import PolicyLoader
from gateway.policies.records import FolderError
from guard import Guard, LoadedPolicy, PolicyBundle, SecretError

logger = logging.getLogger("vllm.eco_gateway")  # under vLLM's own logging configuration

#: How often the policy folder and the secret are looked at.
POLL_S = 1.0
#: At most this share of a thread's time goes into looking at them, but for the longest pause.
_POLLING_SHARE, _LONGEST_PAUSE_S = 0.1, 10.0
#: A change is made anew where somebody else's came between.
_ATTEMPTS = 3
#: Changes that are logged one by one.
_LOGGED_POLICIES = 20
#: How long all lines of a change wait for room in the audit log's queue.
_AUDIT_S = 60.0

T = TypeVar("T")
#: Policies and the secret -> a guard of them.
MakeGuard = Callable[[Sequence[LoadedPolicy], bytes], Guard]


@dataclass(frozen=True, slots=True)
class PolicySet:
    """Policies in force together.

    Attributes:
        guard: None where there are none: then prompts pass as in plain vLLM.
        digest: of names, versions and activations: the same on replicas that do the same.
        since: seconds since the epoch.
    """

    wanted: tuple[Wanted, ...] = ()
    guard: Guard | None = None
    scopes: Scopes | None = None
    digest: str = ""
    since: float = 0.0


@dataclass(frozen=True, slots=True)
class Change:
    """A set of policies that is ready, what of it acts anew or otherwise than before, and what acts no more."""

    made: PolicySet
    came: Sequence[Wanted]
    gone: Sequence[Wanted]


@dataclass(slots=True)
class ActivePolicies:
    """The policies in force, and how they change.

    Args:
        static: of `--policy`: they come first, act as they say, and cannot be taken away.
        folder: of `--policy-dir`; None where there is none.
        served_names: of the model.
        read_secret: the noise secret as it is now.
        also_refresh: done at every look at the folder, in a thread.
    """

    static: tuple[PolicyBundle, ...]
    folder: PolicyFolder | None
    loader: PolicyLoader
    served_names: Sequence[str]
    read_secret: Callable[[], bytes]
    metrics: GuardMetrics
    audit: Audit
    also_refresh: Callable[[], None] = lambda: None
    current: PolicySet = field(default_factory=PolicySet, init=False)
    refused: dict[str, str] = field(default_factory=dict, init=False)
    """What of the folder cannot act: reasons, by where it lies."""
    _secret: bytes = field(default=b"", init=False)
    _make_guard: MakeGuard | None = field(default=None, init=False)
    _changing: asyncio.Lock = field(default_factory=asyncio.Lock, init=False)
    _thread: ThreadPoolExecutor = field(
        default_factory=lambda: ThreadPoolExecutor(max_workers=1, thread_name_prefix="eco-policies"), init=False
    )

    @classmethod
    def prepare(
        cls, static: Sequence[PolicyBundle], folder: PolicyFolder | None, loader: PolicyLoader
    ) -> tuple[Wanted, ...]:
        """Load what is to act from the start, before the engine: what cannot is an error here.

        Raises:
            EcoError: one line; nothing may be served.
        """
        scan = Scan((), {}) if folder is None else folder.scan(strict=True)
        wanted = (*(Wanted(bundle, Activation()) for bundle in static), *scan.wanted)
        check_names(wanted)
        loader.load_all(wanted, at_start=True)
        return wanted

    def guard_for(self, token_ids: Sequence[int], *, tenant: str | None, adapter: str | None) -> Guard | None:
        """The guard with the policies that act on a prompt of T ids; None where none does."""
        current = self.current
        if current.guard is None or current.scopes is None:
            return None
        applies = current.scopes.applies(token_ids, tenant=tenant, adapter=adapter)
        if applies is None or applies.all():
            return current.guard
        return current.guard.only(applies) if applies.any() else None

    def among(self, names: Sequence[str] | None) -> Guard | None:
        """The guard with some of the policies in force, whatever requests they act on; with all by default.

        Raises:
            FolderError: one of the names is of none.
        """
        current = self.current
        if names is None or current.guard is None:
            return current.guard
        acting = [one.name for one in current.wanted]
        if unknown := sorted(set(names) - set(acting)):
            raise FolderError(f"policies: {', '.join(unknown)}: not in force")
        applies = np.array([name in set(names) for name in acting])
        return current.guard.only(applies) if applies.any() else None

    def start(self, make_guard: MakeGuard, wanted: tuple[Wanted, ...]) -> None:
        """Put the policies in force that `prepare` loaded. Blocking; call before anything is served."""
        self._make_guard = make_guard
        self._secret = self.read_secret()
        change = self._change_to(self._made(wanted, self._secret))
        self._swap(change)
        self._tell(change, "start")
        self.metrics.in_force(lambda: self.current)

    async def watch(self, tell: Callable[[str], None]) -> None:
        """Follow the folder and the secret until cancelled.

        Args:
            tell: told the digest of what is in force after every look.
        """
        pause_s = POLL_S
        while True:
            tell(self.current.digest)
            await asyncio.sleep(pause_s)
            started = time.perf_counter()
            try:
                await self.refresh()
            except Exception:
                logger.exception("policies: a look at them failed; what is in force goes on")
            pause_s = min(_LONGEST_PAUSE_S, max(POLL_S, (time.perf_counter() - started) / _POLLING_SHARE))

    async def refresh(self) -> None:
        """Put in force what the folder and the secret file say now. What cannot be had is refused, and what was in its
        place acts on."""
        async with self._changing:
            await self._refresh()

    async def say(self, name: str, change: Callable[[Activation], Activation], *, by: str) -> Record:
        """Let hold what `change` makes of the activation that holds, and put it in force.

        Raises:
            EcoError: it cannot be had; nothing changed.
        """
        async with self._changing:
            before, record = await self._in_thread(self._say, name, change, by)
            await self._put_in_force(name, before, record, by)
        return record

    async def roll_back(self, name: str, *, by: str) -> Record:
        """Let hold again what held before.

        Raises:
            EcoError: nothing did, or it cannot be had; nothing changed.
        """
        async with self._changing:
            before, record = await self._in_thread(self._roll_back, name, by)
            await self._put_in_force(name, before, record, by)
        return record

    async def add(self, bundle: PolicyBundle) -> PolicyBundle:
        """Check that a bundle belongs here, and keep it as a version; it does not act by that.

        Raises:
            EcoError: it does not, or the folder cannot be written.
        """
        async with self._changing:
            return await self._in_thread(self._add, bundle)

    async def delete(self, name: str, *, by: str) -> None:
        """Remove a policy with all its versions.

        Raises:
            EcoError: there is none, or the folder cannot be written; nothing changed.
        """
        async with self._changing:
            await self._in_thread(self._written_to().delete, name)
            self.audit.event("deleted", policy=name, by=by)
            await self._refresh(by=by)

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _in_thread(self, work: Callable[..., T], *args: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work, *args)

    async def _put_in_force(self, name: str, before: Record, record: Record, by: str) -> None:
        """Raise where a record that was written does not hold by now; then the one before holds again."""
        await self._refresh(by=by)
        one = next((acts for acts in self.current.wanted if acts.name == name), None)
        digest = record.entries[-1].digest
        if (one is None) == (digest is None) and (
            one is None or (one.bundle.digest, one.activation) == (digest, record.current)
        ):
            return
        reason = self.refused.get(name) or self.refused.get("policy folder") or "another change came between"
        await self._in_thread(self._written_to().put_back, name, before)
        await self._refresh(by=by)
        raise FolderError(f"policy {name!r}: cannot act so ({reason}); what held before holds")

    async def _refresh(self, by: str = "policy folder") -> None:
        try:
            change = await self._in_thread(self._changed)
        except Exception as error:  # noqa: BLE001 - whatever it is, what is in force goes on
            self._refuse({"policy folder": str(error) if isinstance(error, EcoError) else type(error).__name__})
            return
        if change is not None:
            self._swap(change)
            await self._in_thread(self._tell, change, by)

    def _swap(self, change: Change) -> None:
        """All that is done on the event loop."""
        self.current = change.made
        self.metrics.policies_activated(len(change.came))

    def _changed(self) -> Change | None:
        """What is to be in force, where that is not what is."""
        refused: dict[str, str] = {}
        secret = self._secret
        try:
            secret = self.read_secret()
        except SecretError as error:
            refused["secret"] = str(error)
        try:
            self.also_refresh()
        except EcoError as error:
            refused["keys"] = str(error)
        static = {bundle.config.name for bundle in self.static}
        wanted = [one for one in self.current.wanted if one.name in static]
        if self.folder is not None:
            scan = self.folder.scan()
            refused |= scan.refused
            held = [one for one in self.current.wanted if one.name in scan.unknown - static]
            for one in sorted((*scan.wanted, *held), key=lambda one: one.name):
                if one.name in static:
                    refused[one.name] = f"{one.bundle.path}: policy name {one.name!r} is that of a --policy"
                    continue
                acts = self._loadable(one, refused)
                if acts is not None:
                    wanted.append(acts)
        self._refuse(refused, waits_s=_AUDIT_S)
        if tuple(wanted) == self.current.wanted and secret == self._secret:
            return None
        made = self._made(tuple(wanted), secret)
        self._secret = secret
        return self._change_to(made)

    def _change_to(self, made: PolicySet) -> Change:
        before, names = {one.name: one for one in self.current.wanted}, {one.name for one in made.wanted}
        came = [one for one in made.wanted if one != before.get(one.name)]
        return Change(made, came, [one for one in self.current.wanted if one.name not in names])

    def _loadable(self, one: Wanted, refused: dict[str, str]) -> Wanted | None:
        """A policy that can be loaded, or the version in force of it."""
        try:
            self.loader.load(one.bundle)
        except EcoError as error:
            refused[one.name] = str(error)
            return next((acts for acts in self.current.wanted if acts.name == one.name), None)
        return one

    def _made(self, wanted: tuple[Wanted, ...], secret: bytes) -> PolicySet:
        assert self._make_guard is not None
        activations = [one.activation for one in wanted]
        told = [(one.name, one.bundle.digest, one.activation.model_dump(mode="json")) for one in wanted]
        for _, _, activation in told:
            activation.pop("digest")  # it is told; a replica may follow its folder
        digest = hashlib.sha256(json.dumps(sorted(told, key=str), sort_keys=True).encode()).hexdigest()
        if not wanted:
            return PolicySet(digest=digest, since=time.time())
        policies = self.loader.load_all(wanted)
        guard = self._make_guard(policies, secret)
        self.loader.forget_all_but(policies)
        # Not the noise secret where there is another that replicas share: a new one must move no prompt out of a share.
        key = self.folder.identity.encode() if self.folder is not None and self.folder.identity else secret
        scopes = Scopes([one.name for one in wanted], activations, self.served_names, key)
        self.metrics.tenants.name(scopes.tenants)
        return PolicySet(wanted, guard, scopes, digest, time.time())

    def _tell(self, change: Change, by: str) -> None:
        """Write what came and went into log, audit log and folder: a line of the audit log for each, and none is lost
        where the disk takes them."""
        self._log(change, by)
        deadline = time.monotonic() + _AUDIT_S
        for one in change.gone:
            left_s = max(0.0, deadline - time.monotonic())
            self.audit.event("deactivated", waits_s=left_s, policy=one.name, digest=one.bundle.digest, by=by)
        for one in change.came:
            self.audit.event(
                "activated",
                waits_s=max(0.0, deadline - time.monotonic()),
                policy=one.name,
                version=one.bundle.config.version,
                digest=one.bundle.digest,
                source=str(one.bundle.path),
                activation=one.activation.model_dump(mode="json", exclude_defaults=True),
                by=by,
            )
        self._note(change)

    @staticmethod
    def _log(change: Change, by: str) -> None:
        if len(change.came) + len(change.gone) > _LOGGED_POLICIES:
            logger.info("%d policies act from now on, %d no longer (%s)", len(change.came), len(change.gone), by)
            return
        for one in change.gone:
            logger.info("policy %s no longer acts (%s)", one.name, by)
        for one in change.came:
            said = one.activation.model_dump(mode="json", exclude_defaults=True) or "as built"
            logger.info("policy %s acts: digest %s %s (%s)", one.name, one.bundle.digest[:12], said, by)

    def _note(self, change: Change) -> None:
        """Write down what came and went with the folders, and keep the versions, so that they can be rolled back to."""
        if self.folder is None or not self.folder.is_writable:
            return
        work = [(one.name, partial(self.folder.note_put, one)) for one in change.came if one.folder]
        work += [(one.name, partial(self.folder.note_taken, one.name)) for one in change.gone if one.folder]
        for name, note in work:
            try:
                note()
            except Exception as error:  # noqa: BLE001 - it acts, written down or not
                said = str(error) if isinstance(error, EcoError) else type(error).__name__
                logger.error("policy %s: %s; this version cannot be rolled back to", name, said)

    def _refuse(self, refused: dict[str, str], waits_s: float = 0.0) -> None:
        deadline = time.monotonic() + waits_s
        for where, reason in refused.items():
            if self.refused.get(where) != reason:
                logger.error("policies: refused: %s", reason)
                self.metrics.policy_refused()
                left_s = max(0.0, deadline - time.monotonic())
                self.audit.event("refused", waits_s=left_s, where=where, reason=reason)
        self.refused = refused

    def _written_to(self) -> PolicyFolder:
        if self.folder is None:
            raise FolderError("this server has no policy folder; start it with --policy-dir")
        return self.folder

    def _say(self, name: str, change: Callable[[Activation], Activation], by: str) -> tuple[Record, Record]:
        folder = self._written_to()
        if any(bundle.config.name == name for bundle in self.static):
            raise FolderError(f"policy {name!r}: is one of --policy, which acts as long as the server runs")
        for attempt in range(_ATTEMPTS):
            before = folder.record(name)
            activation = change(before.current)
            if activation.active:
                bundle, lies_in = folder.find(name, activation.digest)
                self._check(bundle, activation)
                if lies_in is not None:
                    folder.keep(bundle)
            try:
                return before, folder.say(name, activation, by=by, serial=before.serial)
            except ChangedMeanwhileError:
                if attempt + 1 == _ATTEMPTS:
                    raise
        raise AssertionError

    def _roll_back(self, name: str, by: str) -> tuple[Record, Record]:
        folder = self._written_to()
        before = folder.record(name)
        entry = before.before()
        if entry is not None and entry.digest is not None:
            self._check(folder.find(name, entry.digest)[0], entry.activation)
        return before, folder.roll_back(name, by=by)

    def _check(self, bundle: PolicyBundle, activation: Activation) -> None:
        """Raise where a policy could not act so: before anything is written."""
        assert self._make_guard is not None
        self._make_guard(self.loader.load_all([Wanted(bundle, activation)]), self._secret)

    def _add(self, bundle: PolicyBundle) -> PolicyBundle:
        self._check(bundle, Activation())
        return self._written_to().keep(bundle)


def check_names(wanted: Iterable[Wanted]) -> None:
    """Raise `FolderError` where two policies have one name."""
    seen: dict[str, Wanted] = {}
    for one in wanted:
        if (other := seen.setdefault(one.name, one)) is not one:
            raise FolderError(
                f"policy name {one.name!r} is used twice: {other.bundle.path} and {one.bundle.path}; "
                "rebuild one with --name"
            )
