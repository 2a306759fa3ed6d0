"""Secrets in addresses of stores and servers stay secret in every message, also in those of libraries."""

import os
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stagemeter.core.addresses import redactor, secrets_of, shown_address

PASSWORD, TOKEN, QUERY = "pass-w0rd-x", "tok_3n4m5k6j", "que-ry-9z8"


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("https://me:secret@host:1/path?token=abc", "https://***@host:1/path?***"),
        ("https://token@host", "https://***@host"),
        ("https://token:@host/", "https://***@host/"),
        ("postgresql+psycopg2://me:p@ss/word?x@host/db", "postgresql+psycopg2://***@host/db"),
        ("http://host/path", "http://host/path"),
        ("http://host/?a=b#c", "http://host/?***"),
        ("sqlite:///relative/mlflow.db", "sqlite:///relative/mlflow.db"),
        ("sqlite:////home/me@work/mlflow.db", "sqlite:////home/me@work/mlflow.db"),
        ("file:///home/me@work", "file:///home/me@work"),
        ("./mlruns", "./mlruns"),
        ("http://[::1", "http://[::1"),
        ("http://", "http://"),
        ("databricks", "databricks"),
        ("me:secret@host:5000/mlflow", "***@host:5000/mlflow"),
        ("http:/me:secret@host", "http:/***@host"),
        ("//me:secret@host", "//***@host"),
        ("postgresql:me:se/cret@host/db", "***@host/db"),
        ("sqlite:me:x@host/db", "sqlite:me:x@host/db"),
        ("/home/me@work/12:30", "/home/me@work/12:30"),
        (r"C:\runs\me@work", r"C:\runs\me@work"),
    ],
)
def test_address_as_it_is_shown(address, shown):
    assert shown_address(address) == shown


words = st.text(alphabet=st.characters(min_codepoint=33, max_codepoint=126), min_size=9, max_size=20)


@given(words, words)
def test_no_address_shows_its_user_or_password(user, password):
    address = f"http://U{user}:P{password}@host.example/mlflow"
    assert shown_address(address).endswith("host.example/mlflow") or "?***" in shown_address(address)
    assert f"U{user}:P{password}" not in shown_address(address)
    assert f"P{password}" not in redactor(secrets_of({"MLFLOW_TRACKING_URI": address}, []))(f"failed: {address} .")


def test_text_of_others_is_cleaned():
    store = f"https://{TOKEN}:{PASSWORD}@host/api?key={QUERY}"
    redact = redactor(secrets_of({"MLFLOW_TRACKING_URI": store, "MLFLOW_TRACKING_TOKEN": "bearer-1234"}, []))
    said = redact(
        f"View run at {store}/#/runs; Max retries exceeded with url: /api?key={QUERY}/api/2.0; user {TOKEN!r}, "
        f"password {PASSWORD}; Bearer bearer-1234; other http://a:b@c/d?e=f"
    )
    for secret in (TOKEN, PASSWORD, QUERY, "bearer-1234", "a:b", "e=f"):
        assert secret not in said


@pytest.mark.parametrize("beginning", ["", "http:/", "//", "postgresql:", "--source="])
def test_address_with_a_mistake_in_its_beginning_is_cleaned(beginning):
    address = f"{beginning}{TOKEN}:{PASSWORD}@host:8000/metrics"
    for redact in (
        redactor(secrets_of({}, [address])),
        redactor(secrets_of({"MLFLOW_TRACKING_URI": address}, [])),
    ):
        said = redact(f"error: {address}: no such file; {PASSWORD!r}")
        assert TOKEN not in said
        assert PASSWORD not in said


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MLFLOW_TRACKING_PASSWORD", PASSWORD),
        ("DATABRICKS_TOKEN", PASSWORD),
        ("DATABRICKS_CLIENT_SECRET", PASSWORD),
        ("AWS_SECRET_ACCESS_KEY", PASSWORD),
        ("HF_TOKEN", PASSWORD),
        ("https_proxy", f"http://me:{PASSWORD}@proxy:3128"),
        ("MLFLOW_S3_ENDPOINT_URL", f"https://me:{PASSWORD}@host"),
    ],
)
def test_secrets_of_the_environment_are_cleaned(name, value):
    redact = redactor(secrets_of({name: value, "TOKENIZERS_PARALLELISM": "false"}, []))
    assert redact(f"cannot use {PASSWORD}, false") == "cannot use ***, false"


def test_what_ends_a_sentence_does_not_belong_to_the_query():
    redact = redactor(set())
    assert redact("error: http://host/?a=b: gone") == "error: http://host/?***: gone"
    assert redact("(http://host/?a=b:c).") == "(http://host/?***)."


def test_password_as_it_is_quoted_in_an_address_is_cleaned_in_both_spellings():
    redact = redactor(secrets_of({"MLFLOW_TRACKING_URI": "postgresql://me:p%40ss%2Fword@host/db"}, []))
    assert redact("p@ss/word and p%40ss%2Fword") == "*** and ***"


def test_text_without_secrets_stays_as_it_is():
    redact = redactor(secrets_of({"MLFLOW_TRACKING_URI": "http://host:5000"}, ["analyze", "--mode", "tiny"]))
    for text in (
        "see http://host:5000/#/experiments/1/runs?workflowType=machine_learning&compareRunsMode=CHART",
        "mlflow ui --backend-store-uri sqlite:///mlflow.db",
        "user@host: 12 @ 3?",
    ):
        assert redact(text) == text


def run(*arguments, cwd, **environment):
    clean = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    command = [sys.executable, "-m", "stagemeter", *arguments]
    done = subprocess.run(
        command, cwd=cwd, env=clean | environment, capture_output=True, text=True, check=False, timeout=300
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize(
    "address",
    [
        f"http://{TOKEN}:{PASSWORD}@127.0.0.1:9/mlflow?key={QUERY}",
        f"http://{TOKEN}@127.0.0.1:9",
        f"postgresql+psycopg2://{TOKEN}:{PASSWORD}@127.0.0.1:9/db?sslmode={QUERY}",
        f"nonsense://{TOKEN}:{PASSWORD}@host",
        f"http://{TOKEN}:{PASSWORD}@[::1",
        f"http://{TOKEN}:{PASSWORD}@host:port/",
    ],
)
@pytest.mark.slow
def test_store_that_cannot_be_reached_tells_no_secret(address, tmp_path):
    code, said = run("analyze", "--estimate", "--mode", "tiny", "-v", cwd=tmp_path, MLFLOW_TRACKING_URI=address)
    assert code == 3, said
    for secret in (TOKEN, PASSWORD, QUERY):
        assert secret not in said
    assert "Traceback" not in said
    for path in (tmp_path / "stagemeter-report").iterdir():
        assert not any(secret in path.read_text() for secret in (TOKEN, PASSWORD, QUERY))


@pytest.mark.parametrize(
    "address",
    [
        f"http://{TOKEN}:{PASSWORD}@127.0.0.1:9/metrics?key={QUERY}",
        f"http://{TOKEN}:{PASSWORD}@[::1/metrics",
        f"http://{TOKEN}@host:port/metrics",
        "http://",
        "http://[",
        "http://.example",
        "http://a b/metrics",
        "http://%%%/metrics",
        "http://xn--\u00e4/metrics",
        "http://1.2.3.4.5.6:99999/",
        "http://*/metrics",
    ],
)
def test_server_of_metrics_that_is_none_is_one_line_without_secrets(address, stagemeter):
    ended = stagemeter("import-profile", address, "--interval", "1")
    assert ended.code == 2, ended.err
    (line,) = ended.err.splitlines()
    assert line.startswith("error: ")
    for secret in (TOKEN, PASSWORD, QUERY):
        assert secret not in line


BUG = f"""
import sys
from stagemeter.application import models
def fail():
    raise ValueError("no connection to http://{TOKEN}:{PASSWORD}@host/x?y={QUERY}")
models.shipped_model_rows = fail
from stagemeter.cli import main
sys.argv = ["stagemeter", "models", "-v"]
main()
"""


def test_traceback_of_a_bug_tells_no_secret(tmp_path):
    done = subprocess.run([sys.executable, "-c", BUG], capture_output=True, text=True, check=False)
    assert done.returncode == 70
    assert "Traceback" in done.stderr
    for secret in (TOKEN, PASSWORD, QUERY):
        assert secret not in done.stderr
