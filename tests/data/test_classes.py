"""Class names and templates, in the forms in which the field keeps them."""

import json

import pytest

from vlm_jax.data import classes
from vlm_jax.errors import InputError


def write(folder, content, name="classes.json") -> str:
    path = folder / name
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return str(path)


def test_our_form_has_synonyms_and_either_mark_of_the_name(tmp_path):
    found = classes.read(write(tmp_path, {"names": ["cat", ["dog", "hound"]], "templates": ["a {}", "{c}!"]}))
    assert found.prompts() == [["a cat", "cat!"], ["a dog", "dog!", "a hound", "hound!"]]
    assert found.titles == ("cat", "dog")
    assert found.indices == {"cat": [0], "dog": [1], "hound": [1]}


def test_equal_names_get_their_index_and_braces_in_names_are_text(tmp_path):
    found = classes.read(write(tmp_path, {"names": ["crane", "crane", "{0.__class__}", "{}", "a\x00b"], "templates": ["see {}"]}))
    assert found.titles[:2] == ("crane (0)", "crane (1)")
    assert found.prompts()[2:] == [["see {0.__class__}"], ["see {}"], ["see a\x00b"]]
    assert classes.read(write(tmp_path, {"names": ["crane"]})).prompts() == [["crane"]]


def test_imagenet_of_open_clip_has_1000_names_and_80_or_7_templates(shared_data):
    path = shared_data / "zeroshot_text" / "imagenet.json"
    found = classes.read(str(path))
    assert (len(found.names), len(found.templates)) == (1000, 80)
    assert found.prompts()[0][0] == "a bad photo of a tench."
    assert len({name for (name,) in found.names}) == 998 and len(set(found.titles)) == 1000
    assert sum(map(len, found.prompts())) == 80_000
    simple = classes.read(f"{path}#classnames::{path}#simple_templates")
    assert simple.names == found.names and len(simple.templates) == 7


def test_every_set_of_clip_benchmark_brings_the_templates_beside_its_names(shared_data):
    names = shared_data / "zeroshot_text" / "en_classnames.json"
    every = json.loads(names.read_text())
    templates = json.loads((shared_data / "zeroshot_text" / "en_zeroshot_classification_templates.json").read_text())
    assert len(every) == 17 and len(templates) == 33
    for entry, listed in every.items():
        found = classes.read(f"{names}#{entry}")
        assert [group[0] for group in found.names] == listed
        assert list(found.templates) == templates.get(entry, ["{}"])
    assert classes.read(f"{names}#mnist").prompts()[3] == ['a photo of the number: "3".']
    others = names.with_name("en_zeroshot_classification_templates.json")
    assert classes.read(f"{names}#mnist::{others}#cifar10").prompts()[3][0] == "a photo of a 3."


def test_templates_alone_join_the_names_that_the_data_bring(shared_data, tmp_path):
    templates = f"{shared_data}/zeroshot_text/en_zeroshot_classification_templates.json#cifar10"
    own = classes.Classes((("cat",), ("dog",)))
    found = classes.read(templates, own)
    assert found.names == own.names and len(found.templates) == 18 and found.prompts()[1][1] == "a blurry photo of a dog."
    names = write(tmp_path, "red\ngreen\n", "names.txt")
    assert classes.read(f"{names}::{templates}", own).prompts()[1][0] == "a photo of a green."
    assert classes.read("", own) is own
    with pytest.raises(InputError, match="only templates, and the data bring no names"):
        classes.read(templates)


def test_names_alone_keep_the_templates_that_the_data_bring(tmp_path):
    own = classes.Classes((("n01",), ("n02",)), ("a photo of {}",))
    assert classes.read(write(tmp_path, "tench\ngoldfish\n", "n.txt"), own).prompts() == [["a photo of tench"], ["a photo of goldfish"]]


def test_the_names_of_the_data_in_another_order_are_refused(tmp_path):
    own = classes.Classes((("cat",), ("dog",)))
    with pytest.raises(InputError, match="in another order than their labels; 'cat' is 0 there"):
        classes.read(write(tmp_path, "dog\ncat\n", "n.txt"), own)


def test_a_folder_of_clip_benchmark_is_read_by_line(tmp_path):
    write(tmp_path, "big cat\n\n  dog  \n\n", classes.NAMES)
    write(tmp_path, "a photo of a {c}.\nthe {c}\n", classes.TEMPLATES)
    with pytest.raises(InputError, match=r"names\[1\]"):
        classes.read(str(tmp_path))
    write(tmp_path, "big cat\r\ndog  \n", classes.NAMES)
    assert classes.read(str(tmp_path)).prompts() == [["a photo of a big cat.", "the big cat"], ["a photo of a dog.", "the dog"]]


def test_prompts_of_each_class_stand_in_place_of_templates(tmp_path):
    prompts = {"dog": ["a dog barks", "four legs"], "cat": ["a cat purrs"], "cow": ["unused"]}
    wanted = [["a cat purrs"], ["a dog barks", "four legs"]]
    names = ["cat", ["hound", "dog"]]
    assert classes.read(write(tmp_path, {"names": names, "prompts": prompts})).prompts() == wanted
    assert classes.read(write(tmp_path, {"names": names, "prompts": wanted})).prompts() == wanted
    own = classes.Classes((("cat",), ("dog",)), ("a {}",))
    assert classes.read(write(tmp_path, {"animals": prompts}, "cupl.json") + "#animals", own).prompts() == wanted
    alone = classes.read(f"{tmp_path}/cupl.json#animals")
    assert alone.titles == ("dog", "cat", "cow") and alone.prompts()[0] == prompts["dog"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not JSON"),
        ("[" * 200_000, "is not JSON"),
        ("[1]", "names must be a list"),
        ({"names": []}, "names must be a list with at least one class"),
        ({"names": ["a", 3]}, r"names\[1\] 3 must be a name"),
        ({"names": ["a", [" "]]}, r"names\[1\]"),
        ({"names": ["a", []]}, r"names\[1\]"),
        ({"names": ["a"], "templates": []}, "templates must be a list"),
        ({"names": ["a"], "templates": ["no place"]}, "'no place' must be a sentence with {}"),
        ({"names": ["a", "b"], "prompts": {"a": ["x"]}}, r"prompts of 'b' are missing \(1 of 2"),
        ({"names": ["a", "b"], "prompts": [["x"]]}, "a list for each of 2 classes"),
        ({"names": ["a"], "prompts": {"a": []}}, "prompts of 'a' must be a list of sentences"),
        ({"cifar10": ["cat"], "mnist": ["0"]}, "a map of 2 entries; name one of them, '.*json#cifar10'"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_malformed_file_is_refused_with_its_form(tmp_path, content, message):
    with pytest.raises(InputError, match=message):
        classes.read(write(tmp_path, content))


def test_what_is_missing_or_given_twice_is_named(tmp_path):
    path = write(tmp_path, {"cifar10": ["cat"], "mnist": ["0"]})
    with pytest.raises(InputError, match="no entry 'cifar01'; did you mean 'cifar10'"):
        classes.read(f"{path}#cifar01")
    with pytest.raises(InputError, match="names are given twice"):
        classes.read(f"{path}#cifar10::{path}#mnist")
    with pytest.raises(InputError, match=r"nowhere\.json' cannot be read \(No such file"):
        classes.read(str(tmp_path / "nowhere.json"))
    with pytest.raises(InputError, match="name a JSON file such as"):
        classes.read("")
    with pytest.raises(InputError, match=r"has no classnames\.txt"):
        classes.read(str(tmp_path))


def test_damaged_templates_beside_names_are_named(tmp_path):
    path = write(tmp_path, {"mnist": ["0", "1"]}, "en_classnames.json")
    write(tmp_path, "[", "en_zeroshot_classification_templates.json")
    with pytest.raises(InputError, match=r"en_zeroshot_classification_templates\.json is not JSON"):
        classes.read(f"{path}#mnist")


def test_bytes_and_giants_are_refused_as_words(tmp_path):
    (tmp_path / "a.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="not text in UTF-8"):
        classes.read(str(tmp_path / "a.json"))
    with open(tmp_path / "b.json", "wb") as file:
        file.truncate(2**40)
    with pytest.raises(InputError, match="1099511627776 bytes, more than"):
        classes.read(str(tmp_path / "b.json"))
