"""Receives webhooks: WEBHOOK_SECRET=whsec_… python python_receiver.py 9000"""

import os
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from standardwebhooks import Webhook, WebhookVerificationError

webhook = Webhook(os.environ["WEBHOOK_SECRET"])
handled = 0  # the highest webhook-sequence; yours belongs in a database


class Receiver(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # keeps connections open

    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        try:
            webhook.verify(body, dict(self.headers), json_parse=False)
        except WebhookVerificationError:
            self.answer(401)
        else:
            self.handle_verified(int(self.headers.get("webhook-sequence", "0")), body)
            self.answer(204)

    def handle_verified(self, sequence, body):
        global handled
        if sequence > handled:  # otherwise a copy, or a ping: those have no sequence
            print(sequence, self.headers["webhook-id"], self.headers["webhook-event-type"], body.decode(), flush=True)
            handled = sequence

    def answer(self, status):
        self.send_response(status)
        self.send_header("content-length", "0")
        self.end_headers()


ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Receiver).serve_forever()
