"""The slot for whatever makes a data set appear before training: generate, unpack, download."""


class DataPreparation:
    """Makes the data that a config names. Lightning calls it once a machine, before any folder is opened."""

    def prepare(self) -> None:
        """Make the data set, or return at once if it is already there.

        Must be safe to repeat and to be interrupted: write to a temporary folder and rename it when all is done.

        Raises:
            UserError: it cannot be made; the message says what to do.
        """
        raise NotImplementedError
