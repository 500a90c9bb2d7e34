"""Markup escapes whatever is not markup."""

from vlm_jax.evaluation.markup import Markup, element, escape, join, shortened


def test_text_is_escaped_in_elements_and_in_attributes():
    made = element("a", "<script>", " & ", title="\"'><b", href=None)
    assert made == '<a title="&quot;&#x27;&gt;&lt;b">&lt;script&gt; &amp; </a>'


def test_elements_nest_without_being_escaped_twice():
    assert element("p", element("b", "<"), ["x", element("i"), None]) == "<p><b>&lt;</b>x<i></i></p>"
    assert join("a", [["<"]], 3) == "a&lt;3"


def test_a_formatted_string_is_text_again():
    assert join(f"{element('b', 'x')}") == "&lt;b&gt;x&lt;/b&gt;"


def test_attribute_names_are_written_as_html_has_them():
    assert element("line", class_="x", stroke_width=1) == '<line class="x" stroke-width="1"></line>'
    assert element("img", src="x") == '<img src="x">'


def test_characters_that_break_or_turn_a_page_are_replaced():
    assert escape("a\x00\x1b\ud800\u202e\u2066b\n\tc") == "a\ufffd\ufffd\ufffd\ufffd\ufffdb\n\tc"
    assert escape("日本 é 😀") == "日本 é 😀"


def test_markup_passes_and_long_text_is_shortened():
    assert escape(Markup("<b>")) == "<b>"
    assert shortened("abcdef", 4) == "abc…" and shortened("abcd", 4) == "abcd"
