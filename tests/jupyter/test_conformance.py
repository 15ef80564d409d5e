"""Jupyter's own conformance tests against the installed kernelspec: by the provisioner, and by its argv."""

from typing import Any

import jupyter_kernel_test
import pytest
from jupyter_kernel_test.msgspec_v5 import validate_message

SECONDS = 30

pytestmark = [pytest.mark.machine, pytest.mark.usefixtures("kernelspecs")]


class Samples(jupyter_kernel_test.KernelTests):
    __test__ = False

    @classmethod
    def setUpClass(cls) -> None:
        super().setUpClass()
        # The first completion imports jedi, for which emulated processors take ten of the fifteen seconds that it has.
        cls.kc.complete("zi", reply=True, timeout=120)

    def execute_helper(
        self,
        code: str,
        timeout: int = SECONDS,
        silent: bool = False,
        store_history: bool = True,
        stop_on_error: bool = True,
    ) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """As theirs, but what belongs to other requests is passed over, and there is time for each message."""
        request = self.kc.execute(code, silent=silent, store_history=store_history, stop_on_error=stop_on_error)
        reply = self.get_non_kernel_info_reply(timeout=timeout)
        assert reply is not None
        validate_message(reply, "execute_reply", request)
        messages: list[dict[str, Any]] = []
        while not messages or messages[-1]["content"].get("execution_state") != "idle":
            message = self.kc.get_iopub_msg(timeout=SECONDS)
            if message["parent_header"].get("msg_id") == request:
                validate_message(message, message["msg_type"], request)
                messages.append(message)
        states = [one["content"]["execution_state"] for one in messages if one["msg_type"] == "status"]
        assert (messages[0]["msg_type"], states) == ("status", ["busy", "idle"])
        assert all(one["content"]["code"] == code for one in messages if one["msg_type"] == "execute_input")
        return reply, [one for one in messages if one["msg_type"] not in {"status", "execute_input"}]

    language_name = "python"
    file_extension = ".py"
    code_hello_world = "print('hello, world')"
    code_stderr = "import sys; print('test', file=sys.stderr)"
    completion_samples = [{"text": "zi", "matches": {"zip"}}]  # noqa: RUF012
    complete_code_samples = ["1", "print('hello, world')", "def f(x):\n  return x*2\n\n\n"]  # noqa: RUF012
    incomplete_code_samples = ["print('''hello", "def f(x):\n  x*2"]  # noqa: RUF012
    invalid_code_samples = ["import = 7q"]  # noqa: RUF012
    code_page_something = "zip?"
    code_generate_error = "raise"
    code_execute_result = [  # noqa: RUF012
        {"code": "1+2+3", "result": "6"},
        {"code": "[n*n for n in range(1, 4)]", "result": "[1, 4, 9]"},
    ]
    code_display_data = [  # noqa: RUF012
        {"code": "from IPython.display import HTML, display; display(HTML('<b>test</b>'))", "mime": "text/html"},
        {"code": "from IPython.display import Math, display; display(Math('\\\\frac{1}{2}'))", "mime": "text/latex"},
    ]
    # Not `range`: IPython answers the current session as 0.
    code_history_pattern = "1?2*"
    supported_history_operations = ("tail", "search")
    code_inspect_sample = "zip"
    code_clear_output = "from IPython.display import clear_output; clear_output()"


class TestProvisioned(Samples):
    __test__ = True
    kernel_name = "interpreter-base"


class TestLaunched(Samples):
    __test__ = True
    kernel_name = "launched-base"


class TestProvisionedWelcome(jupyter_kernel_test.IopubWelcomeTests):
    kernel_name = "interpreter-base"
    support_iopub_welcome = True


class TestLaunchedWelcome(jupyter_kernel_test.IopubWelcomeTests):
    kernel_name = "launched-base"
    support_iopub_welcome = True
