"""The HTTP response to one chat request: bytes as they arrive in, lines to an Answer out.

geventhttpclient's parser does the HTTP; a stream's lines are told as soon as they are whole.
Locust's own `FastHttpSession.iter_lines` waits for 1024 bytes and makes the first tokens look late.
"""

from __future__ import annotations

from answer import Answer
from geventhttpclient.response import HTTPConnectionClosed, HTTPResponse
from wire import Wire

ERROR_BODY = 4096


class Reply(HTTPResponse):  # type: ignore[misc]
    """Feeds `answer` with the lines of its stream; of a refusal `body` is kept instead."""

    def __init__(self, answer: Answer, wire: Wire) -> None:
        super().__init__(method="POST")
        self.answer, self.wire = answer, wire
        self.body = b""
        self._rest = b""

    def take(self, data: bytes) -> bool:
        """Parse what arrived; whether the response has ended, or is not worth reading on.

        Raises HTTPParseError for what is no HTTP, or ends before its head has.
        """
        if not data:
            if not self.headers_complete:
                raise HTTPConnectionClosed("connection closed.")
            return True
        self.feed(data)
        if self.headers_complete and self.answer.status is None and self.status_code >= 200:
            self.answer.status = self.status_code
        if self.answer.error is not None or len(self.body) >= ERROR_BODY:
            return True
        return bool(self.message_complete and self.answer.status)

    def _on_body(self, buf: bytearray) -> None:
        if self.status_code != 200:
            self.body += bytes(buf)
            return
        *lines, self._rest = (self._rest + bytes(buf)).split(b"\n")
        for line in lines:
            if line and self.answer.error is None:  # an empty line ends every event
                self.answer.feed(line, self.wire.arrived)
