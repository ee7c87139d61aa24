"""The phases of a request as a client sees them who reads raw bytes from a real server."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from servers.process import ONE_WORKER, Client, ServerProcess, request


@pytest.fixture(scope="module", params=ONE_WORKER)
def running_server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with ServerProcess(request.param, tmp_path_factory.mktemp("server")) as server:
        server.wait_ready()
        yield server


@pytest.fixture
def server(running_server: ServerProcess) -> ServerProcess:
    """The server with an empty log."""
    running_server.log.clear()
    return running_server


def test_client_has_the_whole_response_before_after_response_runs(server: ServerProcess) -> None:
    """The task holds the event loop until the client says that it has read the last byte."""
    response = request(server.port, "POST", "/orders")
    assert response.endswith(b'{"last byte":"!"}')
    server.log.note("client has response")
    server.log.wait_for("loop released")
    server.log.assert_order("committed", "loop held", "loop released")
    server.log.assert_order("client has response", "loop released")


def test_after_route_runs_when_the_endpoint_has_returned(server: ServerProcess) -> None:
    request(server.port, "POST", "/orders")
    server.log.note("client has response")
    server.log.wait_for("loop released")
    server.log.assert_order("immediate ran", "endpoint returns", "after_route ran", "loop released")


def test_streaming_holds_back_after_response_but_not_after_route(server: ServerProcess) -> None:
    with Client(server.port, "GET", "/stream") as client:
        client.read_until(b"first chunk")
        server.log.wait_for("after_route ran")
        assert "committed" not in server.log.names()
        server.log.note("client wants more")
        assert b"last chunk" in client.read_response()
    server.log.wait_for("after_response ran")
    server.log.assert_order("after_route ran", "client wants more", "last chunk", "committed", "after_response ran")


def test_task_for_the_other_outcome_is_discarded_by_name(server: ServerProcess) -> None:
    server.log.note("client wants more")
    request(server.port, "GET", "/stream")
    server.log.wait_for("after_response ran")
    assert "after_response on error ran" not in server.log.names()
    [line] = server.log.matching("discarded")
    assert "Task 'on_error' " in line
    assert "it is for when='error', and after_response ended in success" in line


def test_client_that_disconnects_in_the_middle_makes_the_request_an_error(server: ServerProcess) -> None:
    """No server tells the application the same way; that the last byte was never sent is the same for all."""
    with Client(server.port, "GET", "/stream") as client:
        client.read_until(b"first chunk")
        server.log.wait_for("after_route ran")
        client.reset()
    server.log.wait_for("after_response on error ran")
    assert "last chunk" not in server.log.names()
    assert "after_response ran" not in server.log.names()
    server.log.assert_order("committed", "after_response on error ran")
    [line] = server.log.matching("discarded")
    assert "it is for when='success', and after_response ended in error" in line
