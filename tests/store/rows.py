"""Records with what a test does not care about filled in."""

from interpreter.store.records import ExecutionRecord, SessionRecord, State


def session(session_id: str = "s", state: State = State.RUNNING, **more: object) -> SessionRecord:
    known = {"tenant": "t", "template": "base", "created_at": 1.0, "last_used_at": 1.0, "timeout_seconds": 1}
    return SessionRecord.model_validate({"id": session_id, "state": state, "cpus": 1, "memory_mb": 1, **known, **more})


def done(execution_id: str, at: float = 1.0, *, result: bytes = b"{}", session_id: str = "s") -> ExecutionRecord:
    return ExecutionRecord(execution_id, session_id, "main", "done", at, at, result)


def running(execution_id: str, at: float = 1.0, session_id: str = "s") -> ExecutionRecord:
    return ExecutionRecord(execution_id, session_id, "main", "running", at)
