"""What goes wrong with the public log, in one exception; a fork keeps its evidence."""


class TransparencyError(ValueError):
    """What was given is not what a log says: one sentence with what is wrong and the rule it breaks."""


class Absent(TransparencyError):
    """A file that the log does not have. A `fetch` function raises it: a full tile then stands in for a partial one."""


class Forked(TransparencyError):
    """Two signed checkpoints that contradict each other.

    `held` and `offered` are the two notes, whole, with their signatures. `path` is the consistency path from the
    smaller tree to the larger one, as `merkle.consistency_path` makes it: it leads to the larger root but not to the
    smaller one, which proves the fork to anybody (`view.compare`). It is empty where none is needed (trees of one size)
    or where there is none (a log that offers a smaller tree than it did before).
    """

    def __init__(self, message: str, held: bytes, offered: bytes, path: tuple[bytes, ...] = ()) -> None:
        super().__init__(message)
        self.held, self.offered, self.path = held, offered, path
