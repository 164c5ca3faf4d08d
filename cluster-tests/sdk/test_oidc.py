"""Tokens of an identity provider, which is a process of its own: an OpenID provider that knows nothing of the gateway.

Callers log in as people do, by the authorization code flow, and show the ID token: the access tokens of this provider are
no JSON Web Tokens. Its tokens do not name their key, as is allowed where there is only one.
"""

import base64
import hashlib
import hmac
import http.server
import json
import os
import subprocess
import sys
import threading
import urllib.error
import urllib.parse
import urllib.request

import anthropic
import openai
import pytest

from conftest import MODEL, RECORDED, Cluster, environment, fetch, free_port, wait_until

ADMIN_KEY = "sk-of-the-operators"
PROMPT = [{"role": "user", "content": "Tell me about gateways."}]
PEOPLE = {
    "ada": {"org": "acme", "roles": ["ops", "staff"]},
    "vera": {"org": "acme", "roles": ["looks"]},
    "carl": {"org": "umbrella", "roles": ["staff"]},
    "nobody": {"roles": ["ops"]},
}
RETURN_TO = "http://127.0.0.1/return"


class NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_):
        return None


class Provider:
    """The identity provider. Another one on the same port is the same provider with another key."""

    def __init__(self, port=None, max_age=3600):
        self.port = port or free_port()
        self.issuer = f"http://127.0.0.1:{self.port}"
        people = [json.dumps({"sub": sub, **claims}) for sub, claims in PEOPLE.items()]
        people = [part for person in people for part in ("--user-claims", person)]
        self.process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "oidc_provider_mock", "--port", str(self.port),
             f"--token-max-age={max_age}", *people],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )
        wait_until(f"{self.issuer}/.well-known/openid-configuration", self.process)

    def log_in(self, who, client="smg"):
        """What the provider gives somebody for a client: an ID token, and an access token."""
        asked = {"response_type": "code", "client_id": client, "redirect_uri": RETURN_TO, "scope": "openid"}
        page = f"{self.issuer}/oauth2/authorize?{urllib.parse.urlencode(asked)}"
        try:
            urllib.request.build_opener(NoRedirect).open(page, data=f"sub={who}".encode(), timeout=10)
            raise AssertionError("the provider did not send the caller back")
        except urllib.error.HTTPError as answer:
            assert answer.code == 302, answer.read()
            back = urllib.parse.urlparse(answer.headers["location"])
        code = urllib.parse.parse_qs(back.query)["code"][0]
        wanted = {"grant_type": "authorization_code", "code": code, "redirect_uri": RETURN_TO, "client_id": client,
                  "client_secret": "of no matter"}
        page = f"{self.issuer}/oauth2/token"
        with urllib.request.urlopen(page, data=urllib.parse.urlencode(wanted).encode(), timeout=10) as answer:
            return json.loads(answer.read())

    def token(self, who, client="smg"):
        return self.log_in(who, client)["id_token"]

    def stop(self):
        self.process.terminate()
        try:
            self.process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class Recorder:
    """A worker that keeps what it is sent."""

    def __init__(self):
        recorder = self
        self.heads = []

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                self.answer({"object": "list", "data": [{"id": RECORDED, "object": "model", "owned_by": "tests"}]})

            def do_POST(self):
                self.rfile.read(int(self.headers.get("content-length", 0)))
                recorder.heads.append((self.path, str(self.headers)))
                message = {"role": "assistant", "content": "recorded"}
                choice = {"index": 0, "finish_reason": "stop", "message": message}
                usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
                self.answer({"id": "c", "object": "chat.completion", "created": 1, "model": RECORDED,
                             "choices": [choice], "usage": usage})

            def answer(self, value):
                body = json.dumps(value).encode()
                self.send_response(200)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def stop(self):
        self.server.shutdown()
        self.server.server_close()


def access(issuer, *more):
    return [
        "--admin-api-key", ADMIN_KEY, "--jwt-issuer", issuer, "--jwt-audience", "smg", "--jwt-tenant-claim", "org",
        "--jwt-role-mapping", "ops=admin", "looks=viewer", "--jwt-allow-http", "--jwt-allow-networks", "127.0.0.0/8",
        *more,
    ]


class Company:
    """A gateway that believes a provider."""

    def __init__(self, folder):
        self.log_path, self.audit_path = folder / "gateway.log", folder / "audit.jsonl"
        self.recorder = Recorder()
        self.provider = Provider()
        with open(self.log_path, "wb") as log:
            flags = access(self.provider.issuer, "--audit-log", self.audit_path, "--data-dir", folder)
            self.cluster = OperatedCluster(os.environ["SMG_BIN"], flags, 1, [self.recorder.url], log)

    def stop(self):
        self.cluster.stop()
        self.provider.stop()
        self.recorder.stop()


class OperatedCluster(Cluster):
    """One whose operators have a key of their own."""

    @property
    def auth(self):
        return {"authorization": f"Bearer {ADMIN_KEY}"}


@pytest.fixture(scope="module")
def company(tmp_path_factory):
    company = Company(tmp_path_factory.mktemp("oidc"))
    yield company
    company.stop()


@pytest.fixture
def gateway_of():
    """Makes gateways without workers, for what is decided before a worker is needed."""
    made = []

    def make(issuer, *more):
        made.append(OperatedCluster(os.environ["SMG_BIN"], access(issuer, *more), 0))
        return made[-1]

    yield make
    for cluster in made:
        cluster.stop()


@pytest.fixture
def provider_with():
    made = []

    def make(**settings):
        made.append(Provider(**settings))
        return made[-1]

    yield make
    for provider in made:
        provider.stop()


def openai_client(cluster, token):
    return openai.OpenAI(base_url=f"{cluster.url}/v1", api_key=token, max_retries=0, timeout=20)


def chat(cluster, token, model=MODEL):
    return openai_client(cluster, token).chat.completions.create(model=model, messages=PROMPT)


def message(cluster, **credentials):
    api = anthropic.Anthropic(base_url=cluster.url, max_retries=0, timeout=20, **credentials)
    return api.messages.create(model=MODEL, max_tokens=16, messages=PROMPT)


def status_of(cluster, method, path, headers, body=None):
    """The status and the answer."""
    try:
        return 200, fetch(f"{cluster.url}{path}", method=method, headers=headers, body=body)
    except urllib.error.HTTPError as answer:
        return answer.code, json.loads(answer.read())


def bearer(token):
    return {"authorization": f"Bearer {token}"}


def encoded(value):
    raw = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def decoded(part):
    return json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))


def test_callers_come_in_with_either_sdk(company):
    token = company.provider.token("carl")
    assert chat(company.cluster, token).choices[0].message.content
    assert message(company.cluster, auth_token=token).content[0].text
    assert message(company.cluster, api_key=token).content[0].text


def bad_tokens(company):
    """What is wrong, the token, and how it is counted."""
    good = company.provider.token("carl")
    head, claims, signature = good.split(".")
    more = encoded({**decoded(claims), "roles": ["ops"], "org": "acme"})
    key = fetch(f"{company.provider.issuer}/jwks")["keys"][0]
    public = f"{encoded({'alg': 'HS256', 'typ': 'JWT'})}.{more}"
    tag = hmac.new(key["n"].encode(), public.encode(), hashlib.sha256).digest()
    yield "for somebody else", company.provider.token("carl", client="another"), "token_audience"
    yield "of nobody's tenant", company.provider.token("nobody"), "token_tenant"
    yield "changed", f"{head}.{more}.{signature}", "token_signature"
    yield "not signed", f"{encoded({'alg': 'none', 'typ': 'JWT'})}.{more}.", "token_malformed"
    yield "signed with the public key", f"{public}.{encoded(tag)}", "token_algorithm"
    yield "cut", good[:-30], "token_signature"
    yield "no JSON Web Token", company.provider.log_in("carl")["access_token"], "unknown"


def counted(cluster, name):
    lines = fetch(cluster.metrics_url).decode().splitlines()
    return sum(float(line.removeprefix(f"{name} ")) for line in lines if line.startswith(f"{name} "))


def failures(cluster, surface, reason):
    return counted(cluster, f'smg_http_auth_failures_total{{reason="{reason}",surface="{surface}"}}')


def test_tokens_that_are_not_believed_are_refused_in_the_shape_of_the_api(company):
    cluster = company.cluster
    for what, token, reason in bad_tokens(company):
        before = failures(cluster, "serving", reason)
        with pytest.raises(openai.AuthenticationError) as caught:
            chat(cluster, token)
        assert caught.value.status_code == 401, what
        assert caught.value.body["type"] and token not in caught.value.response.text, what
        assert caught.value.response.headers["www-authenticate"] == "Bearer", what
        with pytest.raises(anthropic.AuthenticationError) as caught:
            message(cluster, auth_token=token)
        assert caught.value.body["type"] == "error", what
        assert caught.value.body["error"]["type"] == "authentication_error", what
        assert token not in caught.value.response.text, what
        assert failures(cluster, "serving", reason) == before + 2, what
        assert status_of(cluster, "GET", "/keys", bearer(token))[0] == 401, what


def test_roles_of_the_provider_open_the_admin_api(company):
    def check(who, method, path, body, expected):
        found = status_of(company.cluster, method, path, bearer(company.provider.token(who)), body)
        assert found[0] == expected, f"{who} {method} {path}: {found}"

    new = {"name": "made", "tenant": "acme"}
    check("carl", "GET", "/keys", None, 403)
    check("carl", "POST", "/keys", new, 403)
    check("vera", "GET", "/keys", None, 200)
    check("vera", "POST", "/keys", new, 403)
    check("ada", "GET", "/keys", None, 200)
    check("ada", "GET", "/audit", None, 200)


def test_the_audit_log_says_that_it_was_a_token(company):
    token = company.provider.token("ada")
    status, made = status_of(company.cluster, "POST", "/keys", bearer(token), {"name": "audited", "tenant": "beta"})
    assert status == 200 and chat(company.cluster, made["key"]), made
    entries = fetch(f"{company.cluster.url}/audit", headers=company.cluster.auth)["entries"]
    newest = next(entry for entry in entries if entry["action"] == "POST /keys" and entry["who"] == "ada")
    assert newest["via"] == "token"
    assert status_of(company.cluster, "POST", "/keys", bearer(company.provider.token("carl")), {"name": "x"})[0] == 403
    entries = fetch(f"{company.cluster.url}/audit", headers=company.cluster.auth)["entries"]
    newest = next(entry for entry in entries if entry["who"] == "carl")
    assert (newest["via"], newest["outcome"]) == ("token", "denied: forbidden")


def test_usage_is_that_of_the_tenant_in_the_token(company):
    def requests():
        rows = fetch(f"{company.cluster.url}/usage", headers=company.cluster.auth)["rows"]
        return {row["tenant"]: row["requests"] for row in rows}

    before = requests()
    chat(company.cluster, company.provider.token("carl"))
    after = requests()
    assert after.pop("umbrella") == before.pop("umbrella", 0) + 1
    assert after == before


def test_what_a_tenant_has_stored_is_not_there_for_another(company):
    api = openai_client(company.cluster, company.provider.token("carl"))
    stored = api.responses.create(model=MODEL, input="Remember this.")
    assert api.responses.retrieve(stored.id).id == stored.id
    with pytest.raises(openai.NotFoundError):
        openai_client(company.cluster, company.provider.token("ada")).responses.retrieve(stored.id)


def test_two_tokens_are_those_of_different_callers(company):
    first, second = company.provider.token("carl"), company.provider.token("ada")
    headers = {**bearer(first), "x-api-key": second}
    status, answer = status_of(company.cluster, "GET", "/v1/models", headers)
    assert (status, "different callers" in json.dumps(answer)) == (401, True)


def test_tokens_stay_at_the_gateway(company):
    token = company.provider.token("carl")
    answer = openai_client(company.cluster, token).chat.completions.create(
        model=RECORDED, messages=PROMPT, extra_headers={"x-api-key": token, "x-goog-api-key": token}
    )
    assert answer.choices[0].message.content == "recorded"
    path, head = company.recorder.heads[-1]
    assert path == "/v1/chat/completions"
    secrets = [token, *token.split("."), ADMIN_KEY]
    assert not any(secret in head for secret in secrets if secret), head
    assert "authorization" not in head.lower() and "api-key" not in head.lower()
    # Nor are they written down, at whatever level.
    with pytest.raises(openai.AuthenticationError):
        chat(company.cluster, token[:-30])
    written = company.log_path.read_text() + company.audit_path.read_text()
    assert "identity provider" in written, "the log is there"
    assert not any(part in written for part in token[:-30].split("."))


def test_a_provider_with_another_key_is_believed_and_one_that_is_away_still_is(gateway_of, provider_with):
    provider = provider_with()
    cluster = gateway_of(provider.issuer)
    old = provider.token("ada")
    assert status_of(cluster, "GET", "/keys", bearer(old))[0] == 200
    provider.stop()
    assert status_of(cluster, "GET", "/keys", bearer(old))[0] == 200, "its keys are known"
    provider = provider_with(port=provider.port)
    assert status_of(cluster, "GET", "/keys", bearer(provider.token("ada")))[0] == 200, "it is asked for its new key"
    assert status_of(cluster, "GET", "/keys", bearer(old))[0] == 401, "the old one is gone"
    assert counted(cluster, 'smg_auth_provider_fetches_total{outcome="ok"}') >= 2


def test_tokens_past_their_time_are_refused(gateway_of, provider_with):
    provider = provider_with(max_age=-100)
    cluster = gateway_of(provider.issuer)
    token = provider.token("ada")
    with pytest.raises(openai.AuthenticationError, match="the token has expired"):
        chat(cluster, token)
    with pytest.raises(anthropic.AuthenticationError, match="the token has expired"):
        message(cluster, auth_token=token)
    assert status_of(cluster, "GET", "/keys", bearer(token))[0] == 401
    assert failures(cluster, "serving", "token_expired") == 2
    lenient = gateway_of(provider.issuer, "--jwt-leeway", "2m")
    assert status_of(lenient, "GET", "/keys", bearer(token))[0] == 200


def test_a_provider_that_cannot_be_believed_keeps_the_gateway_from_starting(provider_with):
    provider = provider_with()
    nobody = f"http://127.0.0.1:{free_port()}"

    def refused(words, *flags):
        port = free_port()
        command = [
            os.environ["SMG_BIN"], "launch", "--host", "127.0.0.1", "--port", str(port), "--prometheus-port", "0",
            "--jwt-audience", "smg", *flags,
        ]
        ended = subprocess.run(command, env=environment(), cwd="/", capture_output=True, text=True, timeout=60)
        assert ended.returncode != 0 and words in ended.stderr + ended.stdout, ended

    private = ("--jwt-allow-networks", "127.0.0.0/8")
    refused("plain http is not allowed", "--jwt-issuer", provider.issuer, *private)
    refused("is private", "--jwt-issuer", provider.issuer, "--jwt-allow-http")
    refused("cannot be had", "--jwt-issuer", nobody, "--jwt-allow-http", *private)
    refused("another issuer", "--jwt-issuer", f"{provider.issuer}/", "--jwt-allow-http", *private)
    refused("status 404", "--jwt-issuer", provider.issuer, "--jwt-jwks-uri", f"{provider.issuer}/nowhere",
            "--jwt-allow-http", *private)
    refused("a list of keys", "--jwt-issuer", provider.issuer, "--jwt-jwks-uri",
            f"{provider.issuer}/.well-known/openid-configuration", "--jwt-allow-http", *private)
    # Whoever wrote this does not expect an open gateway.
    refused("and none is", "--jwt-role-mapping", "ops=admin")
