import pytest

from gateway.topics import specificity, topic_matches


@pytest.mark.parametrize(
    ("topic_filter", "topic"),
    [
        ("a/b", "a/b"),
        ("a/+", "a/b"),
        ("+/b", "a/b"),
        ("+/+", "/b"),
        ("+", "a"),
        ("/+", "/b"),
        ("a/+/c", "a//c"),
        ("a/#", "a/b/c"),
        ("a/#", "a"),
        ("a/#", "a/"),
        ("a/+/#", "a/b"),
        ("#", "a/b"),
        ("#", "/"),
        ("$SYS/#", "$SYS/broker/load"),
        ("$share/gateways/a/+", "a/b"),
        ("$share/gateways/#", "a/b"),
        ("edge-ai/+/+/+/camera/snapshots", "edge-ai/bu/site/gw/camera/snapshots"),
    ],
)
def test_matches(topic_filter: str, topic: str) -> None:
    assert topic_matches(topic_filter, topic)


@pytest.mark.parametrize(
    ("topic_filter", "topic"),
    [
        ("a/b", "a/B"),
        ("a/b", "a"),
        ("a", "a/b"),
        ("a", "a/"),
        ("a/+", "a"),
        ("a/+", "a/b/c"),
        ("+", "/b"),
        ("a/#", "ab"),
        ("a/+/#", "a"),
        ("#", "$SYS/broker/load"),
        ("+/broker/load", "$SYS/broker/load"),
        ("$share/gateways/#", "$SYS/broker"),
        ("$share/gateways/a", "gateways/a"),
        ("edge-ai/+/+/camera/snapshots", "edge-ai/bu/site/gw/camera/snapshots"),
    ],
)
def test_does_not_match(topic_filter: str, topic: str) -> None:
    assert not topic_matches(topic_filter, topic)


def test_a_share_makes_no_filter_narrower() -> None:
    assert specificity("$share/gateways/a/+") == specificity("a/+") < specificity("a/b")
