"""``litgpt-warmstart COMMAND`` and ``python -m litgpt_warmstart COMMAND``: our commands without LitGPT's script."""

import traceback
import warnings


def main() -> None:
    """Parse the command line and run a command."""
    try:
        import torch
        from jsonargparse import CLI, set_parsing_settings

        from litgpt_warmstart.commands import COMMANDS
    except Exception as error:  # of what kind depends on the two versions
        if not any("torchvision" in frame.filename for frame in traceback.extract_tb(error.__traceback__)):
            raise
        raise SystemExit(
            "litgpt-warmstart: error: the installed torchvision was built for another torch, and importing litgpt"
            " crashes on it; nothing here needs it: pip uninstall -y torchvision"
        ) from None
    set_parsing_settings(docstring_parse_attribute_docstrings=True, config_read_mode_urls_enabled=True)
    warnings.filterwarnings("ignore", message=r"The epoch parameter in `scheduler.step\(\)`", category=UserWarning)
    torch.set_float32_matmul_precision("high")
    CLI(COMMANDS, prog="litgpt-warmstart")


if __name__ == "__main__":
    main()
