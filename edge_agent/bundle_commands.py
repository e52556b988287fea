"""`edge-agent bundle`: what is installed, verify, install, activate, roll back, and the shadow run's comparison.

    install ─► verified, copied beside the database ─► activate SENSOR NAME --shadow   scored beside, no alarms of it
                                                    ─► activate SENSOR NAME            live; the one before stays
                                                    ─► rollback SENSOR                 back to it

Whatever is refused, here or by the running agent, leaves what was in use in use.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from edge_agent import assemble, installed, queries, remote, store
from edge_agent import bundle as bundles
from edge_agent.bundle import Bundle
from edge_agent.config import Config, SensorConfig
from edge_agent.errors import BundleError, StoreError, TransportError
from edge_agent.installed import Choice
from edge_agent.signing import SIGNATURE, Verifier

log = logging.getLogger(__name__)

#: A small board loads every bundle again, golden windows and all, before it answers.
RELOAD_S = 90.0


def verifier_of(key: Path | None) -> Verifier | None:
    """The verifier of a key file; None for none."""
    return None if key is None else Verifier(key)


def store_of(config: Config) -> Path:
    """Where this configuration's bundles are installed."""
    return config.database.with_name("bundles")


def listing(config: Config) -> list[dict[str, Any]]:
    """One entry a bundle that is installed or named by the configuration; `comparisons` tells of its shadow runs."""
    known = list(installed.installed(store_of(config)))
    live: dict[Path, list[str]] = {}
    shadow: dict[Path, list[str]] = {}
    for sensor in config.sensors.values():
        live.setdefault(installed.model_of(sensor), []).append(sensor.id)
        shadow_path = installed.shadow_of(sensor)
        if shadow_path is not None:
            shadow.setdefault(shadow_path, []).append(sensor.id)
    folders = {path: label for label, path in known}
    folders |= {path: str(path) for path in (*live, *shadow, *(s.model for s in config.sensors.values())) if path not in folders}
    key = next(iter(config.sensors.values())).public_key if config.sensors else None
    return [
        {
            "bundle": label,
            **_known(path, verifier_of(key)),
            "sensors": sorted(live.get(path, [])),
            "shadow": sorted(shadow.get(path, [])),
            "comparisons": _comparisons(config, label),
        }
        for path, label in folders.items()
    ]


def _known(path: Path, verifier: Verifier | None) -> dict[str, Any]:
    """What can be said of a folder without scoring anything."""
    said: dict[str, Any] = {"path": str(path), "name": None, "version": None, "sha256": None, "problem": None}
    said["signature"] = "none" if not (path / SIGNATURE).exists() else "not checked" if verifier is None else "good"
    try:
        manifest = bundles.read_manifest(path, verifier)
        said |= {"name": manifest.name, "version": manifest.version}
        said["sha256"] = bundles.sha256((path / "bundle.json").read_bytes())
    except (BundleError, OSError) as error:
        said |= {"problem": str(error), "signature": "bad" if said["signature"] == "good" else said["signature"]}
    return said


def _comparisons(config: Config, label: str) -> list[dict[str, Any]]:
    try:
        return queries.shadow_runs(config.database, label)
    except StoreError:
        return []  # no database yet, or of another version: `status` says so


def verify(source: Path, verifier: Verifier | None) -> Bundle:
    """Everything that an agent asks of a bundle (a folder or an archive), on this machine; raises BundleError."""
    if source.is_dir():
        return bundles.load(source, verifier=verifier)
    with tempfile.TemporaryDirectory() as folder:
        try:
            installed.unpack(source, Path(folder))
            return replace(bundles.load(Path(folder), verifier=verifier), path=source)
        except BundleError as error:
            raise BundleError(str(error).replace(folder, str(source))) from error


def install(config: Config, source: Path) -> tuple[str, Bundle, bool]:
    """Verify and copy into the store: (NAME/VERSION, the bundle, whether it is new); raises BundleError."""
    key = next(iter(config.sensors.values())).public_key
    return installed.install(source, store_of(config), verifier_of(key))


def activate(config: Config, sensor: str, label: str, *, shadow: bool = False) -> tuple[bool, str]:
    """Have the sensor use an installed bundle, or score it beside: (whether the agent runs with it, what happened).

    Raises BundleError where the sensor cannot use it; nothing has changed then.
    """
    label = installed.find(store_of(config), label)
    assemble.candidate(config, sensor, store_of(config) / label)
    if shadow:
        return _change(config, sensor, lambda was: replace(was, shadow=label), f"{sensor}: {label} is scored beside")
    return _change(config, sensor, lambda was: installed.activated(was, label), f"{sensor}: {label} is active")


def rollback(config: Config, sensor: str, *, shadow: bool = False) -> tuple[bool, str]:
    """Back to the bundle before, or an end to the shadow run; as `activate`."""
    described = config.sensors[sensor]
    now = installed.choice(described)
    if shadow:
        if now.shadow is None:
            raise BundleError(f"{sensor}: no bundle is scored beside")
        return _change(config, sensor, lambda was: replace(was, shadow=None), f"{sensor}: {now.shadow} is no longer scored beside")
    target = installed.rolled_back(now).active
    assemble.candidate(config, sensor, described.model if target is None else store_of(config) / target)
    name = f"{described.model} (the configuration's)" if target is None else target
    return _change(config, sensor, installed.rolled_back, f"{sensor}: back to {name}")


def _change(config: Config, sensor: str, change: Callable[[Choice], Choice], done: str) -> tuple[bool, str]:
    described = config.sensors[sensor]
    was = installed.choose(described, change)
    if not store.in_use(config.database):
        return True, f"{done}; no agent is running, it takes effect when one starts"
    try:
        answer = remote.ask(config, "reload", {}, RELOAD_S)
    except TransportError as error:
        answer, why = None, str(error)
    else:
        why = "no answer"
    if answer is None:
        return False, f"{done} on disk, but the running agent could not be told ({why}): systemctl reload edge-agent"
    ok, message = answer
    if not ok:
        _put_back(described, was)
        return False, f"{sensor}: the running agent refused, and nothing has changed: {message}"
    return True, f"{done}; the agent has {message}"


def _put_back(sensor: SensorConfig, was: Choice) -> None:
    installed.choose(sensor, lambda _now: was)
