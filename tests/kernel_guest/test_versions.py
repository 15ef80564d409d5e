"""After an upgrade: an agent of the version before is spoken with as far as it goes, another is refused by name."""

import pytest
from guest_on_host import SECONDS, start_guest

from interpreter.errors import GuestRefused, TemplateOutdated
from interpreter.kernel import versions
from kernel_guest.frames import AGENT_VERSION


def test_the_newest_agent_is_spoken_with_and_lacks_nothing() -> None:
    assert versions.SPOKEN[AGENT_VERSION] == frozenset()
    assert max(versions.SPOKEN) == AGENT_VERSION


async def test_an_agent_of_the_version_before_works_but_for_what_it_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    before = AGENT_VERSION - 1
    spoken = {before: frozenset({"describe"}), AGENT_VERSION: frozenset[str]()}
    monkeypatch.setattr(versions, "SPOKEN", spoken)
    # 10 s for a kernel to welcome a client, as it is without the first argument.
    async with start_guest("10", str(before)) as guest:
        assert guest.control.version == before
        await guest.renew()
        async with guest.kernel() as kernel:
            assert await kernel.printed("print(6 * 7)") == "42\n"
        await guest.call("make_folder", path="made")
        with pytest.raises(GuestRefused, match=r"does not know `describe`.*Start another session"):
            await guest.control.call("describe", timeout=SECONDS, path="made")


@pytest.mark.parametrize("version", [min(versions.SPOKEN) - 1, AGENT_VERSION + 1])
async def test_an_agent_that_is_too_old_or_too_new_is_told_with_what_to_do(version: int) -> None:
    with pytest.raises(TemplateOutdated, match=rf"agent {version},.*interpreter template build"):
        async with start_guest("10", str(version)):
            pytest.fail("it was spoken with")
