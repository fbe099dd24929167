"""A server of our own ends with us, whatever ends us."""

import json
import subprocess
import sys
import textwrap
from urllib.request import urlopen

import psutil
import pytest

OWNER = """
    import sys, time
    from penstock.tune.own_server import own_server
    with own_server(["--config", sys.argv[1]]) as url:
        print(url, flush=True)
        time.sleep(60)
"""


@pytest.mark.parametrize("workers", [1, 2])
def test_it_does_not_outlive_its_owner(tmp_path, workers):
    file = tmp_path / "penstock.toml"
    file.write_text(f"""
        model = "none"
        embedding_model = "none"
        cache = false
        tenants = false
        workers = {workers}
        [upstreams.gone]
        base_url = "http://127.0.0.1:9/v1"
        models = ["m"]
    """)
    owner = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(OWNER), str(file)], stdout=subprocess.PIPE, text=True
    )
    assert owner.stdout is not None
    url = owner.stdout.readline().strip()
    with urlopen(f"{url}/v1/models") as reply:
        assert [model["id"] for model in json.load(reply)["data"]] == ["m"]
    family = psutil.Process(owner.pid).children(recursive=True)
    assert len(family) >= workers
    owner.kill()
    owner.wait()
    owner.stdout.close()
    _, alive = psutil.wait_procs(family, timeout=20)
    for process in alive:
        process.kill()
    assert not alive
