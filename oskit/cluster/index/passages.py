"""How an ingest pipeline makes of a document's own fields what is encoded, whoever wrote them.

An application writes title and text, not passages. And a document that comes back through the pipeline, as
with an ``_update``, brings its old vector along, whose keys the processor takes apart where they have dots
(and refuses ``.``). So both are put right in front of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from oskit.cluster.index.mapping import IndexInfo

BUILDS = "oskit-passage"
"""Tag of the processor."""

TEMPORARY = "_oskit_passage"
"""Where an index without a field for passages has one while it is encoded."""

# As oskit.data reads a record: a value is a text as in JSON, a record without any field of text keeps what
# it has, and a title is put in front and the whole stripped as Python does.
_SOURCE = """
def valueAt(def from, String path) {
  if (!(from instanceof Map)) { return null }
  if (from.containsKey(path)) { return from[path] }
  int dot = path.indexOf('.');
  return dot < 0 ? null : valueAt(from[path.substring(0, dot)], path.substring(dot + 1));
}
String textOf(def value) {
  return value == null || value instanceof Map || value instanceof List ? '' : value.toString();
}
boolean isSpace(char it) {
  return Character.isWhitespace(it) || Character.isSpaceChar(it) || it == (char) 133;
}
String stripped(String text) {
  int start = 0;
  int end = text.length();
  while (start < end && isSpace(text.charAt(start))) { start++ }
  while (end > start && isSpace(text.charAt(end - 1))) { end-- }
  return text.substring(start, end);
}
void takeOut(def from, String path) {
  if (from instanceof List) { for (def each : from) { takeOut(each, path) } }
  if (!(from instanceof Map)) { return }
  from.remove(path);
  int dot = path.indexOf('.');
  if (dot > 0) { takeOut(from[path.substring(0, dot)], path.substring(dot + 1)) }
}
takeOut(ctx, params.vector);
if (params.passage != null) {
  boolean isThere = false;
  String text = '';
  for (String name : params.texts) {
    def value = valueAt(ctx, name);
    isThere = isThere || value != null;
    String more = textOf(value);
    text = text.isEmpty() || more.isEmpty() ? text + more : text + ' ' + more;
  }
  if (isThere) {
    String title = params.title == null ? '' : textOf(valueAt(ctx, params.title));
    ctx[params.passage] = title.isEmpty() ? text : stripped(title + ' ' + text);
  }
}
"""


def texts_of(info: IndexInfo) -> tuple[str | None, list[str]]:
    """The fields that hold the title, None if there is none, and the text of an index's documents."""
    names = [name.split("^")[0] for name in info.text_fields.split(",")] if info.text_fields else []
    if names and names[0] == info.title_field:
        return names[0], names[1:]
    if names:
        return None, names
    if info.encode is None:
        return info.title_field, [info.text_field] if info.text_field else []
    return info.title_field or "title", [info.text_field or "text"]


def passage_of(info: IndexInfo) -> str:
    """The field that is encoded: that of the passages, the one with the text, or one for the moment."""
    title, texts = texts_of(info)
    if info.passage_field is not None and info.passage_field not in (title, *texts):
        return info.passage_field
    return texts[0] if title is None and len(texts) == 1 else TEMPORARY


def builder(info: IndexInfo) -> dict[str, Any]:
    """The processor that takes a document's old vector away and makes its passage."""
    title, texts = texts_of(info)
    passage = passage_of(info)
    params = {
        "vector": info.embedding_field,
        "passage": None if passage in texts else passage,
        "title": title,
        "texts": texts,
    }
    return {"script": {"tag": BUILDS, "lang": "painless", "source": _SOURCE.strip(), "params": params}}
