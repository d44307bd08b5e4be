"""A language model for programs that want one: an OpenAI-compatible endpoint on localhost that answers by rule, the same every time.

It reads the variables of a prompt (``(float) x0=1.0`` under #Variables, or ``<variable name="x0" type="float">``) and suggests a value of the right type for each;
anything else it answers with "Hola, Juan. es (A)".  Enough for the peer's tests and examples to run their whole loop offline.
"""

import http.server
import json
import re
import threading

VARIABLES = re.compile(r"^#Variables\n(.*?)(?=^#\w)", re.S | re.M)
LISTED = re.compile(r"^Variables:\n(.*?)(?=^\S[^\n]*:$)", re.S | re.M)       # names and types only, as OPRO asks
ENTRY = re.compile(r"^\((\w+)\) ([^\s=:]+)", re.M)
TAGGED = re.compile(r'<variable name="([^"]+)" type="(\w+)">\s*<value>\s*(.*?)\s*</value>', re.S)
SAMPLES = {"int": 7, "float": -60.0, "bool": True, "str": "ten", "list": [1], "dict": {"a": 1}}


def code_of(text):
    """The function of the text with another body."""
    header = re.search(r"^[=:]?( *def .*?\)(?: *->[^:\n]*)?:)", text, re.S | re.M)
    return f"{header.group(1).strip()}\n    return 'es'" if header else "def f():\n    return 'es'"


def variables(prompt):
    """{name: suggestion}"""
    found = {name: code_of(value) if kind == "code" else SAMPLES.get(kind, "ten") for name, kind, value in TAGGED.findall(prompt)}
    if found:
        return found, True
    section = VARIABLES.search(prompt) or LISTED.search(prompt)
    if section is None:
        return {}, False
    entries = list(ENTRY.finditer(section.group(1)))
    for i, entry in enumerate(entries):
        end = entries[i + 1].start() if i + 1 < len(entries) else len(section.group(1))
        kind, name = entry.groups()
        found[name] = code_of(section.group(1)[entry.end():end]) if kind == "code" else SAMPLES.get(kind, "ten")
    return found, False


def answer(messages):
    prompt = "\n".join(m.get("content") or "" for m in messages)
    if "<IMPROVED_VARIABLE>" in prompt:
        return "<IMPROVED_VARIABLE>7</IMPROVED_VARIABLE>"
    found, tags = variables(prompt)
    if tags:
        body = "".join(f"<variable>\n<name>{k}</name>\n<value>\n{v}\n</value>\n</variable>\n" for k, v in found.items())
        return f"<reasoning>\nby rule\n</reasoning>\n{body}"
    if found:
        return json.dumps({"reasoning": "by rule", "answer": "", "suggestion": found})
    return "Hola, Juan. es (A)"


class ScriptedModel(http.server.ThreadingHTTPServer):
    """url: up to /v1.  requests: how many were answered."""

    def __init__(self):
        model = self
        self.requests = 0

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                wanted = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                model.requests += 1
                body = json.dumps({"id": "1", "object": "chat.completion", "model": "scripted", "created": 0,
                                   "choices": [{"index": 0, "message": {"role": "assistant", "content": answer(wanted["messages"])}, "finish_reason": "stop"}],
                                   "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}}).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_):
                pass

        super().__init__(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}/v1"
