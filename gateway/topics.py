"""MQTT's rules for topic filters, needed where paho must not be imported."""

from __future__ import annotations


def topic_matches(topic_filter: str, topic: str) -> bool:
    """Whether a subscription receives a topic, by MQTT 5 section 4.7; `$share/<group>/` in front counts as absent."""
    if topic_filter.startswith("$share/"):
        topic_filter = topic_filter.split("/", 2)[-1]
    wanted, given = topic_filter.split("/"), topic.split("/")
    if topic.startswith("$") and wanted[0] in {"+", "#"}:
        return False
    for index, level in enumerate(wanted):
        if level == "#":
            return True
        if index >= len(given) or level not in {"+", given[index]}:
            return False
    return len(wanted) == len(given)
