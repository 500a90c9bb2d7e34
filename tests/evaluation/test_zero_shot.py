"""Zero-shot classification of a tiny model: numbers, examples, and what is refused."""

import numpy as np
import pytest

from vlm_jax.data import records, sources
from vlm_jax.errors import InputError
from vlm_jax.evaluation import base, zero_shot

from .conftest import NAMES, example, png


@pytest.fixture(scope="module")
def result(make_subject, data, classes) -> base.Result:
    return zero_shot.ZeroShot(data=data, classes=classes, note="Said beside.")(make_subject())


def write(folder, examples) -> str:
    return "::".join(records.write(str(folder / "some"), examples, 1))


def test_the_numbers_are_those_of_a_plain_computation(result, make_subject, data):
    subject = make_subject()
    unit = lambda x: x / np.linalg.norm(x, axis=-1, keepdims=True)  # noqa: E731
    prompts = [[f"a photo of a {name}", f"picture of {name}", name] for name in NAMES]
    weights = np.stack([unit(unit(subject.embed_texts(group)).mean(0)) for group in prompts])
    examples = sorted((example(i) for i in range(27)), key=lambda e: (int(e["key"][1:]) % 2, int(e["key"][1:])))
    images = subject.embed_images([subject.transform(e["image"]) for e in examples])
    labels = np.array([e["label"] for e in examples])
    scores = images @ weights.T
    predicted = scores.argmax(1)
    assert result.metrics["acc1"] == pytest.approx((predicted == labels).mean(), abs=1e-6)
    recalls = [(predicted[labels == c] == c).mean() for c in range(7)]
    assert result.metrics["mean_per_class_recall"] == pytest.approx(np.mean(recalls), abs=1e-6)
    top5 = [label in np.argsort(-row)[:5] for label, row in zip(labels, scores, strict=True)]
    assert result.metrics["acc5"] == pytest.approx(np.mean(top5), abs=1e-6)
    assert 1 / 7 < result.metrics["acc1"] < 1, "a useful test has hits and misses"


def test_chance_and_the_note_stand_beside_the_numbers(result):
    assert result.chance == {"acc1": 1 / 7, "mean_per_class_recall": 1 / 7, "acc5": 5 / 7}
    assert result.note == "27 images, 7 classes (7 of them occur), 21 prompts. Said beside."


def test_every_number_has_its_interval_and_what_is_reached_blind(result):
    assert result.metrics.keys() == result.chance.keys() == result.intervals.keys() == result.blind.keys()
    for name, (low, high) in result.intervals.items():
        assert low < result.metrics[name] < high
    assert result.blind == {"acc1": 4 / 27, "mean_per_class_recall": 1 / 7, "acc5": 20 / 27}


def test_confused_pairs_are_shown_with_images_of_both_classes(result):
    counts = result.tables["confusion"].values.copy()
    np.fill_diagonal(counts, 0)
    true, predicted = np.unravel_index(counts.argmax(), counts.shape)
    first = next(e for e in result.examples if e.group == "most confused pairs")
    most, of = counts.max(), result.tables["confusion"].values[true].sum()
    assert first.query.text == f"{NAMES[true]} taken for {NAMES[predicted]}: {most} of {of}"
    assert {(a.text, a.verdict) for a in first.answers} == {(NAMES[true], "wrong"), (NAMES[predicted], "right")}
    assert all(a.image for a in first.answers)


def test_figures_are_the_cosines_the_calibration_with_the_scale_of_the_model_and_a_map_by_class(result):
    assert result.figures["similarities"].counts["matching pairs"].sum() == 27
    assert result.figures["calibration"].scale == pytest.approx(20)
    assert result.figures["calibration"].counts.sum() == 27
    drawn = result.figures["embedding_map"]
    assert set(drawn.groups) == set(NAMES)
    wrong = sum(", taken for " in title for title in drawn.titles)
    assert wrong == round(27 * (1 - result.metrics["acc1"])) > 0


def test_without_inner_norm_long_prompts_weigh_more(make_subject, data, classes, result):
    subject = make_subject()
    found = zero_shot.ZeroShot(data=data, classes=classes, inner_norm="none", examples=0)(subject)
    assert not found.examples
    prompts = [[f"a photo of a {name}", f"picture of {name}", name] for name in NAMES]
    weights = np.stack([subject.embed_texts(group, method="project_text").mean(0) for group in prompts])
    weights /= np.linalg.norm(weights, axis=1, keepdims=True)
    cosines = found.figures["similarities"]
    assert cosines.edges[-1] >= (subject.embed_records(sources.open_source(data), 27) @ weights.T).max()
    assert cosines.counts["matching pairs"].tolist() != result.figures["similarities"].counts["matching pairs"].tolist()


def test_the_confusion_matrix_counts_every_image(result):
    table = result.tables["confusion"]
    assert table.rows == table.columns == tuple(NAMES)
    assert table.values.sum() == 27
    assert np.trace(table.values) == pytest.approx(27 * result.metrics["acc1"])


def test_examples_are_hits_and_misses_with_image_and_truth(result):
    groups = {e.group for e in result.examples}
    assert groups == {"hits", "misses", "most confused pairs"}
    for shown in (e for e in result.examples if e.group in ("hits", "misses")):
        assert shown.query.image.startswith(b"\xff\xd8\xff")
        assert shown.expected.text in NAMES and len(shown.answers) == 5
        assert (shown.answers[0].text == shown.expected.text) == (shown.group == "hits")
        assert [a.verdict for a in shown.answers].count("right") == (
            shown.expected.text in [a.text for a in shown.answers]
        )


@pytest.mark.parametrize(("devices", "batch_size"), [(1, 27), (8, 8), (8, 64)])
def test_devices_and_batch_size_change_no_number(result, make_subject, data, classes, devices, batch_size):
    other = zero_shot.ZeroShot(data=data, classes=classes)(make_subject(devices, batch_size))
    assert other.metrics == result.metrics


def test_the_second_evaluation_compiles_nothing(make_subject, data, classes):
    subject = make_subject(8)
    evaluate = zero_shot.ZeroShot(data=data, classes=classes)
    evaluate(subject)
    compiled = subject.compiled.compilations
    evaluate(subject)
    assert subject.compiled.compilations == compiled == 2


def test_names_serve_as_labels_as_well_as_indices(result, make_subject, data, classes):
    assert zero_shot.ZeroShot(data=data, classes=classes, label="name")(make_subject()).metrics == result.metrics


def test_the_limit_takes_the_first_records(make_subject, data, classes):
    limited = zero_shot.ZeroShot(data=data, classes=classes, limit=5)(make_subject())
    assert limited.tables["confusion"].values.sum() == 5
    with pytest.raises(InputError, match="limit -1"):
        zero_shot.ZeroShot(data=data, classes=classes, limit=-1)(make_subject())


def test_a_missing_file_is_refused_by_name(make_subject, data, classes, tmp_path):
    with pytest.raises(InputError, match=r"nowhere\.json' cannot be read"):
        zero_shot.ZeroShot(data=data, classes=str(tmp_path / "nowhere.json"))(make_subject())
    with pytest.raises(InputError, match="the data bring no class names; name a JSON file"):
        zero_shot.ZeroShot(data=data)(make_subject())
    with pytest.raises(InputError, match=r"nowhere\.array_record.*does not exist"):
        zero_shot.ZeroShot(data=str(tmp_path / "nowhere.array_record"), classes=classes)(make_subject())


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ({"label": 7}, "label 7 of record 'bad' .*has 7 classes, so labels are 0 to 6"),
        ({"label": -1}, "label -1 of record 'bad'"),
        ({"label": True}, "label True of record 'bad' .*an index or the name"),
        ({"label": 1.0}, "label 1.0 of record 'bad'"),
        ({"label": "pink"}, "label 'pink' of record 'bad' .*is none of the names"),
        ({}, "record 'bad' .*has no such field, it has .*captions"),
    ],
)
def test_a_label_that_is_no_class_is_refused_before_anything_is_embedded(
    make_subject, classes, tmp_path, field, message
):
    bad = {"key": "bad", "image": png(np.zeros((8, 8, 3))), "captions": []} | field
    subject = make_subject()
    with pytest.raises(InputError, match=message):
        zero_shot.ZeroShot(data=write(tmp_path, [example(0), bad]), classes=classes)(subject)
    assert subject.compiled.compilations == 0
