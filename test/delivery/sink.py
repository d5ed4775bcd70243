"""An HTTP sink on the loopback that answers as it is told, and remembers what it was sent.

    sink = Sink()                       sink.url
    sink.answers['/path'] = [500, 200]  one after the other, the last one for ever; without: 200
    sink.got('/path')                   Got(time, headers, body, key), in the order of arrival

An answer is a status, (status, headers, body), or a word: close (in the middle of the answer), silence (none until the sink
ends), huge (a body of 1 GB).
"""
import collections
import http.server
import json
import ssl
import threading
import time

Got = collections.namedtuple('Got', 'at headers body key')


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'

    def log_message(self, *_):
        pass

    def do_POST(self):
        sink = self.server.sink
        body = self.rfile.read(int(self.headers.get('Content-Length', 0))).decode()
        with sink.lock:
            sink.requests[self.path].append(Got(time.time(), dict(self.headers), body, self.headers.get('Idempotency-Key')))
            answers = sink.answers.get(self.path, [200])
            answer = answers.pop(0) if len(answers) > 1 else answers[0]
        if callable(answer):
            answer = answer(body)
        try:
            self.answer(answer)
        except OSError:
            self.close_connection = True

    def answer(self, answer):
        if answer == 'close':
            self.send_response(200)
            self.send_header('Content-Length', '100')
            self.end_headers()
            self.wfile.write(b'half')
            self.close_connection = True
        elif answer == 'silence':
            self.server.sink.ended.wait()
            self.close_connection = True
        elif answer == 'huge':
            self.send_response(200)
            self.send_header('Content-Length', str(2**30))
            self.end_headers()
            for _ in range(2**10):
                self.wfile.write(b'x' * 2**20)
                self.server.sink.megabytes += 1
        else:
            status, headers, text = answer if isinstance(answer, tuple) else (answer, {}, '')
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header('Content-Length', str(len(text)))
            self.end_headers()
            self.wfile.write(text.encode())


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256


class Sink:
    def __init__(self, certificate=None):
        self.answers = {}
        self.requests = collections.defaultdict(list)
        self.lock = threading.Lock()
        self.ended = threading.Event()
        self.megabytes = 0
        self.server = Server(('127.0.0.1', 0), Handler)
        self.server.sink = self
        if certificate:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
        self.port = self.server.server_address[1]
        self.url = f"http{'s' if certificate else ''}://127.0.0.1:{self.port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def got(self, path):
        with self.lock:
            return list(self.requests[path])

    def bodies(self, path):
        return [json.loads(got.body) for got in self.got(path)]

    def end(self):
        self.ended.set()
        self.server.shutdown()
        self.server.server_close()
