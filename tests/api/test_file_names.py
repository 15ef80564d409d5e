"""Names of files between HTTP and a session's system: each comes through, whatever bytes it is made of."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from interpreter.api.http.names import attachment, decoded, encoded, form_name, shown
from interpreter.errors import InvalidRequest


@given(raw=st.binary(min_size=1, max_size=60))
def test_any_bytes_come_back_from_their_encoded_form(raw: bytes) -> None:
    name = raw.decode("utf-8", "surrogateescape")
    shown(name).encode()
    form = encoded(name)
    assert form is None or decoded(form) == name
    assert (form is None) == (raw.decode("utf-8", "replace").encode() == raw)


@pytest.mark.parametrize(
    ("name", "plain", "extended"),
    [
        ("data.csv", "data.csv", "data.csv"),
        ("grün.csv", "grun.csv", "gr%C3%BCn.csv"),
        ("日本.csv", "__.csv", "%E6%97%A5%E6%9C%AC.csv"),
        ('a"b\\c%41.csv', "a_b_c_41.csv", "a%22b%5Cc%2541.csv"),
        ("a\r\nSet-Cookie: x", "a__Set-Cookie: x", "a%0D%0ASet-Cookie%3A%20x"),
        ("caf\udce9.csv", "caf_.csv", "caf_.csv"),
    ],
)
def test_a_download_has_its_name_for_all_clients(name: str, plain: str, extended: str) -> None:
    assert attachment(name) == f"attachment; filename=\"{plain}\"; filename*=UTF-8''{extended}"


@pytest.mark.parametrize(
    ("name", "disposition", "expected"),
    [
        ("a.csv", 'form-data; name="file"; filename="a.csv"', "a.csv"),
        # As .NET sends it.
        (
            "=?utf-8?B?5pel5pysLmNzdg==?=",
            "form-data; name=file; filename=\"=?utf-8?B?5pel5pysLmNzdg==?=\"; filename*=utf-8''%E6%97%A5%E6%9C%AC.csv",
            "日本.csv",
        ),
        ("=?utf-8?B?5pel5pysLmNzdg==?=", 'form-data; filename="=?utf-8?B?5pel5pysLmNzdg==?="', "日本.csv"),
        ("=?ISO-8859-1?Q?gr=FCn=2Ecsv?=", "form-data", "grün.csv"),
        ("=?utf-8?B?5pel?= =?utf-8?B?5pys?=", "form-data", "日本"),
        ("x", "form-data; filename*=iso-8859-1'en'gr%FCn.csv; filename=x", "grün.csv"),
        # What cannot be decoded stays as it is.
        ("=?nonsense?B?eA==?=", "form-data", "=?nonsense?B?eA==?="),
        ("=?utf-8?B?%%%?=", "form-data", "=?utf-8?B?%%%?="),
        ("x", "form-data; filename*=utf-8''%FF", "x"),
        # Not a parameter: part of a name.
        ("a; filename*=utf-8''b", "form-data; filename=\"a; filename*=utf-8''b\"", "a; filename*=utf-8''b"),
        ("folder/sub/a.csv", "form-data", "folder/sub/a.csv"),
    ],
)
def test_a_part_of_a_form_has_the_name_that_its_client_means(name: str, disposition: str, expected: str) -> None:
    assert form_name(name, disposition) == expected


@pytest.mark.parametrize("name", ["", ".", "..", "/etc/x", "a/../b", "a//b", "a/", "../x"])
def test_a_name_that_leads_elsewhere_is_refused(name: str) -> None:
    with pytest.raises(InvalidRequest):
        form_name(name, "form-data")


def test_a_decoded_name_leads_nowhere_else_either() -> None:
    with pytest.raises(InvalidRequest):
        form_name("x", "form-data; filename*=utf-8''..%2Fx")
