import pytest

from ldis_lightning.evaluation.domains import domain, is_unnamed, normalised

VOC = ["aeroplane", "motorbike", "sofa", "tvmonitor", "diningtable", "pottedplant", "person"]
COCO = ["airplane", "motorcycle", "couch", "tv", "dining table", "potted plant", "person", "kite"]


@pytest.mark.parametrize(
    ("trained_on", "classes", "expected"),
    [
        ({"coco": ["dog", "cat"]}, ["dog", "cat"], "in-domain"),
        ({"coco": ["dog", "cat", "kite"]}, ["cat"], "in-domain"),
        ({"coco": ["dog"]}, ["cat", "kite"], "strict"),
        ({"coco": ["dog"], "vspw": ["Cat"]}, ["dog", "cat", "kite", "bus"], "mixed 2/4"),
        ({"coco": ["Traffic-Light"]}, ["traffic light"], "in-domain"),
        ({}, ["cat"], "strict"),  # weights that were trained on no classes
        (None, ["cat"], "unknown"),
        ({"coco": ["cat"]}, [], "unknown"),
    ],
)
def test_stamp(trained_on: dict[str, list[str]] | None, classes: list[str], expected: str) -> None:
    assert domain(trained_on, "other", classes) == expected


def test_voc_and_coco_name_the_same_things_differently() -> None:
    assert domain({"coco": COCO}, "pascal", VOC) == "in-domain"
    assert domain({"pascal": VOC}, "coco", COCO) == "mixed 7/8"


def test_two_names_of_one_class_count_once() -> None:
    assert domain({"a": ["sofa", "dog"]}, "b", ["sofa", "couch", "cat"]) == "mixed 1/2"


@pytest.mark.parametrize("name", ["class 3", "object_1", "Object 12", "7", "", "label-2", "instance 4", "class"])
def test_names_that_say_nothing(name: str) -> None:
    assert is_unnamed(name)


@pytest.mark.parametrize("name", ["person", "b2 bomber", "classroom", "object detector 3", "7up", "idol"])
def test_names_that_say_something(name: str) -> None:
    assert not is_unnamed(name)


def test_unnamed_classes_are_equal_within_their_data_set() -> None:
    assert domain({"davis": ["object 1", "object 2"]}, "davis", ["object 1"]) == "in-domain"
    assert domain({"davis": ["object 1"]}, "davis", ["object 2"]) == "strict"


def test_unnamed_classes_of_other_data_sets_are_never_taken_for_equal_nor_for_different() -> None:
    assert domain({"coco": ["class 3"]}, "davis", ["class 3"]) == "unknown"
    assert domain({"coco": ["dog"]}, "davis", ["object 1"]) == "unknown"
    assert domain({"davis": ["object 1"]}, "coco", ["dog"]) == "unknown"
    assert domain({"davis": ["object 1"], "coco": ["dog"]}, "coco", ["dog", "cat"]) == "mixed 1/2"


def test_normalised_keeps_letters_of_all_alphabets() -> None:
    assert normalised("Straße, nass") == "strassenass"
    assert normalised("猫") != normalised("犬")
