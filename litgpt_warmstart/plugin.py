"""Our commands and scales in a running ``litgpt``.

LitGPT 0.5.13 has no plugin interface. Its console script imports ``litgpt.__main__``, whose table PARSER_DATA makes the
command line and must agree with ``parser_commands()``. When LitGPT changes that, this file is the one to notice.
"""

import sys
from typing import Any


def register(litgpt_main: Any) -> None:
    """Add our commands to LitGPT's table and our scales to its configs. Doing so twice changes nothing.

    LitGPT's own parser lists them and describes them; to run one, our parser takes over, whose errors are one line.
    """
    import litgpt.parser_config

    from litgpt_warmstart.__main__ import main as warmstart_main
    from litgpt_warmstart.commands import COMMANDS
    from litgpt_warmstart.method import scales

    scales.register()
    mend_download()
    litgpt_main.PARSER_DATA.update(COMMANDS)
    known = litgpt.parser_config.parser_commands()
    if missing := [name for name in COMMANDS if name not in known]:

        def parser_commands() -> list[str]:
            return [*known, *missing]

        litgpt.parser_config.parser_commands = litgpt_main.parser_commands = parser_commands
        stock_main = litgpt_main.main

        def main() -> None:
            if sys.argv[1:2] and sys.argv[1].startswith("warmstart"):  # mistyped ones, too
                warmstart_main()
            else:
                stock_main()

        litgpt_main.main = main


def mend_download() -> None:
    """Let ``litgpt download`` run: LitGPT 0.5.13 reads a setting that huggingface_hub 1, which we need, has not."""
    import huggingface_hub.constants

    huggingface_hub.constants.__dict__.setdefault("HF_HUB_ENABLE_HF_TRANSFER", False)
