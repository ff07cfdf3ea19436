"""What tests of pages look at: an HTML file as a browser's parser sees it."""

import base64
import io
from html.parser import HTMLParser

from PIL import Image

ALONE = ("meta", "img", "br")


class Page(HTMLParser):
    """`text`, `images` as PIL has them, `ids`, `links`, `tables` as rows of cells; all is closed, nothing outside."""

    def __init__(self, html):
        super().__init__()
        self.text, self.images, self.ids, self.links, self.tables = "", [], [], [], []
        self._open = []
        self.feed(html)
        self.close()
        assert not self._open, self._open
        assert len(self.ids) == len(set(self.ids))
        assert all(link.startswith("#") and link[1:] in self.ids for link in self.links)

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        assert tag not in ("script", "link", "iframe") and "srcset" not in given
        assert not [name for name in given if name.startswith("on")]
        self.ids += [given["id"]] if "id" in given else []
        self.links += [given["href"]] if "href" in given else []
        if tag == "img":
            kind, _, data = given["src"].partition(",")
            assert kind == "data:image/png;base64" and given["alt"]
            image = Image.open(io.BytesIO(base64.b64decode(data, validate=True)))
            image.load()
            assert image.size == (int(given["width"]), int(given["height"]))
            self.images.append(image)
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self.tables[-1][-1].append("")
        if tag not in ALONE:
            self._open.append(tag)

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        if "style" in self._open:
            assert "url(" not in data and "@import" not in data
            return
        self.text += data
        if {"td", "th"} & set(self._open):
            self.tables[-1][-1][-1] += data
