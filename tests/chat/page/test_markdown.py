"""Markdown on the page: what it looks like, that nothing in it runs, and that a growing text ends as a whole one."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

Render = Callable[..., Any]

# Writes each text in the given pieces and returns the HTML that stands on the page after the last one.
_RENDER = """
({ MarkdownView }, texts) => texts.map((pieces) => {
  const root = document.createElement("div");
  const view = new MarkdownView(root);
  let text = "";
  for (const piece of pieces) view.update((text += piece));
  return root.innerHTML;
})
"""


@pytest.fixture(scope="module")
def render(modules: Callable[..., Any]) -> Render:
    def render_pieces(*texts: list[str]) -> list[str]:
        return list(modules(_RENDER, "markdown_view.js", list(texts)))

    return render_pieces


def _plain(html: str) -> str:
    """Leave out of the HTML what every link, table and code block has."""
    html = re.sub(r' (?:rel|target|tabindex|role|aria-label|type|data-action)="[^"]*"', "", html)
    return re.sub(r'<button class="copy-code">Copy</button>', "", html)


@pytest.mark.parametrize(
    ("text", "html"),
    [
        ("One\ntwo\n\nthree", "<p>One<br>two</p><p>three</p>"),
        ("a  \nb\\\nc", "<p>a<br>b<br>c</p>"),
        ("# Title #\n## C#", '<h3 class="level-1">Title</h3><h4 class="level-2">C#</h4>'),
        ("**b** *i* ***bi*** ~~d~~", "<p><strong>b</strong> <em>i</em> <em><strong>bi</strong></em> <del>d</del></p>"),
        ("**“你好”**世界", "<p><strong>“你好”</strong>世界</p>"),
        ("snake_case_name 2 * 3 * 4 ____", "<p>snake_case_name 2 * 3 * 4 ____</p>"),
        ("**open *and", "<p>**open *and</p>"),
        ("`a < b` ``x`y`` `open", "<p><code>a &lt; b</code> <code>x`y</code> `open</p>"),
        ("- a\n  - b\n    - c\n- d", "<ul><li>a<ul><li>b<ul><li>c</li></ul></li></ul></li><li>d</li></ul>"),
        ("3. a\n4. b\n  - c", '<ol start="3"><li>a</li><li>b<ul><li>c</li></ul></li></ol>'),
        ("- a\n\n- b", "<ul><li><p>a</p></li><li><p>b</p></li></ul>"),
        ("- [x] done\n- [ ] open", "<ul><li>☑ done</li><li>☐ open</li></ul>"),
        ("It was in\n1984. So", "<p>It was in<br>1984. So</p>"),
        ("> a\n> > b", "<blockquote><p>a</p><blockquote><p>b</p></blockquote></blockquote>"),
        ("a\n---\nb", "<p>a</p><hr><p>b</p>"),
        ("&lt;b&gt; &amp; &#65;", "<p>&lt;b&gt; &amp; A</p>"),
        ("\\*no\\* \\(x\\)", "<p>*no* \\(x\\)</p>"),
        ('[a](https://x.org/b_(c) "t")', '<p><a href="https://x.org/b_(c)" title="t">a</a></p>'),
        ("see https://x.org/a_b, ok", '<p>see <a href="https://x.org/a_b">https://x.org/a_b</a>, ok</p>'),
        ("![cat](https://x.org/c.png)", '<p><a href="https://x.org/c.png">cat</a></p>'),
        ("<me@x.org>", '<p><a href="mailto:me@x.org">me@x.org</a></p>'),
        (
            "|a|b|\n|:-:|-:|\n|1|2 \\| 3|",
            '<div class="table"><table><thead><tr><th class="centre">a</th><th class="right">b</th></tr></thead>'
            '<tbody><tr><td class="centre">1</td><td class="right">2 | 3</td></tr></tbody></table></div>',
        ),
        (
            "```python\na\n\n\tb\n```\nc",
            '<figure class="codeblock" data-language="python"><figcaption><span class="code-language">python</span>'
            "</figcaption><pre><code>a\n\n\tb</code></pre></figure><p>c</p>",
        ),
    ],
)
def test_what_markdown_becomes(render: Render, text: str, html: str) -> None:
    assert _plain(render([text])[0]) == html


def test_code_that_is_still_open_is_code_already(render: Render) -> None:
    [html] = render(["1. Run\n   ```sh\n   ls *a* <b>"])
    assert "<pre" in html
    assert "ls *a* &lt;b&gt;</code>" in html


_HOSTILE = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "<svg/onload=alert(1)>",
    "<iframe srcdoc='<script>alert(1)</script>'>",
    "[x](javascript:alert(1))",
    "[x](JaVaScRiPt:alert(1))",
    "[x](java\tscript:alert(1))",
    "[x](&#106;avascript:alert(1))",
    "[x](&#x6A;avascript&#58;alert(1))",
    "[x](<java\u0000script:alert(1)>)",
    "[x](\u0001javascript:alert(1))",
    "[x](  javascript:alert(1)  )",
    "[x](//evil.example/a)",
    "[x](/v1/models)",
    "[x](vbscript:msgbox(1))",
    "[x](data:text/html,<script>alert(1)</script>)",
    "[x](data:text/html;base64,PHNjcmlwdD4=)",
    "[x](blob:https://x.org/1)",
    "[x](file:///etc/passwd)",
    "![x](javascript:alert(1))",
    '![x](x" onerror="alert(1))',
    "<javascript:alert(1)>",
    '[x](https://x.org/" onclick="alert(1))',
    '```js" onclick="alert(1)\n<script>\n```',
    "``` <img src=x onerror=alert(1)>\nx\n```",
    "| <script> |\n|---|\n| <img src=x onerror=alert(1)> |",
    "<a href='javascript:alert(1)'>x</a>",
    "<style>*{display:none}</style>",
    "[<img src=x onerror=alert(1)>](https://x.org/<script>)",
]

# Renders the texts into the document, tries every link and returns what there is that no answer may have.
_FORBIDDEN = """
async ({ MarkdownView }, texts) => {
  const allowed = new Set(("a blockquote br button code del div em figcaption figure h3 h4 h5 h6 hr li ol p pre span " +
    "strong table tbody td th thead tr ul").split(" "));
  const names = new Set(["aria-label", "class", "data-action", "data-language", "href", "rel", "role", "start",
    "tabindex", "target", "title", "type"]);
  const found = [];
  window.alert = (what) => found.push(`alert(${what})`);
  for (const text of texts) {
    const root = document.createElement("div");
    document.body.append(root);
    new MarkdownView(root).update(text);
    for (const node of root.querySelectorAll("*")) {
      if (!allowed.has(node.localName)) found.push(`<${node.localName}> of ${text}`);
      for (const { name } of node.attributes) if (!names.has(name)) found.push(`${name} of ${text}`);
      if (node.localName !== "a") continue;
      if (!["http:", "https:", "mailto:"].includes(node.protocol)) found.push(`${node.protocol} of ${text}`);
      if (node.rel !== "noopener noreferrer") found.push(`rel of ${text}`);
      if (node.host === location.host) found.push(`a link to the server in ${text}`);
    }
    root.remove();
  }
  await new Promise((resolve) => setTimeout(resolve, 0));
  return found;
}
"""


def test_nothing_in_an_answer_runs(modules: Callable[..., Any]) -> None:
    wrapped = [form.format(text) for text in _HOSTILE for form in ("{}", "- {}", "> **{}**", "a `{}`", "a\n{}\n\nb")]
    assert modules(_FORBIDDEN, "markdown_view.js", wrapped) == []


def test_a_script_stays_the_text_it_is(render: Render) -> None:
    assert render(["<script>alert(1)</script>"]) == ["<p>&lt;script&gt;alert(1)&lt;/script&gt;</p>"]


_SIGNS = [
    "*",
    "**",
    "_",
    "~~",
    "`",
    "```",
    "~~~",
    "#",
    "> ",
    "- ",
    "1. ",
    "|",
    "|-|\n",
    "---",
    "[",
    "](",
    ")",
    "![",
    "<",
]
_HIDING = [
    ">",
    "\\",
    "&amp;",
    "&#x6A;",
    "  ",
    "\t",
    "\n",
    "\n\n",
    "    ",
    "javascript:",
    "https://x.org/",
    "data:",
    "\r\n",
]
_WORDS = [
    "<script>",
    "</script>",
    "<img src=x onerror=alert(1)>",
    '"',
    "'",
    "a",
    "word",
    "你好",
    "😀",
    "\x00",
    "\u202e",
]
_MARKS = st.sampled_from([*_SIGNS, *_HIDING, *_WORDS])
_TEXTS = st.lists(_MARKS, max_size=40)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts=st.lists(_TEXTS.map("".join), min_size=1, max_size=10))
def test_no_mixture_of_marks_brings_anything_that_could_run(modules: Callable[..., Any], texts: list[str]) -> None:
    assert modules(_FORBIDDEN, "markdown_view.js", texts) == []


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(pieces=_TEXTS)
def test_a_text_that_grows_ends_as_the_whole_text(render: Render, pieces: list[str]) -> None:
    by_character = list("".join(pieces))
    grown, by_characters, whole = render(pieces, by_character, ["".join(pieces)])
    assert grown == whole
    assert by_characters == whole


_LETTERS = st.lists(
    st.sampled_from(
        ["*", "**", "_", "~~", "`", "```", "#", "> ", "- ", "|", "---", "[", "](", "\n", "\n\n", " ", "    "]
    )
    | st.text("abc你", min_size=1, max_size=3),
    max_size=30,
).map("".join)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=_LETTERS)
def test_no_letter_is_lost(render: Render, text: str) -> None:
    [html] = render([text])
    html = html.replace('<button type="button" class="copy-code" data-action="copy-code">Copy</button>', "")
    shown = re.sub(r"<[^>]*>", "", html.replace(">text</span>", "></span>"))
    assert re.sub(r"[^abc你]", "", shown) == re.sub(r"[^abc你]", "", text)


_SETTLED = """
({ MarkdownView }, [paragraphs, size]) => {
  const text = paragraphs.join("\\n\\n");
  const root = document.createElement("div");
  const view = new MarkdownView(root);
  const seen = new Set();
  let replaced = 0;
  for (let end = 0; end < text.length + size; end += size) {
    view.update(text.slice(0, end));
    const now = new Set(root.children);
    for (const node of seen) if (!now.has(node)) replaced += 1;
    for (const node of now) seen.add(node);
  }
  return { replaced, shown: root.children.length };
}
"""


def test_what_is_settled_is_never_made_again(modules: Callable[..., Any]) -> None:
    paragraphs = [f"Paragraph {number} with **some** words." for number in range(300)]
    assert modules(_SETTLED, "markdown_view.js", [paragraphs, 7]) == {"replaced": 0, "shown": 300}


_UNITS = ["a", "*a ", "**a *b ", "_a ", "[", "[](", "](", "![a](", "`a``b", "> ", "- ", "<", "&", "~~a", "https://"]
_OTHER_UNITS = [
    " ",
    "*",
    "`",
    "1. ",
    "|",
    "|a",
    "#",
    "\t",
    "\\",
    "(",
    "a b ",
    "😀",
    "a *",
    "- a\n",
    "  - a\n",
    "> a\n",
    "a|\n",
    "|-|\n",
    "```\n",
]


@pytest.mark.parametrize("unit", [*_UNITS, *(pytest.param(unit, marks=pytest.mark.long) for unit in _OTHER_UNITS)])
def test_a_hundred_kilobytes_without_a_break_are_shown(render: Render, unit: str) -> None:
    # A quadratic loop would take minutes here, and nesting without bounds would end the stack.
    text = unit * (100_000 // len(unit))
    [html] = render([text, "\n\nend"])
    assert html.endswith(("end</p>", "end</code></pre></figure>"))
