"""What a node counts: how requests ended, and nothing else. Numbers go out in steps, so that no single request
shows."""

from pomona.private.roles.between import OUTCOMES

LEAST = 10
"""Requests that have to come together before a number changes."""


class Tallies:
    """Counts by outcome, published in steps."""

    def __init__(self) -> None:
        self._counts = dict.fromkeys(OUTCOMES, 0)

    def add(self, outcome: str) -> None:
        """One more; an outcome that is not on the list counts as `lost`."""
        self._counts[outcome if outcome in self._counts else "lost"] += 1

    def text(self) -> str:
        """For Prometheus: each count rounded down to a multiple of 10."""
        lines = [
            "# HELP pomona_private_requests Requests by how they ended, in steps of 10.",
            "# TYPE pomona_private_requests counter",
        ]
        for outcome, count in self._counts.items():
            lines.append(f'pomona_private_requests_total{{outcome="{outcome}"}} {count // LEAST * LEAST}')
        return "\n".join(lines) + "\n"
