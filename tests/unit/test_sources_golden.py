"""Every source file maps samples to the lead events that stand, readable, in golden files.

``tests/fixtures/sources/<source>/<case>.{json,form,xml,http}`` are made by us in the vendor's shape, with
``<case>.expected.json`` beside each. The vendors' real samples are read where they lie; of those that may
not be shipped the golden file holds only types, ids, times and a digest. Write the goldens anew with
``python -m tests.unit.test_sources_golden``, and read the difference.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from services.baton.sources import read_sample
from services.stage_service.sources.book import load_source
from services.stage_service.sources.mapping import Delivery, map_delivery
from tests.conftest import DATA, ROOT

SOURCES = sorted((ROOT / "sources").glob("*.yaml"))
FIXTURES = ROOT / "tests" / "fixtures" / "sources"
GOLDEN = ROOT / "tests" / "golden" / "sources"
SUFFIXES = (".json", ".form", ".xml", ".http", ".multipart")
EXPECTED = ".expected.json"

REAL: dict[str, tuple[str, ...]] = {
    "activecampaign": ("webhooks/activecampaign/*",),
    "calendly": ("webhooks/calendly/*",),
    "docusign": ("webhooks/docusign/*",),
    "hubspot": ("webhooks/hubspot/*", "snowplow_adapters/hubspot_*"),
    "intercom": ("webhooks/intercom/*",),
    "mailchimp": ("webhooks/mailchimp/*", "snowplow_adapters/mailchimp_*"),
    "marketo": ("snowplow_adapters/marketo_*",),
    "mautic": ("mautic/*",),
    "pipedrive": ("webhooks/pipedrive/*",),
    "salesforce": ("webhooks/salesforce/*.xml",),
    "salesforce-cdc": ("webhooks/salesforce/*.json",),
    "segment": ("segment_spec/*",),
    "sendgrid": ("snowplow_adapters/sendgrid_*",),
    "stripe": ("stripe/*",),
    "typeform": ("webhooks/typeform/*",),
    "unbounce": ("snowplow_adapters/unbounce_*",),
    "vero": ("snowplow_adapters/vero_*",),
}
"""Which of the real data sets belong to which source."""
MAY_BE_SHIPPED = ("webhooks/intercom/", "snowplow_adapters/", "segment_spec/", "stripe/",
                  "webhooks/mailchimp/snowplow")  # fmt: skip


def fixtures() -> Iterator[tuple[Path, Path]]:
    """(source file, sample) of our own fixtures."""
    for source in SOURCES:
        for sample in sorted((FIXTURES / source.stem).glob("*")):
            if sample.suffix in SUFFIXES and not sample.name.endswith(EXPECTED):
                yield source, sample


def real_samples() -> Iterator[tuple[Path, Path]]:
    """(source file, sample) of the vendors' own."""
    for source in SOURCES:
        for pattern in REAL.get(source.stem, ()):
            for sample in sorted(DATA.glob(pattern)):
                if sample.suffix in SUFFIXES:
                    yield source, sample


def mapped(source: Path, sample: Path) -> dict[str, Any]:
    """What the sample becomes, through JSON."""
    result = map_delivery(load_source(source), delivery_of(source, sample)).shown()
    for quarantined in result["quarantined"]:  # not anew with every line that is added to the file
        quarantined["reason"] = re.sub(r"\bline \d+", "line N", quarantined["reason"])
    return result


def delivery_of(source: Path, sample: Path) -> Delivery:
    """The sample as it comes in: of Mautic's the data set has what is under the name of the event."""
    delivery = read_sample(sample, {})
    if source.stem == "mautic" and sample.is_relative_to(DATA):
        envelope = b'{"mautic.%s":%s}' % (sample.stem.encode(), delivery.body)
        delivery = msgspec.structs.replace(delivery, body=envelope)
    return delivery


def told(sample: Path, result: dict[str, Any]) -> dict[str, Any]:
    """What a golden file may say of a real sample."""
    if str(sample.relative_to(DATA)).startswith(MAY_BE_SHIPPED):
        return result
    whole = json.dumps(result, sort_keys=True).encode()
    return {
        "digest": hashlib.sha256(whole).hexdigest(),
        "events": [
            {
                "type": e["type"], "time": e["time"], "deal": e["deal"] != "main",
                "id": hashlib.sha256(e["id"].encode()).hexdigest()[:16],
                "identities": [i.partition("=")[0] for i in e["identities"]],
                "data": sorted(e["data"]),
            }
            for e in result["events"]
        ],
        "quarantined": [{k: q[k] for k in ("item", "code", "field")} for q in result["quarantined"]],
        "ignored": result["ignored"],
    }  # fmt: skip


def golden_of(source: Path, sample: Path) -> Path:
    """Where the golden file of a real sample is."""
    return GOLDEN / source.stem / f"{sample.name}.json"


def _id(value: Path) -> str:
    return value.stem


@pytest.mark.parametrize(("source", "sample"), list(fixtures()), ids=_id)
def test_our_samples(source: Path, sample: Path) -> None:
    expected = json.loads(sample.with_name(sample.name + EXPECTED).read_text())
    assert mapped(source, sample) == expected


@pytest.mark.parametrize("source", SOURCES, ids=_id)
def test_every_source_has_samples_of_ours(source: Path) -> None:
    assert any(each == source for each, _ in fixtures()), "add tests/fixtures/sources/<name>/"


@pytest.mark.real_data
@pytest.mark.parametrize(("source", "sample"), list(real_samples()), ids=_id)
def test_the_vendors_samples(source: Path, sample: Path) -> None:
    golden = golden_of(source, sample)
    assert golden.exists(), "write it: python -m tests.unit.test_sources_golden"
    assert told(sample, mapped(source, sample)) == json.loads(golden.read_text())


@pytest.mark.real_data
def test_the_real_samples_are_there(shared_data: Path) -> None:
    """Where the data sets are missing, the tests above have no parameters: here it shows."""
    for source in SOURCES:
        for pattern in REAL.get(source.stem, ()):
            assert list(shared_data.glob(pattern)), pattern


@pytest.mark.parametrize(("source", "sample"), list(fixtures()), ids=_id)
def test_mapping_is_a_function_of_the_delivery(source: Path, sample: Path) -> None:
    """Twice the same: ids above all, or a vendor's retry would be a second event."""
    assert mapped(source, sample) == mapped(source, sample)


if __name__ == "__main__":
    for source, sample in fixtures():
        text = json.dumps(mapped(source, sample), indent=2, ensure_ascii=False) + "\n"
        sample.with_name(sample.name + EXPECTED).write_text(text)
    for source, sample in real_samples():
        golden_of(source, sample).parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(told(sample, mapped(source, sample)), indent=2, ensure_ascii=False)
        golden_of(source, sample).write_text(text + "\n")
