"""The one exception that people see: a sentence that names the thing and says what to do."""


class LabError(ValueError):
    """Bad input or a missing resource. The message is one clear sentence; notebook, app and command line print it as is."""
