"""What a change of keys means for people, as sentences."""

from __future__ import annotations

from authsvc.cli.shared import local_time, relative, span
from authsvc.keyfiles import Change
from authsvc.keyset import Kind, State


def of_rotation(change: Change, *, now: int, early: bool) -> list[str]:
    """What `rotate` did, or why it did nothing."""
    lifecycle = change.after.lifecycle
    scheduled = change.after.scheduled(Kind.SIGNING, now=now)
    if scheduled is not None and scheduled.activate_at is not None:
        before = change.before.key(scheduled.id)
        age = f"published {relative(scheduled.publish_at, now=now)}" if before else "new"
        signs = f"{local_time(scheduled.activate_at)} ({relative(scheduled.activate_at, now=now)})"
        why = f"{scheduled.id} is too young to sign ({age}; verifiers need {span(lifecycle.lead_s)} to know it)"
        if before is not None and before.activate_at is not None:
            return [f"No new rotation: one is under way. The key that it has named, {why}: it will be active {signs}."]
        return [
            f"The rotation is set. The standby {why}: it will be active {signs}. Until then nothing changes for anyone."
        ]
    active = change.after.active(Kind.SIGNING, now=now)
    lines = [f"{active.id} signs from now on. Every token that is out stays good."]
    was = change.before.key(active.id)
    published_at = was.publish_at if was else now
    if early and now < published_at + lifecycle.lead_s:
        worst = min(published_at + lifecycle.lead_s - now, lifecycle.spread_s + lifecycle.jwks_reach_s)
        lines.append(
            f"EARLY: verifiers that keep the JWKS do not know this key yet and refuse new, genuine tokens for up to "
            f"{span(worst)}; those that fetch again for an unknown kid, only where no cache stands between."
        )
    return lines


def of_store_rotation(change: Change, *, now: int) -> list[str]:
    """What `rotate-store` did, or why it did nothing."""
    scheduled = change.after.scheduled(Kind.SEALING, now=now)
    if scheduled is None or scheduled.activate_at is None:  # by a policy without any delay
        return [f"{change.after.active(Kind.SEALING, now=now).id} seals from now on."]
    signs = f"{local_time(scheduled.activate_at)} ({relative(scheduled.activate_at, now=now)})"
    if change.before.key(scheduled.id) is not None:
        return [f"No new sealing key: {scheduled.id} is under way and seals from {signs}."]
    return [
        f"The next sealing key {scheduled.id} seals from {signs}, when every worker has it. Nothing is sealed anew."
    ]


def before_revocation(planned: Change, kid: str | None, *, now: int) -> list[str]:
    """What the operator has to know before he goes on."""
    key = planned.before.key(kid) if kid else None
    if key is not None and key.kind is Kind.SEALING:
        return [f"Stored session keys under {key.id} are lost; their users get new ones with their next login."]
    who = f"Everybody with a token under {kid}" if kid else "EVERYBODY"
    lines = [f"{who} will have to log in again (silently, through wx.login)."]
    if kid is None:
        lines.append(
            "The side store's rows are deleted. The index key stays: who has it can still recognise the hashes of "
            "openids that he knows, in logs."
        )
    successor = planned.after.active(Kind.SIGNING, now=now)
    was = planned.before.key(successor.id)
    known_for_s = now - was.publish_at if was else 0
    signs_already = was is not None and was.state(now=now) is State.ACTIVE
    if not signs_already and known_for_s < planned.after.lifecycle.lead_s:
        wait_s = planned.after.lifecycle.spread_s + planned.after.lifecycle.jwks_reach_s
        lines.append(
            "The key that takes over is younger than the lead: verifiers that keep the JWKS may refuse new, genuine "
            f"tokens for up to {span(wait_s)}."
        )
    return lines
