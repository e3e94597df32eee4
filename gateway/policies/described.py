"""What the admin address says of policies: how they act, what was measured of them, what happened to them."""

import contextlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from console.errors import EcoError
from gateway.policies.activation import Activation, Entry
from gateway.policies.active import ActivePolicies
from gateway.policies.folder import Wanted
from gateway.policies.records import FolderError
from guard import PolicyBundle
from guard.page import rows_of, summary_of

_RATES = ("recall", "missed", "positives", "false_positive_rate", "false_positives", "negatives")


class UnknownError(FolderError):
    """There is no such policy, version or plot."""


def acting(policies: ActivePolicies, name: str) -> Wanted | None:
    """The policy of that name, where it is in force."""
    return next((one for one in policies.current.wanted if one.name == name), None)


def listed_policies(policies: ActivePolicies) -> list[dict[str, Any]]:
    """Every policy that is known here: those in force first, in their order."""
    in_force = {one.name: one for one in policies.current.wanted}
    known = policies.folder.names() if policies.folder is not None else []
    found = []
    for name in dict.fromkeys([*in_force, *known]):
        with contextlib.suppress(UnknownError):  # of one that was refused there is nothing to show
            found.append(_briefly(policies, name, in_force.get(name)))
    return found


def shown_policy(policies: ActivePolicies, name: str) -> dict[str, Any]:
    """All of one policy. Of one that is not in force, what was measured is the newest version's.

    Raises:
        UnknownError: it is not known here.
    """
    one, folder = acting(policies, name), policies.folder
    said = _briefly(policies, name, one)
    entries: Sequence[Entry] = ()
    holds = Activation()
    if folder is not None and not said["static"]:
        record = folder.record(name)
        entries, holds = record.entries, record.current
    bundle = one.bundle if one is not None else _newest(policies, name)
    if bundle is not None:
        said |= {
            "built": {"action": bundle.config.action, "answers": bundle.config.answer_mode},
            "measured": _measured(bundle),
            "report": {"digest": bundle.digest, "summary": summary_of(bundle), "rows": rows_of(bundle)},
            "plots": sorted(file.stem for file in _plots(bundle).glob("*.svg")),
        }
    return {
        **said,
        "follows_folder": folder is not None and folder.has(name),
        "activation": holds.model_dump(mode="json"),
        "history": [entry.model_dump(mode="json") for entry in entries],
    }


def plot_of(policies: ActivePolicies, name: str, plot: str) -> bytes:
    """A picture of a policy's report, as SVG.

    Raises:
        UnknownError: there is none.
    """
    one = acting(policies, name)
    bundle = one.bundle if one is not None else _newest(policies, name)
    files = {} if bundle is None else {file.stem: file for file in _plots(bundle).glob("*.svg")}
    if plot not in files:
        raise UnknownError(f"policy {name!r}: has no plot {plot!r}")
    try:
        return files[plot].read_bytes()
    except OSError as error:
        raise UnknownError(f"policy {name!r}: plot {plot!r} is gone") from error


def _plots(bundle: PolicyBundle) -> Path:
    return bundle.path / "plots"


def _briefly(policies: ActivePolicies, name: str, one: Wanted | None) -> dict[str, Any]:
    folder = policies.folder
    versions = folder.versions(name) if folder is not None else []
    if one is None and not versions and not (folder is not None and folder.record(name).entries):
        raise UnknownError(f"policy {name!r}: not known here")
    static = any(bundle.config.name == name for bundle in policies.static)
    said: dict[str, Any] = {"name": name, "active": one is not None, "static": static, "versions": versions}
    if one is None:
        return said
    config = one.config
    return said | {
        "version": config.version,
        "digest": one.bundle.digest,
        "path": str(one.bundle.path),
        "action": config.action,
        "answers": config.answer_mode,
        "on_error": config.on_error,
        "threshold": config.classifier.threshold,
        "corruption": config.corruption.model_dump(mode="json"),
        "model": config.model.name,
        "share": one.activation.share,
        "models": one.activation.models,
        "tenants": one.activation.tenants,
        "pinned": one.activation.digest is not None,
        "measured": _measured(one.bundle),
    }


def _measured(bundle: PolicyBundle) -> dict[str, Any]:
    """Recall and false positives on prompts left out of training, and the level that is guaranteed; what is known."""
    try:
        rates = bundle.report["classifier"]["cross_fitted"]
        found = {name: rates[name] for name in _RATES}
    except (KeyError, TypeError):  # a report is whatever its build measured
        found = {}
    calibration = bundle.config.classifier.calibration
    found |= {name: calibration[name] for name in ("error", "level", "guarantee") if name in calibration}
    return {name: said for name, said in found.items() if isinstance(said, str) or _is_number(said)}


def _is_number(said: Any) -> bool:
    return isinstance(said, int | float) and math.isfinite(said)


def _newest(policies: ActivePolicies, name: str) -> PolicyBundle | None:
    """The version of a policy not in force that would act if it were; None where none can be read."""
    folder = policies.folder
    if folder is None:
        return None
    digest = None if folder.has(name) else folder.newest(name)
    try:
        return folder.find(name, digest)[0]
    except EcoError:
        return None
