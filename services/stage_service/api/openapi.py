"""The OpenAPI document of the stage service: what each operation answers, by its id.

A route that is added gets its line here (or tells its own responses): a test asks for it.
"""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI

from services.contracts.leads import LeadNow
from services.contracts.openapi import Answer, complete
from services.stage_service.api import (
    event_answers,
    funnel_answers,
    handoff_answers,
    lead_answers,
    people_answers,
    playbook_answers,
    quarantine_answers,
    shapes,
    simulation_answers,
)
from services.stage_service.api.segment import CALLS

TAGS = {
    "events": "Lead events in.",
    "sources": "Vendors' webhooks in.",
    "segment": "The HTTP API of Segment, in.",
    "leads": "Leads: who they are, where they stand, what happened to them; moves by hand.",
    "accounts": "The leads' companies.",
    "transitions": "Published events, as a feed and as a stream.",
    "subscriptions": "Published events out, as signed webhooks.",
    "funnel": "The funnel in numbers.",
    "handoffs": "Leads handed from role to role, and the answers.",
    "playbooks": "Playbooks: check, compare, try on real history, publish, schedule, roll back.",
    "people": "The roster.",
    "audit": "Who did what.",
    "quarantine": "Deliveries that could not be mapped.",
    "operations": "For the platform.",
}
OPEN = ("livez", "readyz", "metrics")
"""Operations that ask for no key."""
_MERGED = (308, "The lead is part of another: the same under its id", lead_answers.MergedInto)
_ID = "01a20b83-54a5-72df-8ba5-f958346b324f"
_CALL: dict[str, Any] = {
    "type": "track", "event": "Demo Requested", "messageId": "m-1", "userId": "97980cfea0067",
    "context": {"traits": {"email": "ada@example.com"}}, "timestamp": "2026-11-24T07:04:05Z",
}  # fmt: skip
_PERSON_PROBLEMS = (404, 409, 412)

_SCHEDULED = ((202, "It is to be published then", playbook_answers.JustScheduledShown),)
_AS_IT_WAS = ((304, "It has the ETag of If-None-Match", None),)

ANSWERS: dict[str, Answer] = {
    "livez": Answer(shapes.Status),
    "readyz": Answer(shapes.Status, also=((503, "Not to be sent requests", shapes.Status),)),
    "metrics": Answer(media="text/plain"),
    "get_asyncapi": Answer(dict[str, Any]),
    "post_events": Answer(event_answers.EventResults, problems=(415,)),
    "post_delivery": Answer(
        media="*/*", problems=(400, 405, 415), also=((202, "Taken; the source's answer", None),)
    ),
    **{
        f"segment_{call}": Answer(
            shapes.Success, sent={"batch": [_CALL]} if call == "batch" else _CALL
        )
        for call in set(CALLS.values())
    },
    "list_leads": Answer(LeadNow, many=True, problems=(404,)),
    "get_lead": Answer(lead_answers.LeadThen, also=(_MERGED,)),
    "get_why": Answer(lead_answers.LeadExplained, also=(_MERGED,)),
    "get_timeline": Answer(
        lead_answers.TimelineItem, many=True, also=(_MERGED,),
        more={
            "alerts_known": {"type": "boolean", "description": "false: the notifier is silent"},
            "why": {"$ref": "#/components/schemas/LeadExplained"},
        },
    ),
    "move_lead": Answer(
        event_answers.EventResult, problems=(409,),
        sent={"to": "nurture", "reason": "no budget this year"},
    ),
    "merge_leads": Answer(
        event_answers.EventResult, problems=(409,), sent={"lead": _ID, "reason": "the same person"}
    ),
    "unmerge_leads": Answer(
        event_answers.EventResult, problems=(409,), sent={"lead": _ID, "reason": "two of one name"}
    ),
    "assign_lead": Answer(
        lead_answers.Assigned, problems=(409,),
        sent={"role": "ae", "person": "jonas", "reason": "knows the company"},
    ),
    "get_routing": Answer(lead_answers.RoutingDecision, many=True),
    "list_accounts": Answer(lead_answers.AccountNow, many=True),
    "get_account": Answer(lead_answers.WholeAccount),
    "get_funnel": Answer((funnel_answers.Funnel, funnel_answers.Durations), problems=(404,)),
    "get_durations": Answer(funnel_answers.Durations, problems=(404,)),
    "list_playbooks": Answer(playbook_answers.PlaybookShown, many=True),
    "simulate_playbook": Answer(
        simulation_answers.SimulationShown, status=202, problems=(409, 415),
        sent=playbook_answers.PLAYBOOK_TEXT,
    ),
    "list_simulations": Answer(simulation_answers.SimulationListed, many=True),
    "get_simulation": Answer(simulation_answers.SimulationShown),
    "cancel_simulation": Answer(status=204, problems=(409,)),
    "get_simulation_result": Answer(problems=(409,)),
    "list_handoffs": Answer(handoff_answers.Handoff, many=True, problems=(404,)),
    "get_handoff_numbers": Answer(handoff_answers.HandoffNumbers, problems=(404,)),
    "get_handoff": Answer(handoff_answers.Handoff),
    "accept_handoff": Answer(handoff_answers.Handoff, problems=(409,), sent={"person": "jonas"}),
    "reject_handoff": Answer(
        handoff_answers.Handoff, problems=(409,), sent={"reason": "No budget"}
    ),
    "list_people": Answer(people_answers.PersonListed, many=True),
    "get_person": Answer(people_answers.PersonShown),
    "put_person": Answer(
        people_answers.PersonShown, problems=_PERSON_PROBLEMS,
        also=((201, "The person is new", people_answers.PersonShown),),
        sent={"name": "Jonas Weber", "email": "jonas@example.com", "roles": ["ae"]},
    ),
    "delete_person": Answer(status=204, problems=_PERSON_PROBLEMS),
    "import_people": Answer(
        people_answers.ImportDone, problems=(409,), sent="id,name,roles\njonas,Jonas Weber,ae\n"
    ),
    "leave_person": Answer(people_answers.Left, problems=(409,), sent={"to": "elena"}),
    "list_audit": Answer(shapes.AuditEntry, many=True, problems=(404,)),
    "export_audit": Answer(problems=(404,)),
    "create_playbook": Answer(
        playbook_answers.PublishedShown, status=201, problems=(409, 412, 415), also=_SCHEDULED
    ),
    "get_playbook": Answer(playbook_answers.WholePlaybook, also=_AS_IT_WAS),
    "publish_playbook": Answer(
        playbook_answers.PublishedShown, problems=(409, 412, 415, 428), also=_SCHEDULED
    ),
    "roll_playbook_back": Answer(
        playbook_answers.PublishedShown, problems=(409, 412, 428), also=_SCHEDULED,
        sent={"version": 1, "message": "The new threshold brought too many"},
    ),
    "validate_playbook": Answer(playbook_answers.Checked, problems=(415,)),
    "diff_playbook": Answer(playbook_answers.DiffWithImpact, problems=(415,)),
    "list_playbook_versions": Answer(
        playbook_answers.VersionShown, many=True,
        more={"scheduled": {
            "type": "array", "items": {"$ref": "#/components/schemas/ScheduledShown"},
            "description": "what waits, and what was refused since the newest version",
        }},
    ),
    "get_playbook_version": Answer(playbook_answers.WholePlaybook, also=_AS_IT_WAS),
    "diff_playbook_versions": Answer(playbook_answers.DiffWithImpact),
    "list_scheduled_playbooks": Answer(playbook_answers.ScheduledShown, many=True),
    "cancel_scheduled_playbook": Answer(playbook_answers.ScheduledShown, problems=(409,)),
    "list_quarantine": Answer(quarantine_answers.Quarantined, many=True),
    "get_quarantined": Answer(quarantine_answers.WholeQuarantined),
    "replay_quarantine": Answer(
        quarantine_answers.ReplayedAll, problems=(404, 409),
        sent={"source": "hubspot", "dry_run": True},
    ),
    "replay_quarantined": Answer(
        quarantine_answers.ReplayedDelivery, problems=(409,), sent={"dry_run": True}
    ),
    "discard_quarantined": Answer(quarantine_answers.Discarded, problems=(409,)),
    # What these answer is said by the routes (subscription_answers).
    "create_subscription": Answer(
        status=201, problems=(409,),
        sent={"name": "CRM", "url": "https://crm.example.com/baton", "types": ["baton.stage.*"]},
    ),
    "change_subscription": Answer(problems=(409, 412), sent={"filter": "to == 'sql'"}),
    "delete_subscription": Answer(status=204, problems=(409, 412)),
    "pause_subscription": Answer(problems=(409,), sent={"reason": "The CRM moves"}),
    "resume_subscription": Answer(problems=(409,)),
    "test_subscription": Answer(problems=(409,)),
    "list_subscription_secrets": Answer(problems=(409,)),
    "rotate_subscription_secret": Answer(problems=(409,), sent={"keep_s": 86400}),
    "end_subscription_secret": Answer(status=204, problems=(409,)),
    "resend_delivery": Answer(problems=(409,)),
    "skip_delivery": Answer(problems=(409,)),
    "resend_failed_deliveries": Answer(problems=(409,), sent={"since": "2026-11-24T08:00:00Z"}),
    "replay_subscription": Answer(problems=(409,), sent={"from": "beginning"}),
}  # fmt: skip


def completed(app: FastAPI, document: dict[str, Any]) -> dict[str, Any]:
    """Complete the document that the framework made of `app`, in place, and give it."""
    paths = document["paths"]
    for path, scope in (("/v1/events", "ingest"), *((p, "ingest") for p in _SEGMENT_PATHS)):
        paths[path]["post"]["security"] = [{"key": [scope]}]
    complete(app, document, ANSWERS, open_operations=OPEN, tags=TAGS)
    for path in _SEGMENT_PATHS:
        paths[path]["post"]["security"] = [{"key": ["ingest"]}, {"basic": []}]
    # Who signs is let in without a key.
    paths["/webhooks/{source}"]["post"]["security"] = [{"key": ["ingest"]}, {}]
    paths["/asyncapi.json"]["get"]["security"] = [{"key": ["read"]}, {}]
    document["components"]["securitySchemes"]["basic"] = {
        "type": "http", "scheme": "basic", "description": "an API key as the user name",
    }  # fmt: skip
    return document


_SEGMENT_PATHS = tuple(sorted(f"/v1/{call}" for call in set(CALLS.values())))
