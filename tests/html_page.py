"""What tests ask of a page: is it whole, and does it load anything?"""

from html.parser import HTMLParser

EVIL = "<script>alert(1)</script>\"'&|`"


class Page(HTMLParser):
    """Counts tags and finds what would load something."""

    VOID = ("meta", "rect", "path", "br", "line", "link", "img", "input")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []
        self.loads: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag not in self.VOID:
            self.open.append(tag)
        self.loads += [f"{k}={v}" for k, v in attrs if k in ("src", "href", "srcset")]

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag
