"""An OpenAI-compatible endpoint whose answers a function makes from the request; it keeps every request, its idempotency key and when it was answered."""

import http.server
import json
import re
import threading
import time


class CountingModel(http.server.ThreadingHTTPServer):
    """answer(messages, seed) -> text.  delay: () -> seconds before an answer.  log: one dict a request: key (its body), idempotency, text, answered (None while it is not)."""

    daemon_threads = True

    def __init__(self, answer, delay=lambda: 0.0):
        model = self
        self.log, self._lock = [], threading.Lock()

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"])).decode()
                wanted = json.loads(body)
                with model._lock:
                    entry = {"key": body, "idempotency": self.headers["Idempotency-Key"], "answered": None, "number": len(model.log)}
                    model.log.append(entry)
                entry["text"] = answer(wanted["messages"], wanted.get("seed", 0), entry["number"])
                time.sleep(delay())
                reply = json.dumps({"choices": [{"index": 0, "message": {"role": "assistant", "content": entry["text"]}, "finish_reason": "stop"}],
                                    "usage": {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}}).encode()
                try:
                    self.send_response(200)
                    self.send_header("Content-Type", "application/json")
                    self.send_header("Content-Length", str(len(reply)))
                    self.end_headers()
                    self.wfile.write(reply)
                    self.wfile.flush()
                    entry["answered"] = time.monotonic()
                except OSError:     # the server was killed meanwhile
                    pass

            def log_message(self, *_):
                pass

        super().__init__(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def handle_error(self, *_):
        pass        # connections that a kill broke

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def environment(self):
        return {"OPTOD_LLM_URL": self.url, "OPTOD_LLM_MODEL": "counted"}


# ---- a program to search over: k is best at 12 on even tasks and at 13 on odd ones

WORKFLOW = {"data": {"file": "rows"},
            "steps": {"first": {"llm": {"prompt": "part one of {{k}} on {{item}}", "json": True, "seed": 1}},
                      "second": {"llm": {"prompt": "part two of {{k}} on {{item}}", "json": True, "seed": 1}},
                      "sum": {"op": "add", "arguments": ["{{first.part}}", "{{second.part}}"]}},
            "guide": {"score": "{{sum}}", "feedback": "k should be near 12"}}


def score_of(k, task):
    return max(0.0, 1.0 - abs(k - 12 - task % 2) / 20.0)


def answer(messages, seed, number):
    """The score in two parts for the steps of the workflow, the next k for an optimizer's prompt; "request N." in every text."""
    prompt = messages[-1]["content"]
    part = re.match(r"part (one|two) of (-?\d+) on (\d+)", prompt)
    if part:
        whole = score_of(int(part.group(2)), int(part.group(3)))
        return json.dumps({"request": f"request {number}.", "part": whole / 4 if part.group(1) == "one" else whole * 3 / 4})
    k = int(re.search(r"\(int\) k0=(-?\d+)", prompt).group(1))
    return json.dumps({"reasoning": f"request {number}.", "answer": "", "suggestion": {"k0": k + 1 + seed % 3}})
