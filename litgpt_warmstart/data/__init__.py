"""DataModules of this package: ``--data NAME`` finds those named here, and a checkpoint's record may choose them.

One whose tokens are read by block is a :class:`PreparedText` that says ``is_prepared``, ``vocab_size``, ``sha256``,
``tokenizer_json``, ``fingerprint``, ``tokens`` and ``prepare_data`` in its own way, of its ``data_path``.
"""

from litgpt_warmstart.data.prepared_text import PreparedText, SlimPajama6B
from litgpt_warmstart.data.stdlib_text import StdlibText

__all__ = ["PreparedText", "SlimPajama6B", "StdlibText"]
