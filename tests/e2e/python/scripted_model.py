"""An OpenAI-compatible endpoint of chat completions that answers as a script or a function says."""

import http.server
import json
import threading
import time


class ScriptedModel(http.server.ThreadingHTTPServer):
    """answer: function of the request's JSON -> text (or an HTTP status); None: the texts of ``script`` in turn.  delay: seconds before each answer.

    requests: what was asked.  keys: the Authorization header of each.
    """

    daemon_threads = True

    def __init__(self, answer=None, delay=0.0):
        model = self
        self.answer, self.delay = answer, delay
        self.script, self.requests, self.keys = [], [], []

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            wbufsize = 1 << 16                  # one segment an answer, sent at once: no 40 ms of delayed acknowledgement
            disable_nagle_algorithm = True

            def do_POST(self):
                request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                model.requests.append(request)
                model.keys.append(self.headers.get("Authorization", ""))
                text = model.answer(request) if model.answer else model.script.pop(0) if model.script else "nothing more"
                body = json.dumps({"choices": [{"message": {"role": "assistant", "content": str(text)}, "finish_reason": "stop"}],
                                   "usage": {"prompt_tokens": 10, "completion_tokens": 5}}).encode()
                time.sleep(model.delay)
                self.send_response(text if isinstance(text, int) else 200)
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

    def close(self):
        self.shutdown()
        self.server_close()
