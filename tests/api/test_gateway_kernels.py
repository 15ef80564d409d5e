"""Jupyter's REST routes: kernelspecs, kernels, sessions, status, as its gateway client and front ends read them."""

import asyncio
import re
import uuid
from datetime import datetime

import pytest
from channels_client import channels, new_kernel
from served import Api

from interpreter.store.records import Front

pytestmark = pytest.mark.machine

UNKNOWN = "5f0c1f7e-1d4b-4b5f-9a0e-6f1b2c3d4e5f"


async def test_every_built_template_is_a_kernelspec_with_logos_that_are_there(api: Api) -> None:
    specs = (await api.client.get("/api/kernelspecs")).json()
    assert specs["default"] == "base"
    spec = specs["kernelspecs"]["base"]
    assert spec["name"] == "base"
    assert {"display_name", "language", "argv", "env", "interrupt_mode", "metadata"} <= spec["spec"].keys()
    assert spec == (await api.client.get("/api/kernelspecs/base")).json()
    assert {"logo-32x32", "logo-64x64", "logo-svg"} <= spec["resources"].keys()
    for url in spec["resources"].values():
        answer = await api.client.get(url)
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("image/")
    assert (await api.client.get("/api/kernelspecs/other")).status_code == 404
    # The gateway client puts a name behind the query when KERNEL_USERNAME is set.
    assert (await api.client.get("/api/kernelspecs?user=ann/base")).json() == spec
    assert (await api.client.get("/api/kernelspecs?user=ann")).json() == specs
    assert (await api.client.get("/kernelspecs/base/kernel.js")).status_code == 404


async def test_a_kernel_has_all_that_the_gateway_client_takes_for_granted(api: Api, kernel: str) -> None:
    assert re.fullmatch(r"\w+-\w+-\w+-\w+-\w+", kernel)
    model = (await api.client.get(f"/api/kernels/{kernel}")).json()
    assert (model["id"], model["name"], model["execution_state"], model["connections"]) == (kernel, "base", "idle", 0)
    # The client parses with exactly this format.
    datetime.strptime(model["last_activity"], "%Y-%m-%dT%H:%M:%S.%fZ")  # noqa: DTZ007
    assert model in (await api.client.get("/api/kernels")).json()


async def test_a_kernel_is_a_session_and_both_views_show_it(api: Api, kernel: str, session_id: str) -> None:
    session = (await api.client.get(f"/v1/sessions/{kernel.replace('-', '')}")).json()
    assert (session["state"], session["template"], session["timeout_mode"]) == ("running", "base", "idle")
    kernels = {model["id"] for model in (await api.client.get("/api/kernels")).json()}
    assert str(uuid.UUID(session_id)) in kernels
    # Stopped over REST it is gone for Jupyter, and the other way round.
    other = await new_kernel(api)
    await api.client.delete(f"/v1/sessions/{other.replace('-', '')}")
    assert (await api.client.get(f"/api/kernels/{other}")).status_code == 404
    other = await new_kernel(api)
    await api.client.delete(f"/api/kernels/{other}")
    assert (await api.client.get(f"/v1/sessions/{other.replace('-', '')}")).json()["state"] == "stopped"


async def test_allowed_variables_reach_the_kernel_and_no_others(api: Api) -> None:
    env = {"KERNEL_USERNAME": "ann", "PATH": "/nowhere", "AWS_SECRET_ACCESS_KEY": "x"}
    kernel = await new_kernel(api, env=env)
    code = "import os; print([os.environ.get(n) for n in ('KERNEL_USERNAME', 'AWS_SECRET_ACCESS_KEY')])"
    assert await api.printed(kernel.replace("-", ""), code) == "['ann', None]\n"
    assert await api.printed(kernel.replace("-", ""), "print(os.environ['KERNEL_ID'])") == f"{kernel}\n"
    assert "/nowhere" not in await api.printed(kernel.replace("-", ""), "print(os.environ['PATH'])")
    await api.client.delete(f"/api/kernels/{kernel}")


async def test_a_notebook_that_asks_for_any_python_gets_the_default_template(api: Api) -> None:
    # nbclient through the gateway always asks for python3.
    kernel = await new_kernel(api, name="python3")
    assert (await api.client.get(f"/api/kernels/{kernel}")).json()["name"] == "base"
    await api.client.delete(f"/api/kernels/{kernel}")
    assert (await api.client.get("/api/kernelspecs/python3")).json()["name"] == "base"


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"name": "other"}, 404),
        ({"name": "../base"}, 404),
        ({"name": 5}, 422),
        ({"name": "base", "env": ["KERNEL_X"]}, 422),
        ({"name": "base", "env": {"KERNEL_X": 5}}, 422),
        ({"name": "base", "env": {"KERNEL_X=Y": "1"}}, 422),
        ([], 422),
    ],
)
async def test_what_no_kernel_can_be_started_from_is_refused_in_jupyters_words(
    api: Api, body: object, status: int
) -> None:
    answer = await api.client.post("/api/kernels", json=body)
    assert answer.status_code == status
    # Where the gateway client looks for what it tells its user.
    assert answer.json()["message"]
    assert answer.json()["reason"] == answer.json()["error"]["code"]


async def test_an_unknown_kernel_is_404_on_every_route(api: Api) -> None:
    for method, path in (("GET", ""), ("DELETE", ""), ("POST", "/interrupt"), ("POST", "/restart")):
        for unknown in (UNKNOWN, "x", "%2e%2e%2fx", "%00", "a" * 99):
            answer = await api.client.request(method, f"/api/kernels/{unknown}{path}")
            assert answer.status_code in {404, 405}, (method, path, unknown)


async def test_bodies_of_interrupt_and_restart_may_be_empty(api: Api, kernel: str) -> None:
    assert (await api.client.post(f"/api/kernels/{kernel}/interrupt")).status_code == 204
    assert (await api.client.post(f"/api/kernels/{kernel}/restart")).json()["id"] == kernel


async def test_a_session_made_over_rest_keeps_its_own_timeout_mode(api: Api, session_id: str) -> None:
    live = api.service.sessions.live_session(session_id)
    assert live is not None
    assert live.record.front is Front.REST
    async with channels(api, str(uuid.UUID(session_id))) as client:
        assert await client.printed("print('a REST session in a notebook')") == "a REST session in a notebook\n"
    assert live.record.timeout_mode == "total"


async def test_a_notebook_has_one_session_with_its_kernel(api: Api) -> None:
    body = {"path": "a.ipynb", "type": "notebook", "name": "a", "kernel": {"name": "base"}}
    made = await api.client.post("/api/sessions", json=body)
    assert made.status_code == 201
    session = made.json()
    kernel = session["kernel"]["id"]
    assert (session["path"], session["name"], session["type"]) == ("a.ipynb", "a", "notebook")
    assert session["notebook"] == {"path": "a.ipynb", "name": "a"}
    assert session == (await api.client.post("/api/sessions", json=body)).json()
    # Asked for twice at once it is one, too.
    again = {**body, "path": "at-once.ipynb"}
    both = await asyncio.gather(*(api.client.post("/api/sessions", json=again) for _ in range(2)))
    assert both[0].json() == both[1].json()
    await api.client.delete(f"/api/sessions/{both[0].json()['id']}")
    assert session == (await api.client.get(f"/api/sessions/{session['id']}")).json()
    # A console on the same kernel, then renamed.
    console = {"path": "console-1", "type": "console", "name": "", "kernel": {"id": kernel}}
    second = (await api.client.post("/api/sessions", json=console)).json()
    assert second["kernel"]["id"] == kernel
    changed = (await api.client.patch(f"/api/sessions/{second['id']}", json={"path": "console-2"})).json()
    assert (changed["id"], changed["path"], changed["type"]) == (second["id"], "console-2", "console")
    listed = (await api.client.get("/api/sessions")).json()
    assert {one["path"] for one in listed if one["kernel"]["id"] == kernel} == {"a.ipynb", "console-2"}
    # Another kernel for the notebook.
    moved = await api.client.patch(f"/api/sessions/{session['id']}", json={"kernel": {"name": "base"}})
    other = moved.json()["kernel"]["id"]
    assert other != kernel
    assert (await api.client.delete(f"/api/sessions/{session['id']}")).status_code == 204
    assert (await api.client.get(f"/api/kernels/{other}")).status_code == 404
    assert (await api.client.get(f"/api/kernels/{kernel}")).status_code == 200
    # The console gets another one too: the first kernel has no user any more, and is shut down.
    moved = await api.client.patch(f"/api/sessions/{second['id']}", json={"kernel": {"name": "base"}})
    assert (await api.client.get(f"/api/kernels/{kernel}")).status_code == 404
    await api.client.delete(f"/api/kernels/{moved.json()['kernel']['id']}")
    assert (await api.client.get(f"/api/sessions/{second['id']}")).status_code == 404


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"type": "notebook", "kernel": {"name": "base"}}, 422),
        ({"path": "b.ipynb", "kernel": {"name": "base"}}, 422),
        ({"path": "b.ipynb", "type": "notebook", "kernel": {"id": UNKNOWN}}, 404),
        ({"path": "b.ipynb", "type": "notebook", "kernel": {"name": "other"}}, 404),
        ({"path": 5, "type": "notebook"}, 422),
    ],
)
async def test_what_is_no_jupyter_session_is_refused(api: Api, body: dict[str, object], status: int) -> None:
    assert (await api.client.post("/api/sessions", json=body)).status_code == status


async def test_status_counts_kernels_and_connections(api: Api, kernel: str) -> None:
    before = (await api.client.get("/api/status")).json()
    async with channels(api, kernel):
        status = (await api.client.get("/api/status")).json()
    assert status["connections"] == before["connections"] + 1
    assert status["kernels"] == len((await api.client.get("/api/kernels")).json())
    assert (await api.client.get("/api")).json()["version"]
    assert (await api.client.get("/api/me")).json()["identity"]["username"]
