"""Models called from the client."""

import http.server
import json
import pickle
import threading

import pytest

from optod import llm

CLEAN = ["OPTOD_LLM_URL", "OPTOD_LLM_MODEL", "OPTOD_LLM_KEY", "TRACE_CUSTOMLLM_URL", "TRACE_CUSTOMLLM_MODEL", "TRACE_CUSTOMLLM_API_KEY", "OPENAI_BASE_URL",
         "OPENAI_API_KEY", "TRACE_LITELLM_MODEL", "DEFAULT_LITELLM_MODEL", "OAI_CONFIG_LIST", "TRACE_DEFAULT_LLM_BACKEND"]


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch):
    for name in CLEAN:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def endpoint():
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            server.seen.append((self.path, self.headers.get("Authorization"), json.loads(self.rfile.read(int(self.headers["Content-Length"])))))
            status, headers = server.script.pop(0) if server.script else (200, {})
            body = json.dumps({"choices": [{"message": {"content": "hello"}}]}).encode()
            self.send_response(status)
            for key, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(key, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.seen, server.script = [], []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("set_to, found", [
    ({}, ("", "", "")),
    ({"OPTOD_LLM_URL": "http://a/v1", "OPTOD_LLM_MODEL": "m", "OPTOD_LLM_KEY": "k", "OPENAI_API_KEY": "other"}, ("http://a/v1", "m", "k")),
    ({"TRACE_CUSTOMLLM_URL": "http://b/v1", "TRACE_CUSTOMLLM_API_KEY": "k"}, ("http://b/v1", "gpt-4o", "k")),
    ({"OPENAI_API_KEY": "k", "TRACE_LITELLM_MODEL": "openai/gpt-x"}, ("https://api.openai.com/v1", "gpt-x", "k")),
    ({"OPENAI_BASE_URL": "http://c/v1"}, ("http://c/v1", "gpt-4o", "")),
])
def test_environment(monkeypatch, set_to, found):
    for key, value in set_to.items():
        monkeypatch.setenv(key, value)
    assert llm.environment() == found


def test_a_call(endpoint, monkeypatch):
    monkeypatch.setenv("OPTOD_LLM_URL", f"http://127.0.0.1:{endpoint.server_address[1]}/v1")
    monkeypatch.setenv("OPTOD_LLM_MODEL", "m")
    monkeypatch.setenv("OPTOD_LLM_KEY", "secret")
    model = llm.LLM()
    answer = model(messages=[{"role": "user", "content": "hi"}], max_tokens=5, response_format=None)
    assert answer.choices[0].message.content == "hello"
    path, authorization, body = endpoint.seen[0]
    assert path == "/v1/chat/completions" and authorization == "Bearer secret" and body == {"model": "m", "messages": [{"role": "user", "content": "hi"}],
                                                                                           "max_tokens": 5}


def test_busy_endpoints_are_asked_again(endpoint):
    endpoint.script[:] = [(429, {"Retry-After": "0"}), (503, {"Retry-After": "0"})]
    model = llm.OpenAICompatible(model="m", base_url=f"http://127.0.0.1:{endpoint.server_address[1]}/v1", max_retries=2)
    assert llm.reply_text(model(messages=[])) == "hello" and len(endpoint.seen) == 3
    endpoint.script[:] = [(400, {})]
    with pytest.raises(RuntimeError, match="HTTP 400"):
        model(messages=[])


def test_without_an_endpoint_the_error_says_what_to_set():
    with pytest.raises(RuntimeError, match="OPTOD_LLM_URL"):
        llm.LLM()(messages=[])


def test_keys_stay_out_of_pickles():
    model = llm.OpenAICompatible(model="m", base_url="http://a/v1", api_key="very-secret")
    assert b"very-secret" not in pickle.dumps(model)
    back = pickle.loads(pickle.dumps(model))
    assert back.model_name == "m" and callable(back.model)


@pytest.mark.parametrize("response", ["text", {"choices": [{"message": {"content": "text"}}]}, [{"message": {"content": "text"}}]])
def test_replies_in_any_form(response):
    assert llm.reply_text(response) == "text"


def test_no_reply_is_an_error():
    with pytest.raises(TypeError, match="int"):
        llm.reply_text(5)


def test_dummies_and_profiles(monkeypatch, tmp_path):
    assert llm.reply_text(llm.DummyLLM(lambda messages: messages[0])(["said"])) == "said"
    llm.LLMFactory.register_profile("mine", "CustomLLM", model="special")
    assert llm.LLM(profile="mine").model_name == "special" and "mine" in llm.LLMFactory.list_profiles()
    with pytest.raises(ValueError, match="Unknown profile"):
        llm.LLM(profile="nothing")
    with pytest.raises(ValueError, match="Unknown LLM backend"):
        llm.LLM(backend="nothing")
    path = tmp_path / "list.json"
    path.write_text(json.dumps([{"model": "a", "api_key": "k"}, {"model": "b", "api_key": "k"}]))
    monkeypatch.setenv("OAI_CONFIG_LIST", str(path))
    assert llm.AutoGenLLM(filter_dict={"model": ["b"]}).model_name == "b"
