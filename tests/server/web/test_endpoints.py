"""The document of the status page."""

import base64
import hashlib
import re
import shutil
import subprocess

import pytest

from neurona_server.web import endpoints


def test_the_policy_allows_the_page_s_own_style_and_script_only():
    content, policy = endpoints.build_status_page()
    text = content.decode()
    for tag in ("style", "script"):
        (inside,) = re.findall(f"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none'; ")
    assert "unsafe" not in policy


def test_the_page_loads_nothing_from_other_servers():
    text = endpoints.build_status_page()[0].decode()
    assert not re.findall(r"(?:src|href)=\"(?!metrics|healthz|#models|data:,)", text)
    # The namespace of SVG is not an address that is loaded.
    assert set(re.findall(r"https?://[^\"\s]+", text)) == {"http://www.w3.org/2000/svg"}
    assert "innerHTML" not in text
    assert not re.search(r"\son[a-z]+=|\sstyle=", text)


def test_the_script_is_valid_javascript(tmp_path):
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed")
    text = endpoints.build_status_page()[0].decode()
    (script,) = re.findall("<script>(.*?)</script>", text, re.DOTALL)
    path = tmp_path / "page.js"
    path.write_text(script)
    subprocess.run([node, "--check", path], check=True)
