"""Our own OpenAPI document, played back at the server by schemathesis: whatever it invents, no answer is a 5xx (but 504 to a deadline)."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import content_type_conformance, response_schema_conformance

from tests.server import RunningServer

CHECKS = [not_a_server_error, content_type_conformance, response_schema_conformance]
OPERATIONS = 10


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE], ids=lambda m: m.value)
def test_no_server_error(server: RunningServer, mode: GenerationMode) -> None:
    document = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    operations = [found.ok() for found in document.get_all_operations()]
    assert len(operations) == OPERATIONS
    for operation in operations:
        if mode is GenerationMode.NEGATIVE and operation.method == "get":
            continue  # nothing can be wrong with a request that has no parameters

        @given(case=operation.as_strategy(generation_mode=mode))
        @settings(
            max_examples=3 if operation.method == "get" else 15,
            deadline=None,
            derandomize=True,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        def play(case: Any) -> None:
            response = case.call(timeout=60)
            if response.status_code == 504:  # what a request gets that grants itself next to no time
                assert response.json()["error"]["code"] == "deadline_exceeded"
                assert case.body["timeout_s"] < 60
                return
            case.validate_response(response, checks=CHECKS)

        play()
    with httpx.Client(base_url=server.url) as http:
        deep = http.get("/health", params={"deep": "1"})
        assert (deep.status_code, deep.json()["engine"]["kv_used_tokens"]) == (200, 0)


def test_the_document_names_every_field_of_the_schemas(server: RunningServer) -> None:
    schemas = httpx.get(f"{server.url}/openapi.json").json()["components"]["schemas"]
    chat = schemas["ChatCompletionRequest"]
    assert chat["additionalProperties"] is False
    assert chat["properties"]["model"]["enum"] == ["tiny"]
    assert {"messages", "tools", "response_format", "stream_options"} <= chat["properties"].keys()
    assert not {"suffix", "functions"} & chat["properties"].keys()
