"""Prompts, byte for byte those of the oracle; examples by similarity; tokens that are the ones of the joined text."""

import json

import numpy as np
import pytest

from vlm_jax.data import text as text_lib
from vlm_jax.errors import InputError
from vlm_jax.evaluation import few_shot_prompts as prompts

TEMPLATES = {
    "caption": ("Output: {answer}", ("answer",)),
    "vqa": ("Question: {question} Answer: {answer}", ("question", "answer")),
    "hatefulmemes": ('is an image with written: "{text}" on it. Is it hateful? Answer: {answer}', ("text", "answer")),
}


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    texts = ["question: what is this? answer: dog", "a red cat", "output: two dogs", "no", "yes", "how many cats? 2"] * 20
    from vlm_jax.data import vocabulary

    file = tmp_path_factory.mktemp("vocabulary") / "tokenizer.model"
    file.write_bytes(vocabulary.train(texts, 60))
    tokenizer = text_lib.Tokenizer(str(file), length=16).load()
    return prompts.Encoder(tokenizer, tokenizer.vocab_size, tokenizer.vocab_size + 1)


def test_strings_are_those_of_the_oracle(oracles):
    cases = [case for case in json.loads((oracles / "fewshot_prompts.json").read_text())["cases"] if case["system"] == "flamingo"]
    assert len(cases) == 5
    for case in cases:
        template, names = TEMPLATES[case["task"]]
        shots = case.get("shots", case.get("text_only_shots"))
        values = [[shot] if isinstance(shot, str) else shot for shot in shots]
        examples = [(i, dict(zip(names, value, strict=True))) for i, value in enumerate(values)]
        asked = {name: case.get("query", "") for name in names if name != "answer"}
        made = prompts.prompt(template, examples, (99, asked), shots=case["k"])
        assert str(made) == case["prompt"]
        assert len(made.images) == case["n_images"] and made.images[-1] == 99


def test_the_most_similar_example_is_last_and_the_oracle_s(oracles):
    oracle = json.loads((oracles / "flamingo_rices.json").read_text())
    support, query = np.array(oracle["features"]), np.array(oracle["query"])
    np.testing.assert_allclose(support @ query, oracle["sims"], atol=1e-12)
    allowed = np.ones(len(support), bool)
    assert prompts.most_similar(query, support, allowed, oracle["k"]) == oracle["selected_prompt_order"]
    allowed[oracle["selected_prompt_order"][-1]] = False
    without = prompts.most_similar(query, support, allowed, oracle["k"])
    assert without[1:] == oracle["selected_prompt_order"][:-1] and without[0] not in oracle["selected_prompt_order"]
    ensembled = oracle["prompt_ensemble"]
    mean = prompts.ensemble(np.array(ensembled["loglik_per_permutation"]))
    np.testing.assert_allclose(mean, ensembled["mean_logprob"], atol=1e-12)
    assert mean.argmax() == ensembled["argmax"]


def test_random_examples_are_allowed_ones_and_none_comes_twice():
    allowed = np.arange(12) % 3 != 0
    drawn = [prompts.at_random(np.random.default_rng(seed), allowed, 5) for seed in range(20)]
    assert all(len(set(one)) == 5 and allowed[one].all() for one in drawn)
    assert len({tuple(one) for one in drawn}) > 15
    for choose in (
        lambda: prompts.at_random(np.random.default_rng(0), allowed, 9),
        lambda: prompts.most_similar(np.ones(2), np.ones((12, 2)), allowed, 9),
    ):
        with pytest.raises(InputError, match="shots 9: only 8 examples"):
            choose()


def test_tokens_are_those_of_each_joined_text_between_special_ones(encoder):
    template, tokenizer = "output: {answer}", encoder.tokenizer
    examples = [(4, {"answer": "a red cat"}), (7, {"answer": "two dogs"})]
    made = prompts.prompt(template, examples, (1, {}), shots=2)
    ids = encoder.prompt(made, 100)
    expected = []
    for text in ("output: a red cat", "output: two dogs"):
        expected += [encoder.image_id, *tokenizer.encode(text), encoder.chunk_end_id]
    assert ids.ids.tolist() == [*expected, encoder.image_id, *tokenizer.encode("output:")]
    assert (ids.images, ids.left_out) == ([4, 7, 1], 0)
    answer = encoder.answer(template, {}, "two dogs")
    assert [*tokenizer.encode("output:"), *answer[:-1]] == tokenizer.encode("output: two dogs") and answer[-1] == encoder.chunk_end_id


def test_without_room_whole_examples_go_from_the_front_and_never_the_query(encoder):
    made = prompts.prompt("output: {answer}", [(i, {"answer": "a red cat"}) for i in range(4)], (9, {}), shots=4)
    whole = encoder.prompt(made, 1000)
    part = encoder.prompt(made, len(whole.ids) - 1)
    assert (part.left_out, part.images) == (1, [1, 2, 3, 9])
    assert part.ids.tolist() == whole.ids.tolist()[-len(part.ids) :]
    with_answer = encoder.prompt(made, len(whole.ids), answer=[5, 5])
    assert with_answer.left_out == 1 and with_answer.ids.tolist()[-2:] == [5, 5]
    with pytest.raises(InputError, match="no room for 'output:'"):
        encoder.prompt(made, 2)


def test_templates_that_ask_for_nothing_are_refused():
    with pytest.raises(InputError, match="must end with"):
        prompts.query("Output: {answer}.", {})
    with pytest.raises(InputError, match="'question' is none of the fields answer"):
        prompts.filled("Question: {question} Answer: {answer}", {"answer": "x"})
