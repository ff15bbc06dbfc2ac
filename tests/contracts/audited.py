"""Every way to change something, by HTTP or command: what the audit calls it, or why it is not in it.

A new one has to be named here; that what is here is true, tests/integration/test_audited_deeds.py shows.
"""

from __future__ import annotations

MACHINES = "lead events are told by machines: each is stored whole, and names its key's source"

# (service, method, path): the actions that the audit knows it by.
ROUTES: dict[tuple[str, str, str], tuple[str, ...]] = {
    ("stage", "POST", "/v1/leads/{id}/transitions"): ("moved", "move held"),
    ("stage", "POST", "/v1/leads/{id}/merge"): ("merged",),
    ("stage", "POST", "/v1/leads/{id}/unmerge"): ("unmerged",),
    ("stage", "POST", "/v1/leads/{id}/assign"): ("assigned",),
    ("stage", "POST", "/v1/handoffs/{id}/accept"): ("accepted",),
    ("stage", "POST", "/v1/handoffs/{id}/reject"): ("rejected",),
    ("stage", "POST", "/v1/people/{id}/leave"): ("left", "assigned"),
    ("stage", "PUT", "/v1/people/{id}"): ("added", "changed"),
    ("stage", "DELETE", "/v1/people/{id}"): ("left",),
    ("stage", "POST", "/v1/people/import"): ("added", "changed"),
    ("stage", "POST", "/v1/quarantine/replay"): ("replay begun", "replayed"),
    ("stage", "POST", "/v1/quarantine/{id}/replay"): ("replay begun", "replayed"),
    ("stage", "POST", "/v1/quarantine/{id}/discard"): ("discarded",),
    ("stage", "POST", "/v1/subscriptions"): ("added",),
    ("stage", "PATCH", "/v1/subscriptions/{id}"): ("changed",),
    ("stage", "DELETE", "/v1/subscriptions/{id}"): ("removed",),
    ("stage", "POST", "/v1/subscriptions/{id}/pause"): ("paused",),
    ("stage", "POST", "/v1/subscriptions/{id}/resume"): ("resumed",),
    ("stage", "POST", "/v1/subscriptions/{id}/secrets/rotate"): ("rotated",),
    ("stage", "DELETE", "/v1/subscriptions/{id}/secrets/{secret_id}"): ("secret ended",),
    ("stage", "POST", "/v1/subscriptions/{id}/deliveries/{delivery_id}/resend"): ("resent",),
    ("stage", "POST", "/v1/subscriptions/{id}/deliveries/{delivery_id}/skip"): ("skipped",),
    ("stage", "POST", "/v1/subscriptions/{id}/resend"): ("resent failed",),
    ("stage", "POST", "/v1/subscriptions/{id}/replay"): ("replayed",),
    ("stage", "POST", "/v1/subscriptions/{id}/test"): ("tested",),
    ("stage", "POST", "/v1/playbooks"): ("published", "scheduled"),
    ("stage", "PUT", "/v1/playbooks/{name}"): ("published", "scheduled"),
    ("stage", "POST", "/v1/playbooks/{name}/rollback"): ("published", "scheduled"),
    ("stage", "DELETE", "/v1/playbooks/scheduled/{id}"): ("cancelled",),
    # The pages: a browser's session acts.
    ("stage", "POST", "/playbook/publish"): ("published", "scheduled"),
    ("stage", "POST", "/playbook/rollback"): ("published", "scheduled"),
    ("stage", "POST", "/playbook/scheduled/{id}/cancel"): ("cancelled",),
    ("stage", "POST", "/leads/{id}/move"): ("moved", "move held"),
    ("stage", "POST", "/leads/{id}/merge"): ("merged",),
    ("stage", "POST", "/leads/{id}/unmerge"): ("unmerged",),
    ("stage", "POST", "/handoffs/{id}/{deed}"): ("accepted", "rejected"),
    ("stage", "POST", "/answer/{token}"): ("accepted", "rejected"),
    ("stage", "POST", "/quarantine/{id}/{deed}"): ("replay begun", "replayed", "discarded"),
    ("stage", "POST", "/subscriptions"): ("added",),
    ("stage", "POST", "/subscriptions/{id}/{deed}"): (
        "paused", "resumed", "removed", "rotated", "tested", "resent failed", "replayed",
    ),
    ("stage", "POST", "/subscriptions/{id}/deliveries/{delivery_id}/{deed}"): ("resent", "skipped"),
    ("stage", "POST", "/login"): ("added",),
    ("stage", "POST", "/logout"): ("revoked",),
    ("notifier", "POST", "/v1/alerts/{id}/ack"): ("acknowledged",),
    ("notifier", "POST", "/v1/alerts/{id}/retry"): ("retried",),
    ("notifier", "POST", "/v1/alerts/{id}/snooze"): ("snoozed",),
    ("notifier", "POST", "/v1/mutes"): ("muted",),
    ("notifier", "DELETE", "/v1/mutes/{person}/{lead_id}"): ("unmuted",),
    ("notifier", "POST", "/v1/channels/test"): ("tested",),
    ("notifier", "POST", "/v1/dead-letters/{id}/retry"): ("retried",),
    ("notifier", "POST", "/seen/{token}"): ("acknowledged",),
    ("notifier", "POST", "/slack/actions"): ("acknowledged", "snoozed"),
}  # fmt: skip

SIMULATES = "folds history for whoever looks: changes no lead, no rule and nobody's work"

# And why these are in no audit.
ROUTES_NOT_AUDITED: dict[tuple[str, str, str], str] = {
    ("stage", "POST", "/v1/events"): MACHINES,
    ("stage", "POST", "/webhooks/{source}"): MACHINES,
    **{
        ("stage", "POST", f"/v1/{call}"): MACHINES
        for call in (
            "identify", "track", "page", "screen", "group", "alias", "batch",
        )
    },
    ("stage", "POST", "/v1/playbooks/validate"): "changes nothing",
    ("stage", "POST", "/v1/playbooks/diff"): "changes nothing",
    ("stage", "POST", "/playbook/try"): "changes nothing",
    ("stage", "POST", "/v1/playbooks/simulate"): SIMULATES,
    ("stage", "DELETE", "/v1/playbooks/simulations/{id}"): SIMULATES,
    ("stage", "POST", "/simulation"): SIMULATES,
    ("stage", "POST", "/simulation/{id}/{deed}"): SIMULATES,
    ("stage", "POST", "/alerts/{id}/{deed}"): "passes it on to the notifier, which audits it",
}  # fmt: skip

# What changes the database by itself. The others change nothing, or ask a service.
COMMANDS: dict[str, tuple[str, ...]] = {
    "baton login": ("added",),
    "baton keys create": ("added",),
    "baton keys revoke": ("revoked",),
    "baton sources secret set": ("secret set",),
    "baton sources secret remove": ("secrets removed",),
    "baton leads snapshot": ("published again",),
    "baton up": ("added", "published"),
    "baton verify": ("repaired",),
}
COMMANDS_NOT_AUDITED: dict[str, str] = {
    "baton migrate": "the schema's revision is the record; what the rows say stays as it is",
    "baton serve": "the playbook and roster files that it takes in are audited as system's",
    **dict.fromkeys(
        (
            "baton leads merge", "baton leads unmerge", "baton dead-letters retry",
            "baton quarantine replay", "baton quarantine discard", "baton alerts test",
            "baton people import", "baton people leave", "baton handoffs accept",
            "baton handoffs reject", "baton subscriptions add", "baton subscriptions pause",
            "baton subscriptions resume", "baton subscriptions test", "baton subscriptions rotate",
            "baton subscriptions resend", "baton subscriptions replay", "baton subscriptions remove",
            "baton events send", "baton playbook publish", "baton playbook rollback",
            "baton playbook cancel",
        ),
        "asks a service over HTTP",
    ),
    **dict.fromkeys(
        (
            "baton asyncapi", "baton tail", "baton keys list", "baton playbook validate",
            "baton playbook show", "baton playbook test", "baton playbook simulate",
            "baton dead-letters list", "baton sources list", "baton sources test",
            "baton connectors list", "baton connectors validate", "baton connectors try",
            "baton quarantine list", "baton quarantine show", "baton alerts preview",
            "baton people list", "baton handoffs list", "baton kafka topics",
            "baton subscriptions list", "baton subscriptions show", "baton subscriptions deliveries",
            "baton playbook get", "baton playbook versions", "baton playbook diff",
            "baton events export", "baton leads why",
            "baton audit list", "baton audit export", "baton audit verify",
        ),
        "changes nothing of Baton's",
    ),
}  # fmt: skip
