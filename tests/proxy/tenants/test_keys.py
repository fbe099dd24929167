"""Keys: what is kept of them, when they hold, and who is let in."""

import os
import re
import subprocess
import sys

import pytest

from penstock.errors import AuthenticationError, ConfigError, InvalidRequestError, NotFoundError
from penstock.proxy.controls import DEFAULT_TENANT, tenant_of
from penstock.proxy.tenants.api_key import ApiKey
from penstock.proxy.tenants.tenant import Tenant
from penstock.proxy.tenants.tenants import Tenants, TenantStore
from penstock.scheduler.urgency import HIGHEST


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def test_a_key_says_its_public_id_and_only_a_digest_of_the_rest_is_kept(place):
    place.make()
    key = place.store.directory.create_key("acme", label="laptop")
    assert re.fullmatch(r"psk-[0-9a-f]{12}-[A-Za-z0-9_-]{43}", key.text)
    assert ApiKey.parse(key.text) == key
    place.store.close()
    kept = b"".join(file.read_bytes() for file in place.path.rglob("*") if file.is_file())
    assert key.id.encode() in kept and key.secret.encode() not in kept
    assert oct(place.path.stat().st_mode)[-3:] == "700"
    place.store = TenantStore(place.path, place.clock)


@pytest.mark.parametrize("header", ["Authorization", "x-api-key"])
def test_a_key_is_taken_from_either_header(place, header):
    place.make(priority=3, cache="draft")
    key = place.store.directory.create_key("acme").text
    value = f"Bearer {key}" if header == "Authorization" else key
    assert place.tenants.authenticate({header: value}) == Tenant(name="acme", priority=3, cache="draft")


@pytest.mark.parametrize(
    "wrong",
    [
        "psk-000000000000-" + "a" * 43,
        "{id}",
        "psk-{id}-",
        "psk-{id}-" + "a" * 43,
        "psk-{id}-{secret}x",
        "PSK-{id}-{secret}",
        "psk-" + "0" * 4000 + "-x",
        "psk-\udcff\udcfe-\udc80",
        "psk-٣٣٣٣٣٣٣٣٣٣٣٣-x",
    ],
)
def test_what_is_no_key_is_refused(place, wrong):
    place.make()
    key = place.store.directory.create_key("acme")
    with pytest.raises(AuthenticationError, match="not one of this server's"):
        place.tenants.authenticate(bearer(wrong.format(id=key.id, secret=key.secret)))
    with pytest.raises(AuthenticationError, match="needs an API key"):
        place.tenants.authenticate({})


def test_without_any_key_the_server_is_open(place):
    for tenants in (place.tenants, Tenants()):
        assert tenants.authenticate({}) == Tenant(name=DEFAULT_TENANT, priority=HIGHEST)
        assert tenants.authenticate(bearer("any")).name == tenant_of("any")


def test_a_server_whose_last_key_was_revoked_stays_closed(place):
    place.make()
    key = place.store.directory.create_key("acme")
    place.store.directory.remove_tenant("acme")
    with pytest.raises(AuthenticationError, match="has ended"):
        place.tenants.authenticate(bearer(key.text))
    with pytest.raises(AuthenticationError):
        place.tenants.authenticate({})
    place.make()
    with pytest.raises(AuthenticationError, match="has ended"):
        place.tenants.authenticate(bearer(key.text))


def test_static_keys_stand_beside_the_table(place):
    place.make()
    key = place.store.directory.create_key("acme")
    tenants = Tenants(place.store, api_keys=("static",))
    assert tenants.authenticate(bearer("static")) == Tenant(name=tenant_of("static"), priority=HIGHEST)
    assert tenants.authenticate(bearer(key.text)).name == "acme"
    with pytest.raises(AuthenticationError):
        tenants.authenticate({})


def test_a_rotated_key_holds_through_its_grace(place):
    place.make()
    directory = place.store.directory
    old = directory.create_key("acme", label="ci")
    new = directory.rotate_key(old.id, grace=60)
    for key in (old, new):
        assert place.tenants.authenticate(bearer(key.text)).name == "acme"
    place.clock.now += 60
    with pytest.raises(AuthenticationError, match="has ended"):
        place.tenants.authenticate(bearer(old.text))
    assert place.tenants.authenticate(bearer(new.text)).name == "acme"
    assert [(key.id, key.label) for key in directory.keys("acme")] in (
        [(old.id, "ci"), (new.id, "ci")],
        [(new.id, "ci"), (old.id, "ci")],
    )
    with pytest.raises(NotFoundError, match="ended already"):
        directory.rotate_key(old.id)


@pytest.mark.parametrize("name", ["", "a b", "-x", "x" * 65, "default", "0" * 32, "ä", "a/b"])
def test_names_that_would_be_trouble_are_refused(place, name):
    with pytest.raises(InvalidRequestError, match="tenant's name is"):
        place.store.directory.put_tenant(Tenant(name=name))


def test_what_is_not_there_is_named(place):
    directory = place.store.directory
    for call in (
        lambda: directory.tenant("nobody"),
        lambda: directory.create_key("nobody"),
        lambda: directory.revoke_key("x" * 600),
        lambda: directory.remove_tenant("x" * 600),
    ):
        with pytest.raises(NotFoundError, match="There is no"):
            call()


def test_a_folder_that_cannot_be_used_says_so(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"tenants' folder .*file.* cannot be used"):
        TenantStore(tmp_path / "file")


def test_counters_torn_by_a_lost_machine_are_set_aside_and_keys_are_not(place, caplog):
    place.make()
    key = place.store.directory.create_key("acme")
    place.admit(place.make()).close()
    place.store.close()
    (place.path / "boot").write_text("an earlier one")
    data = place.path / "counters" / "data.mdb"
    content = bytearray(data.read_bytes())
    content[2 * 4096 :] = os.urandom(len(content) - 2 * 4096)
    data.write_bytes(content)
    place.store = TenantStore(place.path, place.clock)
    assert "damaged" in caplog.text
    assert place.store.counters.lines() == []
    assert Tenants(place.store).authenticate(bearer(key.text)).name == "acme"
    assert list(place.path.glob("counters-damaged-*/data.mdb"))


def test_several_processes_may_open_a_new_folder_at_once(tmp_path):
    code = (
        "import sys; from pathlib import Path; from penstock.proxy.tenants.tenants import TenantStore\n"
        "TenantStore(Path(sys.argv[1])).close()"
    )
    started = [subprocess.Popen([sys.executable, "-P", "-c", code, str(tmp_path / "t")]) for _ in range(4)]
    assert [process.wait() for process in started] == [0] * 4
