"""Room names match one pattern, in one spelling, or none."""

from unicodedata import is_normalized, normalize

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from starlette_realtime.errors import ConfigurationError
from starlette_realtime.patterns import MAX_NAME, Pattern, Patterns, check_user, encode_user


@pytest.mark.parametrize(
    ("template", "name", "params"),
    [
        ("chat:lobby", "chat:lobby", {}),
        ("chat:{room_id:int}", "chat:42", {"room_id": 42}),
        ("chat:{room_id:int}", "chat:0", {"room_id": 0}),
        ("chat:{room_id:int}", "chat:" + "9" * 18, {"room_id": 10**18 - 1}),
        ("chat:{name}", "chat:a b-c.d_e~f", {"name": "a b-c.d_e~f"}),
        ("chat:{name:str}", "chat:ünïcode 東京 👩‍🚀", {"name": "ünïcode 東京 👩‍🚀"}),
        ("doc/{org}/{page:int}/edit", "doc/acme/7/edit", {"org": "acme", "page": 7}),
        ("dm:{low:int}-{high:int}", "dm:3-14", {"low": 3, "high": 14}),
        ("dm:{low:int}-{rest}", "dm:3-1-4", {"low": 3, "rest": "1-4"}),
        ("seat:{row:int}X{seat:int}", "seat:7X12", {"row": 7, "seat": 12}),
        ("{anything}", "lobby", {"anything": "lobby"}),
        ("a.b:{x}", "a.b:.*", {"x": ".*"}),
        ("{x}s:{y}", "bosss:1", {"x": "boss", "y": "1"}),
    ],
)
def test_a_name_gives_its_parameters_and_they_give_the_name(
    template: str, name: str, params: dict[str, str | int]
) -> None:
    pattern = Pattern(template)
    assert pattern.match(name) == params
    assert pattern.format(**params) == name
    assert list(pattern.params) == list(params)
    assert all(type(value) is pattern.params[key] for key, value in params.items())


@pytest.mark.parametrize(
    ("template", "name"),
    [
        *(
            ("chat:{n:int}", f"chat:{text}")
            for text in ("042", "00", "-1", "+1", "1.0", " 1", "1 ", "", "٤٢", "４２", "²")
        ),
        *(("chat:{n:int}", f"chat:{text}") for text in ("1\n", "9" * 19, "1:2", "0x1", "1_0", "chat:1")),
        *(("chat:{name}", f"chat:{text}") for text in ("", "a:b", "a/b", "a,b", "a?b", "a\n", "\x00", "a\tb", "\x7f")),
        *(
            ("chat:{name}", f"chat:{text}")
            for text in ("\x85", "\u2028", "\u2029", "\u202e", "\u2066", "\u200f", "\ud800")
        ),
        ("chat:{name}", "chat:e\u0301"),  # é in two characters
        ("chat:{name}", "chat:\u212b"),  # the Ångström sign, which NFC writes Å
        ("chat:{name}", "chat:" + "x" * (MAX_NAME - 4)),
        ("chat:{name}", "Chat:x"),
        ("chat:lobby", "chat:lobby\n"),
        ("chat:lobby", "chat:lobby2"),
        ("a.b:{x}", "a-b:c"),
        ("{x}:{y}", "user:42"),
        ("{x}:{y}", "rt:42"),
    ],
)
def test_a_name_in_any_other_form_is_refused(template: str, name: str) -> None:
    pattern = Pattern(template)
    assert pattern.match(name) is None
    patterns = Patterns[int]()
    patterns.add(pattern, 1)
    assert patterns.match(name) is None


def test_the_longest_name_matches() -> None:
    assert Pattern("chat:{name}").match("chat:" + "é" * (MAX_NAME - 5)) is not None


@pytest.mark.parametrize(
    ("template", "why"),
    [
        ("", "1 to 128"),
        ("x" * 129, "1 to 128"),
        ("chat:{id:uuid}", "no converter 'uuid'"),
        ("chat:{id:}", "no converter ''"),
        ("chat:{id:int:int}", "no converter"),
        ("chat:{id}:{id}", "twice"),
        ("chat:{", "braces"),
        ("chat:}", "braces"),
        ("chat:{{id}}", "braces"),
        ("chat:{id", "braces"),
        ("chat:{}", "parameter"),
        ("chat:{1d}", "parameter"),
        ("chat:{ id }", "parameter"),
        ("chat:{class}", "parameter"),
        ("chat:{ä}", "parameter"),
        ("user:{id}", "server's own"),
        ("rt:presence", "server's own"),
        ("a,b", "no `,`"),
        ("a?b", "no `,`"),
        ("a\nb", "control characters"),
        ("a\u202eb", "direction marks"),
        ("cafe\u0301", "NFC"),
        ("{a}{b}", "there must be a `:` or a `/`"),
        ("{a}-{b}", "there must be a `:` or a `/`"),
        ("{a}-{b:int}", "there must be a `:` or a `/`"),
        ("{a:int}{b:int}", "no digit"),
        ("{a:int}{b}", "no digit"),
        ("{a:int}0:{b}", "no digit"),
    ],
)
def test_a_wrong_template_is_refused_with_the_reason(template: str, why: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        Pattern(template)
    assert why in str(caught.value)
    assert repr(template) in str(caught.value)


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"org": "a"},
        {"org": "a", "n": 1, "more": 2},
        {"org": "a", "n": "1"},
        {"org": 1, "n": 1},
        {"org": "a", "n": True},
        {"org": "a", "n": -1},
        {"org": "a", "n": 10**18},
        {"org": "", "n": 1},
        {"org": "a:b", "n": 1},
        {"org": "e\u0301", "n": 1},
        {"org": "a" * 128, "n": 1},
        {"org": "a\x00", "n": 1},
    ],
)
def test_formatting_refuses_what_would_not_match(params: dict[str, str | int]) -> None:
    with pytest.raises(ValueError, match=r"parameters|takes"):
        Pattern("doc:{org}:{n:int}").format(**params)


def test_formatting_says_what_it_takes() -> None:
    for template, takes in (("doc:{org}:{n:int}", "takes org=…, n=…"), ("lobby", "takes no parameters")):
        with pytest.raises(ValueError, match=takes):
            Pattern(template).format(room="a")
    with pytest.raises(ValueError, match=r"'n' of .* takes int"):
        Pattern("doc:{n:int}").format(n=True)


def test_formatting_makes_no_reserved_name() -> None:
    with pytest.raises(ValueError, match="no room name"):
        Pattern("{kind}:{id}").format(kind="user", id="1")


literals = st.text(st.sampled_from("ab:/-01.é"), max_size=4)
fields = st.sampled_from(("str", "int"))


@st.composite
def patterns(draw: st.DrawFn) -> Pattern:
    template = draw(literals)
    for n in range(draw(st.integers(0, 3))):
        template += f"{{p{n}:{draw(fields)}}}" + draw(literals)
    try:
        return Pattern(template)
    except ConfigurationError:
        assume(False)
        raise


texts = st.text(st.sampled_from("ab:/-012.é"), min_size=1, max_size=5) | st.text(min_size=1, max_size=5)


@given(patterns(), st.data())
def test_what_is_formatted_matches_with_the_same_parameters(pattern: Pattern, data: st.DataObject) -> None:
    params: dict[str, str | int] = {
        name: data.draw(texts) if kind is str else data.draw(st.integers(0, 10**18 - 1) | st.integers(0, 12))
        for name, kind in pattern.params.items()
    }
    try:
        name = pattern.format(**params)
    except ValueError:
        # Refused only for a reason: a text that no parameter takes, or a name that breaks the rules.
        name = pattern.template
        for key, value in params.items():
            name = name.replace(f"{{{key}:str}}", str(value)).replace(f"{{{key}:int}}", str(value))
        assert (
            any(isinstance(value, str) and set(value) & set(":/,?") for value in params.values())
            or not is_normalized("NFC", name)
            or not encodable(name)
            or any(not part.isprintable() for part in name)
        )
    else:
        assert pattern.match(name) == params


def encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


@given(patterns(), st.text(st.sampled_from("ab:/-012.é"), max_size=16))
def test_no_two_names_have_the_same_parameters(pattern: Pattern, name: str) -> None:
    params = pattern.match(name)
    if params is not None:
        assert pattern.format(**params) == name


@given(st.text())
def test_no_name_outside_the_rules_ever_matches(name: str) -> None:
    if Pattern("{x}").match(name) is not None:
        assert 0 < len(name) <= MAX_NAME
        assert normalize("NFC", name) == name
        assert encodable(name)
        assert not any(ord(char) < 32 or 127 <= ord(char) < 160 for char in name)
        assert not set(name) & set(":/,?")


def test_an_exact_pattern_wins_and_then_the_first_one() -> None:
    found = Patterns[str]()
    found.add(Pattern("{anything}:{x}"), "first")
    found.add(Pattern("chat:{n:int}"), "number")
    found.add(Pattern("chat:{name}"), "name")
    found.add(Pattern("chat:lobby"), "lobby")
    found.add(Pattern("{word}"), "word")
    found.add(Pattern("news/{x}"), "news")
    assert found.match("chat:lobby") == ("lobby", {})
    assert found.match("chat:1") == ("first", {"anything": "chat", "x": "1"})
    assert found.match("news/1") == ("news", {"x": "1"})
    assert found.match("plain") == ("word", {"word": "plain"})
    assert found.match("news/a/b") is None


def test_among_patterns_with_parameters_the_first_wins() -> None:
    found = Patterns[str]()
    found.add(Pattern("chat:{n:int}"), "number")
    found.add(Pattern("chat:{name}"), "name")
    found.add(Pattern("{a}:{b}"), "any")
    assert found.match("chat:7") == ("number", {"n": 7})
    assert found.match("chat:07") == ("name", {"name": "07"})
    assert found.match("talk:07") == ("any", {"a": "talk", "b": "07"})


def test_a_pattern_that_begins_with_a_parameter_is_found_among_those_added_before_it() -> None:
    found = Patterns[str]()
    found.add(Pattern("chat:{n:int}"), "number")
    found.add(Pattern("{word}:{x}"), "any")
    found.add(Pattern("{a}:{b}:{c}"), "three")
    assert found.match("chat:lobby") == ("any", {"word": "chat", "x": "lobby"})
    assert found.match("chat:1:2") == ("three", {"a": "chat", "b": "1", "c": "2"})


@given(st.lists(patterns(), max_size=6), st.text(st.sampled_from("ab:/-012.é"), max_size=8))
def test_a_lookup_finds_what_asking_each_pattern_finds(declared: list[Pattern], name: str) -> None:
    found = Patterns[Pattern]()
    kept: list[Pattern] = []
    for pattern in declared:
        if pattern.shape in {other.shape for other in kept}:
            with pytest.raises(ConfigurationError, match="same names"):
                found.add(pattern, pattern)
        else:
            found.add(pattern, pattern)
            kept.append(pattern)
    kept.sort(key=lambda pattern: bool(pattern.params))
    wanted = next(((pattern, params) for pattern in kept if (params := pattern.match(name)) is not None), None)
    assert found.match(name) == wanted


@pytest.mark.parametrize(("first", "second"), [("a:b", "a:b"), ("a:{x}", "a:{y:str}"), ("{x:int}", "{y:int}")])
def test_two_patterns_for_the_same_names_are_refused(first: str, second: str) -> None:
    found = Patterns[int]()
    found.add(Pattern(first), 1)
    with pytest.raises(ConfigurationError) as caught:
        found.add(Pattern(second), 2)
    assert first in str(caught.value)
    assert second in str(caught.value)


@pytest.mark.parametrize(
    ("user", "room"),
    [
        ("ada", "user:ada"),
        ("Ada.L_1~-", "user:Ada.L_1~-"),
        ("a b:c/d,e?f%", "user:a%20b%3Ac%2Fd%2Ce%3Ff%25"),
        ("é東", "user:%C3%A9%E6%9D%B1"),
        ("+@!'()*", "user:%2B%40%21%27%28%29%2A"),
    ],
)
def test_a_user_has_a_room(user: str, room: str) -> None:
    assert encode_user(user) == room
    assert Pattern("{a}:{b}").match(room) is None


@pytest.mark.parametrize("user", ["", "x" * 129, "a\x00", "a\n", "e\u0301", "\ud800", "\x9f", "\u202eada"])
def test_what_cannot_be_a_user_is_refused(user: str) -> None:
    with pytest.raises(ValueError, match="cannot be a user"):
        check_user(user)
    with pytest.raises(ValueError, match="cannot be a user"):
        encode_user(user)


def test_the_longest_user_has_a_room_longer_than_a_name() -> None:
    check_user("👩" * 128)
    assert len(encode_user("👩" * 128)) == 5 + 128 * 12


@given(st.text(), st.text())
def test_two_users_never_share_a_room(first: str, second: str) -> None:
    try:
        rooms = {encode_user(first), encode_user(second)}
    except ValueError:
        return
    assert len(rooms) == len({first, second})


def test_a_user_that_is_no_text_is_named_with_what_to_do() -> None:
    with pytest.raises(TypeError, match=r"not 5: str\(…\) makes one"):
        check_user(5)  # type: ignore[arg-type]
