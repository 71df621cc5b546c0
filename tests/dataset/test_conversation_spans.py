"""What is learned, in characters: against what the template says itself, and against the turns as they were said."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from colossal_llama2.dataset.conversation import Turn
from colossal_llama2.dataset.conversation_markers import Marker, Markers
from colossal_llama2.dataset.conversation_spans import Learn, Located, Locator
from colossal_llama2.dataset.conversation_template import TEMPLATES_DIR, ChatTemplate, ready_templates
from colossal_llama2.errors import InputError

NAMES = ("<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
MARKERS = Markers(tuple(Marker(number, name) for number, name in enumerate(NAMES)), 0, 1)
VARIABLES = {"bos_token": "<s>", "eos_token": "</s>"}
# What the assistant writes in each ready template: blank ahead, content stripped or not, what ends it.
WRITES = {
    "chatml": ("", False, "<|im_end|>"),
    "colossal": ("", True, "</s>"),
    "llama2": (" ", True, " </s>"),
    "llama3": ("", True, "<|eot_id|>"),
    "transcript": (" ", True, "</s>"),
}
# Two of them with the tags in which a template says itself what the assistant writes.
TAGGED = {
    "chatml": "{% for t in messages %}{{ '<|im_start|>' + t.role + '\n' }}{% if t.role == 'assistant' %}"
    "{% generation %}{{ t.content + '<|im_end|>' }}{% endgeneration %}{% else %}{{ t.content + '<|im_end|>' }}"
    "{% endif %}{{ '\n' }}{% endfor %}",
    "llama2": "{% for t in messages %}{% if t.role == 'user' %}"
    "{{ bos_token + '[INST] ' + t.content.strip() + ' [/INST]' }}{% else %}"
    "{% generation %}{{ ' ' + t.content.strip() + ' ' + eos_token }}{% endgeneration %}{% endif %}{% endfor %}",
}
# A busy machine is slow to draw and to run, and that says nothing about the code.
unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
FRAGMENTS = ["a", " ", "\n", "the fox", "你好", "</s>", "<|im_end|>", "[/INST]", "\t", "{{", "😀", "Assistant:", "\x1f"]
texts = st.lists(st.sampled_from(FRAGMENTS), min_size=1, max_size=6).map("".join).filter(lambda text: text.strip())


def template(text: str) -> ChatTemplate:
    return ChatTemplate("test", text, VARIABLES)


def ready(name: str) -> ChatTemplate:
    return template((TEMPLATES_DIR / f"{name}.jinja").read_text(encoding="utf-8"))


@st.composite
def conversations(draw: st.DrawFn, system: bool = True) -> list[Turn]:
    turns = [Turn("system", draw(texts))] if system and draw(st.booleans()) else []
    for _ in range(draw(st.integers(1, 3))):
        turns += [Turn("user", draw(texts)), Turn("assistant", draw(texts))]
    return turns


def learned(located: Located) -> list[str]:
    return [located.text[begin:end] for begin, end in located.learned]


def locate(chat_template: ChatTemplate, turns: Sequence[Turn], learn: Learn = "all") -> Located:
    return Locator(chat_template, MARKERS).locate([turns], learn)[0]


def test_every_ready_template_has_its_expectation() -> None:
    assert sorted(WRITES) == ready_templates()


@pytest.mark.parametrize("name", sorted(WRITES))
@unhurried
@given(turns=conversations())
def test_exactly_the_assistants_turns_and_their_ends_are_learned(name: str, turns: list[Turn]) -> None:
    located = locate(ready(name), turns)
    assert located.refusal is None
    blank, stripped, end = WRITES[name]
    said = [turn.content.strip() if stripped else turn.content for turn in turns if turn.role == "assistant"]
    assert "".join(learned(located)) == "".join(f"{blank}{content}{end}" for content in said)
    shown = [located.text[begin:last] for begin, last in located.contents]
    assert [part.strip() for part in shown] == [turn.content.strip() for turn in turns]
    assert located.unended == 0


@pytest.mark.parametrize("name", sorted(WRITES))
@unhurried
@given(turns=conversations())
def test_of_a_preference_the_last_answer_alone_is_learned(name: str, turns: list[Turn]) -> None:
    blank, stripped, end = WRITES[name]
    content = turns[-1].content.strip() if stripped else turns[-1].content
    located = locate(ready(name), turns, "last")
    assert "".join(learned(located)) == f"{blank}{content}{end}"
    assert located.learned[-1][0] > located.contents[-2][1] - 1
    assert locate(ready(name), turns, "none").learned == ()


@pytest.mark.parametrize("name", sorted(TAGGED))
@unhurried
@given(turns=conversations(system=False))
def test_the_templates_own_tags_say_the_same(name: str, turns: list[Turn]) -> None:
    by_frame, by_tags = locate(ready(name), turns), locate(template(TAGGED[name]), turns)
    assert by_tags == by_frame
    assert len(by_tags.learned) > 0
    assert locate(template(TAGGED[name]), turns, "last") == locate(ready(name), turns, "last")


@pytest.mark.parametrize("name", sorted(WRITES))
@unhurried
@given(turns=conversations())
def test_what_is_learned_begins_where_the_prompt_for_it_ends(name: str, turns: list[Turn]) -> None:
    locator = Locator(ready(name), MARKERS)
    whole = locator.locate([turns])[0]
    asking = locator.locate([turns[:-1]], "none", generation_prompt=True)[0].text
    last = locator.locate([turns], "last")[0]
    assert whole.text.startswith(asking)
    assert last.learned[0][0] == len(asking)


@pytest.mark.parametrize("name", sorted(WRITES))
@pytest.mark.parametrize("system", [True, False])
def test_long_conversations_are_learned_as_short_ones(name: str, system: bool) -> None:
    head = [Turn("system", "s")] if system else []
    turns = [*head, *(Turn(("user", "assistant")[number % 2], str(number)) for number in range(60))]
    blank, _, end = WRITES[name]
    located = locate(ready(name), turns)
    assert "".join(learned(located)) == "".join(f"{blank}{number}{end}" for number in range(1, 60, 2))


literals = st.lists(st.sampled_from(["U:", "\n", " ", "<s>", "'", "{", "<|im_start|>", "x"]), max_size=3).map("".join)
blanks = st.sampled_from(["", " ", "\n", " \n"])


@unhurried
@given(data=st.data(), turns=conversations())
def test_exactly_the_assistants_turns_are_learned_in_templates_made_at_random(
    data: st.DataObject, turns: list[Turn]
) -> None:
    begins = {role: data.draw(literals, role) for role in ("system", "user", "assistant")}
    ends = {role: data.draw(literals, role) for role in ("system", "user")}
    ahead, behind, tail = data.draw(blanks), data.draw(blanks), data.draw(literals)
    method = data.draw(st.sampled_from(["", ".strip()", ".lstrip()", ".rstrip()", " | trim"]))
    text = (
        f"{{% set begins = {begins!r} %}}{{% set ends = {ends!r} %}}{{% for t in messages %}}"
        f"{{{{ begins[t.role] }}}}{{% if t.role == 'assistant' %}}{{{{ {ahead!r} + (t.content{method}) + "
        f"{behind + '</s>' + tail!r} }}}}{{% else %}}{{{{ t.content{method} }}}}{{{{ ends[t.role] }}}}{{% endif %}}"
        f"{{% endfor %}}{{% if add_generation_prompt %}}{{{{ begins['assistant'] }}}}{{% endif %}}"
    )

    def shown(content: str) -> str:
        if not method:
            return content
        return content.lstrip() if "lstrip" in method else content.rstrip() if "rstrip" in method else content.strip()

    located = locate(template(text), turns)
    assert located.refusal is None
    expected, mine = "", []
    for turn in turns:
        expected += begins[turn.role]
        if turn.role != "assistant":
            expected += shown(turn.content) + ends[turn.role]
            continue
        written = f"{ahead}{shown(turn.content)}{behind}</s>"
        mine.append((len(expected), len(expected) + len(written)))
        expected += written + tail
    assert located.text == expected
    assert located.learned == tuple(mine)


# A template that shows earlier answers without their thoughts, as several reasoning models do.
THINKING = (
    "{% for t in messages %}{{ '<|im_start|>' + t.role + '\n' }}"
    "{% if t.role == 'assistant' and not loop.last %}{{ t.content.split('</think>')[-1].lstrip('\n') }}"
    "{% else %}{{ t.content }}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}"
)


def test_earlier_turns_that_the_template_shortens_are_followed() -> None:
    turns = [
        Turn("user", "q"),
        Turn("assistant", "<think>x</think>\n\nfirst"),
        Turn("user", "r"),
        Turn("assistant", "<think>y</think>second"),
    ]
    located = locate(template(THINKING), turns)
    assert learned(located) == ["first<|im_end|>", "<think>y</think>second<|im_end|>"]


# One that moves the thoughts of the last answer into a block of its own.
MOVING = (
    "{% for t in messages %}{{ '<|im_start|>' + t.role + '\n' }}{% if t.role == 'assistant' %}"
    "OPEN{% set thought = t.content.split('</think>')[0] if '</think>' in t.content else '' %}"
    "{{ '[' + thought + '|' + t.content.split('</think>')[-1] + ']<|im_end|>' }}CLOSE"
    "{% else %}{{ t.content + '<|im_end|>' }}{% endif %}{{ '\n' }}{% endfor %}"
)


def test_a_template_that_takes_an_answer_apart_needs_tags() -> None:
    turns = [Turn("user", "q"), Turn("assistant", "why</think>because")]
    plain = MOVING.replace("OPEN", "").replace("CLOSE", "").replace("]<|im_end|>", "<|im_end|>")
    refusal = locate(template(plain), turns).refusal
    assert refusal is not None
    assert "rewrites turn 2" in refusal
    tagged = MOVING.replace("OPEN", "{% generation %}").replace("CLOSE", "{% endgeneration %}")
    located = locate(template(tagged), turns)
    assert learned(located) == ["[why|because]<|im_end|>"]
    begin, end = located.contents[1]
    assert "why|because" in located.text[begin:end]


def test_a_template_that_changes_what_is_said_is_followed_where_it_stays_in_one_place() -> None:
    upper = "{% for t in messages %}{{ '<s>' + t.content | trim | replace('f', '0') + '</s>' }}{% endfor %}"
    located = locate(template(upper), [Turn("user", "foo"), Turn("assistant", " if ")])
    assert learned(located) == ["i0</s>"]


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("{{ '<s>' + (t.content if t.role != 'system' else '') + '</s>' }}", "leaves out turn 1"),
        ("{{ '<s>' + t.content + t.content + '</s>' }}", "cannot be used"),
        ("{{ raise_exception('no system') if t.role == 'system' }}{{ t.content + '</s>' }}", "no system"),
        ("{{ t.content.nothing.at.all if t.role == 'system' }}{{ t.content + '</s>' }}", "refuses it"),
        ("{{ (t.content + 1) if t.role == 'system' }}{{ t.content + '</s>' }}", "fails on it (TypeError"),
    ],
)
def test_what_cannot_be_followed_is_refused_with_its_reason(body: str, reason: str) -> None:
    turns = [Turn("system", "rules"), Turn("user", "q"), Turn("assistant", "a")]
    text = "{% for t in messages %}" + body + "{% endfor %}"
    try:
        refusal = locate(template(text), turns).refusal or ""
    except InputError as error:
        refusal = str(error)
    assert reason in refusal


def test_a_template_that_never_ends_a_turn_is_refused() -> None:
    text = "{% for t in messages %}{{ t.role + ': ' + t.content + '<|nothing|>' }}{% endfor %}"
    with pytest.raises(InputError, match=re.escape("<|nothing|>") + r".*no token.*learn to stop"):
        Locator(template(text), MARKERS)
    begins = "{% for t in messages %}{{ t.content + bos_token }}{% endfor %}"
    with pytest.raises(InputError, match="learn to stop"):
        Locator(template(begins), MARKERS)
    with pytest.raises(InputError, match=r"cannot be used.*undefined"):
        Locator(template("{{ pad_token + 'x' }}"), MARKERS)


def test_turns_in_the_middle_without_an_end_token_are_learned_alone_and_counted() -> None:
    text = (
        "{% for t in messages %}{{ '\n\n' + t.role + ': ' + t.content }}"
        "{% if loop.last and t.role == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    )
    turns = [Turn("user", "a"), Turn("assistant", "b"), Turn("user", "c"), Turn("assistant", "d")]
    located = locate(template(text), turns)
    assert learned(located) == ["b", "d</s>"]
    assert located.unended == 1


def test_another_marker_behind_a_turn_is_not_its_end() -> None:
    text = (
        "{% for t in messages %}{{ ('<|im_start|>' if t.role == 'user' else '<|im_end|>') + t.content }}{% endfor %}"
        "{{ eos_token }}"
    )
    turns = [Turn("user", "a"), Turn("assistant", "b"), Turn("user", "c"), Turn("assistant", "d")]
    located = locate(template(text), turns)
    assert learned(located) == ["b", "d</s>"]


def test_tags_around_what_the_user_says_are_refused() -> None:
    text = "{% for t in messages %}{% generation %}{{ t.content }}</s>{% endgeneration %}{% endfor %}"
    refusal = locate(template(text), [Turn("user", "q"), Turn("assistant", "a")]).refusal
    assert refusal == "the chat template's generation tags do not fit turn 1"


def test_the_ready_templates_are_found_beside_the_code() -> None:
    assert Path(TEMPLATES_DIR).is_dir()
    assert len(ready_templates()) >= 4
