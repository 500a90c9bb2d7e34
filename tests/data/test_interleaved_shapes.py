"""Pages of the shapes world: texts that are true of their scenes, and words that mean one thing on a page."""

import numpy as np

from vlm_jax.data import interleaved_shapes as pages
from vlm_jax.data import places, shapes


def test_a_page_follows_from_its_number_and_tells_the_truth():
    kinds = set()
    for index in range(40):
        kind, told = pages.chunks("pages", index)
        assert 4 <= len(told) <= 8
        kinds.add(kind)
        if kind == "captions":
            for scene, text in told:
                description = shapes.parse(text.removeprefix("Output: "))
                assert description is not None and shapes.holds(description, scene)
        if kind == "questions":
            assert all(text.startswith("Question: ") and "? Answer: " in text for _, text in told)
    assert kinds == {"captions", "questions", "words"}
    assert pages.chunks("pages", 3) == pages.chunks("pages", 3) != pages.chunks("pages", 4)


def test_a_word_stands_for_one_value_of_one_attribute_and_only_on_its_page():
    meanings = {}
    for seed in range(60):
        told = pages.words(np.random.default_rng(seed), 6, tuple(pages.ATTRIBUTES)[seed % 4], pages.WORDS)
        named = [word for _, word in told]
        facts = [vars(scene.objects[0]) | {"background": scene.background} for scene, _ in told]

        def tells(name, named=named, facts=facts):
            values = {word: {fact[name] for w, fact in zip(named, facts, strict=True) if w == word} for word in named}
            single = all(len(value) == 1 for value in values.values())
            return single and len(set(map(tuple, values.values()))) == len(values)

        fits = [name for name in pages.ATTRIBUTES if tells(name)]
        assert fits and 1 <= len(set(named)) <= 3
        for word, fact in zip(named, facts, strict=True):
            meanings.setdefault(word, set()).add((fits[0], fact[fits[0]]))
    assert meanings.keys() == set(pages.WORDS) and min(map(len, meanings.values())) > 3


def test_a_told_page_says_in_words_what_its_texts_are_about():
    kinds, known = set(), set()
    for index in range(60):
        kind, text = pages.told("told_pages", index)
        kinds.add(kind)
        parts = text.removesuffix(".").split(". ")
        assert pages.told("told_pages", index) == (kind, text)
        pairs = [part.rsplit(" ", 1) for part in parts]
        if "Output: " in text or "Answer: " in text:
            pairs = list(zip(parts[::2], parts[1::2], strict=True))
        assert 4 <= len(pairs) <= (24 if kind in ("lists", "recited") else 12)
        if kind == "captions":
            for description, caption in pairs:
                said, told = (shapes.parse(part.removeprefix("Output: ")) for part in (description, caption))
                assert {(x.shape, x.colour) for x in said.objects} == {(x.shape, x.colour) for x in told.objects}
        if kind in ("lists", "recited"):
            entries = len(dict(pairs))
            assert entries == len(set(map(tuple, pairs))) <= 8
        if kind == "recited":
            assert pairs[entries:] == pairs[:-entries]
        if kind == "words":
            facts = [set(description.split()) for description, _ in pairs]
            named = [text.removeprefix("Output: ") for _, text in pairs]
            known |= set(named)
            # some fact goes with every word, and with no other word of the page
            for word in set(named):
                own = set.intersection(*(f for f, w in zip(facts, named, strict=True) if w == word))
                assert own - set.union(set(), *(f for f, w in zip(facts, named, strict=True) if w != word))
    assert kinds == set(pages.TOLD_SHARES)
    assert known & set(pages.WORDS) and len(known - set(pages.WORDS)) > 10 and not known & set(pages.NEW_WORDS)


def test_long_told_pages_are_such_pages_with_more_scenes():
    texts = [pages.told("long_told_pages", index)[1] for index in range(60)]
    counts = [len(text.removesuffix(".").split(". ")) for text in texts]
    assert 4 <= min(counts) < 24 and 60 < max(counts) <= 144  # a list has two for each scene, each in up to two parts
    assert "Output: " in "".join(texts) and set(texts).isdisjoint(pages.told("told_pages", index)[1] for index in range(60))
    assert pages.told_page("long_told_pages_val", 0)["items"][0]["text"] == pages.told("long_told_pages_val", 0)[1]
    assert set(pages.COUNTS) >= {"long_told_pages", "long_told_pages_val"}


def test_the_vocabulary_is_made_once_where_its_place_says(tmp_path, monkeypatch):
    monkeypatch.setenv("VLM_JAX_CACHE", str(tmp_path))
    file = places.locate("shapes:pages.model", "data.tokenizer.path")
    from vlm_jax.data import text

    tokenizer = text.Tokenizer(file, length=8).load()
    assert 128 < tokenizer.vocab_size <= pages.PIECES
    assert tokenizer.decode(tokenizer.encode("Output: a red circle")) == "Output: a red circle"
    assert len(tokenizer.encode("Output: blicket")) < len(tokenizer.encode(f"Output: {pages.NEW_WORDS[1]}"))
    record = pages.page("pages_val", 0)
    assert pages.told_page("told_pages_val", 0)["items"][0]["text"].startswith(pages.told("told_pages_val", 0)[1])
    assert len(record["items"]) % 2 == 0 and record["items"][0]["image"].startswith(b"\x89PNG")
