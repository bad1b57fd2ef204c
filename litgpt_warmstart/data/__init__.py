"""DataModules of this package; ``--data NAME`` finds them once this is imported."""

from litgpt_warmstart.data.prepared_text import PreparedText, SlimPajama6B
from litgpt_warmstart.data.stdlib_text import StdlibText

__all__ = ["PreparedText", "SlimPajama6B", "StdlibText"]
