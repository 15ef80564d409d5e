"""The service against its own description: thousands of generated requests, none answered by anything undescribed."""

import asyncio
import sys
from pathlib import Path

import pytest
from served import own_home, serve

from interpreter import Engine, Settings

pytestmark = pytest.mark.machine

CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"


async def test_generated_requests_get_what_the_description_says(
    engine: Engine, settings: Settings, tmp_path: Path
) -> None:
    home = own_home(settings, tmp_path / "home")
    async with serve(Settings(home=home, default_template="base", max_sessions_per_tenant=2)) as api:
        session_id = await api.new()
        config = tmp_path / "schemathesis.toml"
        config.write_text(f'[parameters]\n"path.session_id" = "{session_id}"\n')
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "schemathesis.cli", "--config-file", config, "run"),
            f"http://127.0.0.1:{api.port}/openapi.json",
            *("--phases", "examples,coverage,fuzzing", "--max-examples", "4", "--checks", CHECKS),
            # Streams of events have no end to wait for; what stops the session would end the test.
            *("--exclude-path-regex", "/events$", "--exclude-method", "DELETE"),
            *("--request-timeout", "30", "--max-time", "60", "--no-color"),
            cwd=tmp_path,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        out, _ = await process.communicate()
        assert process.returncode == 0, out.decode()
        assert (await api.client.get("/readyz")).status_code == 200
