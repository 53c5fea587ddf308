"""A served model for tests: answers as it is told, and remembers what it was asked."""

import http.server
import json
import threading


class StubServer:
  """Answers `POST /v1/chat/completions` by `reply(number, body)`.

  `reply` returns a text, or (status, headers, body) for any other answer; body bytes or JSON.
  `asked` has the (headers, body) of each call, `most` the greatest number of calls at a time.
  """

  def __init__(self, reply):
    self.asked, self.most, self._now = [], 0, 0
    self._lock = threading.Lock()
    stub = self

    class Handler(http.server.BaseHTTPRequestHandler):
      protocol_version = "HTTP/1.1"

      def do_POST(self):
        data = self.rfile.read(int(self.headers["Content-Length"]))
        with stub._lock:
          number = len(stub.asked)
          body = json.loads(data)
          stub.asked.append((dict(self.headers), self.path, body))
          stub._now += 1
          stub.most = max(stub.most, stub._now)
        try:
          answer = reply(number, body)
        finally:
          with stub._lock:
            stub._now -= 1
        if isinstance(answer, str):
          answer = 200, {}, completion(answer)
        status, headers, body = answer
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Length": len(data), **headers}.items():
          self.send_header(name, str(value))
        self.end_headers()
        self.wfile.write(data)

      def log_message(self, *args):
        pass

    self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    self._server.daemon_threads = True
    self.url = f"http://127.0.0.1:{self._server.server_port}/v1"
    self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)

  def __enter__(self):
    self._thread.start()
    return self

  def __exit__(self, *exc):
    self._server.shutdown()
    self._server.server_close()
    self._thread.join()


def completion(text, finish="stop", **message):
  """A chat completion with a text."""
  return {"choices": [{"message": {"role": "assistant", "content": text, **message},
                       "finish_reason": finish}]}
